"""Cells about the means of a vantage-point tree's leaves.

Spheres bound a leaf of the tree (`pipeline.index.vptree`); rows just beyond one of them are in
another leaf, however near. So the leaves only give the first means, and a row belongs to the cell
with the nearest *mean*. That is a step of Lloyd's algorithm, which halves the rows that must be
scanned for equal recall. More steps, until few rows change their cell, make the cells as good as
those of k-means (docs/decisions/0014-cells.md).

The tree leads to the means: a best-first descent to half its depth gives the subtrees whose means
are compared, so that the time to find a cell grows with the square root of their number.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import column, require, require_finite
from pipeline.config import CellKind, VantageStrategy
from pipeline.index.kernels import nearest_rows, prepare_queries, select_k_nearest
from pipeline.index.rows import (
    PackedRows,
    pack_rows,
    packed_rows,
    read_only,
    to_signed,
    to_unsigned,
    unpack_rows,
)
from pipeline.index.vptree import VPTree, train_tree
from pipeline.index.work import Work, cell_work, whole_work
from pipeline.machine_code import CompiledLoop

_add_rows = CompiledLoop("pipeline.index.loops", "add_rows")

STEPS = 20
"""The most steps of Lloyd's algorithm, including the first from the leaves."""

MOVING = 0.02
"""Another step follows if a step has changed the cell of this share of the sample's rows: 11 steps
for 4,096 cells, 20 for 512. Twice as many find the same neighbours."""

TREE_ROWS = 262_144
"""The most rows of the sample that the tree itself is trained on."""

ROWS_A_CELL = 32
"""Rows of the sample for each mean. With 4 (as a fixed sample would give for 16 million rows), a
search must open half as many cells more."""

TRAINING_SUBTREES = 8
"""Subtrees searched for a row of the training sample: .99 of all rows find their mean."""

EVERY = 4096
"""Number of means up to which all are compared: a few microseconds a row."""

ASSIGNING_SUBTREES = 16
"""Subtrees searched for an added row: they have the nearest mean of .997 of all rows with 64
subtrees, of .990 with 128."""

FEWEST_SUBTREES = 32
"""The fewest subtrees searched for a query: with 16, a twentieth of its nearest cells are
elsewhere, which loses as much recall as opening a third fewer cells."""

BREADTH = 64
"""The fewest means compared for each wanted cell."""

DISTANCES_AT_ONCE = 1 << 23
"""Distances to means held at once: 32 MiB."""

ROWS_AT_ONCE = 4096
"""Rows whose cells are found at once, so that their wider copies stay small."""

PIECE = 32_768
"""Rows of the training sample whose cells one thread finds at a time."""

FEWEST_OPENED = 8
"""The fewest cells that a search opens for a query."""


def cells_by_default(cells: int) -> int:
    """Return how many cells a search opens for a query by default.

    It is the square root of their number: this finds .96 to .98 of the nearest rows, with 128 to
    4,096 cells (docs/decisions/0014-cells.md).
    """
    return min(cells, max(FEWEST_OPENED, round(math.sqrt(cells))))


class Cells(Protocol):
    """Tells which cell a row belongs to, and in which cells to search for its neighbours."""

    @property
    def levels(self) -> int:
        """Levels of the tree."""
        ...

    @property
    def cells(self) -> int:
        """Number of cells, 2^levels."""
        ...

    def assign(self, rows: NDArray[np.int8]) -> NDArray[np.uint32]:
        """Return the cell of each row (N, W)."""
        ...

    def probe(self, queries: NDArray[np.int8], count: int) -> NDArray[np.uint32]:
        """Return the `count` best cells of each query, best first."""
        ...


@dataclass(frozen=True)
class MeanCells:
    """Cells about means.

    Attributes
    ----------
    tree : VPTree
        The tree that leads to the means: cell c is its c-th leaf.
    means : PackedRows
        One row a cell.
    """

    tree: VPTree
    means: PackedRows

    @property
    def levels(self) -> int:
        """Levels of the tree."""
        return self.tree.levels

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.tree.cells

    @functools.cached_property
    def _upper(self) -> VPTree:
        """The tree's upper half, whose leaves are the subtrees of means."""
        return self.tree.top(self.levels // 2)

    @property
    def _subtree(self) -> int:
        """Means of a subtree."""
        return self.cells // self._upper.cells

    def assign(self, rows: NDArray[np.int8]) -> NDArray[np.uint32]:
        """Find the cell of each row: the nearest mean, the first of equally near ones.

        Parameters
        ----------
        rows : ndarray of shape (N, W), int8

        Returns
        -------
        ndarray of shape (N,), uint32
        """
        return self.probe(rows, 1)[:, 0]

    def roughly(self, rows: NDArray[np.int8]) -> NDArray[np.int64]:
        """Find the cells of training rows, nearly as well as `assign` and in half the time."""
        return self._nearest_one(rows, TRAINING_SUBTREES)

    def probe(self, queries: NDArray[np.int8], count: int) -> NDArray[np.uint32]:
        """Return the cells with the nearest means, nearest first.

        Parameters
        ----------
        queries : ndarray of shape (Q, W), int8
        count : int
            Reduced to the number of cells if larger.

        Returns
        -------
        ndarray of shape (Q, P), uint32
        """
        count = min(count, self.cells)
        if count == 1:
            return self._nearest_one(queries, ASSIGNING_SUBTREES).astype(np.uint32)[:, None]
        found = np.empty((len(queries), count), np.uint32)
        subtrees = self._subtrees_for(count)
        step = max(1, DISTANCES_AT_ONCE // (subtrees * self._subtree))
        for at in range(0, len(queries), step):
            some = queries[at : at + step]
            work = self._candidates(some, subtrees)
            found[at : at + step] = select_k_nearest(
                self.means, prepare_queries(some), count, work
            )[1]
        return found

    def _subtrees_for(self, count: int) -> int:
        """Return how many subtrees have `BREADTH` means for each wanted cell."""
        return max(FEWEST_SUBTREES, -(-BREADTH * count // self._subtree))

    def _nearest_one(self, rows: NDArray[np.int8], subtrees: int) -> NDArray[np.int64]:
        """Return the nearest mean of each row in some subtrees."""
        found = np.empty(len(rows), np.int64)
        for at in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[at : at + ROWS_AT_ONCE]
            work = self._candidates(some, subtrees)
            found[at : at + ROWS_AT_ONCE] = nearest_rows(self.means, some, work)
        return found

    def _candidates(self, queries: NDArray[np.int8], subtrees: int) -> Work:
        """Return which means to compare with each query: those of so many subtrees."""
        if self.cells <= EVERY or 2 * subtrees >= self._upper.cells:
            return whole_work(self.cells, len(queries))
        offsets = np.arange(0, self.cells + 1, self._subtree, dtype=np.int64)
        return cell_work(self._upper.probe(queries, subtrees), offsets)


def training_rows(levels: int, fewest: int) -> int:
    """Return how many rows a sample should have to train cells of so many levels."""
    return max(fewest, ROWS_A_CELL << levels)


def train_cells(
    sample: NDArray[np.int8],
    levels: int,
    kind: CellKind = "means",
    strategy: VantageStrategy = "principal",
    seed: int = 1,
    spread: Callable[..., Iterable[Any]] = map,
) -> VPTree | MeanCells:
    """Build a tree from a sample, and the means of its leaves unless leaves are the cells.

    Parameters
    ----------
    sample : ndarray of shape (N, W), int8
        At least one row. A leaf without sample rows takes the mean of the nearest subtree that has
        some.
    levels : int
        2^levels cells.
    kind : {"means", "leaves"}
    strategy, seed
        See `pipeline.index.vptree.train_tree`.
    spread : callable
        ``map``, or that of an executor of threads, for the tree and the sample's cells.
    """
    tree = train_tree(sample[:: -(-len(sample) // TREE_ROWS)], levels, strategy, seed, spread)
    if kind == "leaves":
        return tree
    cell: NDArray[np.integer] = tree.assign(sample)
    sums, counts = _sums(sample, cell, tree.cells)
    _fill_empty(sums, counts)
    cells = _cells_of(tree, sums, counts)
    pieces = [sample[at : at + PIECE] for at in range(0, len(sample), PIECE)]
    for _ in range(STEPS - 1):
        before, cell = cell, np.concatenate(list(spread(cells.roughly, pieces)))
        sums, counts = _sums(sample, cell, tree.cells)
        empty = np.flatnonzero(counts == 0)
        sums[empty], counts[empty] = to_signed(unpack_rows(cells.means))[empty], 1
        cells = _cells_of(tree, sums, counts)
        if (before != cell).mean() < MOVING:
            break
    return cells


def _sums(
    sample: NDArray[np.int8], cell: NDArray[np.integer], cells: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sum of the rows of each cell (C, W), and their number."""
    sums = np.zeros((cells, sample.shape[1]), np.int64)
    _add_rows(read_only(sample), read_only(cell.astype(np.int64, copy=False)), sums)
    return sums, np.bincount(cell, minlength=cells)


def _fill_empty(sums: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    """Give each leaf without rows the sum and number of the nearest subtree that has some."""
    above_sums, above_counts, size = sums, counts, 1
    while not (counts > 0).all():
        size *= 2
        above_sums = above_sums.reshape(-1, 2, sums.shape[1]).sum(axis=1)
        above_counts = above_counts.reshape(-1, 2).sum(axis=1)
        empty = np.flatnonzero(counts == 0)
        sums[empty], counts[empty] = above_sums[empty // size], above_counts[empty // size]


def _cells_of(tree: VPTree, sums: NDArray[np.int64], counts: NDArray[np.int64]) -> MeanCells:
    """Return cells about the means, rounded to bytes."""
    means = np.rint(sums / counts[:, None]).astype(np.int8)
    return MeanCells(tree, pack_rows(to_unsigned(means)))


def cells_to_arrays(cells: VPTree | MeanCells) -> dict[str, NDArray[Any]]:
    """Return the arrays for a file of these cells."""
    if isinstance(cells, VPTree):
        return {"points": cells.points, "radii": cells.radii}
    means = cells.means
    return {
        **cells_to_arrays(cells.tree),
        "mean_codes": means.codes,
        "mean_norms": means.norms,
        "mean_heads": means.prefixes,
    }


def cells_from_arrays(arrays: Mapping[str, NDArray[Any]]) -> VPTree | MeanCells:
    """Inverse of `cells_to_arrays`.

    Raises
    ------
    CorruptFileError
        The arrays are not those of a tree.
    """
    points = column(arrays, "points", np.float32, None, None)
    tree = VPTree(points, column(arrays, "radii", np.float32, len(points)))
    require(tree.cells.bit_count() == 1, arrays, f"a tree of {len(points)} points is not full")
    require_finite(arrays, "points", points)
    require_finite(arrays, "radii", tree.radii)
    if "mean_codes" not in arrays:
        return tree
    means = packed_rows(arrays, tree.cells, ("mean_codes", "mean_norms", "mean_heads"))
    fits = means.dimensions == points.shape[1]
    require(fits, arrays, f"means of {means.dimensions} bytes do not fit points {points.shape}")
    return MeanCells(tree, means)
