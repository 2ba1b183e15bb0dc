"""Plan a search: the radius, the cells, the groups."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import column, integer, require, require_below
from pipeline.config import MAX_GROUPS
from pipeline.index.cells import cells_by_default
from pipeline.index.kernels import Queries, prepare_queries, select_k_nearest
from pipeline.index.model import Model
from pipeline.index.rows import MAX_DIMENSIONS, ROW_UNIT
from pipeline.index.segments import Segment
from pipeline.index.work import (
    CellRequests,
    Work,
    cell_requests,
    full_work,
    wanted_work,
    whole_work,
)
from pipeline.request import SearchRequest
from pipeline.retrieval.cost import Workload, exhaustive_is_fast_enough

MOST_QUERIES = 1 << 16
"""The most query descriptors of a plan: distance blocks number them with 16 bits."""

MOST_NEIGHBOURS = 10_000
"""The most neighbours that are searched for: those of the largest answer."""

FEWEST_NEIGHBOURS = 100
"""The fewest neighbours of a search with one vector an image: so an answer of 10 has replacements
for images removed meanwhile."""

SPARE = 16
"""For so many requested neighbours, one more is searched for in a segment: a quarter more would
take a fifth more time, these hardly any."""

ONE_VECTOR_ROWS = 65_536
"""The fewest rows that the probed plan opens with one vector an image, unless an effort is given.
The usual share of cells is meant for hundreds of descriptors that find an image together; a single
vector must find all images by itself, and so many rows take it only a few milliseconds."""

TARGET_SHARE = 2e-5
"""Share of unrelated descriptors that may come nearer to a query than its background distance, for
a background sample of `TARGET_SIZE`; a smaller collection allows more, by the square root."""

TARGET_SIZE = 32_768

INTRINSIC_DIMENSION = 10.4
"""Local intrinsic dimension of SIFT and SURF descriptors: a quantile p of the distances shrinks as
p^(1/dimension)."""

_BACKGROUND_RANKS = ((2, 1.0), (16, 0.9))
"""Ranks in the background sample, with the factor for the extrapolated squared distance."""


@dataclass(frozen=True)
class QueryPlan:
    """Query descriptors, ready to be scanned by any group on any host.

    They belong to one image, or to several, concatenated (`join_plans`).

    Attributes
    ----------
    kind : {"probed", "exhaustive"}
    codes : ndarray of shape (Q, W), int8
    radius : ndarray of shape (Q,), int32
        Squared background distances: only nearer rows vote.
    cells : ndarray of shape (Q, P), uint32
        Cells to probe for each query descriptor, best first; P = 0 for the exhaustive plan.
    groups : tuple of int
        Groups with a probed cell.
    neighbours : int
        0: every row within the radius counts (local features). k > 0: of each query row the k
        nearest rows, and those as near as the k-th (one vector an image).
    """

    kind: Literal["probed", "exhaustive"]
    codes: NDArray[np.int8]
    radius: NDArray[np.int32]
    cells: NDArray[np.uint32]
    groups: tuple[int, ...]
    neighbours: int = 0

    def queries(self) -> Queries:
        """Return the query rows ready for the kernels; computed once for all segments."""
        return self._queries

    @cached_property
    def _queries(self) -> Queries:
        return prepare_queries(self.codes)

    @cached_property
    def widened(self) -> QueryPlan:
        """The plan with more neighbours than requested, because some may belong to removed images.

        A segment is scanned again only if that is not enough.
        """
        if not self.neighbours:
            return self
        return replace(self, neighbours=self.neighbours + self.neighbours // SPARE)

    def some(self, queries: NDArray[np.intp]) -> QueryPlan:
        """Return the plan of some of the query descriptors."""
        return replace(
            self, codes=self.codes[queries], radius=self.radius[queries], cells=self.cells[queries]
        )

    @cached_property
    def requests(self) -> CellRequests:
        """The query descriptors of each cell; computed once for all segments."""
        return cell_requests(self.cells)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to send to the scans."""
        return {"codes": self.codes, "radius": self.radius, "cells": self.cells}

    def to_meta(self) -> dict[str, Any]:
        """Return the plain values to send with the arrays."""
        return {"kind": self.kind, "groups": list(self.groups), "neighbours": self.neighbours}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> QueryPlan:
        """Inverse of `to_arrays` and `to_meta`.

        Raises
        ------
        CorruptFileError
            The values are not those of a plan.
        """
        kind: Any = meta.get("kind")
        groups: Any = meta.get("groups")
        require(kind in ("probed", "exhaustive"), arrays, f"kind is {kind!r}")
        known = isinstance(groups, list) and all(type(group) is int for group in groups)
        known = known and set(groups) <= set(range(MAX_GROUPS))
        require(known, arrays, f"groups are {groups!r}")
        codes = column(arrays, "codes", np.int8, None, None)
        count, width = codes.shape
        fits = width % ROW_UNIT == 0 and ROW_UNIT <= width <= MAX_DIMENSIONS
        require(fits and count <= MOST_QUERIES, arrays, f"{count} query rows of {width} bytes")
        radius = column(arrays, "radius", np.int32, count)
        require(not count or radius.min() >= 0, arrays, "a radius is negative")
        cells = column(arrays, "cells", np.uint32, count, None)
        none = cells.shape[1] == 0
        require(none == (kind == "exhaustive"), arrays, f"{kind} with {cells.shape[1]} cells")
        neighbours = integer(arrays, meta, "neighbours", 0, MOST_NEIGHBOURS)
        return cls(kind, codes, radius, cells, tuple(groups), neighbours)

    def require_fit(self, arrays: Mapping[str, NDArray[Any]], cells: int, row_bytes: int) -> None:
        """Refuse a plan for another index.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            What it was read from.
        cells, row_bytes : int
            Of the index.

        Raises
        ------
        CorruptFileError
        """
        width = self.codes.shape[1]
        require(width == row_bytes, arrays, f"query rows of {width} bytes, not {row_bytes}")
        require_below(arrays, "cells", self.cells.reshape(-1), cells)


def background_radius(model: Model, queries: Queries) -> NDArray[np.int32]:
    """Return the squared distance below which unrelated descriptors rarely are, for each query.

    The distance to the r-th nearest of a fixed random sample of S descriptors is the r/S quantile
    of the distances to unrelated descriptors; it is extrapolated to the quantile of `TARGET_SHARE`
    by the power law of the local intrinsic dimension. A low rank (2) adapts best to the query, but
    collapses if the collection has so many copies of the query that two are in the sample; then a
    higher rank (16), slightly reduced, is the lower bound. The sample is fixed: the radius neither
    drifts when the collection grows nor shrinks when copies are added.

    Parameters
    ----------
    model : Model
    queries : Queries
        Q descriptors.

    Returns
    -------
    ndarray of shape (Q,), int32

    References
    ----------
    S. McCann, D. Lowe, "Local Naive Bayes Nearest Neighbor", CVPR 2012, for scoring against a
    background distance; docs/decisions/0004-scoring.md for the measurement.
    """
    size = model.background.size
    share = TARGET_SHARE * (TARGET_SIZE / size) ** 0.5
    ranks = [(rank, factor) for rank, factor in _BACKGROUND_RANKS if rank <= size]
    ranks = ranks or [(size, 1.0)]
    work = whole_work(size, len(queries.codes))
    distances, _ = select_k_nearest(model.background, queries, ranks[-1][0], work)
    estimates = [
        factor
        * distances[:, rank - 1]
        * min(1.0, (share * size / rank) ** (2 / INTRINSIC_DIMENSION))
        for rank, factor in ranks
    ]
    radius: NDArray[np.int32] = np.maximum(np.max(estimates, axis=0), 1).astype(np.int32)
    return radius


def cosine_radius(model: Model, count: int) -> NDArray[np.int32]:
    """Return the squared distance of two rows at right angles, for `count` rows of unit length.

    A row at squared distance d from the query then scores ``1 - d / radius``: their cosine.
    """
    squared = min(2 * model.quantizer.scale**2, np.iinfo(np.int32).max)
    return np.full(count, max(1, round(squared)), np.int32)


def make_plan(
    model: Model,
    codes: NDArray[np.int8],
    descriptors: int,
    request: SearchRequest,
    one_vector: bool = False,
) -> QueryPlan:
    """Choose the plan of one query image.

    Parameters
    ----------
    model : Model
    codes : ndarray of shape (Q, W), int8
        The query's descriptors as stored rows.
    descriptors : int
        Descriptors in the collection.
    request : SearchRequest
    one_vector : bool
        The extractor describes an image by one vector of unit length: the nearest rows are looked
        for, however far they are, and the score is the cosine.
    """
    radius = (
        cosine_radius(model, len(codes))
        if one_vector
        else background_radius(model, prepare_queries(codes))
    )
    neighbours = max(request.top, FEWEST_NEIGHBOURS) if one_vector else 0
    kind = request.kind
    if kind == "auto":
        workload = Workload(len(codes), descriptors, codes.shape[1], model.tree.cells, one_vector)
        kind = "exhaustive" if exhaustive_is_fast_enough(workload) else "probed"
    if kind == "exhaustive":
        nothing = np.empty((len(codes), 0), np.uint32)
        every = tuple(range(model.groups))
        return QueryPlan(kind, codes, radius, nothing, every, neighbours)
    opened = cells_to_open(model.tree.cells, descriptors, request.effort, one_vector)
    cells = model.tree.probe(codes, opened)
    groups = tuple(int(group) for group in np.unique(cells // model.cells_per_group))
    return QueryPlan(kind, codes, radius, cells, groups, neighbours)


def join_plans(plans: Sequence[QueryPlan]) -> QueryPlan:
    """Return one plan for the descriptors of several images, which one scan serves.

    Parameters
    ----------
    plans : sequence of QueryPlan
        At least one; of one kind, made for one model and one configuration.
    """
    if len(plans) == 1:
        return plans[0]
    return QueryPlan(
        plans[0].kind,
        np.concatenate([plan.codes for plan in plans]),
        np.concatenate([plan.radius for plan in plans]),
        np.concatenate([plan.cells for plan in plans]),
        tuple(sorted({group for plan in plans for group in plan.groups})),
        plans[0].neighbours,
    )


def cells_to_open(cells: int, rows: int, effort: float | None, one_vector: bool = False) -> int:
    """Return how many of a tree's cells the probed plan opens for each query row.

    Parameters
    ----------
    cells, rows : int
        Of the collection.
    effort : float or None
        Share of the cells; None: as many as `pipeline.index.cells.cells_by_default` says, and for
        one vector an image those of `ONE_VECTOR_ROWS` at least.
    one_vector : bool
        See `make_plan`.
    """
    if effort is not None:
        return min(cells, max(1, round(effort * cells)))
    count = cells_by_default(cells)
    if one_vector:
        count = max(count, -(-ONE_VECTOR_ROWS * cells // max(1, rows)))
    return min(count, cells)


def plan_work(plan: QueryPlan, segment: Segment) -> Work:
    """Return what a scan of one segment visits: each wanted cell once, with its queries."""
    if plan.kind == "exhaustive":
        return full_work(segment.rows.size, len(plan.codes), segment.rows.dimensions)
    offsets = segment.cell_offsets
    return wanted_work(plan.requests.some(segment.first_cell, len(offsets) - 1), offsets)


def radius_rule(plan: QueryPlan) -> list[object]:
    """Return what names the rule that the radius was made by, its constants included."""
    if plan.neighbours:
        return ["right angle"]
    return ["background", TARGET_SHARE, TARGET_SIZE, INTRINSIC_DIMENSION, list(_BACKGROUND_RANKS)]


def opened_cells(plan: QueryPlan, segment: Segment) -> str:
    """Return what names the (query descriptor, cell) pairs that a scan of a segment really opens.

    Cells elsewhere and cells without rows do not count: so it is the same for plans that differ in
    them alone, and for an exhaustive plan and a probed one that opens everything here.
    """
    queries, cells = len(plan.codes), len(segment.cell_offsets) - 1
    filled = np.diff(segment.cell_offsets) > 0
    if plan.kind == "exhaustive":
        return "all"
    wanted = plan.cells.astype(np.int64) - segment.first_cell
    inside = (wanted >= 0) & (wanted < cells)
    inside &= filled[np.where(inside, wanted, 0)]
    if int(inside.sum()) == queries * int(filled.sum()):
        return "all"
    query, place = np.nonzero(inside)
    pairs = np.sort(query * cells + wanted[query, place])
    return hashlib.sha256(pairs.tobytes()).hexdigest()
