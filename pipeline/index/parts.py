"""Parts of an engine's index: rows sorted by cell, and the search over several of them.

A part is what one call added. Parts are united by and by, so that there are never many of them
(`unite_parts`): each row is copied a logarithmic number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.index.cells import Cells
from pipeline.index.kernels import Queries, best_rows, merge_nearest, nearest, prepare_queries
from pipeline.index.rows import PackedRows, pack_rows, to_signed, to_unsigned, unpack_rows
from pipeline.index.simd import NEVER
from pipeline.index.work import Work, cell_work, full_work, ordered_work, split_work

CHUNK = 65_536
"""Rows that one thread works on at a time."""

QUERIES_AT_ONCE = 4096
"""Queries that are searched together: their lists and neighbours stay small."""

GROWTH = 2
"""A part is united with the one before it when that is not so many times larger."""

SEED_CELLS = 3
"""Cells at least that are looked at first: they tell how far neighbours in the others may be."""

SEED_ROWS = 16
"""Rows of these cells for each neighbour that is wanted, at least."""

LOOKING = 512
"""Queries whose first cells are looked at together: the distances are held in the cache."""

Neighbours = tuple[NDArray[np.int32], NDArray[np.int64]]
"""Squared distances of bytes and ids, both of shape (Q, k); int32's maximum and -1 at the end."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Part:
    """Rows sorted by cell.

    Attributes
    ----------
    rows : PackedRows
    ids : ndarray of shape (N,), int64
    cell_offsets : ndarray of shape (C + 1,), int64
        Cell c owns rows ``cell_offsets[c]:cell_offsets[c + 1]``.
    alive : ndarray of shape (N,), bool
        Rows that are not removed.
    """

    rows: PackedRows
    ids: NDArray[np.int64]
    cell_offsets: NDArray[np.int64]
    alive: NDArray[np.bool_]


def make_part(codes: NDArray[np.int8], ids: NDArray[np.int64], tree: Cells, pool: Executor) -> Part:
    """Sort rows by their cells.

    Parameters
    ----------
    codes : ndarray of shape (N, W), int8
    ids : ndarray of shape (N,), int64
    tree : Cells
    pool : Executor
        Finds the cells, `CHUNK` rows a piece.
    """
    pieces = [codes[at : at + CHUNK] for at in range(0, len(codes), CHUNK)]
    cells = np.concatenate([np.empty(0, np.uint32), *pool.map(tree.assign, pieces)])
    order = np.argsort(cells, kind="stable")
    offsets = np.searchsorted(cells[order], np.arange(tree.cells + 1)).astype(np.int64)
    rows = pack_rows(to_unsigned(codes[order]))
    return Part(rows, ids[order], offsets, np.ones(len(ids), np.bool_))


def living_rows(parts: Sequence[Part]) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Return the rows that are not removed, and their ids."""
    codes = [to_signed(unpack_rows(part.rows)[part.alive]) for part in parts]
    return np.concatenate(codes), np.concatenate([part.ids[part.alive] for part in parts])


def unite_parts(parts: list[Part], tree: Cells, pool: Executor) -> list[Part]:
    """Unite the last parts until each is `GROWTH` times as large as the next."""
    last = len(parts) - 1
    size = len(parts[last].ids)
    while last > 0 and len(parts[last - 1].ids) < GROWTH * size:
        last -= 1
        size += len(parts[last].ids)
    if last == len(parts) - 1:
        return parts
    return [*parts[:last], make_part(*living_rows(parts[last:]), tree, pool)]


def search_parts(
    parts: Sequence[Part],
    tree: Cells,
    codes: NDArray[np.int8],
    k: int,
    probes: int | None,
    pool: Executor,
    threads: int,
) -> Neighbours:
    """Return the k nearest rows of each query.

    The best cells of a query are looked at first: they bound the distances that the search, in the
    order of the rows, has to care for.

    Parameters
    ----------
    parts : sequence of Part
    tree : Cells
    codes : ndarray of shape (Q, W), int8
    k : int
    probes : int or None
        Cells that are opened for a query; None: every row is compared.
    pool : Executor
    threads : int
        Pieces that the work is cut into.
    """
    found = [
        _search_some(parts, tree, codes[at : at + QUERIES_AT_ONCE], k, probes, pool, threads)
        for at in range(0, len(codes), QUERIES_AT_ONCE)
    ]
    distances = [np.empty((0, k), np.int32), *(distance for distance, _ in found)]
    return np.concatenate(distances), np.concatenate(
        [np.empty((0, k), np.int64), *(ids for _, ids in found)]
    )


def _search_some(
    parts: Sequence[Part],
    tree: Cells,
    codes: NDArray[np.int8],
    k: int,
    probes: int | None,
    pool: Executor,
    threads: int,
) -> Neighbours:
    """Search for few enough queries."""
    queries = prepare_queries(codes)
    if len(codes) == 1 and probes is not None:
        # Best cell first, so that the bounds need no search of their own.
        one = tree.probe(codes, probes)
        tasks = [(part, ordered_work(one, part.cell_offsets)) for part in parts]
        return _nearest_of(tasks, queries, k, None, pool)
    seeds = _seed_cells(parts, tree, k)
    wanted = seeds if probes is None else probes

    def look(piece: NDArray[np.int8]) -> tuple[NDArray[Any], ...]:
        cells = tree.probe(piece, wanted)
        return cells, *_best_of(parts, cells[:, :seeds], prepare_queries(piece), k)

    per_piece = min(LOOKING, -(-len(codes) // threads))
    pieces = [codes[at : at + per_piece] for at in range(0, len(codes), per_piece)]
    looked = _spread(pool, look, pieces)
    cells, distance, ids = (np.concatenate(some) for some in zip(*looked, strict=True))
    # Another row as far away may still come before the last, by its id.
    reach = distance[:, -1].astype(np.int64) + 1

    def work_of(part: Part) -> Work:
        if probes is None:
            return full_work(part.rows.size, len(codes), codes.shape[1])
        return cell_work(cells[:, seeds:], part.cell_offsets)

    tasks = [(part, piece) for part in parts for piece in split_work(work_of(part), threads)]
    found = _nearest_of(tasks, queries, k, reach, pool)
    return found if probes is None else merge_nearest([(distance, ids), found])


def _seed_cells(parts: Sequence[Part], tree: Cells, k: int) -> int:
    """Return how many cells have so many rows that few others are as near as their k-th."""
    rows = sum(part.rows.size for part in parts)
    return max(SEED_CELLS, -(-SEED_ROWS * k * tree.cells // max(1, rows)))


def _best_of(
    parts: Sequence[Part], cells: NDArray[np.uint32], queries: Queries, k: int
) -> Neighbours:
    """Return the k nearest rows of each query in some cells."""
    found = [
        best_rows(
            part.rows,
            queries,
            k,
            ordered_work(cells, part.cell_offsets),
            alive=part.alive,
            ids=part.ids,
        )
        for part in parts
    ]
    return _merge(found, k, len(queries.codes))


def _spread(
    pool: Executor, function: Callable[[Item], Result], items: Sequence[Item]
) -> list[Result]:
    """Map in the pool, the last item in this thread, which would only wait."""
    others = [pool.submit(function, item) for item in items[:-1]]
    last = [function(item) for item in items[-1:]]
    return [*(other.result() for other in others), *last]


def _nearest_of(
    tasks: Sequence[tuple[Part, Work]],
    queries: Queries,
    k: int,
    reach: NDArray[np.int64] | None,
    pool: Executor,
) -> Neighbours:
    """Return the k nearest rows below the reach over several pieces of work."""

    def scan(task: tuple[Part, Work]) -> Neighbours:
        part, work = task
        return nearest(
            part.rows, queries, k, alive=part.alive, work=work, reach=reach, ids=part.ids
        )

    return _merge(_spread(pool, scan, tasks), k, len(queries.codes))


def _merge(found: Sequence[Neighbours], k: int, queries: int = 0) -> Neighbours:
    """Return the k nearest of several answers, the smaller id first among equal distances."""
    if not found:
        return np.full((queries, k), NEVER, np.int32), np.full((queries, k), -1, np.int64)
    return merge_nearest(found)
