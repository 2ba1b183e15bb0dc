"""Which cache server a host runs, what may replicate what, what a configuration says."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Settings
from pipeline.errors import ConfigError
from workers.cache_config import listen_at, password_of, quoted, replica_configuration
from workers.cache_link import Link
from workers.cache_place import forget_cache_server, role_of, running_cache_server
from workers.cache_server import why_no_replica
from workers.cache_status import CacheStatus, ServerStatus
from workers.cache_writer import MOST_VALUES, WriteQueue
from workers.keys import Keys
from workers.redis_cache import RedisTier, open_remote
from workers.redis_url import RedisAddress
from workers.server_programs import Program, Version, find_server, version_of


def _settings(home: Path, **variables: str) -> Settings:
    named = {f"VANTAGE_{name}": value for name, value in variables.items()}
    return Settings.from_env({"VANTAGE_HOME": str(home), **named})


@pytest.mark.parametrize(
    ("variables", "name", "reason"),
    [
        ({}, "primary", ""),
        ({"CACHE_URL": "off"}, "none", "VANTAGE_CACHE_URL is off"),
        ({"REDIS_URL": "redis://x/0"}, "none", "without VANTAGE_CACHE_URL"),
        ({"REDIS_URL": "redis://x/0", "CACHE_URL": "off"}, "none", "is off"),
        ({"REDIS_URL": "redis://x/0", "CACHE_URL": "redis://y/0"}, "replica", ""),
        ({"CACHE_URL": "sentinel://a:26379;sentinel://b:26379"}, "replica", ""),
        ({"CACHE_URL": "unix:///run/redis.sock"}, "replica", ""),
        ({"REDIS_URL": "redis://x/0", "CACHE_LISTEN": "10.0.0.5:6380"}, "primary", ""),
    ],
)
def test_the_settings_decide_which_server_runs(
    tmp_path: Path, variables: dict[str, str], name: str, reason: str
) -> None:
    settings = _settings(tmp_path, **variables)
    role = role_of(settings)
    assert role.name == name
    assert reason in role.reason
    remote = open_remote(settings, "identity")
    assert (remote is None) == (name == "none")


def test_a_process_of_vantage_up_knows_the_redis_of_this_home(tmp_path: Path) -> None:
    """It has VANTAGE_REDIS_URL, which `vantage up` has set."""
    (tmp_path / "run").mkdir()
    url = "unix://vantage:word@/run/redis.sock?db=0"
    (tmp_path / "run" / "redis.json").write_text(json.dumps({"url": url}))
    assert role_of(_settings(tmp_path, REDIS_URL=url)).name == "primary"
    assert role_of(_settings(tmp_path, REDIS_URL="redis://other/0")).name == "none"


def test_a_wrong_address_names_its_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="VANTAGE_CACHE_URL"):
        open_remote(_settings(tmp_path, CACHE_URL="http://x"), "identity")


@pytest.mark.parametrize(
    ("own", "primary", "fits"),
    [
        ("redis 6.2", "redis 6.2", True),
        ("redis 6.2", "redis 6.0", True),
        ("redis 6.2", "redis 7.0", False),
        ("redis 7.0", "redis 8.2", False),
        ("redis 8.2", "redis 7.4", True),
        ("redis 6.2", "valkey 8.1", False),
        ("redis 7.2", "valkey 8.1", True),
        ("redis 8.2", "valkey 9.0", False),
        ("valkey 8.1", "redis 7.2", True),
        ("valkey 8.1", "redis 7.4", False),
        ("valkey 9.0", "valkey 8.1", True),
        ("valkey 8.0", "valkey 8.1", False),
    ],
)
def test_a_replica_is_at_least_as_new_as_its_primary(own: str, primary: str, fits: bool) -> None:
    assert _version(own).can_replicate(_version(primary)) is fits


def _version(text: str) -> Version:
    product, number = text.split()
    found = Version.of_info(
        {"redis_version": "7.2.4", "valkey_version": number}
        if product == "valkey"
        else {"redis_version": f"{number}.1"}
    )
    assert found is not None
    assert str(found).lower() == text
    return found


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("Redis server v=7.0.15 sha=0:0 malloc=jemalloc bits=64", "Redis 7.0"),
        ("Valkey server v=8.1.0 sha=0:0 malloc=jemalloc bits=64", "Valkey 8.1"),
        ("something else", "None"),
        ("", "None"),
    ],
)
def test_programs_are_asked_for_their_version(tmp_path: Path, said: str, version: str) -> None:
    program = tmp_path / "server"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o700)
    assert str(version_of(program)) == version
    assert version_of(tmp_path / "none") is None


def test_where_no_program_fits_it_says_which_would(tmp_path: Path) -> None:
    address = RedisAddress.parse("redis://cache.example/0")
    told = why_no_replica(Version("redis", (99, 0)), None, address)
    assert "no replica here" in told
    assert "Redis 99.0" in told
    assert str(version_of(find_server())) in told


def test_with_tls_it_must_know_tls_and_have_a_certificate(tmp_path: Path) -> None:
    program = tmp_path / "server"
    program.write_text("#!/bin/sh\necho \">>> 'no-such-option'\"\n")
    program.chmod(0o700)
    with_tls = Program(program, Version("redis", (7, 0)))
    address = RedisAddress.parse("rediss://cache.example/0")
    assert "certificate" in why_no_replica(with_tls.version, with_tls, address)
    program.write_text("#!/bin/sh\necho \">>> 'tls-replication yes'\"\n")
    assert "without TLS" in why_no_replica(with_tls.version, with_tls, address)
    plain = RedisAddress.parse("redis://cache.example/0")
    assert why_no_replica(with_tls.version, with_tls, plain) == ""


@pytest.mark.parametrize("word", ["plain", 'a "b" c', "tab\there", "ümläut", "x'y\\z", "#no", "{}"])
def test_the_server_reads_what_is_quoted(tmp_path: Path, word: str) -> None:
    """A wrong line is told with the line before it understood, so the server never starts."""
    done = subprocess.run(
        [find_server(), "-"],
        input=f"masterauth {quoted(word)}\nno-such-option\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no-such-option" in done.stdout + done.stderr
    address = RedisAddress.parse("redis://u:p@h/0")
    text = replica_configuration(address, ("h", 6379), listen_at(tmp_path), ("r", None))
    assert 'masteruser "u"\nmasterauth "p"\n' in text


def test_a_password_that_other_hosts_have_stays(tmp_path: Path) -> None:
    first = password_of(tmp_path, kept=True)
    assert password_of(tmp_path, kept=True) == first
    assert (tmp_path / "cache.password").stat().st_mode & 0o777 == 0o600
    assert password_of(tmp_path, kept=False) != first
    assert not (tmp_path / "cache.password").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": "x"}', '{"state": 1, "pid": 1}'])
def test_what_is_not_a_cache_server_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cache.json").write_text(text)
    assert running_cache_server(tmp_path) is None
    forget_cache_server(tmp_path)
    assert list((tmp_path / "run").iterdir()) == []


def test_the_queue_is_bounded_in_number_and_in_bytes() -> None:
    counters: Counter[str] = Counter()
    queue = WriteQueue(counters, largest=2**20)
    queue.put({str(number): b"x" for number in range(MOST_VALUES + 3)})
    assert (len(queue), counters["dropped"]) == (MOST_VALUES, 3)
    while queue.take():
        pass
    queue.put({"large": b"x" * (2**20 + 1)})
    assert (len(queue), counters["dropped"]) == (0, 4)
    queue.put({str(number): b"x" * 2**20 for number in range(40)})
    assert (len(queue), counters["dropped"]) == (32, 12)
    batch = queue.take()
    assert [name for name, _ in batch] == ["0"]
    queue.put_back(batch)
    assert [name for name, _ in queue.take()] == ["0"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, None),
        ({"policy": "noeviction"}, "may get full"),
        ({"limit": 0}, "may get full"),
        ({"policy": "volatile-lru"}, "may get full"),
        ({"policy": "allkeys-lru"}, None),
        ({"linked": True}, "takes nothing"),
        ({"trouble": "no route to host"}, "does not answer"),
    ],
)
def test_doctor_tells_what_is_wrong_with_a_primary(changed: dict[str, Any], told: str) -> None:
    server = ServerStatus("primary", "redis://h/0", policy="allkeys-lfu", limit=2**27)
    troubles = CacheStatus("", (dataclasses.replace(server, **changed),), {}).troubles()
    assert (told in troubles[0][0]) if told else not troubles


@pytest.mark.parametrize(
    ("answered", "place", "trip_s", "behind", "asks"),
    [
        (True, "127.0.0.1", 0.5, 0, True),
        (True, "localhost", 0.5, 0, True),
        (True, "far.example", None, 0, True),
        (True, "far.example", 0.0005, 0, True),
        (True, "far.example", 0.02, 0, False),
        (True, "far.example", 0.02, 4000, True),
        (True, "far.example", 0.02, None, True),
        (False, "far.example", 0.02, 0, True),
    ],
)
def test_a_primary_far_away_is_asked_only_if_the_replica_may_lack_something(
    tmp_path: Path,
    answered: bool,
    place: str,
    trip_s: float | None,
    behind: int | None,
    asks: bool,
) -> None:
    tier = RedisTier(_settings(tmp_path, CACHE_URL=f"redis://{place}/0"), Keys("identity"))
    primary = Link("primary", RedisAddress.parse(f"redis://{place}/0"), tier.counters)
    replica = Link("replica", RedisAddress.parse("unix:///r.sock"), tier.counters)
    primary._trips, replica.behind = [] if trip_s is None else [trip_s], behind
    tier._links = (replica, primary)
    assert tier._asks_primary(answered) is asks
