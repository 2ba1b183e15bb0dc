"""Vantage-point tree over 8-bit rows: train, assign, probe.

A full binary tree of L levels: node i has children 2i + 1 and 2i + 2, node 0 is the root, and the
2^L leaves are the *cells*. A row goes left when its distance to the node's vantage point is below
the node's radius (the median over the training sample), else right: cells are balanced by
construction, and the descent always ends, even if all rows are equal (Yianilos, SODA 1993; the
paper, section 4.1.2).

Distances are Euclidean, between the stored bytes (as float32) and vantage points that may lie
anywhere in that space, so that the triangle inequality bounds the distances that a scan reports.

Strategies for vantage points:

``random``
    a row of the node (the paper's choice);
``spread``
    of 16 rows of the node the one whose distances to a sample have the largest second moment about
    their median (Yianilos);
``principal``
    a point on the first principal axis of the node's rows, far outside them: its spheres cut the
    rows almost like planes across the direction in which they vary most.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import VantageStrategy
from pipeline.index.rows import read_only
from pipeline.machine_code import CompiledLoop

SPREAD_CANDIDATES = 16
SPREAD_SAMPLE = 1000
PRINCIPAL_REACH = 50.0
"""Distance of a principal vantage point from the node's mean, in standard deviations along the
axis; see docs/decisions/0002-vantage-points.md."""

PRINCIPAL_SAMPLE = 4096
"""Rows of a node that its principal axis is computed from."""

POWER_ROUNDS = 16

TOP_LEVELS = 3
"""Levels built by one thread, before the branches below are distributed."""

_LOOPS = "pipeline.index.loops"
_assign = CompiledLoop(_LOOPS, "assign")
_probe = CompiledLoop(_LOOPS, "probe")
_all_distances = CompiledLoop(_LOOPS, "all_distances")
_power_iteration = CompiledLoop(_LOOPS, "power_iteration")

_Rows = NDArray[np.int8]
_Point = NDArray[np.float32]
_Strategy = Callable[[_Rows, np.random.Generator], _Point]


@dataclass(frozen=True)
class VPTree:
    """A trained tree.

    Attributes
    ----------
    points : ndarray of shape (V, D), float32
        Vantage points in heap order, V = 2^L - 1.
    radii : ndarray of shape (V,), float32
    """

    points: NDArray[np.float32]
    radii: NDArray[np.float32]

    @property
    def levels(self) -> int:
        """Number L of levels."""
        return (len(self.points) + 1).bit_length() - 1

    @property
    def cells(self) -> int:
        """Number 2^L of cells."""
        return len(self.points) + 1

    def top(self, levels: int) -> VPTree:
        """Return the tree of the uppermost levels."""
        inner = 2**levels - 1
        return VPTree(self.points[:inner], self.radii[:inner])

    def assign(self, rows: _Rows) -> NDArray[np.uint32]:
        """Find the cell of each row.

        Parameters
        ----------
        rows : ndarray of shape (N, D), int8

        Returns
        -------
        ndarray of shape (N,), uint32
        """
        cells = np.empty(len(rows), np.uint32)
        inputs = (read_only(array) for array in (rows, self.points, self.radii))
        _assign(*inputs, cells)
        return cells

    def probe(self, queries: _Rows, count: int) -> NDArray[np.uint32]:
        """Return the `count` best cells of each query, best first.

        The cost of a cell sums the margins (distances to the node's sphere) of the nodes where the
        path to it leaves the query's own side. (Squared margins find fewer neighbours in as many
        rows, see docs/decisions/0002-vantage-points.md.) The descent is best first, so its work
        grows with `count`, not with the number of cells.

        Parameters
        ----------
        queries : ndarray of shape (Q, D), int8
        count : int
            Reduced to the number of cells if larger.

        Returns
        -------
        ndarray of shape (Q, P), uint32
        """
        found = np.empty((len(queries), min(count, self.cells)), np.uint32)
        inputs = (read_only(array) for array in (queries, self.points, self.radii))
        _probe(*inputs, self.levels, found)
        return found


def _distances(rows: _Rows, point: _Point) -> NDArray[np.float32]:
    """Return the distances of rows (N, D) to a point, by the arithmetic of the descent."""
    found = np.empty(len(rows), np.float32)
    _all_distances(read_only(rows), read_only(point), found)
    return found


def _random_point(rows: _Rows, rng: np.random.Generator) -> _Point:
    """Pick a row."""
    point: _Point = rows[rng.integers(len(rows))].astype(np.float32)
    return point


def _spread_point(rows: _Rows, rng: np.random.Generator) -> _Point:
    """Pick the candidate whose distances to a sample spread most about their median."""
    chosen = rng.choice(len(rows), min(SPREAD_CANDIDATES, len(rows)), replace=False)
    candidates = rows[chosen].astype(np.float32)
    sample = rows[rng.choice(len(rows), min(SPREAD_SAMPLE, len(rows)), replace=False)]
    moments = []
    for candidate in candidates:
        distances = _distances(sample, candidate)
        moments.append(float(((distances - np.median(distances)) ** 2).mean()))
    best: _Point = candidates[int(np.argmax(moments))]
    return best


def _principal_point(rows: _Rows, rng: np.random.Generator) -> _Point:
    """Place a point on the first principal axis, outside the rows."""
    most = PRINCIPAL_SAMPLE
    sample = rows if len(rows) <= most else rows[rng.choice(len(rows), most, replace=False)]
    mean = sample.mean(axis=0, dtype=np.float64)
    variance, axis = _leading_axis(sample, mean)
    axis = axis * (np.sign(axis[np.abs(axis).argmax()]) or 1.0)
    reach = PRINCIPAL_REACH * np.sqrt(max(variance, 1e-6))
    point: _Point = (mean + reach * axis).astype(np.float32)
    return point


def _leading_axis(rows: _Rows, mean: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Return the greatest variance of rows (N, D) along any direction, and the direction.

    By power iteration, in our own loops: many small calls of a linear algebra library, whose
    threads wait for each other, take several times as long. If it has not converged, several
    directions have nearly the same variance, and any of them divides the rows as well.
    """
    axis = np.zeros(rows.shape[1])
    inputs = (read_only(array) for array in (rows, mean.astype(np.float32)))
    variance: float = _power_iteration(*inputs, POWER_ROUNDS, axis)
    return variance, axis


_STRATEGIES: dict[VantageStrategy, _Strategy] = {
    "random": _random_point,
    "spread": _spread_point,
    "principal": _principal_point,
}


def levels_for(descriptors: int, cell_size: int, groups: int) -> int:
    """Return the number of levels whose cells come closest to `cell_size` descriptors.

    At least so many that every group has a cell.
    """
    fewest = groups.bit_length() - 1
    ratio = max(descriptors, 1) / cell_size
    return max(fewest, round(np.log2(ratio)) if ratio > 1 else 0)


def train_tree(
    sample: _Rows,
    levels: int,
    strategy: VantageStrategy = "principal",
    seed: int = 1,
    spread: Callable[..., Iterable[Any]] = map,
) -> VPTree:
    """Build a tree of `levels` levels from a sample of rows.

    Parameters
    ----------
    sample : ndarray of shape (N, D), int8
        At least one row; a node without sample rows takes its parent's vantage point, so that any N
        suffices for any number of levels.
    levels : int
        2^levels cells; 0 gives one cell.
    strategy : {"random", "spread", "principal"}
    seed : int
        Equal arguments give equal trees.
    spread : callable
        ``map``, or that of an executor of threads, which then builds the lower part of the tree.
    """
    inner = 2**levels - 1
    tree = VPTree(np.zeros((inner, sample.shape[1]), np.float32), np.zeros(inner, np.float32))
    top = [_Branch(0, np.arange(len(sample)))]
    for stop in (min(inner, 2**TOP_LEVELS - 1), inner):
        grow = functools.partial(_grow, tree, sample, _STRATEGIES[strategy], seed, stop)
        top = list(itertools.chain.from_iterable(spread(grow, top)))
    return tree


class _Branch(NamedTuple):
    """A node, and the sample rows that reach it."""

    node: int
    members: NDArray[np.intp]


def _grow(
    tree: VPTree, sample: _Rows, choose: _Strategy, seed: int, stop: int, root: _Branch
) -> list[_Branch]:
    """Build the nodes below a branch, up to number `stop`; return the next branches."""
    waiting, reached = deque([root]), []
    while waiting:
        node, members = branch = waiting.popleft()
        if node >= stop:
            reached.append(branch)
            continue
        inside = sample[members]
        if len(members):
            # A random stream for each node: its choice does not depend on the order of building.
            tree.points[node] = choose(inside, np.random.default_rng([seed, node]))
            distances = _distances(inside, tree.points[node])
            tree.radii[node] = np.median(distances)
        else:
            above = (node - 1) // 2
            tree.points[node], tree.radii[node] = tree.points[above], tree.radii[above]
            distances = np.empty(0, np.float32)
        left = distances < tree.radii[node]
        waiting.append(_Branch(2 * node + 1, members[left]))
        waiting.append(_Branch(2 * node + 2, members[~left]))
    return reached
