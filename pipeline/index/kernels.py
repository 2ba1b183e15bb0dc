"""Distance kernels over 8-bit rows: range search and k nearest, each with a numpy twin.

Stored rows are unsigned bytes ``u = b + 128`` of a signed vector b; queries are signed bytes a.
Then ``|a - b|^2 = |a|^2 + |b|^2 - 2 a.b`` with ``a.b = u.a - 128 sum(a)``, all in exact 32-bit
integers (`MAX_DIMENSIONS` times 255^2 < 2^29). A pair is nearer than squared distance `radius` to a
query if and only if ``2 u.a - |b|^2 > |a|^2 + 256 sum(a) - radius``: the right side is one number a
query, its *limit*, so that a tile of queries and rows is decided by the signs of its registers and
one branch. The first `PREFIX` components are summed and compared first, in the same way: where they
rule out every pair of a tile, the others are not read. The loops themselves are in
`pipeline.index.simd`.

Every kernel releases the GIL, gives the same integers on every code path, and, but for
`select_k_nearest`, allocates nothing that grows with the rows.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.index.paths import BLOCK, NEVER, PATHS, PREFIX, SPAN, usable_paths
from pipeline.index.rows import PackedRows, pack_rows, read_only
from pipeline.index.work import Work, full_work
from pipeline.machine_code import CompiledLoop

_LOOPS, _SOURCES = "pipeline.index.simd", ("pipeline.index.paths",)
range_search_loop = CompiledLoop(_LOOPS, "range_search_loop", _SOURCES)
k_nearest_loop = CompiledLoop(_LOOPS, "k_nearest_loop", _SOURCES)
merge_lists = CompiledLoop(_LOOPS, "merge_lists", _SOURCES)
nearest_rows_loop = CompiledLoop(_LOOPS, "nearest_rows_loop", _SOURCES)
room_for_selection = CompiledLoop(_LOOPS, "room_for_selection", _SOURCES)
select_k_nearest_loop = CompiledLoop(_LOOPS, "select_k_nearest_loop", _SOURCES)

PATH = usable_paths()[-1]
"""The kernels' code path by default: this processor's fastest (`pipeline.index.paths`)."""


class Queries(NamedTuple):
    """Query rows ready for the kernels.

    Attributes
    ----------
    codes : ndarray of shape (Q, D), int8
    bias : ndarray of shape (Q,), int32
        ``|a|^2 + 256 sum(a)``: the limit of a query is its bias less its squared radius.
    prefix_bias : ndarray of shape (Q,), int32
        The same of the first `PREFIX` components.
    """

    codes: NDArray[np.int8]
    bias: NDArray[np.int32]
    prefix_bias: NDArray[np.int32]


class Hits(NamedTuple):
    """Pairs within their query's radius, in the order (work item, tile, row, query).

    Attributes
    ----------
    query : ndarray of shape (M,), int32
    row : ndarray of shape (M,), int64
    distance : ndarray of shape (M,), int32
        Squared Euclidean distance of the 8-bit vectors.
    computed : int
        Pairs whose whole rows were compared; the prefixes ruled out the others. The path ``amx``
        compares whole rows only.
    """

    query: NDArray[np.int32]
    row: NDArray[np.int64]
    distance: NDArray[np.int32]
    computed: int


def prepare_queries(codes: NDArray[np.int8]) -> Queries:
    """Return queries with their bias.

    Parameters
    ----------
    codes : ndarray of shape (Q, D), int8
    """
    codes = np.ascontiguousarray(codes, dtype=np.int8)
    wide = codes.astype(np.int32)
    return Queries(codes, _bias(wide), _bias(wide[:, :PREFIX]))


def _bias(wide: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return ``|a|^2 + 256 sum(a)`` of each row."""
    bias: NDArray[np.int32] = (wide * wide).sum(axis=1, dtype=np.int32)
    bias += 256 * wide.sum(axis=1, dtype=np.int32)
    return bias


def _require_same_length(rows: PackedRows, queries: NDArray[np.int8]) -> None:
    """Refuse queries of another length: the compiled loops do not check bounds."""
    if rows.dimensions != queries.shape[1]:
        raise InputError(
            f"queries of {queries.shape[1]} bytes do not fit rows of {rows.dimensions} bytes"
        )


def range_search(
    rows: PackedRows,
    alive: NDArray[np.bool_],
    queries: Queries,
    radius: NDArray[np.int32],
    work: Work,
    *,
    buffer: int = 1 << 18,
    bounds: bool = True,
    path: str = PATH,
) -> Hits:
    """Return every pair of a work item whose squared distance is below the query's radius.

    Parameters
    ----------
    rows : PackedRows
        N stored rows.
    alive : ndarray of shape (N,), bool
        Rows that may be returned (a deleted image's may not).
    queries : Queries
        Q query rows.
    radius : ndarray of shape (Q,), int32
        Squared radius of each query; a pair is returned when its distance is *below* it.
    work : Work
        Row ranges and their queries.
    buffer : int
        Hits held before they are copied out; only changes speed.
    bounds : bool
        Compare prefixes first and leave out what they rule out; only changes speed.
    path : str
        Code path; the integers are the same.
    """
    _require_same_length(rows, queries.codes)
    marker = PATHS[path].marker
    inputs = [read_only(array) for array in (*rows[:3], alive, *queries, radius, *work)]
    found: list[Hits] = []
    item = 0
    while item < len(work.row_start):
        query = np.empty(buffer, np.int32)
        row = np.empty(buffer, np.int64)
        distance = np.empty(buffer, np.int32)
        done, written, computed = range_search_loop(
            *inputs, item, bounds, query, row, distance, marker
        )
        if done == item:
            buffer *= 4
            continue
        found.append(Hits(query[:written], row[:written], distance[:written], computed))
        item = done
    return concatenate_hits(found)


def concatenate_hits(found: Sequence[Hits]) -> Hits:
    """Return the hits of several scans, one after the other."""
    if len(found) == 1:
        return found[0]
    return Hits(
        np.concatenate([np.empty(0, np.int32), *(hits.query for hits in found)]),
        np.concatenate([np.empty(0, np.int64), *(hits.row for hits in found)]),
        np.concatenate([np.empty(0, np.int32), *(hits.distance for hits in found)]),
        sum(hits.computed for hits in found),
    )


def range_search_reference(
    unpacked: NDArray[np.uint8],
    alive: NDArray[np.bool_],
    queries: Queries,
    radius: NDArray[np.int32],
    work: Work,
) -> set[tuple[int, int, int]]:
    """Return what `range_search` returns as a set of (query, row, distance), in plain numpy.

    `unpacked` has shape (N, D), uint8.
    """
    found: set[tuple[int, int, int]] = set()
    stored = unpacked.astype(np.int64) - 128
    for item in range(len(work.row_start)):
        rows = np.arange(work.row_start[item], work.row_stop[item])
        for query in work.query_list[work.query_start[item] : work.query_start[item + 1]]:
            difference = stored[rows] - queries.codes[query].astype(np.int64)
            distance = (difference * difference).sum(axis=1)
            good = (distance < radius[query]) & alive[rows]
            found.update(
                (int(query), int(row), int(d))
                for row, d in zip(rows[good], distance[good], strict=True)
            )
    return found


def k_nearest(
    rows: PackedRows,
    queries: Queries,
    k: int,
    *,
    alive: NDArray[np.bool_] | None = None,
    work: Work | None = None,
    reach: NDArray[np.int64] | None = None,
    ids: NDArray[np.int64] | None = None,
    bounds: bool = True,
    path: str = PATH,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the k nearest rows of each query among the rows that its work items visit.

    Parameters
    ----------
    rows : PackedRows
        N stored rows.
    queries : Queries
        Q query rows.
    k : int
        Neighbours, at least 1.
    alive : ndarray of shape (N,), bool, optional
        Rows that may be returned; the others are left out before the k nearest are taken.
        Default: all.
    work : Work, optional
        Row ranges and their queries; no row may be visited twice for one query. Default: all rows
        for all queries.
    reach : ndarray of shape (Q,), int64, optional
        Squared distance below which a row must be. Default: any.
    ids : ndarray of shape (N,), int64, optional
        Numbers to be returned instead of the rows', not negative; among equal distances the
        smaller comes first.
    bounds : bool
        Compare prefixes first and leave out what they rule out; only changes speed.
    path : str
        Code path; the integers are the same.

    Returns
    -------
    distance : ndarray of shape (Q, k), int32
        Squared distances, ascending; int32's maximum where there are fewer than k rows.
    row : ndarray of shape (Q, k), int64
        Row numbers or ids, the smaller first among equal distances; -1 where there are fewer.
    """
    _require_same_length(rows, queries.codes)
    count, dimensions = queries.codes.shape
    distance = np.full((count, k), NEVER, np.int32)
    row = np.full((count, k), -1, np.int64)
    if alive is None:
        alive = np.ones(rows.size, np.bool_)
    if work is None:
        work = full_work(rows.size, count, dimensions)
    if reach is None:
        reach = np.full(count, NEVER, np.int64)
    if ids is None:
        ids = np.empty(0, np.int64)
    inputs = [read_only(array) for array in (*rows[:3], alive, *queries, reach, ids, *work)]
    k_nearest_loop(*inputs, bounds, distance, row, PATHS[path].marker)
    return distance, row


def select_k_nearest(
    rows: PackedRows,
    queries: Queries,
    count: int,
    work: Work,
    *,
    alive: NDArray[np.bool_] | None = None,
    ids: NDArray[np.int64] | None = None,
    path: str = PATH,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the `count` nearest rows of each query, found by selection.

    The answer is that of `k_nearest`. All distances are written down and the nearest selected,
    which is several times as fast for hundreds of rows or dozens of neighbours.

    Parameters
    ----------
    rows, queries, work, alive, ids, path
        See `k_nearest`. No row, and no query of an item, may appear twice.
    count : int
        Wanted rows, P; at least 1.

    Returns
    -------
    distance : ndarray of shape (Q, P), int32
    row : ndarray of shape (Q, P), int64
        As of `k_nearest`.

    Raises
    ------
    InputError
        A count below 1.

    Notes
    -----
    Distances to all rows of its items are held for each query that has some items done and others
    not: for one query, if the items of a query follow each other.
    """
    _require_same_length(rows, queries.codes)
    if count < 1:
        raise InputError(f"{count} nearest rows are asked for: at least 1 is needed")
    shape = len(queries.codes), count
    distance, found = np.full(shape, NEVER, np.int32), np.full(shape, -1, np.int64)
    if alive is None:
        alive = np.ones(rows.size, np.bool_)
    if ids is None:
        ids = np.empty(0, np.int64)
    lists = [read_only(array) for array in work]
    lanes = np.zeros(len(found), np.int64)
    held = room_for_selection(*lists, lanes)
    width = -(-int(lanes.max(initial=1)) // SPAN) * SPAN
    near = _workspace(held * width).reshape(held, width)
    inputs = [read_only(array) for array in (*rows[:3], alive, *queries[:2], ids)]
    select_k_nearest_loop(
        *inputs, *lists, read_only(lanes), near, distance, found, PATHS[path].marker
    )
    return distance, found


def nearest_rows(
    rows: PackedRows, queries: NDArray[np.int8], work: Work, *, path: str = PATH
) -> NDArray[np.int64]:
    """Return the nearest row of each query; among equally near rows the first.

    The answer is that of `k_nearest` for k = 1. Up to some thousands of rows this is faster,
    because nothing branches on a distance; the fewer the rows, the more it saves.

    Parameters
    ----------
    rows : PackedRows
    queries : ndarray of shape (Q, D), int8
    work : Work
        Items by their rows.
    path : str
        Code path; the integers are the same.

    Returns
    -------
    ndarray of shape (Q,), int64
        -1 for a query without items.
    """
    _require_same_length(rows, queries)
    found = np.empty(len(queries), np.int64)
    codes = queries.astype(np.int8, copy=False)
    inputs = [read_only(array) for array in (*rows[:3], codes, *work)]
    nearest_rows_loop(*inputs, found, PATHS[path].marker)
    return found


_thread = threading.local()


def _workspace(size: int) -> NDArray[np.int32]:
    """Return an array that this thread may write to until its next call.

    The operating system hands out new memory page by page, to one thread at a time: with new memory
    for each call, two threads took nearly as long as one.
    """
    space: NDArray[np.int32] | None = getattr(_thread, "space", None)
    if space is None or len(space) < size:
        space = _thread.space = np.empty(size, np.int32)
    return space[:size]


def merge_k_nearest(
    found: Sequence[tuple[NDArray[np.int32], NDArray[np.int64]]],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Merge several answers of `k_nearest` for different rows; writes into the first.

    Parameters
    ----------
    found : sequence of (distance, row)
        At least one, all of shape (Q, k).
    """
    distance, row = found[0]
    for other in found[1:]:
        merge_lists(distance, row, *(read_only(array) for array in other))
    return distance, row


def k_nearest_reference(
    unpacked: NDArray[np.uint8],
    queries: Queries,
    k: int,
    alive: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return what `k_nearest` returns of all rows, in plain numpy; `unpacked` is (N, D), uint8."""
    living = np.arange(len(unpacked)) if alive is None else np.flatnonzero(alive)
    distance = np.full((len(queries.codes), k), NEVER, np.int32)
    row = np.full((len(queries.codes), k), -1, np.int64)
    stored = unpacked.astype(np.int64) - 128
    for query, code in enumerate(queries.codes.astype(np.int64)):
        exact = ((stored[living] - code) ** 2).sum(axis=1)
        order = np.argsort(exact, kind="stable")[:k]
        distance[query, : len(order)] = exact[order]
        row[query, : len(order)] = living[order]
    return distance, row


def warm_up() -> None:
    """Compile every kernel, or load it from the cache, so that no search waits for it."""
    rows = pack_rows(np.zeros((BLOCK, 64), np.uint8))
    queries = prepare_queries(np.zeros((1, 64), np.int8))
    work = full_work(BLOCK, 1)
    range_search(rows, np.ones(BLOCK, np.bool_), queries, np.ones(1, np.int32), work, buffer=16)
    merge_k_nearest([k_nearest(rows, queries, 1), k_nearest(rows, queries, 1)])
    select_k_nearest(rows, queries, 1, work)
    nearest_rows(rows, queries.codes, work)
