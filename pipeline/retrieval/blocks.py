"""Distance blocks: what scans found; merging them and splitting them by query image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import column, integer, real, require, require_below
from pipeline.config import MAX_GROUPS

_LARGEST_COUNT = 1 << 60


@dataclass(frozen=True)
class ScanCounts:
    """Counts of what scans visited and compared, summed over segments.

    Attributes
    ----------
    rows : int
        Rows of the segments.
    cells : int
        Non-empty cells that a query descriptor wants, counted in each segment.
    visited : int
        Rows of the cells opened.
    bytes : int
        Bytes of the rows visited: codes, lengths and prefixes, each once.
    pairs : int
        Pairs of a query descriptor and a row that were compared.
    computed : int or None
        Pairs compared whole; prefixes ruled out the others. None: not counted (one vector an
        image).
    """

    rows: int = 0
    cells: int = 0
    visited: int = 0
    bytes: int = 0
    pairs: int = 0
    computed: int | None = 0

    def __add__(self, other: ScanCounts) -> ScanCounts:
        unknown = self.computed is None or other.computed is None
        return ScanCounts(
            self.rows + other.rows,
            self.cells + other.cells,
            self.visited + other.visited,
            self.bytes + other.bytes,
            self.pairs + other.pairs,
            None if unknown else (self.computed or 0) + (other.computed or 0),
        )

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Read the counts from the plain values of these arrays."""
        names = [field.name for field in fields(cls)]
        if meta.get("computed", 0) is None:
            names.remove("computed")
        counts = {name: integer(arrays, meta, name, 0, _LARGEST_COUNT) for name in names}
        return replace(cls(computed=None), **counts)


@dataclass(frozen=True)
class DistanceBlock:
    """The result of a scan: for each query descriptor and image the nearest row within the radius.

    Attributes
    ----------
    query : ndarray of shape (M,), uint16
        Query descriptor.
    image : ndarray of shape (M,), uint32
        Number of the segment's image; in blocks sent to the ranking, the image's row id.
    distance : ndarray of shape (M,), uint32
        Squared distance of the 8-bit rows.
    geometry : ndarray of shape (M, 4), uint16
        Keypoint of the row (`pipeline.index.segments.encode_geometry`).
    counts : ScanCounts
    """

    query: NDArray[np.uint16]
    image: NDArray[np.uint32]
    distance: NDArray[np.uint32]
    geometry: NDArray[np.uint16]
    counts: ScanCounts = ScanCounts()

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to send to the ranking."""
        return {name: getattr(self, name) for name in ("query", "image", "distance", "geometry")}

    def to_meta(self) -> dict[str, Any]:
        """Return the plain values to send with the arrays."""
        return asdict(self.counts)

    def some(self, chosen: NDArray[Any]) -> DistanceBlock:
        """Return some matches, given by a mask or positions; the counts stay."""
        arrays = {name: array[chosen] for name, array in self.to_arrays().items()}
        return DistanceBlock(**arrays, counts=self.counts)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]
    ) -> DistanceBlock:
        """Inverse of `to_arrays` and `to_meta`.

        Raises
        ------
        CorruptFileError
            The values are not those of a block.
        """
        query = column(arrays, "query", np.uint16, None)
        return cls(
            query,
            column(arrays, "image", np.uint32, len(query)),
            column(arrays, "distance", np.uint32, len(query)),
            column(arrays, "geometry", np.uint16, len(query), 4),
            ScanCounts.from_meta(meta, arrays),
        )


@dataclass(frozen=True)
class GroupScan:
    """The result of a group's scan, and its time.

    Attributes
    ----------
    group : int
    block : DistanceBlock
    ms : float
        Milliseconds in its own thread, from when its segments were open.
    path : str
        Code path of its kernels.
    lost : tuple of str
        Why some of its segments could not be searched, a sentence each.
    """

    group: int
    block: DistanceBlock
    ms: float
    path: str
    lost: tuple[str, ...] = ()

    def to_meta(self) -> dict[str, Any]:
        """Return the plain values to send with the block's arrays."""
        own = {"group": self.group, "ms": round(self.ms, 2), "path": self.path}
        return {**self.block.to_meta(), **own, "lost": list(self.lost)}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any], queries: int
    ) -> GroupScan:
        """Read the block's arrays and `to_meta`.

        Parameters
        ----------
        arrays, meta
            As they were sent.
        queries : int
            Query descriptors that were searched for.

        Raises
        ------
        CorruptFileError
            The values are not those of such a scan.
        """
        block = DistanceBlock.from_arrays(arrays, meta)
        require_below(arrays, "query", block.query, queries)
        group = integer(arrays, meta, "group", 0, MAX_GROUPS - 1)
        path, lost = meta.get("path"), meta.get("lost", [])
        texts = isinstance(lost, list) and all(isinstance(text, str) for text in lost)
        require(isinstance(path, str) and texts, arrays, f"its path is {path!r}, lost {lost!r}")
        return cls(group, block, real(arrays, meta, "ms", 0.0), str(path), tuple(lost))


def pack_geometry(geometry: NDArray[np.uint16]) -> NDArray[np.uint64]:
    """Return each row's keypoint as one number."""
    parts = geometry.astype(np.uint64) << np.array([48, 32, 16, 0], np.uint64)
    packed: NDArray[np.uint64] = parts.sum(axis=1, dtype=np.uint64)
    return packed


def merge_blocks(blocks: list[DistanceBlock], neighbours: int = 0) -> DistanceBlock:
    """Merge blocks; keep the nearest row of each (query descriptor, image).

    Associative and commutative: keypoints break ties between rows at equal distance.

    Parameters
    ----------
    blocks : list of DistanceBlock
    neighbours : int
        Keep only so many nearest images of each query descriptor, and those as near as the last; 0:
        all.
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
        sum((block.counts for block in blocks), ScanCounts()),
    )


def split_block(block: DistanceBlock, offsets: Sequence[int]) -> list[DistanceBlock]:
    """Return a block for each query image: the inverse of `pipeline.retrieval.plan.join_plans`.

    Parameters
    ----------
    block : DistanceBlock
    offsets : sequence of int
        Image i has the query descriptors ``offsets[i]`` to ``offsets[i + 1] - 1``; in its block
        they are counted from zero. The scan counts stay with the whole block.
    """
    order = np.argsort(block.query, kind="stable")
    ends = np.searchsorted(block.query[order], offsets)
    return [
        DistanceBlock(
            (block.query[mine] - first).astype(np.uint16),
            block.image[mine],
            block.distance[mine],
            block.geometry[mine],
        )
        for first, mine in zip(offsets, np.split(order, ends[1:-1]), strict=False)
    ]


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
