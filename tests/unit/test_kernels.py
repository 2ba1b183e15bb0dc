"""Every kernel gives its numpy twin's integers, on every code path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from heavy import LONG, examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.index import quantizer, vptree, work
from pipeline.index.kernels import (
    Hits,
    Queries,
    k_nearest,
    k_nearest_loop,
    k_nearest_reference,
    merge_k_nearest,
    nearest_rows,
    nearest_rows_loop,
    prepare_queries,
    range_search,
    range_search_loop,
    range_search_reference,
    room_for_selection,
    select_k_nearest,
    select_k_nearest_loop,
)
from pipeline.index.paths import PATHS, PREFIX, usable_paths
from pipeline.index.rows import pack_rows, unpack_rows
from pipeline.index.warm import warm_up
from pipeline.index.work import Work, full_work

USABLE = usable_paths()
every_path = pytest.mark.parametrize(
    "path",
    [
        pytest.param(name, marks=pytest.mark.skipif(name not in USABLE, reason=f"no {name} here"))
        for name in PATHS
    ],
)
every_width = pytest.mark.parametrize("width", [64, 128, 192, 256, 512])
Rng = np.random.Generator


def make_rows(rng: Rng, count: int, extreme: bool = False, width: int = 64) -> NDArray[np.uint8]:
    if extreme:
        return rng.choice(np.array([0, 1, 127, 128, 254, 255], np.uint8), (count, width))
    return rng.integers(0, 256, (count, width), dtype=np.uint8)


def make_queries(rng: Rng, count: int, extreme: bool = False, width: int = 64) -> Queries:
    if extreme:
        few = np.array([-128, -127, -1, 0, 127], np.int8)
        return prepare_queries(rng.choice(few, (count, width)))
    return prepare_queries(rng.integers(-128, 128, (count, width), dtype=np.int8))


def make_work(rng: Rng, rows: int, queries: int, items: int) -> Work:
    """Random ranges with random queries; some of both are empty."""
    ends = np.sort(rng.integers(0, rows + 1, (items, 2)), axis=1).astype(np.int64)
    wanted = [
        np.sort(rng.choice(queries, rng.integers(0, queries + 1), replace=False))
        for _ in range(items)
    ]
    starts = np.concatenate([[0], np.cumsum([len(w) for w in wanted])]).astype(np.int64)
    listed = np.concatenate([np.empty(0, np.int32), *wanted]).astype(np.int32)
    return Work(ends[:, 0].copy(), ends[:, 1].copy(), starts, listed)


def as_set(hits: Hits) -> set[tuple[int, int, int]]:
    return set(zip(hits.query.tolist(), hits.row.tolist(), hits.distance.tolist(), strict=True))


def same_hits(one: Hits, other: Hits) -> bool:
    """The order within a work item is that of the path's tiles."""
    return as_set(one) == as_set(other) and len(one.query) == len(other.query)


@every_path
@pytest.mark.parametrize("extreme", [False, True], ids=["any bytes", "extreme bytes"])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("queries", [1, 7, 8, 9, 20])
def test_a_range_scan_finds_exactly_what_numpy_finds(
    path: str, extreme: bool, count: int, queries: int
) -> None:
    rng = np.random.default_rng([count, queries, extreme])
    unpacked, prepared = make_rows(rng, count, extreme), make_queries(rng, queries, extreme)
    radius = rng.integers(200_000, 1_500_000, queries).astype(np.int32)
    alive = rng.random(count) > 0.2
    work = full_work(count, queries)
    hits = range_search(pack_rows(unpacked), alive, prepared, radius, work, path=path)
    assert as_set(hits) == range_search_reference(unpacked, alive, prepared, radius, work)
    assert len(as_set(hits)) == len(hits.query)


@settings(max_examples=examples(40), deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 70),
    queries=st.integers(1, 20),
    items=st.integers(0, 6),
    buffer=st.integers(1, 40),
    extreme=st.booleans(),
    width=st.sampled_from([64, 128, 256, 512]),
    path=st.sampled_from(USABLE),
)
def test_ranges_buffers_and_dead_rows_change_nothing_of_a_range_scan(
    seed: int,
    count: int,
    queries: int,
    items: int,
    buffer: int,
    extreme: bool,
    width: int,
    path: str,
) -> None:
    rng = np.random.default_rng(seed)
    unpacked = make_rows(rng, count, extreme, width)
    prepared = make_queries(rng, queries, extreme, width)
    radius = rng.integers(0, 3_000_000 * width // 64, queries).astype(np.int32)
    alive = rng.random(count) > 0.3
    work = make_work(rng, count, queries, items)
    rows = pack_rows(unpacked)
    hits = range_search(rows, alive, prepared, radius, work, buffer=buffer, path=path)
    assert as_set(hits) == range_search_reference(unpacked, alive, prepared, radius, work)
    assert same_hits(hits, range_search(rows, alive, prepared, radius, work, path="portable"))


@every_path
def test_the_radius_itself_is_outside(path: str) -> None:
    rows = pack_rows(np.full((1, 64), 130, np.uint8))
    queries = prepare_queries(np.zeros((1, 64), np.int8))
    work, alive = full_work(1, 1), np.ones(1, np.bool_)
    for radius, found in [(256, 0), (257, 1), (0, 0), (np.iinfo(np.int32).max, 1)]:
        hits = range_search(rows, alive, queries, np.array([radius], np.int32), work, path=path)
        assert len(hits.query) == found, radius


@every_path
@pytest.mark.parametrize("width", [64, 512, 4096])
def test_the_greatest_distance_is_exact(path: str, width: int) -> None:
    rows = pack_rows(np.array([[255] * width, [0] * width], np.uint8))
    queries = prepare_queries(np.array([[-128] * width, [127] * width], np.int8))
    distance, row = k_nearest(rows, queries, 2, path=path)
    assert distance.tolist() == [[0, width * 255**2], [0, width * 255**2]]
    assert row.tolist() == [[1, 0], [0, 1]]


@every_path
@every_width
@pytest.mark.parametrize("extreme", [False, True], ids=["any bytes", "extreme bytes"])
@pytest.mark.parametrize("count", [1, 16, 33, 200])
def test_nearest_is_the_sorted_exhaustive_search(
    path: str, extreme: bool, count: int, width: int
) -> None:
    rng = np.random.default_rng([count, width, extreme])
    unpacked = make_rows(rng, count, extreme, width)
    queries = make_queries(rng, 11, extreme, width)
    alive = rng.random(count) > 0.3
    for k in (1, 2, 16):
        expected = k_nearest_reference(unpacked, queries, k, alive)
        found = k_nearest(pack_rows(unpacked), queries, k, alive=alive, path=path)
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[1], expected[1])


@settings(max_examples=examples(30), deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 120),
    k=st.integers(1, 9),
    few=st.booleans(),
    path=st.sampled_from(USABLE),
)
def test_the_order_of_the_work_does_not_change_the_nearest(
    seed: int, count: int, k: int, few: bool, path: str
) -> None:
    """Ranges of rows in any order, wanted by any queries; few kinds of rows make many ties."""
    rng = np.random.default_rng(seed)
    kinds = make_rows(rng, 3 if few else count)
    unpacked = kinds[rng.integers(0, len(kinds), count)]
    queries = make_queries(rng, 10)
    bounds = np.unique(np.append(rng.integers(0, count, 4), [0, count])).astype(np.int64)
    order = rng.permutation(len(bounds) - 1)
    wanted = [np.flatnonzero(rng.random(10) < 0.7).astype(np.int32) for _ in order]
    work = Work(
        bounds[:-1][order],
        bounds[1:][order],
        np.concatenate([[0], np.cumsum([len(w) for w in wanted])]).astype(np.int64),
        np.concatenate(wanted),
    )
    distance, row = k_nearest(pack_rows(unpacked), queries, k, work=work, path=path)
    for query in range(10):
        visited = np.zeros(count, np.bool_)
        for item, want in enumerate(wanted):
            visited[work.row_start[item] : work.row_stop[item]] |= query in want
        one = prepare_queries(queries.codes[query : query + 1])
        expected = k_nearest_reference(unpacked, one, k, visited)
        assert np.array_equal(distance[query], expected[0][0])
        assert np.array_equal(row[query], expected[1][0])


@settings(max_examples=examples(40), deadline=None)
@given(
    seed=st.integers(0, 2**32),
    width=st.sampled_from([64, 128]),
    share=st.sampled_from([0.001, 0.03, 0.3]),
    steep=st.booleans(),
    path=st.sampled_from(USABLE),
)
def test_bounds_change_nothing(seed: int, width: int, share: float, steep: bool, path: str) -> None:
    """Rows in principal axes, whose prefix decides, and rows whose prefix says nothing."""
    rng = np.random.default_rng(seed)
    spread = np.geomspace(60, 4, width) if steep else np.full(width, 30.0)
    signed = np.clip(np.rint(rng.normal(0, spread, (310, width))), -128, 127)
    unpacked = (signed[10:] + 128).astype(np.uint8)
    queries = prepare_queries(signed[:10].astype(np.int8))
    rows, work = pack_rows(unpacked), make_work(rng, 300, 10, 5)
    alive = rng.random(300) > 0.1
    every = k_nearest_reference(unpacked, queries, 300)[0]
    radius = every[:, round(share * 299)] + 1
    hits = range_search(rows, alive, queries, radius, work, path=path)
    assert as_set(hits) == range_search_reference(unpacked, alive, queries, radius, work)
    whole = range_search(rows, alive, queries, radius, work, bounds=False, path=path)
    assert same_hits(hits, whole)
    assert len(hits.query) <= hits.computed <= whole.computed == work.pairs
    found = k_nearest(rows, queries, 7, alive=alive, path=path)
    expected = k_nearest_reference(unpacked, queries, 7, alive)
    plain = k_nearest(rows, queries, 7, alive=alive, bounds=False, path=path)
    for one, other, third in zip(found, expected, plain, strict=True):
        assert np.array_equal(one, other)
        assert np.array_equal(one, third)


@every_path
def test_ids_take_the_place_of_row_numbers_also_among_equal_distances(path: str) -> None:
    rng = np.random.default_rng(9)
    unpacked = make_rows(rng, 4)[rng.integers(0, 4, 90)]
    queries, ids = make_queries(rng, 6), rng.permutation(90) * 10
    back = np.argsort(ids)
    expected = k_nearest_reference(unpacked[back], queries, 30)
    found = k_nearest(pack_rows(unpacked), queries, 30, ids=ids, path=path)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], ids[back][expected[1]])


@settings(max_examples=examples(30), deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 60), k=st.integers(1, 9))
def test_answers_about_different_rows_are_united(seed: int, count: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = make_rows(rng, 4)
    unpacked, queries = kinds[rng.integers(0, 4, count)], make_queries(rng, 5)
    rows, whose = pack_rows(unpacked), rng.integers(0, 3, count)
    found = [k_nearest(rows, queries, k, alive=whose == number) for number in range(3)]
    expected = k_nearest_reference(unpacked, queries, k)
    united = merge_k_nearest(found)
    assert np.array_equal(united[0], expected[0])
    assert np.array_equal(united[1], expected[1])


@every_path
def test_only_rows_below_the_reach_are_neighbours(path: str) -> None:
    rng = np.random.default_rng(6)
    unpacked, queries = make_rows(rng, 150), make_queries(rng, 12)
    distance, row = k_nearest_reference(unpacked, queries, 150)
    for rank in (0, 3, 149):
        reach = distance[:, rank].astype(np.int64)
        found = k_nearest(pack_rows(unpacked), queries, 9, reach=reach, path=path)
        for query in range(12):
            kept = row[query][distance[query] < reach[query]][:9]
            assert found[1][query].tolist() == kept.tolist() + [-1] * (9 - len(kept))


@settings(max_examples=examples(60), deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 900),
    items=st.integers(1, 5),
    k=st.sampled_from([1, 3, 16, 70, 300, 1000]),
    kinds=st.sampled_from([2, 900]),
    width=st.sampled_from([64, 128]),
    extreme=st.booleans(),
    living=st.sampled_from([0.0, 0.6, 1.0]),
    named=st.booleans(),
    path=st.sampled_from(USABLE),
)
def test_selected_rows_are_the_nearest(
    seed: int,
    count: int,
    items: int,
    k: int,
    kinds: int,
    width: int,
    extreme: bool,
    living: float,
    named: bool,
    path: str,
) -> None:
    """Ranges in any order, each wanted by some queries; few kinds of rows make many ties."""
    rng = np.random.default_rng(seed)
    some = make_rows(rng, kinds, extreme, width)
    packed = pack_rows(some[rng.integers(0, kinds, count)])
    queries = make_queries(rng, 21, extreme, width)
    alive = rng.random(count) < living
    ids = rng.permutation(count * 3)[:count].astype(np.int64) if named else None
    # Equal bounds: ranges without rows, which any number of queries may want.
    bounds = np.sort(np.append(rng.integers(0, count + 1, items), [0, 0, count, count]))
    order = rng.permutation(len(bounds) - 1)
    wanted = [np.flatnonzero(rng.random(21) < 0.6).astype(np.int32) for _ in order]
    listed = np.concatenate([[0], np.cumsum([len(want) for want in wanted])]).astype(np.int64)
    pieces = Work(bounds[:-1][order], bounds[1:][order], listed, np.concatenate(wanted))
    cells = np.array([rng.permutation(len(order)) for _ in range(21)])
    for each in (pieces, work.whole_work(count, 21), work.ordered_work(cells, bounds)):
        expected = k_nearest(packed, queries, k, work=each, alive=alive, ids=ids)
        found = select_k_nearest(packed, queries, k, each, alive=alive, ids=ids, path=path)
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[1], expected[1])


def test_selection_of_nothing_gives_none() -> None:
    rows, queries = (
        pack_rows(make_rows(np.random.default_rng(1), 40)),
        prepare_queries(np.zeros((6, 64), np.int8)),
    )
    nobody = Work(*(np.array(v, np.int64) for v in ([0], [40], [0, 0])), np.empty(0, np.int32))
    for each in (work.whole_work(0, 6), nobody):
        with pytest.raises(InputError, match="0 nearest rows are asked for"):
            select_k_nearest(rows, queries, 0, each)
        distance, row = select_k_nearest(rows, queries, 3, each)
        assert (distance == np.iinfo(np.int32).max).all()
        assert (row == -1).all()


@settings(max_examples=examples(40), deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 400),
    asked=st.integers(1, 40),
    width=st.sampled_from([64, 128]),
    kinds=st.sampled_from([3, 500]),
    extreme=st.booleans(),
    path=st.sampled_from(USABLE),
)
def test_the_closest_row_is_the_nearest_of_one(
    seed: int, count: int, asked: int, width: int, kinds: int, extreme: bool, path: str
) -> None:
    """Ranges that begin and end anywhere; few kinds of rows make many ties."""
    rng = np.random.default_rng(seed)
    some = make_rows(rng, kinds, extreme, width)
    unpacked = some[rng.integers(0, kinds, count)]
    queries = make_queries(rng, asked, extreme, width)
    bounds = np.unique(np.append(rng.integers(0, count, 4), [0, count])).astype(np.int64)
    wanted = [np.flatnonzero(rng.random(asked) < 0.7).astype(np.int32) for _ in bounds[1:]]
    listed = np.concatenate([[0], np.cumsum([len(want) for want in wanted])]).astype(np.int64)
    pieces = Work(bounds[:-1], bounds[1:], listed, np.concatenate(wanted))
    packed = pack_rows(unpacked)
    for each in (pieces, work.whole_work(count, asked)):
        expected = k_nearest(packed, queries, 1, work=each, path=path)[1][:, 0]
        found = nearest_rows(packed, queries.codes, each, path=path)
        assert np.array_equal(found, expected)
    exact = k_nearest_reference(unpacked, queries, 1)[1][:, 0]
    assert np.array_equal(nearest_rows(packed, queries.codes, each, path=path), exact)


ONE_KERNEL = (
    "kernels.nearest_rows(kernels.pack_rows(np.zeros((32, 64), np.uint8)),"
    " np.zeros((1, 64), np.int8), kernels.full_work(32, 1))"
)


def test_code_for_another_processor_uses_nothing_special_of_this_one() -> None:
    program = "from pipeline.index import kernels, warm; "
    program += "warm.warm_up(); " if LONG else f"import numpy as np; {ONE_KERNEL}; "
    program += "print(kernels.PATH)"
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "portable"


def test_queries_of_another_length_and_lengths_that_are_not_built_are_refused() -> None:
    rows = pack_rows(np.zeros((3, 128), np.uint8))
    queries = prepare_queries(np.zeros((1, 64), np.int8))
    with pytest.raises(InputError, match="queries of 64 bytes do not fit rows of 128 bytes"):
        k_nearest(rows, queries, 1)
    with pytest.raises(InputError, match="64 bytes do not fit"):
        nearest_rows(rows, queries.codes, full_work(3, 1))
    with pytest.raises(InputError, match="64 bytes do not fit"):
        range_search(rows, np.ones(3, bool), queries, np.ones(1, np.int32), full_work(3, 1))
    for width in (0, 63, 100, 8192):
        with pytest.raises(InputError, match=f"rows of {width} bytes cannot be stored"):
            pack_rows(np.zeros((2, width), np.uint8))


def test_full_work_visits_every_row_once_for_every_query() -> None:
    for rows, queries, width in [(0, 3, 64), (5000, 2, 64), (700, 3, 4096)]:
        work = full_work(rows, queries, width)
        assert work.pairs == rows * queries
        assert np.array_equal(work.row_stop[:-1], work.row_start[1:])
        assert (work.row_start % 32 == 0).all()


@every_path
def test_among_equal_distances_the_smaller_row_is_nearer(path: str) -> None:
    rng = np.random.default_rng(3)
    unpacked = np.repeat(make_rows(rng, 5), 20, axis=0)[rng.permutation(100)]
    queries = make_queries(rng, 9)
    found = k_nearest(pack_rows(unpacked), queries, 30, path=path)
    expected = k_nearest_reference(unpacked, queries, 30)
    assert np.array_equal(found[1], expected[1])
    everything_equal = np.full((40, 64), 7, np.uint8)
    _, row = k_nearest(pack_rows(everything_equal), queries, 5, path=path)
    assert row.tolist() == [[0, 1, 2, 3, 4]] * 9


@every_path
def test_no_rows_and_no_queries_give_no_neighbours(path: str) -> None:
    rng = np.random.default_rng(0)
    nothing = pack_rows(np.empty((0, 64), np.uint8))
    distance, row = k_nearest(nothing, make_queries(rng, 3), 2, path=path)
    assert row.tolist() == [[-1, -1]] * 3
    assert (distance == np.iinfo(np.int32).max).all()
    none = prepare_queries(np.empty((0, 64), np.int8))
    distance, row = k_nearest(pack_rows(make_rows(rng, 20)), none, 2, path=path)
    assert distance.shape == row.shape == (0, 2)


@every_width
@pytest.mark.parametrize("count", [0, 1, 16, 31])
def test_packing_loses_nothing(count: int, width: int) -> None:
    unpacked = make_rows(np.random.default_rng(count), count, width=width)
    rows = pack_rows(unpacked)
    assert np.array_equal(unpack_rows(rows), unpacked)
    wide = unpacked.astype(np.int64) - 128
    assert np.array_equal(rows.norms[:count], (wide * wide).sum(axis=1))
    assert np.array_equal(rows.prefixes[:count], (wide[:, :PREFIX] ** 2).sum(axis=1) // 2)
    assert not rows.norms[count:].any()


def test_arrays_of_any_origin_meet_the_version_that_was_compiled_first(tmp_path: Path) -> None:
    warm_up()
    compiled = [
        range_search_loop,
        k_nearest_loop,
        select_k_nearest_loop,
        nearest_rows_loop,
        work._list_queries,
    ]
    compiled += [vptree._assign, vptree._probe, vptree._all_distances]
    compiled += [vptree._power_iteration, quantizer._rotate, room_for_selection]
    versions = [function.versions for function in compiled]
    random = np.random.default_rng(3)
    stored = random.integers(0, 256, (40, 64), dtype=np.uint8)
    np.save(tmp_path / "stored.npy", pack_rows(stored).codes)
    mapped = np.load(tmp_path / "stored.npy", mmap_mode="r")
    rows = pack_rows(stored)._replace(codes=mapped)
    signed = random.integers(-128, 128, (5, 64)).astype(np.int8)
    received = np.frombuffer(b"\0" + signed.tobytes(), np.int8, offset=1).reshape(5, 64)
    queries = prepare_queries(received)
    k_nearest(rows, queries, 3)
    tree = vptree.train_tree(received, levels=2)
    tree.assign(received)
    tree.probe(received, 2)
    work.cell_work(tree.probe(received, 2), np.arange(5))
    nearest_rows(rows, received, full_work(40, 5))
    select_k_nearest(rows, queries, 2, work.whole_work(40, 5))
    vectors = np.frombuffer(b"\0" * 4 * 257, np.float32, offset=4).reshape(2, 128)
    quantizer.train_quantizer(vectors).encode(vectors)
    range_search(rows, np.ones(40, bool), queries, np.full(5, 9999, np.int32), full_work(40, 5))
    assert [function.versions for function in compiled] == versions
