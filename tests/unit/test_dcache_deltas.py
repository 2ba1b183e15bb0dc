"""Deltas of the distance cache: equal tables whatever the order, nothing hostile gets in."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.caching.dcache import Counters, DCache, DCacheConfig
from pipeline.caching.deltas import ENTRIES, LARGEST_DELTA, DeltaError, Entries, Scope
from pipeline.caching.metric import LARGEST_SQUARE, SquaredEuclidean
from pipeline.caching.object_ids import object_ids, runtime_id
from pipeline.caching.table import ENTRY_BYTES, KNOWN, Shape
from pipeline.errors import ConfigError
from tests.heavy import examples


class Reals(SquaredEuclidean):
    """Distances that are no squares."""

    name = "reals"
    squared = False


METRIC = SquaredEuclidean()
ROWS = np.random.default_rng(1).integers(-9, 9, (30, 8)).astype(np.int8)
IDS, EVERY = object_ids(0, len(ROWS)), np.arange(len(ROWS))


def host(buckets: int = 5, shared: int = 2, metric: Any = METRIC, **config: Any) -> DCache:
    shape = Shape(buckets * 4 * ENTRY_BYTES, shared=shared, middle=60.0)
    return DCache(metric, DCacheConfig(shape, **{"scope": "s", "pivots": 3, **config}))


def ask(cache: DCache, number: int) -> None:
    """Compute all distances of a query, and hold what the cache says to them."""
    query = ROWS[number] + np.int8(1)
    runtime = cache.begin(query, runtime_id(query.tobytes()))
    right = METRIC.distances(query, ROWS, EVERY)
    found = cache.bound(runtime, IDS)
    assert (found.lower <= right).all()
    assert (right <= found.upper).all()
    cache.insert(runtime, IDS, right)


def delta_of(cache: DCache, pairs: list[tuple[int, int, int]], made: int) -> bytes:
    """Return a delta with certain entries."""
    lows, highs, codes = np.array(pairs, np.int64).reshape(-1, 3).T
    low, high = np.minimum(lows, highs), np.maximum(lows, highs)
    entries = Entries(low.astype(np.uint64), high.astype(np.uint64), codes.astype(np.uint32), made)
    return Scope(cache.config.scope, cache.metric, cache.config.secret).encode(entries)


def merged(metric: Any, deltas: list[bytes], buckets: int, shared: int) -> bytes:
    """Return the shared entries after some deltas."""
    cache = host(buckets, shared, metric)
    assert all(cache.merge_delta(delta) for delta in deltas)
    return cache.table.shared_entries().tobytes()


Pairs = st.lists(
    st.tuples(st.integers(0, 9), st.integers(10, 14), st.integers(0, 150)), max_size=12
)


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.tuples(Pairs, st.integers(0, 3)), max_size=6), st.integers(1, 4),
       st.integers(1, 3), st.sampled_from([METRIC, Reals()]), st.randoms())  # fmt: skip
def test_merging_commutes_and_associates_and_again_changes_nothing(
    made: list[tuple[list[tuple[int, int, int]], int]],
    buckets: int,
    shared: int,
    metric: Any,
    random: Any,
) -> None:
    writer = host(buckets, shared, metric)
    deltas = [delta_of(writer, pairs, when) for pairs, when in made]
    other = deltas + random.sample(deltas, random.randint(0, len(deltas)))
    random.shuffle(other)
    wanted = merged(metric, deltas, buckets, shared)
    assert merged(metric, other, buckets, shared) == wanted
    # One delta with all entries of those made at the same time, in another order.
    joined = []
    for when in {when for _, when in made}:
        pairs = [pair for some, then in made if then == when for pair in some]
        random.shuffle(pairs)
        joined.append(delta_of(writer, pairs, when))
    assert merged(metric, joined, buckets, shared) == wanted


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("aaaem"), st.integers(0, 29)),
                max_size=40), st.sampled_from(["obsolete", "lru"]))  # fmt: skip
def test_tables_of_hosts_are_equal_when_every_delta_has_come_to_all(
    steps: list[tuple[int, str, int]], replacement: Any
) -> None:
    shape = Shape(6 * 4 * ENTRY_BYTES, shared=2, middle=60.0, replacement=replacement)
    hosts = [DCache(METRIC, DCacheConfig(shape, pivots=3, scope="s")) for _ in range(3)]
    on_the_way: list[list[bytes]] = [[], [], []]

    def export(number: int, made: int) -> None:
        for delta in hosts[number].export_delta(made):
            for other in {0, 1, 2} - {number}:
                on_the_way[other].append(delta)

    for number, step, value in steps:
        if step == "a":
            ask(hosts[number], value)
        elif step == "e":
            export(number, value // 10)
        elif on_the_way[number]:
            hosts[number].merge_delta(on_the_way[number].pop(value % len(on_the_way[number])))
    for number in range(3):
        export(number, 3)
    for one, waiting in zip(hosts, on_the_way, strict=True):
        assert all(map(one.merge_delta, waiting))
    assert len({one.shared_digest() for one in hosts}) == 1
    for one in hosts:
        ask(one, 7)


def test_a_host_finds_what_another_computed() -> None:
    one, other = host(400), host(400)
    ask(one, 3)
    deltas = one.export_delta()
    assert len(deltas) == 1
    assert other.merge_delta(deltas[0])
    query = ROWS[3] + np.int8(1)
    runtime = other.begin(query, runtime_id(query.tobytes()))
    found = other.bound(runtime, IDS)
    assert (found.states == KNOWN).all()
    assert (found.lower == METRIC.distances(query, ROWS, EVERY)).all()
    assert one.export_delta() == []
    assert (one.counters.exported, other.counters.merged) == (30, 30)


def test_a_pair_is_in_a_table_once_and_later_ones_replace_earlier_ones() -> None:
    cache = host(1, 2)
    ask(cache, 0)
    cache.export_delta(5)
    pairs = [(int(low), int(high)) for low, high, _ in cache.table.words if high]
    assert len(pairs) == len(set(pairs))
    assert cache.merge_delta(delta_of(cache, [(1, 2, 59), (1, 3, 61)], 6))
    assert cache.table.shared_entries()[0, :, 1].tolist() == [2, 3]
    assert cache.merge_delta(delta_of(cache, [(1, 4, 9), (1, 5, 50)], 6))
    assert cache.table.shared_entries()[0, :, 1].tolist() == [4, 5]  # farther from 60
    assert cache.merge_delta(delta_of(cache, [(1, 6, 1)], 5))
    assert cache.table.shared_entries()[0, :, 1].tolist() == [4, 5]  # made before
    assert cache.merge_delta(delta_of(cache, [(1, 5, 50)], 7))
    assert cache.table.shared_entries()[0, :, 1].tolist() == [5, 4]


def test_deltas_are_64_kib_at_most_and_can_be_fetched_in_parts() -> None:
    cache = DCache(METRIC, DCacheConfig(Shape(9_600_000, shared=2, interval=8), scope="s"))
    count = 2 * ENTRIES + 10
    cache.feed(np.array([1 << 63], np.uint64), object_ids(0, count), np.ones(count))
    first = cache.export_delta(1, most=1)
    rest = cache.export_delta(1)
    assert [len(delta) for delta in first + rest[:1]] == [LARGEST_DELTA // 20 * 20] * 2
    assert len(first + rest) == 3
    assert cache.export_delta(1) == []
    copy = DCache(METRIC, cache.config)
    assert all(map(copy.merge_delta, first + rest))
    assert copy.counters.merged == count
    assert copy.shared_digest() == cache.shared_digest()


@pytest.mark.parametrize("metric", [METRIC, Reals()])
def test_a_delta_is_what_was_put_into_it(metric: Any) -> None:
    codes = np.array([0, 7, LARGEST_SQUARE], np.uint32)
    put = Entries(object_ids(0, 3), object_ids(5, 3), codes, 1 << 31)
    scope = Scope("s", metric, b"key")
    got = scope.decode(scope.encode(put))
    assert all((one == other).all() for one, other in zip(put[:3], got[:3], strict=True))
    assert got.made == put.made


def changed(position: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda delta: delta[:position] + value + delta[position + len(value) :]


def signed(secret: bytes = b"key", **other: Any) -> bytes:
    values = {"scope": "s", "metric": METRIC, "low": 1, "high": 2, "code": 5, **other}
    entries = Entries(
        np.array([values["low"]], np.uint64),
        np.array([values["high"]], np.uint64),
        np.array([values["code"]], np.uint32),
        3,
    )
    return Scope(values["scope"], values["metric"], secret).encode(entries)


HOSTILE: dict[str, tuple[str, bytes | Callable[[bytes], bytes]]] = {
    "empty": ("length", b""),
    "a byte": ("length", b"V"),
    "cut in the header": ("length", lambda delta: delta[:59]),
    "cut in an entry": ("header", lambda delta: delta[:-1]),
    "a byte too much": ("header", lambda delta: delta + b"\0"),
    "two deltas": ("header", lambda delta: delta + delta),
    "64 KiB and a byte": ("length", bytes(LARGEST_DELTA + 1)),
    "zeros": ("header", bytes(LARGEST_DELTA)),
    "another magic": ("header", changed(0, b"VDD2")),
    "4 thousand million entries": ("header", changed(20, b"\xff" * 4)),
    "a count that overflows 32 bits to the right length": (
        "header", changed(20, struct.pack("<I", ((1 << 32) + 20) // 20))),
    "no entries, but bytes": ("header", changed(20, bytes(4))),
    "another scope": ("scope", changed(4, bytes(16))),
    "another collection": ("scope", signed(scope="t")),
    "another metric": ("scope", signed(metric=Reals())),
    "another time": ("checksum", changed(24, b"\xff" * 4)),
    "a bit of an id": ("checksum", changed(60, b"\x7f")),
    "a bit of a distance": ("checksum", changed(76, b"\x7f")),
    "a bit of the checksum": ("checksum", changed(28, b"\0\0")),
    "made without the secret": ("checksum", signed(b"")),
    "made with another secret": ("checksum", signed(b"kez")),
    "a pair out of order": ("values", signed(low=2, high=1)),
    "a pair of one object": ("values", signed(low=2, high=2)),
    "an empty pair": ("values", signed(low=0, high=0)),
    "a square too large": ("values", signed(code=LARGEST_SQUARE + 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_delta_is_refused_and_counted(name: str) -> None:
    refusal, made = HOSTILE[name]
    delta = made(signed()) if callable(made) else made
    cache = host(secret=b"key")
    with pytest.raises(DeltaError, match=refusal) as caught:
        Scope("s", METRIC, b"key").decode(delta)
    assert caught.value.refusal == refusal
    assert not cache.merge_delta(delta)
    assert cache.counters == Counters(refused=1)
    assert cache.table.entries == 0
    assert cache.merge_delta(signed())


@pytest.mark.parametrize("code", [0x7F800000, 0x7FC00000, 0x80000001, 0xFFFFFFFF])
def test_infinity_nan_and_negative_numbers_are_no_distances(code: int) -> None:
    scope = Scope("s", Reals(), b"key")
    with pytest.raises(DeltaError, match="values"):
        scope.decode(signed(metric=Reals(), code=code))
    assert scope.decode(signed(metric=Reals(), code=0x7F7FFFFF)).codes[0] == 0x7F7FFFFF


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=200), st.integers(0, 100), st.integers(0, 100))
def test_random_bytes_are_refused(noise: bytes, start: int, end: int) -> None:
    cache, right = host(secret=b"key"), signed()
    delta = right[:start] + noise + right[end:]
    assert cache.merge_delta(delta) == (delta == right)
    assert cache.merge_delta(noise) is False


def test_a_cache_without_shared_entries_exchanges_nothing() -> None:
    cache = host(shared=0)
    for call in (cache.export_delta, lambda: cache.merge_delta(signed())):
        with pytest.raises(ConfigError, match="shared"):
            call()
