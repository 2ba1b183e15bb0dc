"""The cache that processes share, with real servers that fail: a miss and a counter, no more."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cache_hosts import SECRET, CacheHost, Proxy, until
from heavy import long_only
from operators_redis import OperatorsRedis

from pipeline.caching.cache import Cache
from pipeline.caching.trace import CacheTrace
from pipeline.caching.values import CachedValue, CacheKey, seal
from pipeline.metadata.records import WorkerRecord
from workers import cache_counters, doctor
from workers.cache_status import CacheStatus, read_cache_status
from workers.keys import Keys
from workers.redis_cache import RedisTier

_numbers = iter(range(10**9))


def new_key() -> CacheKey:
    """Return a key that no test has used."""
    return CacheKey("features", f"{next(_numbers):032x}")


def look(cache: Cache, key: CacheKey) -> bytes | None:
    """Look up one key."""
    return cache.find([key], CacheTrace())[0]


def keep_and_see(host: CacheHost, other: CacheHost, key: CacheKey, content: bytes) -> None:
    """Keep a value on one host, wait until another one has it."""
    host.cache().keep(key, content, 1.0)
    reader = other.cache()
    until(lambda: look(reader, key) == content)


def tier_of(cache: Cache) -> RedisTier:
    assert isinstance(cache.remote, RedisTier)
    return cache.remote


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorsRedis]:
    """A primary as an operator runs it."""
    options = ("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lfu")
    folder = tmp_path_factory.mktemp("primary")
    with OperatorsRedis(folder, *options, password="pass-word") as server:
        yield server


@pytest.fixture(scope="module")
def host(primary: OperatorsRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CacheHost]:
    """A host with a replica."""
    home = tmp_path_factory.mktemp("host") / "home"
    with CacheHost(home, CACHE_URL=primary.url) as started:
        assert started.server is not None
        assert started.server.state == "replica", started.log()
        yield started


def test_a_replica_has_what_another_process_wrote_and_says_so(host: CacheHost) -> None:
    key, trace = new_key(), CacheTrace()
    keep_and_see(host, host, key, b"found")
    cache = host.cache()
    until(lambda: cache.find([key, new_key()], trace) == [b"found", None])
    assert trace.count("features", "replica") == 1
    assert tier_of(cache).counters["replica.hits"] >= 1


@pytest.mark.parametrize("kind", ["garbage", "nothing", "another key's value", "array header"])
def test_a_value_that_somebody_else_wrote_is_a_miss(
    host: CacheHost, primary: OperatorsRedis, kind: str
) -> None:
    key, other = new_key(), new_key()
    hostile = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (2**62,)}"
    wrong = {
        "garbage": b"\xff" * 1000,
        "nothing": b"",
        "another key's value": seal(other, CachedValue(b"of the other", 1), SECRET),
        "array header": seal(key, CachedValue(hostile, 1), b"another secret"),
    }[kind]
    keep_and_see(host, host, key, b"right")
    name = Keys("identity").cached(*key)
    primary.client.set(name, wrong)
    replica = host.tier()
    until(lambda: [found and found.sealed for found in replica.find([key])] == [wrong])
    cache = host.cache(replica)
    until(lambda: look(cache, key) is None and cache.counters["refused"])


def test_a_value_of_another_type_is_a_miss(host: CacheHost, primary: OperatorsRedis) -> None:
    key = new_key()
    primary.client.rpush(Keys("identity").cached(*key), b"an element")
    assert look(host.cache(), key) is None


def test_a_frozen_replica_stops_no_search(host: CacheHost) -> None:
    """The block ends while the replica is frozen: without a limit it would never."""
    key = new_key()
    keep_and_see(host, host, key, b"kept")
    cache = host.cache()
    counters = tier_of(cache).counters
    until(lambda: look(cache, key) == b"kept")
    with host.frozen():
        until(lambda: look(cache, key) == b"kept" and counters["replica.timeouts"] >= 2)
        assert counters["primary.hits"] >= 1
        until(lambda: look(cache, new_key()) is None and counters["replica.skipped"] >= 1)
    before = counters["replica.hits"]
    until(lambda: look(cache, key) == b"kept" and counters["replica.hits"] > before)


def test_a_replica_that_ends_costs_a_counter_until_it_is_started_again(host: CacheHost) -> None:
    key = new_key()
    keep_and_see(host, host, key, b"kept")
    cache = host.cache()
    counters = tier_of(cache).counters
    until(lambda: look(cache, key) == b"kept")
    host.kill()
    until(lambda: look(cache, key) == b"kept")
    assert counters["replica.errors"] >= 1
    host.start()
    before = counters["replica.hits"]
    until(lambda: look(cache, key) == b"kept" and counters["replica.hits"] > before)


def test_a_killed_primary_costs_counters_and_what_it_held(
    host: CacheHost, primary: OperatorsRedis
) -> None:
    """The replica goes on with what it has; what is written meanwhile waits."""
    known, later = new_key(), new_key()
    keep_and_see(host, host, known, b"known")
    cache = host.cache()
    until(lambda: look(cache, known) == b"known")
    stop = threading.Event()
    load = threading.Thread(target=_keep_on, args=(host.cache(), stop))
    load.start()
    primary.kill()
    until(lambda: look(cache, known) == b"known")
    until(lambda: look(cache, new_key()) is None and tier_of(cache).counters["primary.errors"])
    cache.keep(later, b"written later", 1.0)
    primary.start()
    until(lambda: look(cache, later) == b"written later")
    stop.set()
    load.join()
    until(lambda: host._answers())


def _keep_on(cache: Cache, stop: threading.Event) -> None:
    """Keep and look up until told to stop."""
    while not stop.wait(0.001):
        key = new_key()
        cache.keep(key, b"x" * 1000, 1.0)
        look(cache, key)


def test_an_emptied_primary_empties_its_replicas(host: CacheHost, primary: OperatorsRedis) -> None:
    key = new_key()
    keep_and_see(host, host, key, b"gone soon")
    cache = host.cache()
    primary.client.flushall()
    until(lambda: look(cache, key) is None)
    cache.keep(key, b"kept again", 1.0)
    until(lambda: look(cache, key) == b"kept again")


def test_a_wrong_password_is_a_counter(host: CacheHost, primary: OperatorsRedis) -> None:
    """The host's replica answers all the same: it has a password of its own."""
    key = new_key()
    keep_and_see(host, host, key, b"kept")
    wrong = primary.url.replace("pass-word", "wrong")
    cache = host.cache(host.tier(CACHE_URL=wrong))
    counters = tier_of(cache).counters
    until(lambda: look(cache, key) == b"kept" and counters["primary.errors"] >= 1)
    assert look(cache, new_key()) is None
    assert counters["primary.hits"] == 0


def test_answers_that_drip_are_late_and_those_that_never_come_too(
    host: CacheHost, primary: OperatorsRedis, tmp_path: Path
) -> None:
    """The searches end while the proxy still drips: each read is in time, all together are not."""
    key = new_key()
    keep_and_see(host, host, key, b"x" * 100_000)
    with Proxy(primary.port) as proxy:
        url = primary.url.replace(str(primary.port), str(proxy.port))
        far = CacheHost(tmp_path / "far", CACHE_URL=url)
        cache = far.cache()
        counters = tier_of(cache).counters
        until(lambda: look(cache, key) is not None)
        proxy.drips = True
        until(lambda: look(cache, key) is None and counters["primary.timeouts"] >= 2)
        proxy.drips = False
        until(lambda: look(cache, key) is not None)
        before = counters["primary.timeouts"]
        proxy.open.clear()
        until(lambda: look(cache, key) is None and counters["primary.timeouts"] > before)
        far.stop()


def test_a_full_primary_evicts_and_goes_on(host: CacheHost, primary: OperatorsRedis) -> None:
    cache = host.cache()
    evicted = int(primary.client.info("stats")["evicted_keys"])
    for _ in range(90):
        cache.keep(new_key(), b"x" * 2**20, 1.0)
        until(lambda: len(tier_of(cache)._queue) < 8)
    until(lambda: int(primary.client.info("stats")["evicted_keys"]) > evicted)
    last = new_key()
    keep_and_see(host, host, last, b"the last")


def test_more_than_fits_into_the_queue_is_dropped_and_counted(
    host: CacheHost, primary: OperatorsRedis
) -> None:
    cache = host.cache()
    with primary.refusing("frozen"):
        while not tier_of(cache).counters["dropped"]:
            cache.keep(new_key(), b"x" * 2**20, 1.0)
    last = new_key()
    cache.keep(last, b"written after all", 1.0)
    until(lambda: look(cache, last) is not None or cache.keep(last, b"again", 1.0))


@long_only
def test_what_is_read_at_replicas_only_outlives_what_is_not_read(
    host: CacheHost, primary: OperatorsRedis
) -> None:
    """The primary sees no reads at replicas; the keys found there are touched once a second."""
    hot, cold = [new_key() for _ in range(8)], [new_key() for _ in range(24)]
    primary.client.flushall()
    _keep_all(host.cache(), [*hot, *cold])
    reader = host.cache()
    counters = tier_of(reader).counters
    until(lambda: None not in reader.find(hot, CacheTrace()) and counters["touched"] >= 8 * 4)
    _keep_all(host.cache(), [new_key() for _ in range(60)])
    names = Keys("identity")
    left = [bool(primary.client.exists(names.cached(*key))) for key in (*hot, *cold)]
    assert sum(left[8:]) < 24
    assert sum(left[:8]) == 8


def _keep_all(cache: Cache, keys: Sequence[CacheKey]) -> None:
    """Keep a MiB under each key, without reading any."""
    for key in keys:
        cache.keep(key, b"x" * 2**20, 1.0)
        until(lambda: len(tier_of(cache)._queue) < 8)
    until(lambda: tier_of(cache).counters["written"] == len(keys))


def _has_lag(found: CacheStatus) -> bool:
    """Tell whether a replica was as far as its primary, and its lag was measured."""
    replica = found.servers[0]
    return replica.behind == 0 and replica.lag_s is not None and "lag" in replica.sentence()


def test_status_and_doctor_tell_role_lag_memory_evictions_and_hits(
    host: CacheHost, primary: OperatorsRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_counters, "_counted", weakref.WeakSet[Any]())
    key = new_key()
    keep_and_see(host, host, key, b"x")
    cache = host.cache(with_process=True)
    until(lambda: look(cache, key) == b"x")
    assert [look(cache, key) for _ in range(3)] == [b"x"] * 3
    cache_counters.count_cache(cache)
    cache.note_check(equal=False)
    details = {"cache": cache_counters.cache_counters()}
    worker = WorkerRecord("query@h", ("query",), "h", 1, (), "ready", 0.0, 0.0, details)
    until(lambda: _has_lag(read_cache_status(host.settings, [])))
    found = read_cache_status(host.settings, [worker, worker])
    assert [server.tier for server in found.servers] == ["replica", "primary"]
    replica, main = found.servers
    assert (replica.linked, main.policy) == (True, "allkeys-lfu")
    assert main.limit == 64 * 2**20
    assert main.memory > 0
    assert found.counters["features.process"] == 6
    asked = found.counters["replica.hits"] + found.counters.get("replica.misses", 0)
    assert found.hit_ratio("process") == 6 / (6 + asked)
    assert found.mismatches == 2
    text = "\n".join(found.sentences())
    for word in (
        "replica at",
        "bytes behind",
        "evicted",
        "of 64 MiB",
        "found of what was looked for",
    ):
        assert word in text
    assert "pass-word" not in text
    assert "cache_mismatch_total 2" in found.troubles()[0][0]
    primary.client.config_set("maxmemory-policy", "noeviction")
    try:
        (trouble, _), *_ = read_cache_status(host.settings, []).troubles()
        assert "noeviction" in trouble
    finally:
        primary.client.config_set("maxmemory-policy", "allkeys-lfu")
    checks = [one for one in doctor.checks(host.settings) if one.name == "cache"]
    assert [one.ok for one in checks[:2]] == [True, True]
    with primary.refusing("frozen"):
        (trouble, _), *_ = read_cache_status(host.settings, []).troubles()
        assert "primary at" in trouble
        assert "does not answer" in trouble


def test_what_one_host_wrote_another_finds_at_its_own_replica_after_the_lag(
    host: CacheHost, primary: OperatorsRedis, tmp_path: Path
) -> None:
    """While replication is held up, the other asks the primary, which is near."""
    with Proxy(primary.port) as proxy:
        url = primary.url.replace(str(primary.port), str(proxy.port))
        with CacheHost(tmp_path / "other", CACHE_URL=url) as other:
            cache = other.cache(other.tier(CACHE_URL=primary.url))
            at_once, late, trace = new_key(), new_key(), CacheTrace()
            host.cache().keep(at_once, b"at once", 1.0)
            until(lambda: cache.find([at_once], CacheTrace()) == [b"at once"])
            proxy.open.clear()
            writer = host.cache()
            writer.keep(late, b"late", 1.0)
            until(lambda: cache.find([late], trace) == [b"late"])
            assert (trace.count("features", "primary"), trace.count("features", "replica")) == (
                1,
                0,
            )
            proxy.open.set()
            until(lambda: cache.find([late], trace) and trace.count("features", "replica"))
