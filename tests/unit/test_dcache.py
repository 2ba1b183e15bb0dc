"""The table of the distance cache: exact look-ups, bounds, replacement, size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.caching.dcache import DCache, DCacheConfig
from pipeline.caching.metric import LARGEST_SQUARE, SquaredEuclidean
from pipeline.caching.middle import Middle
from pipeline.caching.object_ids import MOST_OBJECTS, centre_ids, object_ids, runtime_id
from pipeline.caching.table import BOUNDED, ENTRY_BYTES, KNOWN, NOTHING, Replacement, Shape, Table
from pipeline.errors import ConfigError, InputError
from tests.heavy import examples

NONE = np.empty(0, np.uint64)


class Absolute:
    """Distance of numbers, computed with an error."""

    name = "absolute"
    squared = False
    error = 0.01

    def distances(
        self, query: NDArray[Any], objects: NDArray[Any], which: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        right = np.abs(objects[which] - query).astype(np.float64)
        wrong = np.where(objects[which] * 7 % 1 > 0.5, 0.009, -0.009)
        return np.where(right == 0, 0, np.maximum(right + wrong, 0)).astype(np.float32) * 1.0


def ids(*numbers: int) -> NDArray[np.uint64]:
    return np.array(numbers, np.uint64)


def table(size: int = 1, squared: bool = False, **shape: Any) -> Table:
    shape = {"interval": 4, **shape}
    return Table(Shape(size=size * shape["interval"] * ENTRY_BYTES, **shape), squared)


def known(one: Table, query: int, others: list[int]) -> list[float | None]:
    """Return the distances that are in a table."""
    found = one.bound(np.uint64(query), (NONE, np.empty(0)), ids(*others))
    pairs = zip(found.states, found.lower, strict=True)
    return [value if state == KNOWN else None for state, value in pairs]


def insert(one: Table, query: int, others: dict[int, float], pivots: tuple[int, ...] = ()) -> None:
    values = np.array(list(others.values()), np.float64)
    one.insert(ids(query), ids(*others), values, ids(*pivots))


def test_a_distance_is_found_from_both_sides_and_an_object_is_not_paired_with_itself() -> None:
    one = table(8)
    insert(one, 5, {1: 2.5, 9: 7.0, 5: 0.0})
    assert known(one, 5, [1, 9, 5, 2]) == [2.5, 7.0, None, None]
    assert known(one, 9, [5]) == [7.0]
    assert (one.entries, one.inserted, one.replaced) == (2, 2, 0)
    one.clear()
    assert known(one, 5, [1]) == [None]


def test_equal_pairs_are_kept_once() -> None:
    one = table(8)
    for _ in range(3):
        insert(one, 5, {1: 2.5})
    insert(one, 1, {5: 2.5})
    assert (one.entries, one.inserted) == (1, 1)


@pytest.mark.parametrize("replacement", ["obsolete", "lru"])
def test_the_interval_is_filled_before_anything_is_replaced(replacement: Replacement) -> None:
    one = table(interval=6, replacement=replacement)
    insert(one, 100, dict.fromkeys(range(1, 7), 3.0))
    assert (one.entries, one.replaced) == (6, 0)
    insert(one, 100, {7: 3.0})
    assert (one.entries, one.replaced) == (6, 1)
    assert known(one, 100, [7]) == [3.0]


def test_an_obsolete_entry_goes_first_then_the_one_nearest_the_middle() -> None:
    one = table()
    insert(one, 10, {1: 1.0, 2: 9.0}, (10,))
    insert(one, 20, {1: 4.8, 2: 1.5}, (10, 20))  # the bucket is full now
    one.middle.add(np.full(99, 5.0))
    insert(one, 30, {1: 5.5}, (20, 30))  # 10 is no pivot any more: one of its entries goes
    assert known(one, 10, [1, 2]).count(None) == 1
    insert(one, 30, {2: 8.0}, (20, 30))
    assert known(one, 10, [1, 2]) == [None, None]
    insert(one, 30, {3: 0.5}, (20, 30))  # nothing is obsolete: 4.8 is nearest 5
    assert known(one, 20, [1, 2]) == [None, 1.5]
    assert known(one, 30, [1, 2, 3]) == [5.5, 8.0, 0.5]
    insert(one, 30, {4: 0.125}, (20, 30))
    assert known(one, 30, [1, 2, 3, 4]) == [None, 8.0, 0.5, 0.125]


def test_of_squares_the_middle_is_one_of_roots() -> None:
    one = table(interval=2, squared=True)
    one.middle.add(np.full(99, 100.0))
    insert(one, 10, {1: 25.0, 2: 196.0}, (10,))  # 5 and 14: 10 is nearer to 14
    insert(one, 10, {3: 1.0}, (10,))
    assert known(one, 10, [1, 2, 3]) == [25.0, None, 1.0]


def test_entries_of_centres_are_never_obsolete() -> None:
    one = table(interval=2)
    centre = int(centre_ids(3, 1)[0])
    insert(one, centre, {1: 5.0})
    insert(one, 20, {1: 0.1})
    insert(one, 30, {1: 0.2})
    assert known(one, 1, [centre, 20, 30]) == [5.0, None, pytest.approx(0.2)]


def test_the_entry_that_was_not_used_for_the_longest_time_goes() -> None:
    one = table(replacement="lru")
    insert(one, 10, {1: 1.0})
    insert(one, 10, {2: 2.0})
    insert(one, 10, {3: 3.0})
    insert(one, 10, {4: 4.0})
    assert known(one, 10, [1]) == [1.0]
    one.bound(np.uint64(77), (ids(10), np.array([1.0])), ids(3))  # used for a bound
    insert(one, 10, {5: 5.0})
    insert(one, 10, {6: 6.0})
    assert known(one, 10, [1, 2, 3, 4, 5, 6]) == [1.0, None, 3.0, None, 5.0, 6.0]


def test_fifty_megabytes_are_two_million_entries_and_no_more() -> None:
    one = Table(Shape(), True)
    assert 49_999_000 < one.size <= 50_000_000
    assert one.words.shape == (2_083_332, 3)


@pytest.mark.parametrize(
    "shape",
    [
        {"size": 95}, {"interval": 0}, {"interval": 65}, {"shared": 4}, {"shared": -1},
        {"size": 1 << 38}, {"replacement": "random"},
    ],
)  # fmt: skip
def test_a_shape_that_cannot_be_is_refused(shape: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Shape(**shape)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, float(LARGEST_SQUARE + 1)])
def test_what_is_no_distance_is_refused(value: float) -> None:
    one = table(squared=True)
    with pytest.raises(InputError, match="no distance"):
        insert(one, 1, {2: value})
    assert one.entries == 0


def test_ids_tell_objects_centres_and_queries_apart() -> None:
    assert object_ids(5, 2).tolist() == [5, 6]
    assert (centre_ids(5, 1) >> 62).tolist() == [1]
    assert int(runtime_id(b"a")) >> 63 == 1
    assert runtime_id(b"a") == runtime_id(b"a") != runtime_id(b"b")
    for first, count in ((-1, 1), (MOST_OBJECTS, 1), (0, -1)):
        with pytest.raises(InputError, match="numbers are 0 to"):
            object_ids(first, count)


def test_bounds_of_squares_are_the_exact_integers() -> None:
    rng = np.random.default_rng(1)
    some = rng.integers(0, LARGEST_SQUARE + 1, (3000, 2))
    small = rng.integers(0, 300, (1000, 2))
    # (2a + 1)^2 - 1 = 4 a (a + 1): just below a square, where a float64 is the square.
    beside = [(a, a + e) for a in range(LARGEST_SQUARE - 50, LARGEST_SQUARE) for e in (0, 1)]
    edges = [(a * a + d, b * b + e) for a in (0, 1, 9, 32767) for b in (1, 9, 32766)
             for d in (0, 1) for e in (0, 1)]  # fmt: skip
    for first, second in [*some.tolist(), *small.tolist(), *edges, *beside]:
        one = table(squared=True)
        insert(one, 10, {1: first})
        found = one.bound(np.uint64(20), (ids(10), np.array([float(second)])), ids(1))
        root = math.isqrt(4 * first * second)
        assert (found.lower[0], found.upper[0]) == (first + second - root, first + second + root)
        assert found.states[0] == BOUNDED


def test_the_best_bounds_of_all_pivots_are_taken_until_a_radius_decides() -> None:
    one = table(64)
    insert(one, 10, {1: 3.0})
    insert(one, 20, {1: 8.0})
    insert(one, 30, {1: 6.0})
    pivots = (ids(10, 20, 30, 40), np.array([4.0, 1.0, 5.0, 9.0]))
    found = one.bound(np.uint64(50), pivots, ids(1, 2))
    assert (found.lower[0], found.upper[0]) == (7.0, 7.0)
    assert (found.states[1], found.lower[1], found.upper[1]) == (NOTHING, 0.0, np.inf)
    before = one.probes
    found = one.bound(np.uint64(50), pivots, ids(1), 6.5)
    assert (found.lower[0], one.probes - before) == (7.0, 3)


Rows = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).integers(-4, 4, (40, 8)).astype(np.int8)
)


@settings(max_examples=examples(80), deadline=None)
@given(Rows, st.integers(1, 40), st.sampled_from(["obsolete", "lru"]), st.integers(0, 6),
       st.sampled_from(["recent", "nearest"]))  # fmt: skip
def test_bounds_hold_whatever_was_replaced(
    rows: NDArray[np.int8], buckets: int, replacement: Replacement, pivots: int, choice: Any
) -> None:
    shape = Shape(buckets * 4 * ENTRY_BYTES, replacement=replacement)
    cache = DCache(SquaredEuclidean(), DCacheConfig(shape, pivots, choice, among=9))
    check_bounds(cache, rows, rows[::2])


@settings(max_examples=examples(80), deadline=None)
@given(st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=30), st.integers(1, 40))
def test_bounds_allow_for_the_errors_of_a_metric(numbers: list[float], buckets: int) -> None:
    cache = DCache(Absolute(), DCacheConfig(Shape(buckets * 4 * ENTRY_BYTES), 5))
    check_bounds(cache, np.array(numbers, np.float32), np.array(numbers[::-1], np.float32) + 1)


def check_bounds(cache: DCache, objects: NDArray[Any], queries: NDArray[Any]) -> None:
    numbers, every = object_ids(0, len(objects)), np.arange(len(objects))
    for query in queries:
        right = cache.metric.distances(query, objects, every)
        runtime = cache.begin(query, runtime_id(query.tobytes()))
        for radius in (np.inf, float(np.median(right))):
            found = cache.bound(runtime, numbers, radius)
            assert (found.lower <= right).all()
            assert (right <= found.upper).all()
            assert (found.lower == right)[found.states == KNOWN].all()
        cache.insert(runtime, numbers, right)
    assert cache.table.entries <= len(cache.table.words)


@pytest.mark.parametrize(("choice", "wanted"), [("recent", [4, 3]), ("nearest", [1, 3])])
def test_pivots_are_the_most_recent_earlier_queries_or_the_nearest(
    choice: Any, wanted: list[int]
) -> None:
    cache = DCache(Absolute(), DCacheConfig(Shape(9600), 2, choice, among=4))
    for number, query in enumerate([0.0, 5.0, 100.0, 3.0, 50.0]):
        cache.begin(np.float32(query), np.uint64(number))
    runtime = cache.begin(np.float32(4.5), np.uint64(9))
    assert runtime.pivots.tolist() == wanted
    again = cache.begin(np.float32(4.5), np.uint64(9))
    assert 9 not in again.pivots
    assert len(cache.earlier.ids) == (2 if choice == "recent" else 4)


def test_centres_on_the_way_of_a_query_are_pivots_of_it() -> None:
    cache = DCache(SquaredEuclidean())
    row, centre = np.zeros(8, np.int8), centre_ids(0, 1)
    cache.feed(centre, object_ids(7, 1), np.array([100.0]))
    runtime = cache.begin(row, runtime_id(b"row"), (centre, np.array([9.0])))
    found = cache.bound(runtime, object_ids(7, 1))
    assert (found.lower[0], found.upper[0]) == (49.0, 169.0)
    assert cache.bound(runtime, centre).states[0] == KNOWN


def test_an_estimate_is_the_distance_or_the_middle_of_bounds_or_that_of_all() -> None:
    cache = DCache(SquaredEuclidean())
    cache.feed(ids(5), ids(1), np.array([100.0]))
    cache.table.middle.add(np.full(99, 1000.0))
    cache.feed(ids(9), ids(2), np.array([36.0]))
    runtime = cache.begin(np.zeros(8, np.int8), np.uint64(9), (ids(5), np.array([16.0])))
    found = cache.estimate(cache.bound(runtime, ids(1, 2, 3)))
    assert found.tolist() == [100.0, 36.0, cache.table.middle.value]
    assert cache.table.middle.value == pytest.approx(1000, rel=1 / 16)


def test_hits_over_misses_and_shares_of_look_ups() -> None:
    cache = DCache(SquaredEuclidean())
    cache.count(exact=10, approximate=30, missed=60)
    ratios = cache.counters.ratios()
    assert ratios["hits over misses"] == pytest.approx(2 / 3)
    assert (ratios["exact"], ratios["approximate"], ratios["total"]) == (0.1, 0.3, 0.4)
    assert cache.to_dict()["missed"] == 60


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=200))
def test_the_running_median_is_right_to_a_sixteenth(values: list[float]) -> None:
    middle = Middle()
    for value in values:
        middle.add(np.array([value]))
    wanted = sorted(values)[(len(values) - 1) // 2]
    assert middle.value == pytest.approx(wanted, rel=1 / 16, abs=1e-37)


def test_the_median_follows_what_comes_later() -> None:
    middle = Middle()
    assert middle.value == 0
    for value in [10.0] * 1100 + [1000.0] * 2200:
        middle.add(np.full(4096, value))
    assert middle.value == pytest.approx(1000, rel=1 / 16)
