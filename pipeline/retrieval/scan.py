"""Scan one segment for one query (map): the distance block."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TransientError
from pipeline.index.kernels import Hits, nearest, range_scan, unite_hits
from pipeline.index.segments import Segment
from pipeline.index.work import Work, split_work
from pipeline.retrieval.plan import QueryPlan, plan_work


@dataclass(frozen=True)
class DistanceBlock:
    """What scanning found: of each query descriptor and image the nearest row, if near enough.

    Attributes
    ----------
    query : ndarray of shape (M,), uint16
        Query descriptor.
    image : ndarray of shape (M,), uint32
        Image row id.
    distance : ndarray of shape (M,), uint32
        Squared distance of the 8-bit rows.
    geometry : ndarray of shape (M, 4), uint16
        Keypoint of the row (`pipeline.index.segments.encode_geometry`).
    pairs : int
        Descriptor pairs computed.
    rows : int
        Rows of the segment.
    """

    query: NDArray[np.uint16]
    image: NDArray[np.uint32]
    distance: NDArray[np.uint32]
    geometry: NDArray[np.uint16]
    pairs: int
    rows: int

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that travel to the ranking."""
        return {name: getattr(self, name) for name in ("query", "image", "distance", "geometry")}

    def to_meta(self) -> dict[str, int]:
        """Return the plain values that travel beside the arrays."""
        return {"pairs": self.pairs, "rows": self.rows}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]
    ) -> DistanceBlock:
        """Inverse of `to_arrays` and `to_meta`."""
        return cls(**dict(arrays), pairs=meta["pairs"], rows=meta["rows"])


PAIRS_BETWEEN_LOOKS = 1 << 26
"""Descriptor pairs between two looks at the clock: less than a tenth of a second."""


class DeadlinePassedError(TransientError):
    """A scan was given up because its search is over."""

    def __str__(self) -> str:
        return "the search's deadline passed before its rows were scanned"


def scan_segment(
    segment: Segment,
    plan: QueryPlan,
    removed: frozenset[int] = frozenset(),
    until: float | None = None,
) -> DistanceBlock:
    """Return the rows of a segment that are nearer to a query descriptor than its background.

    A plan with a number of neighbours gets no more than these (and what is as near as the last).

    Parameters
    ----------
    segment : Segment
    plan : QueryPlan
    removed : frozenset of int
        Image row ids whose rows no longer count.
    until : float, optional
        Time (as `time.time`) after which nobody waits for the answer.

    Raises
    ------
    DeadlinePassedError
        It is later than `until`, looked at between cells.
    """
    work = plan_work(plan, segment)
    alive = segment.alive(removed)
    _look_at_the_clock(until)
    hits = (
        _nearest_hits(segment, plan, alive, work)
        if plan.neighbours
        else _near_hits(segment, plan, alive, work, until)
    )
    block = DistanceBlock(
        hits.query.astype(np.uint16),
        segment.images[hits.row],
        hits.distance.astype(np.uint32),
        segment.geometry[hits.row],
        pairs=work.pairs,
        rows=segment.rows.size,
    )
    return merge_blocks([block], plan.neighbours)


def _look_at_the_clock(until: float | None) -> None:
    """Give up when it is too late."""
    if until is not None and time.time() > until:
        raise DeadlinePassedError


def _near_hits(
    segment: Segment,
    plan: QueryPlan,
    alive: NDArray[np.bool_],
    work: Work,
    until: float | None,
) -> Hits:
    """Return the rows within each query's radius; looks at the clock between pieces of work."""
    queries, found = plan.queries(), []
    for piece in split_work(work, max(1, work.pairs // PAIRS_BETWEEN_LOOKS)):
        _look_at_the_clock(until)
        found.append(range_scan(segment.rows, alive, queries, plan.radius, piece))
    return unite_hits(found)


def _nearest_hits(segment: Segment, plan: QueryPlan, alive: NDArray[np.bool_], work: Work) -> Hits:
    """Return the nearest rows of each query within its radius, with all that tie with the last.

    One neighbour more than wanted is looked for: is it as near as the last, there may be others,
    and a second scan within that distance finds them. So the answer does not depend on the order of
    the rows.
    """
    k = plan.neighbours
    distance, row = nearest(segment.rows, plan.queries(), k + 1, alive=alive, work=work)
    query, rank = np.nonzero((row >= 0) & (distance < plan.radius[:, None]))
    if not (distance[:, k] == distance[:, k - 1])[row[:, k] >= 0].any():
        first = rank < k
        query, rank = query[first], rank[first]
        return Hits(query.astype(np.int32), row[query, rank], distance[query, rank], work.pairs)
    reach = np.minimum(distance[:, k - 1].astype(np.int64) + 1, plan.radius)
    return range_scan(segment.rows, alive, plan.queries(), reach.astype(np.int32), work)


def pack_geometry(geometry: NDArray[np.uint16]) -> NDArray[np.uint64]:
    """Return each row's keypoint as one number."""
    parts = geometry.astype(np.uint64) << np.array([48, 32, 16, 0], np.uint64)
    packed: NDArray[np.uint64] = parts.sum(axis=1, dtype=np.uint64)
    return packed


def merge_blocks(blocks: list[DistanceBlock], neighbours: int = 0) -> DistanceBlock:
    """Unite blocks, keeping of each (query descriptor, image) the nearest row.

    Associative and commutative: rows at equal distance are told apart by their keypoint.

    Parameters
    ----------
    blocks : list of DistanceBlock
    neighbours : int
        Keep of each query descriptor only so many nearest images, and those as near as the last;
        0: all.
    """
    empty = (np.empty(0, np.uint16), np.empty(0, np.uint32), np.empty(0, np.uint32))
    query = np.concatenate([empty[0], *(block.query for block in blocks)])
    image = np.concatenate([empty[1], *(block.image for block in blocks)])
    distance = np.concatenate([empty[2], *(block.distance for block in blocks)])
    geometry = np.concatenate([np.empty((0, 4), np.uint16), *(b.geometry for b in blocks)])
    order = np.lexsort((pack_geometry(geometry), distance, query, image))
    same = (image[order][1:] == image[order][:-1]) & (query[order][1:] == query[order][:-1])
    kept = order[np.append(True, ~same)[: len(order)]]
    if neighbours:
        kept = kept[_among_nearest(query[kept], distance[kept], neighbours)]
    return DistanceBlock(
        query[kept],
        image[kept],
        distance[kept],
        geometry[kept],
        pairs=sum(block.pairs for block in blocks),
        rows=sum(block.rows for block in blocks),
    )


def _among_nearest(
    query: NDArray[np.uint16], distance: NDArray[np.uint32], count: int
) -> NDArray[np.bool_]:
    """Return which pairs are not farther than their query's `count`-th nearest."""
    order = np.lexsort((distance, query))
    _, first, members = np.unique(query[order], return_index=True, return_counts=True)
    last = distance[order][first + np.minimum(members, count) - 1]
    reach = np.zeros(int(query.max(initial=0)) + 1, np.uint32)
    reach[query[order][first]] = last
    near: NDArray[np.bool_] = distance <= reach[query]
    return near
