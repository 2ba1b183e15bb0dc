from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from workers.redis_url import RedisAddress


def test_results_lie_in_the_database_after_the_brokers() -> None:
    address = RedisAddress.parse("redis://host:6380/3")
    assert address.broker_url == "redis://host:6380/3"
    assert address.result_url == "redis://host:6380/4"


def test_without_a_database_the_first_two_are_used() -> None:
    address = RedisAddress.parse("redis://host")
    assert (address.broker_url, address.result_url) == ("redis://host/0", "redis://host/1")


def test_tls_checks_certificates_unless_told_otherwise() -> None:
    assert "ssl_cert_reqs=required" in RedisAddress.parse("rediss://host").broker_url
    assert "ssl_cert_reqs=none" in RedisAddress.parse("rediss://host?ssl_cert_reqs=none").broker_url


def test_every_sentinel_gets_the_database_and_the_group_name_goes_to_the_options() -> None:
    address = RedisAddress.parse("sentinel://:pw@a:1;sentinel://b:2/4?master_name=photos")
    assert address.broker_url == "sentinel://:pw@a:1/4;sentinel://b:2/4"
    assert address.result_url == "sentinel://:pw@a:1/5;sentinel://b:2/5"
    assert address.transport_options["master_name"] == "photos"
    assert RedisAddress.parse("redis://a").transport_options == {}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:6379",
        "amqp://host",
        "redis://",
        "redis://a;redis://b",
        "redis://a/x",
        "redis://a:port",
        "redis://a:0",
        "redis://a:70000",
        "redis://[::1",
        "redis://a?db=x",
        "unix://",
        "unix:///",
        "unix://host/socket",
        "unix:///a;unix:///b",
        "redis+socket:///a?virtual_host=-1",
        "sentinel://a;redis://b",
        "redis://a/1234567",
    ],
)
def test_other_addresses_are_refused_with_an_example(url: str) -> None:
    with pytest.raises(ConfigError, match="VANTAGE_REDIS_URL"):
        RedisAddress.parse(url)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=5))
def test_a_password_is_never_shown(password: str) -> None:
    secret = quote(f"{password}\N{BULLET}secret", safe="")
    url = f"redis://user:{secret}@host:1/2"
    address = RedisAddress.parse(url)
    for text in (str(address), repr(address)):
        assert secret not in text
    assert "host:1" in str(address)
    assert secret in address.passwords


@pytest.mark.parametrize(
    "url",
    ["unix://me:p%40ss@/run/a%20b/s?db=3", "redis+socket://me:p%40ss@/run/a%20b/s?virtual_host=3"],
)
def test_a_unix_socket_has_the_forms_of_all_three_libraries(url: str) -> None:
    address = RedisAddress.parse(url)
    assert address.broker_url == "redis+socket://me:p%40ss@/run/a%20b/s?virtual_host=3"
    assert address.result_url == "redis+socket://me:p%40ss@/run/a%20b/s?virtual_host=4"
    assert RedisAddress.parse(address.our_url()) == address
    assert str(address) == "unix://***@/run/a%20b/s?db=3"
    with address.client() as client:
        wanted = client.connection_pool.connection_kwargs
    assert (wanted["path"], wanted["db"]) == ("/run/a b/s", 4)
    assert (wanted["username"], wanted["password"]) == ("me", "p@ss")
    made = RedisAddress.of_socket("/run/a b/s", "me", "p@ss")
    assert made == RedisAddress.parse("unix://me:p%40ss@/run/a%20b/s")


def test_a_password_among_the_options_is_a_password() -> None:
    address = RedisAddress.parse("redis://host/2?password=p%40ss&username=me")
    assert address.broker_url == "redis://me:p%40ss@host/2"
    assert address.passwords == ("p%40ss", "p@ss")
    assert str(address) == "redis://***@host/2"


def test_an_error_about_an_address_does_not_show_its_password() -> None:
    for url in ("http://:secret@host", "redis//:secret@host", "redis://:se/secret@host/x"):
        with pytest.raises(ConfigError) as caught:
            RedisAddress.parse(url)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["unix://u:s3cret@/x.sock", "sentinel://:s3cret@host"])
def test_an_option_that_nobody_would_read_is_refused(address: str) -> None:
    known = RedisAddress.parse(f"{address}?db=3")
    assert known.broker_db == 3
    with pytest.raises(ConfigError, match="not known: known are db") as caught:
        RedisAddress.parse(f"{address}?db=3&socket_timeout=5")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [
        "bogus=1",
        "socket_timeout=soon",
        "max_connections=-1",
        "health_check_interval=x",
        "protocol=9",
        "ssl_cert_reqs=maybe",
    ],
)
def test_an_option_that_cannot_be_is_named_before_anything_is_opened(option: str) -> None:
    scheme = "rediss" if option.startswith("ssl") else "redis"
    with pytest.raises(ConfigError, match="is wrong or not known") as caught:
        RedisAddress.parse(f"{scheme}://:secret@host/0?{option}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "abc", "1:2"])
def test_a_port_that_cannot_be_is_refused(port: str) -> None:
    with pytest.raises(ConfigError, match="VANTAGE_REDIS_URL"):
        RedisAddress.parse(f"redis://host:{port}/0")
