"""Runs of an engine's index: rows sorted by cell, and the search over several runs.

Each call of `add` makes a run. `merge_runs` merges the last ones, so that there are never many:
each row is copied a logarithmic number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.index.cells import Cells
from pipeline.index.kernels import (
    Queries,
    k_nearest,
    merge_k_nearest,
    prepare_queries,
    select_k_nearest,
)
from pipeline.index.paths import NEVER
from pipeline.index.rows import PackedRows, pack_rows, to_signed, to_unsigned, unpack_rows
from pipeline.index.work import Work, cell_work, full_work, ordered_work, split_work

CHUNK = 65_536
"""Rows that one thread works on at a time."""

QUERIES_AT_ONCE = 4096
"""Queries that are searched together, so that lists and neighbours stay small."""

GROWTH = 2
"""A run is merged with the one before it, unless that is at least so many times larger."""

SEED_CELLS = 3
"""The fewest cells that are searched first: they bound the distances in all others."""

SEED_ROWS = 16
"""The fewest rows of these cells for each wanted neighbour."""

LOOKING = 512
"""Queries whose first cells are searched together: their distances fit into the cache."""

Neighbours = tuple[NDArray[np.int32], NDArray[np.int64]]
"""Squared distances and ids, both of shape (Q, k). Missing ones, at the end, are int32's maximum
and -1."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Run:
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


def make_run(codes: NDArray[np.int8], ids: NDArray[np.int64], tree: Cells, pool: Executor) -> Run:
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
    return Run(rows, ids[order], offsets, np.ones(len(ids), np.bool_))


def living_rows(runs: Sequence[Run]) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Return the rows that are not removed, and their ids."""
    codes = [to_signed(unpack_rows(run.rows)[run.alive]) for run in runs]
    return np.concatenate(codes), np.concatenate([run.ids[run.alive] for run in runs])


def merge_runs(runs: list[Run], tree: Cells, pool: Executor) -> list[Run]:
    """Merge the last runs until each is at least `GROWTH` times as large as the next."""
    last = len(runs) - 1
    size = len(runs[last].ids)
    while last > 0 and len(runs[last - 1].ids) < GROWTH * size:
        last -= 1
        size += len(runs[last].ids)
    if last == len(runs) - 1:
        return runs
    return [*runs[:last], make_run(*living_rows(runs[last:]), tree, pool)]


def search_runs(
    runs: Sequence[Run],
    tree: Cells,
    codes: NDArray[np.int8],
    k: int,
    probes: int | None,
    pool: Executor,
    threads: int,
) -> Neighbours:
    """Return the k nearest rows of each query.

    The nearest cells of each query are searched first. They bound the distances for the search of
    the other cells, which goes in the order of the rows.

    Parameters
    ----------
    runs : sequence of Run
    tree : Cells
    codes : ndarray of shape (Q, W), int8
    k : int
    probes : int or None
        Cells opened for each query; None: every row is compared.
    pool : Executor
    threads : int
        Number of pieces that the work is cut into.
    """
    found = [
        _search_some(runs, tree, codes[at : at + QUERIES_AT_ONCE], k, probes, pool, threads)
        for at in range(0, len(codes), QUERIES_AT_ONCE)
    ]
    distances = [np.empty((0, k), np.int32), *(distance for distance, _ in found)]
    return np.concatenate(distances), np.concatenate(
        [np.empty((0, k), np.int64), *(ids for _, ids in found)]
    )


def _search_some(
    runs: Sequence[Run],
    tree: Cells,
    codes: NDArray[np.int8],
    k: int,
    probes: int | None,
    pool: Executor,
    threads: int,
) -> Neighbours:
    """Search for at most `QUERIES_AT_ONCE` queries."""
    queries = prepare_queries(codes)
    if len(codes) == 1 and probes is not None:
        # Best cell first, so that the bounds need no search of their own.
        one = tree.probe(codes, probes)
        tasks = [(run, ordered_work(one, run.cell_offsets)) for run in runs]
        return _nearest_of(tasks, queries, k, None, pool)
    seeds = _seed_cells(runs, tree, k)
    wanted = seeds if probes is None else probes

    def look(piece: NDArray[np.int8]) -> tuple[NDArray[Any], ...]:
        cells = tree.probe(piece, wanted)
        return cells, *_best_of(runs, cells[:, :seeds], prepare_queries(piece), k)

    per_piece = min(LOOKING, -(-len(codes) // threads))
    pieces = [codes[at : at + per_piece] for at in range(0, len(codes), per_piece)]
    looked = _spread(pool, look, pieces)
    cells, distance, ids = (np.concatenate(some) for some in zip(*looked, strict=True))
    # A row at the same distance may still come before the last one, by its id.
    reach = distance[:, -1].astype(np.int64) + 1

    def work_of(run: Run) -> Work:
        if probes is None:
            return full_work(run.rows.size, len(codes), codes.shape[1])
        return cell_work(cells[:, seeds:], run.cell_offsets)

    tasks = [(run, piece) for run in runs for piece in split_work(work_of(run), threads)]
    found = _nearest_of(tasks, queries, k, reach, pool)
    return found if probes is None else merge_k_nearest([(distance, ids), found])


def _seed_cells(runs: Sequence[Run], tree: Cells, k: int) -> int:
    """Return how many cells to search first: their k-th row is nearer than most other rows."""
    rows = sum(run.rows.size for run in runs)
    return max(SEED_CELLS, -(-SEED_ROWS * k * tree.cells // max(1, rows)))


def _best_of(
    runs: Sequence[Run], cells: NDArray[np.uint32], queries: Queries, k: int
) -> Neighbours:
    """Return the k nearest rows of each query in some cells."""
    found = [
        select_k_nearest(
            run.rows,
            queries,
            k,
            ordered_work(cells, run.cell_offsets),
            alive=run.alive,
            ids=run.ids,
        )
        for run in runs
    ]
    return _merge(found, k, len(queries.codes))


def _spread(
    pool: Executor, function: Callable[[Item], Result], items: Sequence[Item]
) -> list[Result]:
    """Map in the pool; this thread, which would only wait, takes the last item."""
    others = [pool.submit(function, item) for item in items[:-1]]
    last = [function(item) for item in items[-1:]]
    return [*(other.result() for other in others), *last]


def _nearest_of(
    tasks: Sequence[tuple[Run, Work]],
    queries: Queries,
    k: int,
    reach: NDArray[np.int64] | None,
    pool: Executor,
) -> Neighbours:
    """Return the k nearest rows below the reach over several pieces of work."""

    def scan(task: tuple[Run, Work]) -> Neighbours:
        run, work = task
        return k_nearest(run.rows, queries, k, alive=run.alive, work=work, reach=reach, ids=run.ids)

    return _merge(_spread(pool, scan, tasks), k, len(queries.codes))


def _merge(found: Sequence[Neighbours], k: int, queries: int = 0) -> Neighbours:
    """Return the k nearest of several answers, the smaller id first among equal distances."""
    if not found:
        return np.full((queries, k), NEVER, np.int32), np.full((queries, k), -1, np.int64)
    return merge_k_nearest(found)
