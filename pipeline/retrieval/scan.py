"""Scan one segment for one plan (map): the distance block."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TransientError
from pipeline.index.kernels import PATH, Hits, merge_nearest, nearest, range_scan, unite_hits
from pipeline.index.rows import ROW_UNIT
from pipeline.index.segments import Segment
from pipeline.index.work import Work, split_work
from pipeline.retrieval.cost import ROW_OVERHEAD
from pipeline.retrieval.plan import QueryPlan, plan_work


@dataclass(frozen=True)
class ScanCounts:
    """What scans visited and compared; those of several segments are added up.

    Attributes
    ----------
    rows : int
        Rows of the segments.
    cells : int
        Cells opened: with rows in them, and wanted by a query descriptor. In each segment anew.
    visited : int
        Rows of the cells opened.
    bytes : int
        Bytes of the rows visited: codes, lengths and heads, each once.
    pairs : int
        Pairs of a query descriptor and a row that were compared.
    computed : int or None
        Those that were compared whole; the others were decided by the heads of the rows. None:
        not counted (one vector an image).
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
    def from_meta(cls, meta: Mapping[str, Any]) -> Self:
        """Read the counts among other plain values."""
        return cls(**{field.name: meta[field.name] for field in fields(cls)})


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
    counts : ScanCounts
    """

    query: NDArray[np.uint16]
    image: NDArray[np.uint32]
    distance: NDArray[np.uint32]
    geometry: NDArray[np.uint16]
    counts: ScanCounts = ScanCounts()

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that travel to the ranking."""
        return {name: getattr(self, name) for name in ("query", "image", "distance", "geometry")}

    def to_meta(self) -> dict[str, Any]:
        """Return the plain values that travel beside the arrays."""
        return asdict(self.counts)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]
    ) -> DistanceBlock:
        """Inverse of `to_arrays` and `to_meta`."""
        return cls(**dict(arrays), counts=ScanCounts.from_meta(meta))


@dataclass(frozen=True)
class GroupScan:
    """What the scan of a group found, and how long it took.

    Attributes
    ----------
    group : int
    block : DistanceBlock
    ms : float
        Milliseconds in its own thread, from when its segments were open.
    path : str
        Code path of the kernels there.
    """

    group: int
    block: DistanceBlock
    ms: float
    path: str

    def to_meta(self) -> dict[str, Any]:
        """Return the plain values that travel beside the block's arrays."""
        own = {"group": self.group, "ms": round(self.ms, 2), "path": self.path}
        return {**self.block.to_meta(), **own}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> GroupScan:
        """Read what travelled: the block's arrays, and `to_meta`."""
        block = DistanceBlock.from_arrays(arrays, meta)
        return cls(meta["group"], block, meta["ms"], meta["path"])


PAIRS_BETWEEN_LOOKS = 1 << 26
"""Descriptor pairs, of rows of `ROW_UNIT` bytes, between two looks at the clock: less than a tenth
of a second."""


class DeadlinePassedError(TransientError):
    """A scan was given up because its search is over."""

    def __str__(self) -> str:
        return "the search's deadline passed before its rows were scanned"


def scan_segment(
    segment: Segment,
    plan: QueryPlan,
    removed: frozenset[int] = frozenset(),
    until: float | None = None,
    path: str = PATH,
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
    path : str
        Code path of the kernels; the answer is the same.

    Raises
    ------
    DeadlinePassedError
        It is later than `until`, looked at between cells.
    """
    work = plan_work(plan, segment)
    alive = segment.alive(removed)
    _look_at_the_clock(until)
    pieces = _Pieces(segment, plan, alive, work, until, path)
    hits = pieces.nearest_hits() if plan.neighbours else pieces.near_hits(plan.radius)
    block = DistanceBlock(
        hits.query.astype(np.uint16),
        segment.images[hits.row],
        hits.distance.astype(np.uint32),
        segment.geometry[hits.row],
        # The nearest rows are kept in a pass that does not count.
        _counts(segment, plan, work, None if plan.neighbours else hits.computed),
    )
    return merge_blocks([block], plan.neighbours)


def _counts(segment: Segment, plan: QueryPlan, work: Work, computed: int | None) -> ScanCounts:
    """Return what the scan of a segment visited."""
    visited = int((work.row_stop - work.row_start).sum())
    every = int(np.count_nonzero(np.diff(segment.cell_offsets)))
    return ScanCounts(
        rows=segment.rows.size,
        cells=every if plan.kind == "exhaustive" else len(work.row_start),
        visited=visited,
        bytes=visited * (segment.rows.dimensions + ROW_OVERHEAD),
        pairs=work.pairs,
        computed=computed,
    )


def _look_at_the_clock(until: float | None) -> None:
    """Give up when it is too late."""
    if until is not None and time.time() > until:
        raise DeadlinePassedError


@dataclass(frozen=True)
class _Pieces:
    """A scan's work, done in pieces with a look at the clock before each."""

    segment: Segment
    plan: QueryPlan
    alive: NDArray[np.bool_]
    work: Work
    until: float | None
    path: str

    def _each(self) -> Iterator[Work]:
        """Yield the pieces while there is time."""
        pairs = self.work.pairs * self.segment.rows.dimensions // ROW_UNIT
        for piece in split_work(self.work, max(1, pairs // PAIRS_BETWEEN_LOOKS)):
            _look_at_the_clock(self.until)
            yield piece

    def near_hits(self, radius: NDArray[np.int32]) -> Hits:
        """Return the rows within each query's radius."""
        rows, queries = self.segment.rows, self.plan.queries()
        return unite_hits(
            [
                range_scan(rows, self.alive, queries, radius, piece, path=self.path)
                for piece in self._each()
            ]
        )

    def nearest_hits(self) -> Hits:
        """Return the nearest rows of each query within its radius, and all that tie with the last.

        One neighbour more than wanted is looked for: is it as near as the last, there may be
        others, and a second scan within that distance finds them. So the answer does not depend on
        the order of the rows.
        """
        rows, queries, k = self.segment.rows, self.plan.queries(), self.plan.neighbours
        distance, row = merge_nearest(
            [
                nearest(rows, queries, k + 1, alive=self.alive, work=piece, path=self.path)
                for piece in self._each()
            ]
        )
        query, rank = np.nonzero((row >= 0) & (distance < self.plan.radius[:, None]))
        if (distance[:, k] == distance[:, k - 1])[row[:, k] >= 0].any():
            reach = np.minimum(distance[:, k - 1].astype(np.int64) + 1, self.plan.radius)
            return self.near_hits(reach.astype(np.int32))
        first = rank < k
        query, rank = query[first], rank[first]
        found = row[query, rank], distance[query, rank]
        return Hits(query.astype(np.int32), *found, self.work.pairs)


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
        sum((block.counts for block in blocks), ScanCounts()),
    )


def split_block(block: DistanceBlock, offsets: Sequence[int]) -> list[DistanceBlock]:
    """Return a part for each query image: the inverse of `pipeline.retrieval.plan.join_plans`.

    Parameters
    ----------
    block : DistanceBlock
    offsets : sequence of int
        Image i has the query descriptors ``offsets[i]`` to ``offsets[i + 1] - 1``; in its part
        they are counted from zero. The counts stay with the whole.
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
