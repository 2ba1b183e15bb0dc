from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.redaction import redacted, secrets_of, secrets_of_environment, without_secrets

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:s3cret@h:1/0", "redis://***@h:1/0"),
        ("redis://s3cret@h", "redis://***@h"),
        ("redis://h/0?password=s3cret", "redis://h/0"),
        ("redis://h?db=3&password=s3cret", "redis://h?db=3"),
        ("redis://:a@s3cret@host", "redis://***@host"),
        ("redis://:s3cret@a@host", "redis://***@host"),
        ("redis://:s3c/s3cret@h", "redis://***"),
        ("redis://:#s3cret@h", "redis://***"),
        ("redis://:?s3cret@h", "redis://***"),
        ("redis://h:s3cret", "redis://***"),
        ("redis://h:1/s3cret", "redis://h:1/***"),
        ("redis://u:s3cret@", "redis://***@"),
        ("redis//:s3cret@h", "***"),
        ("redis:/:s3cret@h", "***"),
        ("redis:s3cret@h", "***"),
        (":s3cret@h:6379", "***"),
        ("s3cret", "***"),
        (" redis://:s3cret@h", "***"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("redis://[::1:s3cret@", "redis://***"),
        ("rediss://u:s3cret@h?ssl_cert_reqs=none", "rediss://***@h?ssl_cert_reqs=none"),
        ("unix://vantage:s3cret@/run/x.sock?db=0", "unix://***@/run/x.sock?db=0"),
        (
            "sentinel://:s3cret@a:1;sentinel://b:2/4?master_name=x",
            "sentinel://***@a:1;sentinel://b:2/4?master_name=x",
        ),
        ("postgresql://u@h/db?password=s3cret", "postgresql://***@h/db"),
        ("postgresql+psycopg://u:s3cret@a,b:5432/n", "postgresql+psycopg://***@a,b:5432/n"),
        ("s3://KEY:s3cret@bucket/prefix", "s3://***@bucket/prefix"),
        ("simplecache::s3://KEY:s3cret@bucket", "simplecache::s3://***@bucket"),
        ("s3cret::s3://bucket", "s3cret::s3://bucket"),
        ("", "***"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


HIDDEN_IN = [
    "redis://:s3cret@h",
    "redis://u:s3cret@h;redis://b",
    "redis://h?password=s3cret",
    "redis//:s3cret@h",
    ":s3cret@h",
    "redis:/:s3cret@h",
    "postgresql://h/n?user=u&password=s3cret",
    "s3://KEY:s3cret@bucket",
    "http://h/?api_token=s3cret&a=b",
]


@pytest.mark.parametrize("url", HIDDEN_IN)
def test_secrets_are_found_in_addresses_and_in_what_is_none(url: str) -> None:
    text = redacted(f"could not open {url}: {SECRET} is wrong", secrets_of(url))
    assert SECRET not in text


def test_secrets_are_found_in_variables_of_any_name() -> None:
    found = secrets_of_environment(
        {
            "VANTAGE_REDIS_ULR": "redis://:s3cret@h",
            "VANTAGE_FLOWER_PASSWORD": "another",
            "PATH": "a:bcd@e",
        }
    )
    assert found == {"s3cret", "another"}


def test_a_path_with_an_at_sign_is_no_secret() -> None:
    home = "/home/ana@example.com"
    paths = {
        "VANTAGE_HOME": f"{home}/vantage",
        "VANTAGE_LOCAL": f"{home}/vantage/local",
        "VANTAGE_STORE": f"{home}/vantage/store",
        "VANTAGE_IMAGE_ROOTS": f"{home}/one:/mnt/two@b",
        "VANTAGE_EXTRACTOR": f"cnn:{home}/model.onnx",
        "VANTAGE_DATABASE_URL": f"sqlite+pysqlite:///{home}/vantage/vantage.sqlite",
    }
    assert secrets_of_environment(paths) == set()
    wrong = {"VANTAGE_STORE": "/work/s3//key:s3cret@bucket", "VANTAGE_HOME": "redis://:another@h"}
    assert secrets_of_environment(wrong) == {"s3cret", "another"}


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1))
def test_a_password_is_never_shown_whatever_its_characters(password: str) -> None:
    secret = f"{password}\N{BULLET}secret"
    for written in (quote(secret, safe=""), secret):
        for url in (f"redis://user:{written}@host:1/2", f"redis//:{written}@h", f":{written}@h"):
            assert "secret" not in without_secrets(url)
            assert "secret" not in redacted(url, secrets_of(url))
