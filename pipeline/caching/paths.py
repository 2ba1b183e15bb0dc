"""Path distances: those from a row to the vantage points on its way down the tree.

Grouping computes them anyway. Fed to the cache of distances, they bound the distances of a query,
whose own descent has its distances to the same vantage points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.caching.dcache import DCache
from pipeline.caching.object_ids import centre_ids
from pipeline.errors import InputError
from pipeline.index.rows import read_only
from pipeline.index.vptree import VPTree
from pipeline.machine_code import CompiledLoop

__all__ = ["Paths", "feed_paths", "follow_paths"]

_follow = CompiledLoop("pipeline.caching.path_loops", "follow", ["pipeline.index.loops"])


class Paths(NamedTuple):
    """Ways of rows down a tree of L levels.

    Attributes
    ----------
    cells : ndarray of shape (N,), uint32
        Where they end: the cells of `VPTree.assign`.
    nodes : ndarray of shape (N, L), int64
    squares : ndarray of shape (N, L), float64
        Squared distances to the vantage points of the nodes.
    """

    cells: NDArray[np.uint32]
    nodes: NDArray[np.int64]
    squares: NDArray[np.float64]

    def centres(self, row: int, first: int) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        """Return the vantage points of a row's path and their distances, for `DCache.begin`.

        Parameters
        ----------
        row : int
        first : int
            The number of the tree's first vantage point among all centres.
        """
        numbers = centre_ids(first, int(self.nodes.max(initial=-1)) + 1)
        return numbers[self.nodes[row]], self.squares[row]


def follow_paths(tree: VPTree, rows: NDArray[np.int8]) -> Paths:
    """Descend a tree with rows, and keep the distances.

    Parameters
    ----------
    tree : VPTree
        Its vantage points are rows of bytes: not those of the strategy ``principal``.
    rows : ndarray of shape (N, W), int8

    Raises
    ------
    InputError
        The vantage points are no rows.
    """
    if not ((tree.points == np.rint(tree.points)) & (abs(tree.points) <= 128)).all():
        raise InputError("the tree's vantage points are no rows of bytes: train it with 'random'")
    shape = (len(rows), tree.levels)
    found = Paths(np.empty(len(rows), np.uint32), np.empty(shape, np.int64), np.empty(shape))
    inputs = (read_only(array) for array in (rows, tree.points, tree.radii))
    _follow(*inputs, tree.levels, *found)
    return found


def feed_paths(
    cache: DCache, tree: VPTree, rows: NDArray[np.int8], ids: NDArray[np.uint64], first: int
) -> NDArray[np.uint32]:
    """Find the cells of rows as `VPTree.assign` does, and feed the distances to a cache.

    Parameters
    ----------
    cache : DCache
        Of `pipeline.caching.metric.SquaredEuclidean`.
    tree, rows
        See `follow_paths`.
    ids : ndarray of shape (N,), uint64
        Of the rows.
    first : int
        The number of the tree's first vantage point among all centres.

    Returns
    -------
    ndarray of shape (N,), uint32
    """
    paths = follow_paths(tree, rows)
    numbers = centre_ids(first, len(tree.points))
    for level in range(tree.levels):
        nodes, squares = paths.nodes[:, level], np.ascontiguousarray(paths.squares[:, level])
        cache.feed(numbers[nodes], ids, squares)
    return paths.cells
