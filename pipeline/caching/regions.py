"""Regions: cells and groups of objects, which a search excludes or takes as a whole.

A region has a centre and knows how near and how far its objects are from it. If q is the query, r
its radius, and c the centre, then no object of the region is within r if d(q, c) - r is more than
the greatest distance or d(q, c) + r less than the least one; all are if d(q, c) plus the greatest
distance is at most r (the paper, Figure 1). Bounds of d(q, c) suffice.

In a vantage-point tree, both halves of a node are regions about its vantage point: a ball, and what
lies outside of it. The leaves are the cells, a node of an upper level is a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.caching.dcache import DCache
from pipeline.caching.metric import Metric
from pipeline.caching.object_ids import centre_ids
from pipeline.caching.paths import follow_paths
from pipeline.index.vptree import VPTree

__all__ = ["ObjectSet", "Regions", "about_centres", "of_tree", "of_vantage_points"]


@dataclass(frozen=True)
class Regions:
    """R regions with C centres; the first region is all objects.

    Attributes
    ----------
    objects : ndarray of shape (C, ...)
        The centres.
    ids : ndarray of shape (C,), uint64
        Their ids.
    parents : ndarray of shape (R,), int64
        The region that each one is a part of, which comes before it; -1 for the first.
    centres : ndarray of shape (R,), int64
        Which centre a region has; -1 for the first.
    inner, outer : ndarray of shape (R,), float64
        The distances of its nearest and its farthest object, in the metric's own numbers.
    starts, stops : ndarray of shape (R,), int64
        Which objects of the set are its own.
    """

    objects: NDArray[Any]
    ids: NDArray[np.uint64]
    parents: NDArray[np.int64]
    centres: NDArray[np.int64]
    inner: NDArray[np.float64]
    outer: NDArray[np.float64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]


@dataclass(frozen=True)
class ObjectSet:
    """Objects that are searched.

    Attributes
    ----------
    objects : ndarray of shape (N, ...)
    ids : ndarray of shape (N,), uint64
    regions : Regions, optional
        The objects are in their order.
    order : ndarray of shape (N,), int64, optional
        Which of the objects that the set was made from each one is.
    """

    objects: NDArray[Any]
    ids: NDArray[np.uint64]
    regions: Regions | None = None
    order: NDArray[np.int64] | None = None

    def arranged(self, order: NDArray[np.int64], regions: Regions) -> ObjectSet:
        """Return the same objects in the order of regions."""
        return ObjectSet(self.objects[order], self.ids[order], regions, order)


def about_centres(
    metric: Metric,
    things: ObjectSet,
    cells: NDArray[np.integer],
    centres: NDArray[Any],
    first: int = 0,
) -> ObjectSet:
    """Return a set with a region for each cell, about its centre.

    Parameters
    ----------
    metric : Metric
    things : ObjectSet
    cells : ndarray of shape (N,)
        The cell of each object.
    centres : ndarray of shape (C, ...)
        An object a cell, for example its mean.
    first : int
        The number of the first of them among all centres.
    """
    order = np.argsort(cells, kind="stable")
    edges = np.searchsorted(cells[order], np.arange(len(centres) + 1))
    distances = np.empty(len(cells))
    for cell, centre in enumerate(centres):
        mine = order[edges[cell] : edges[cell + 1]]
        distances[edges[cell] : edges[cell + 1]] = metric.distances(centre, things.objects, mine)
    number = np.arange(len(centres))
    parents, own = np.zeros(len(centres), np.int64), centre_ids(first, len(centres))
    regions = _regions(
        centres, own, parents, number, (edges[:-1], edges[1:]), [distances] * len(centres)
    )
    return things.arranged(order, regions)


def of_tree(tree: VPTree, things: ObjectSet, first: int = 0) -> ObjectSet:
    """Return a set of rows with the regions of a tree over rows.

    Parameters
    ----------
    tree : VPTree
        See `pipeline.caching.paths.follow_paths`.
    things : ObjectSet
        Rows (N, W), int8.
    first : int
        The number of the tree's first vantage point among all centres.
    """
    paths = follow_paths(tree, things.objects)
    points = tree.points.astype(np.int16).clip(-128, 127).astype(np.int8)
    return _arranged(things, points, paths.cells.astype(np.int64), paths.squares, first)


def of_vantage_points(
    metric: Metric,
    things: ObjectSet,
    levels: int,
    seed: int = 1,
    first: int = 0,
    cache: DCache | None = None,
) -> ObjectSet:
    """Build a vantage-point tree over objects of any metric: random points, median radii.

    Parameters
    ----------
    metric : Metric
    things : ObjectSet
        At least one object.
    levels : int
        2^levels cells; of few objects some are empty.
    seed : int
    first : int
        The number of the first vantage point among all centres.
    cache : DCache, optional
        It is fed all distances to vantage points.
    """
    rng, count, inner = np.random.default_rng(seed), len(things.objects), (1 << levels) - 1
    chosen, distances = np.zeros(inner, np.int64), np.zeros((count, levels))
    own, members = centre_ids(first, inner), [np.arange(count)]
    for node in range(inner):
        mine, level = members[node], (node + 1).bit_length() - 1
        chosen[node] = rng.choice(mine) if len(mine) else chosen[(node - 1) // 2]
        found = metric.distances(things.objects[chosen[node]], things.objects, mine)
        distances[mine, level] = found
        if cache is not None:
            cache.feed(own[node : node + 1], things.ids[mine], found)
        near = found < np.median(found) if len(mine) else np.zeros(0, np.bool_)
        members += [mine[near], mine[~near]]
    cells = np.empty(count, np.int64)
    for cell, mine in enumerate(members[inner:]):
        cells[mine] = cell
    return _arranged(things, things.objects[chosen], cells, distances, first)


def _arranged(
    things: ObjectSet,
    points: NDArray[Any],
    cells: NDArray[np.int64],
    distances: NDArray[np.float64],
    first: int,
) -> ObjectSet:
    """Return a set with the regions of a full binary tree, by the path distances (N, L)."""
    order, levels = np.argsort(cells, kind="stable"), distances.shape[1]
    edges = np.searchsorted(cells[order], np.arange((1 << levels) + 1))
    nodes = np.arange(1, 2 * len(points) + 1)
    level = np.floor(np.log2(nodes + 1)).astype(np.int64)
    leaves = (nodes + 1 - (1 << level)) << (levels - level)
    ranges = edges[leaves], edges[leaves + (1 << (levels - level))]
    columns = np.ascontiguousarray(distances[order].T)
    above = (nodes - 1) // 2
    regions = _regions(
        points,
        centre_ids(first, len(points)),
        above,
        above,
        ranges,
        [columns[i - 1] for i in level],
    )
    return things.arranged(order, regions)


def _regions(
    objects: NDArray[Any],
    ids: NDArray[np.uint64],
    parents: NDArray[np.int64],
    centres: NDArray[np.int64],
    ranges: tuple[NDArray[np.int64], NDArray[np.int64]],
    distances: list[NDArray[np.float64]],
) -> Regions:
    """Return regions behind the one of all objects.

    `distances` holds for each region those of all objects, in order, to its centre.
    """
    starts, stops = ranges
    mine = [d[a:b] for d, a, b in zip(distances, starts, stops, strict=True)]
    inner = [one.min(initial=np.inf) for one in mine]
    outer = [one.max(initial=0) for one in mine]
    count = int(stops.max(initial=0)) if len(stops) else 0
    return Regions(
        objects,
        ids,
        np.concatenate([[-1], parents]),
        np.concatenate([[-1], centres]),
        np.array([0.0, *inner]),
        np.array([np.inf, *outer]),
        np.concatenate([[0], starts]),
        np.concatenate([[count], stops]),
    )
