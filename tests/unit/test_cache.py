"""The cache of a process: what is believed, what is kept, what is counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.caching.cache import WORTH_US_A_BYTE, Cache
from pipeline.caching.tiers import ENTRY_BYTES, Found, ProcessTier, TierName
from pipeline.caching.trace import CacheTrace
from pipeline.caching.values import CachedValue, CacheKey, Kind, seal, unseal

SECRET = b"s" * 32
KEY = CacheKey("block", "1" * 32)


class Remote:
    """A tier in a dict, which everybody can write to."""

    def __init__(self, tier: TierName = "replica") -> None:
        self.values: dict[CacheKey, bytes] = {}
        self.asked: list[list[CacheKey]] = []
        self._tier = tier

    def find(self, keys: Sequence[CacheKey]) -> list[Found | None]:
        self.asked.append(list(keys))
        sealed = [self.values.get(key) for key in keys]
        return [None if value is None else Found(value, self._tier) for value in sealed]

    def keep(self, values: Mapping[CacheKey, bytes]) -> None:
        self.values.update(values)

    def close(self) -> None:
        pass


def key(number: int, kind: Kind = "features") -> CacheKey:
    return CacheKey(kind, f"{number:032x}")


@given(st.binary(max_size=300), st.integers(0, 2**40), st.data())
def test_a_sealed_value_is_read_with_the_same_secret_and_key_alone(
    content: bytes, cost: int, data: st.DataObject
) -> None:
    sealed = seal(KEY, CachedValue(content, cost), SECRET)
    assert unseal(KEY, sealed, SECRET) == CachedValue(content, min(cost, 2**32 - 1))
    assert unseal(KEY, sealed, b"t" * 32) is None
    assert unseal(CacheKey("block", "2" * 32), sealed, SECRET) is None
    assert unseal(CacheKey("ranking", KEY.digest), sealed, SECRET) is None
    place = data.draw(st.integers(0, len(sealed) - 1))
    changed = bytes([*sealed[:place], sealed[place] ^ 1, *sealed[place + 1 :]])
    assert unseal(KEY, changed, SECRET) is None
    assert unseal(KEY, sealed[:place], SECRET) is None
    assert unseal(KEY, sealed + b"\0", SECRET) is None


def test_what_a_process_has_computed_another_finds_and_keeps() -> None:
    remote = Remote()
    one, two = (Cache(ProcessTier(10_000), remote, lambda: SECRET) for _ in range(2))
    one.keep(key(1), b"features", 0.1)
    first, second = CacheTrace(), CacheTrace()
    assert two.find([key(1), key(2)], first) == [b"features", None]
    assert two.find([key(1)], second) == [b"features"]
    assert (first.count("features", "replica"), second.count("features", "process")) == (1, 1)
    assert first.moved > len(b"features")
    assert remote.asked == [[key(1), key(2)]]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda good, _: b"",
        lambda good, _: good[:-1],
        lambda good, _: b"\0" * len(good),
        lambda good, other: other,
        lambda good, _: good[:4] + b"\xff" * (len(good) - 4),
    ],
    ids=["empty", "cut", "zeros", "another key's", "a hostile head"],
)
def test_a_value_that_is_not_ours_is_missed_and_counted(
    spoil: Callable[[bytes, bytes], bytes],
) -> None:
    remote = Remote()
    Cache(None, remote, lambda: SECRET).keep(key(1), b"good", 0.1)
    Cache(None, remote, lambda: SECRET).keep(key(2), b"other", 0.1)
    remote.values[key(1)] = spoil(remote.values[key(1)], remote.values[key(2)])
    cache, trace = Cache(ProcessTier(10_000), remote, lambda: SECRET), CacheTrace()
    assert cache.find([key(1), key(2)], trace) == [None, b"other"]
    assert cache.counters["refused"] == 1
    assert trace.hits == 1


def test_who_does_not_know_the_secret_cannot_make_a_value() -> None:
    remote = Remote()
    Cache(None, remote, lambda: b"guessed").keep(key(1), b"wrong", 0.1)
    cache = Cache(ProcessTier(10_000), remote, lambda: SECRET)
    assert cache.find([key(1)], CacheTrace()) == [None]
    assert cache.counters["refused"] == 1


def test_a_cheap_block_is_kept_at_second_sight_and_a_dear_one_at_once() -> None:
    cache = Cache(ProcessTier(1_000_000))
    cheap, dear = key(1, "block"), key(2, "block")
    content = b"x" * 1000
    cost_s = WORTH_US_A_BYTE * len(content) / 1e6
    for number, kept in ((cheap, False), (dear, True)):
        cache.keep(number, content, cost_s if kept else cost_s / 2)
        assert (cache.find([number], CacheTrace()) == [content]) is kept
    cache.keep(cheap, content, cost_s / 2)
    assert cache.find([cheap], CacheTrace()) == [content]


def test_without_tiers_nothing_is_kept() -> None:
    cache = Cache()
    cache.keep(key(1), b"a", 1.0)
    assert not cache
    assert cache.find([key(1)], CacheTrace()) == [None]


def fill(tier: ProcessTier, numbers: range, size: int = 600, cost: int = 1000) -> None:
    for number in numbers:
        tier.put(key(number), CachedValue(bytes(size), cost))


def held(tier: ProcessTier, numbers: range) -> set[int]:
    return {number for number in numbers if tier.get(key(number)) is not None}


def test_a_process_never_holds_more_than_its_capacity() -> None:
    tier = ProcessTier(10 * (600 + ENTRY_BYTES))
    fill(tier, range(100))
    assert tier.bytes <= 10 * (600 + ENTRY_BYTES)
    assert (len(tier), tier.evicted) == (10, 90)
    tier.clear()
    assert (len(tier), tier.bytes) == (0, 0)


def test_what_saves_most_a_byte_stays_but_not_for_ever() -> None:
    tier = ProcessTier(10 * (600 + ENTRY_BYTES))
    tier.put(key(1000), CachedValue(bytes(600), 20_000))
    fill(tier, range(15))
    assert tier.get(key(1000)) is not None
    fill(tier, range(100, 1500))
    assert key(1000) not in tier._entries


def test_what_is_used_again_outlives_what_is_not() -> None:
    tier = ProcessTier(10 * (600 + ENTRY_BYTES))
    fill(tier, range(10))
    for _ in range(3):
        assert held(tier, range(3)) == {0, 1, 2}
    fill(tier, range(20, 27))
    assert held(tier, range(10)) == {0, 1, 2}


def test_a_value_as_large_as_everything_else_is_not_kept() -> None:
    tier = ProcessTier(8000)
    tier.put(key(1), CachedValue(bytes(900), 1))
    assert tier.get(key(1)) is None
    tier.put(key(2), CachedValue(bytes(500), 1))
    assert tier.get(key(2)) is not None


def test_the_queue_of_a_process_does_not_grow_with_uses() -> None:
    tier = ProcessTier(100_000)
    fill(tier, range(10))
    for _ in range(1000):
        assert len(held(tier, range(10))) == 10
    assert len(tier._queue) < 200


def test_threads_share_a_process_tier() -> None:
    tier = ProcessTier(50 * (600 + ENTRY_BYTES))

    def use(number: int) -> None:
        for i in range(300):
            fill(tier, range(i, i + 3))
            held(tier, range(number, number + 30))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert tier.bytes == sum(len(e.value.content) + ENTRY_BYTES for e in tier._entries.values())
    assert tier.bytes <= 50 * (600 + ENTRY_BYTES)


def test_a_trace_says_what_was_found_where() -> None:
    trace, other = CacheTrace(), CacheTrace()
    trace.note("features", "process")
    trace.note("block", "primary", 500)
    other.note("block", "computed", count=3)
    trace.add(other)
    shown = trace.to_dict()
    assert shown == {
        "features": {"process": 1},
        "block": {"primary": 1, "computed": 3},
        "bytes": 500,
        "bounds": 0,
    }
    assert CacheTrace.from_dict(shown).to_dict() == shown
    assert (trace.hits, CacheTrace().to_dict()) == (2, {})


@pytest.mark.parametrize(
    "values", [{}, {"block": 3}, {"block": {"process": "many"}}, {"bytes": -1, "x": 2}]
)
def test_a_trace_from_elsewhere_may_be_anything(values: Mapping[str, object]) -> None:
    assert CacheTrace.from_dict(values).to_dict() == {}
