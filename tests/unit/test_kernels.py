"""Every kernel gives its numpy twin's integers, on every code path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.index import vptree
from pipeline.index.kernels import (
    Hits,
    Queries,
    Work,
    nearest,
    nearest_reference,
    prepare_queries,
    range_scan,
    range_scan_reference,
)
from pipeline.index.rows import pack_rows, unpack_rows
from pipeline.index.simd import has_vnni, nearest_rows, scan_ranges
from pipeline.index.warm import warm_up

PATHS = [
    None,
    pytest.param(1, marks=pytest.mark.skipif(not has_vnni(), reason="no AVX-512 VNNI here")),
]
both_paths = pytest.mark.parametrize("vnni", PATHS, ids=["portable", "vnni"])
Rng = np.random.Generator


def make_rows(rng: Rng, count: int, extreme: bool = False) -> NDArray[np.uint8]:
    if extreme:
        return rng.choice(np.array([0, 1, 127, 128, 254, 255], np.uint8), (count, 64))
    return rng.integers(0, 256, (count, 64), dtype=np.uint8)


def make_queries(rng: Rng, count: int, extreme: bool = False) -> Queries:
    if extreme:
        return prepare_queries(rng.choice(np.array([-128, -127, -1, 0, 127], np.int8), (count, 64)))
    return prepare_queries(rng.integers(-128, 128, (count, 64), dtype=np.int8))


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


def full_work(rows: int, queries: int) -> Work:
    return Work(
        np.zeros(1, np.int64),
        np.array([rows], np.int64),
        np.array([0, queries], np.int64),
        np.arange(queries, dtype=np.int32),
    )


def as_set(hits: Hits) -> set[tuple[int, int, int]]:
    return set(zip(hits.query.tolist(), hits.row.tolist(), hits.distance.tolist(), strict=True))


def same_hits(one: Hits, other: Hits) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@both_paths
@pytest.mark.parametrize("extreme", [False, True], ids=["any bytes", "extreme bytes"])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("queries", [1, 7, 8, 9, 20])
def test_a_range_scan_finds_exactly_what_numpy_finds(
    vnni: int | None, extreme: bool, count: int, queries: int
) -> None:
    rng = np.random.default_rng([count, queries, extreme])
    unpacked, prepared = make_rows(rng, count, extreme), make_queries(rng, queries, extreme)
    radius = rng.integers(200_000, 1_500_000, queries).astype(np.int32)
    alive = rng.random(count) > 0.2
    work = full_work(count, queries)
    hits = range_scan(pack_rows(unpacked), alive, prepared, radius, work, vnni=vnni)
    assert as_set(hits) == range_scan_reference(unpacked, alive, prepared, radius, work)
    assert len(as_set(hits)) == len(hits.query)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 70),
    queries=st.integers(1, 20),
    items=st.integers(0, 6),
    buffer=st.integers(1, 40),
    extreme=st.booleans(),
    vnni=st.sampled_from([None, 1] if has_vnni() else [None]),
)
def test_ranges_buffers_and_dead_rows_change_nothing_of_a_range_scan(
    seed: int, count: int, queries: int, items: int, buffer: int, extreme: bool, vnni: int | None
) -> None:
    rng = np.random.default_rng(seed)
    unpacked, prepared = make_rows(rng, count, extreme), make_queries(rng, queries, extreme)
    radius = rng.integers(0, 3_000_000, queries).astype(np.int32)
    alive = rng.random(count) > 0.3
    work = make_work(rng, count, queries, items)
    rows = pack_rows(unpacked)
    hits = range_scan(rows, alive, prepared, radius, work, buffer=buffer, vnni=vnni)
    assert as_set(hits) == range_scan_reference(unpacked, alive, prepared, radius, work)
    assert same_hits(hits, range_scan(rows, alive, prepared, radius, work, vnni=None))


@both_paths
def test_the_radius_itself_is_outside(vnni: int | None) -> None:
    rows = pack_rows(np.full((1, 64), 130, np.uint8))
    queries = prepare_queries(np.zeros((1, 64), np.int8))
    work, alive = full_work(1, 1), np.ones(1, np.bool_)
    for radius, found in [(256, 0), (257, 1), (0, 0), (np.iinfo(np.int32).max, 1)]:
        hits = range_scan(rows, alive, queries, np.array([radius], np.int32), work, vnni=vnni)
        assert len(hits.query) == found, radius


@both_paths
def test_the_greatest_distance_is_exact(vnni: int | None) -> None:
    rows = pack_rows(np.array([[255] * 64, [0] * 64], np.uint8))
    queries = prepare_queries(np.array([[-128] * 64, [127] * 64], np.int8))
    distance, row = nearest(rows, queries, 2, vnni=vnni)
    assert distance.tolist() == [[0, 64 * 255**2], [0, 64 * 255**2]]
    assert row.tolist() == [[1, 0], [0, 1]]


@both_paths
@pytest.mark.parametrize("extreme", [False, True], ids=["any bytes", "extreme bytes"])
@pytest.mark.parametrize("count", [1, 3, 16, 33, 200])
@pytest.mark.parametrize("k", [1, 2, 16])
def test_nearest_is_the_sorted_exhaustive_search(
    vnni: int | None, extreme: bool, count: int, k: int
) -> None:
    rng = np.random.default_rng([count, k, extreme])
    unpacked, queries = make_rows(rng, count, extreme), make_queries(rng, 11, extreme)
    found = nearest(pack_rows(unpacked), queries, k, vnni=vnni)
    expected = nearest_reference(unpacked, queries, k)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


@both_paths
def test_among_equal_distances_the_smaller_row_is_nearer(vnni: int | None) -> None:
    rng = np.random.default_rng(3)
    unpacked = np.repeat(make_rows(rng, 5), 20, axis=0)[rng.permutation(100)]
    queries = make_queries(rng, 9)
    found = nearest(pack_rows(unpacked), queries, 30, vnni=vnni)
    expected = nearest_reference(unpacked, queries, 30)
    assert np.array_equal(found[1], expected[1])
    everything_equal = np.full((40, 64), 7, np.uint8)
    _, row = nearest(pack_rows(everything_equal), queries, 5, vnni=vnni)
    assert row.tolist() == [[0, 1, 2, 3, 4]] * 9


@both_paths
def test_no_rows_and_no_queries_give_no_neighbours(vnni: int | None) -> None:
    rng = np.random.default_rng(0)
    nothing = pack_rows(np.empty((0, 64), np.uint8))
    distance, row = nearest(nothing, make_queries(rng, 3), 2, vnni=vnni)
    assert row.tolist() == [[-1, -1]] * 3
    assert (distance == np.iinfo(np.int32).max).all()
    none = prepare_queries(np.empty((0, 64), np.int8))
    distance, row = nearest(pack_rows(make_rows(rng, 20)), none, 2, vnni=vnni)
    assert distance.shape == row.shape == (0, 2)


@pytest.mark.parametrize("count", [0, 1, 16, 31])
def test_packing_loses_nothing(count: int) -> None:
    unpacked = make_rows(np.random.default_rng(count), count)
    rows = pack_rows(unpacked)
    assert np.array_equal(unpack_rows(rows), unpacked)
    wide = unpacked.astype(np.int64) - 128
    assert np.array_equal(rows.norms[:count], (wide * wide).sum(axis=1))
    assert not rows.norms[count:].any()


def test_arrays_of_any_origin_meet_the_version_that_was_compiled_first(tmp_path: Path) -> None:
    warm_up()
    compiled = [scan_ranges, nearest_rows, vptree._assign, vptree._probe, vptree._all_distances]
    versions = [len(function.signatures) for function in compiled]
    random = np.random.default_rng(3)
    stored = random.integers(0, 256, (40, 64), dtype=np.uint8)
    np.save(tmp_path / "stored.npy", pack_rows(stored).codes)
    mapped = np.load(tmp_path / "stored.npy", mmap_mode="r")
    rows = pack_rows(stored)._replace(codes=mapped)
    signed = random.integers(-128, 128, (5, 64)).astype(np.int8)
    received = np.frombuffer(b"\0" + signed.tobytes(), np.int8, offset=1).reshape(5, 64)
    queries = prepare_queries(received)
    nearest(rows, queries, 3)
    tree = vptree.train_tree(received, levels=2)
    tree.assign(received)
    tree.probe(received, 2)
    range_scan(rows, np.ones(40, bool), queries, np.full(5, 9999, np.int32), full_work(40, 5))
    assert [len(function.signatures) for function in compiled] == versions
