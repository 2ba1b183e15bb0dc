"""The work of a scan: ranges of rows, each with its queries."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.index.paths import BLOCK
from pipeline.index.rows import read_only
from pipeline.machine_code import CompiledLoop

_list_queries = CompiledLoop("pipeline.index.loops", "list_queries")
_take_ranges = CompiledLoop("pipeline.index.loops", "take_ranges")

ITEM_BYTES = 1 << 17
"""Bytes of a work item of an exhaustive scan: they stay in the L2 cache while the tiles of queries
are compared with them."""


class Work(NamedTuple):
    """The work of a scan: ranges of rows, each with its queries.

    Attributes
    ----------
    row_start, row_stop : ndarray of shape (W,), int64
    query_start : ndarray of shape (W + 1,), int64
        Item w has the queries ``query_list[query_start[w]:query_start[w + 1]]``.
    query_list : ndarray of int32
    """

    row_start: NDArray[np.int64]
    row_stop: NDArray[np.int64]
    query_start: NDArray[np.int64]
    query_list: NDArray[np.int32]

    @property
    def pairs(self) -> int:
        """Number of descriptor pairs that the scan computes."""
        return int(((self.row_stop - self.row_start) * np.diff(self.query_start)).sum())


def full_work(rows: int, queries: int, dimensions: int = 64) -> Work:
    """Return the work of a scan of all rows for all queries, in items that fit the cache.

    Parameters
    ----------
    rows, queries : int
        How many.
    dimensions : int
        Bytes of a row.
    """
    # A multiple of two blocks, so that only the last tile is narrow.
    step = max(2 * BLOCK, ITEM_BYTES // dimensions // (2 * BLOCK) * (2 * BLOCK))
    starts = np.arange(0, rows, step, dtype=np.int64)
    return Work(
        starts,
        np.minimum(starts + step, rows),
        np.arange(len(starts) + 1, dtype=np.int64) * queries,
        np.tile(np.arange(queries, dtype=np.int32), len(starts)),
    )


def whole_work(rows: int, queries: int) -> Work:
    """Return the work of a scan of all rows for all queries in one item."""
    return Work(
        np.zeros(1, np.int64),
        np.full(1, rows, np.int64),
        np.array([0, queries], np.int64),
        np.arange(queries, dtype=np.int32),
    )


class CellRequests(NamedTuple):
    """Cells with their queries.

    Attributes
    ----------
    query_start : ndarray of shape (C + 1,), int64
        Cell c has the queries ``query_list[query_start[c]:query_start[c + 1]]``.
    query_list : ndarray of int32
    """

    query_start: NDArray[np.int64]
    query_list: NDArray[np.int32]

    def some(self, first: int, count: int) -> CellRequests:
        """Return the part for `count` cells from `first` on; cells may be missing."""
        starts = self.query_start.take(np.arange(first, first + count + 1), mode="clip")
        return CellRequests(starts, self.query_list)


def cell_requests(cells: NDArray[np.integer], count: int | None = None) -> CellRequests:
    """Sort the cells of queries by cell.

    Parameters
    ----------
    cells : ndarray of shape (Q, P), integer
        Cells of each query; unknown ones are ignored.
    count : int, optional
        Number of cells. Default: up to the last wanted one.
    """
    if count is None:
        count = int(cells.max()) + 1 if cells.size else 0
    starts, listed = np.zeros(count + 1, np.int64), np.empty(cells.size, np.int32)
    _list_queries(read_only(np.ascontiguousarray(cells, np.int64)), starts, listed)
    return CellRequests(starts, listed[: starts[-1]])


def wanted_work(requests: CellRequests, cell_offsets: NDArray[np.int64]) -> Work:
    """Return the work of a scan of the wanted, non-empty cells, in order.

    Parameters
    ----------
    requests : CellRequests
        For C cells.
    cell_offsets : ndarray of shape (C + 1,), int64
        Cell c owns rows ``cell_offsets[c]:cell_offsets[c + 1]``.
    """
    starts, listed = requests
    counts = np.diff(starts)
    visited = np.flatnonzero((counts > 0) & (np.diff(cell_offsets) > 0))
    ends = np.append(0, np.cumsum(counts[visited]))
    if ends[-1] < starts[-1] - starts[0]:
        taken = np.empty(ends[-1], np.int32)
        _take_ranges(read_only(starts), read_only(listed), read_only(visited), taken)
        listed = taken
    else:
        ends += starts[0]
    return Work(cell_offsets[visited], cell_offsets[visited + 1], ends, listed)


def cell_work(cells: NDArray[np.integer], cell_offsets: NDArray[np.int64]) -> Work:
    """Return the work of a scan of some cells: each wanted cell once, with its queries.

    Parameters
    ----------
    cells : ndarray of shape (Q, P), integer
        Cells of each query; cells beyond `cell_offsets` and empty ones are ignored.
    cell_offsets : ndarray of shape (C + 1,), int64
        Cell c owns rows ``cell_offsets[c]:cell_offsets[c + 1]``.
    """
    return wanted_work(cell_requests(cells, len(cell_offsets) - 1), cell_offsets)


def ordered_work(cells: NDArray[np.integer], cell_offsets: NDArray[np.int64]) -> Work:
    """Return the work of a scan of cells (Q, P), query by query, in the order of the requests."""
    wanted = cells.ravel().astype(np.int64)
    return Work(
        cell_offsets[wanted],
        cell_offsets[wanted + 1],
        np.arange(len(wanted) + 1, dtype=np.int64),
        np.repeat(np.arange(len(cells), dtype=np.int32), cells.shape[1]),
    )


def split_work(work: Work, count: int) -> list[Work]:
    """Divide work into at most `count` pieces of consecutive items with about equal pairs."""
    if count == 1 or len(work.row_start) == 0:
        return [work]
    pairs = np.cumsum((work.row_stop - work.row_start) * np.diff(work.query_start))
    cuts = np.searchsorted(pairs, pairs[-1] * np.arange(1, count) / count)
    ends = np.unique(np.concatenate([[0], cuts, [len(pairs)]]))
    return [
        Work(
            work.row_start[start:stop],
            work.row_stop[start:stop],
            work.query_start[start : stop + 1],
            work.query_list,
        )
        for start, stop in itertools.pairwise(ends)
    ]
