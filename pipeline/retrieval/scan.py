"""Scan one segment for one query (map): the distance block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.index.kernels import range_scan
from pipeline.index.segments import Segment
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


def scan_segment(
    segment: Segment, plan: QueryPlan, removed: frozenset[int] = frozenset()
) -> DistanceBlock:
    """Return the rows of a segment that are nearer to a query descriptor than its background.

    Parameters
    ----------
    segment : Segment
    plan : QueryPlan
    removed : frozenset of int
        Image row ids whose rows no longer count.
    """
    work = plan_work(plan, segment)
    hits = range_scan(segment.rows, segment.alive(removed), plan.queries(), plan.radius, work)
    block = DistanceBlock(
        hits.query.astype(np.uint16),
        segment.images[hits.row],
        hits.distance.astype(np.uint32),
        segment.geometry[hits.row],
        pairs=work.pairs,
        rows=segment.rows.size,
    )
    return merge_blocks([block])


def pack_geometry(geometry: NDArray[np.uint16]) -> NDArray[np.uint64]:
    """Return each row's keypoint as one number."""
    parts = geometry.astype(np.uint64) << np.array([48, 32, 16, 0], np.uint64)
    packed: NDArray[np.uint64] = parts.sum(axis=1, dtype=np.uint64)
    return packed


def merge_blocks(blocks: list[DistanceBlock]) -> DistanceBlock:
    """Unite blocks, keeping of each (query descriptor, image) the nearest row.

    Associative and commutative: rows at equal distance are told apart by their keypoint.
    """
    empty = (np.empty(0, np.uint16), np.empty(0, np.uint32), np.empty(0, np.uint32))
    query = np.concatenate([empty[0], *(block.query for block in blocks)])
    image = np.concatenate([empty[1], *(block.image for block in blocks)])
    distance = np.concatenate([empty[2], *(block.distance for block in blocks)])
    geometry = np.concatenate([np.empty((0, 4), np.uint16), *(b.geometry for b in blocks)])
    order = np.lexsort((pack_geometry(geometry), distance, query, image))
    same = (image[order][1:] == image[order][:-1]) & (query[order][1:] == query[order][:-1])
    kept = order[np.append(True, ~same)[: len(order)]]
    return DistanceBlock(
        query[kept],
        image[kept],
        distance[kept],
        geometry[kept],
        pairs=sum(block.pairs for block in blocks),
        rows=sum(block.rows for block in blocks),
    )
