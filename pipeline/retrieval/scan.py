"""Scan one segment for one plan (map): the distance block.

A block is made of all rows of a segment, in the numbers of its own images (`scan_segment`). Which
of the images may be answers, and what this database calls them, comes after (`scan_opened`): so a
block stays right when an image is removed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.config import digest
from pipeline.errors import DeadlinePassedError
from pipeline.index.kernels import (
    PATH,
    Hits,
    concatenate_hits,
    k_nearest,
    merge_k_nearest,
    range_search,
)
from pipeline.index.rows import ROW_UNIT, every_row
from pipeline.index.segments import Segment
from pipeline.index.work import Work, split_work
from pipeline.retrieval.batch import Batch
from pipeline.retrieval.blocks import DistanceBlock, ScanCounts, merge_blocks
from pipeline.retrieval.cost import ROW_OVERHEAD
from pipeline.retrieval.open_segments import ImageSet, OpenSegment
from pipeline.retrieval.plan import QueryPlan, opened_cells, plan_work, radius_rule

PAIRS_BETWEEN_LOOKS = 1 << 26
"""Descriptor pairs, of rows of `ROW_UNIT` bytes, between two looks at the clock: less than a tenth
of a second."""


def scan_opened(
    opened: OpenSegment,
    plan: QueryPlan,
    sets: Sequence[ImageSet] = (),
    until: float | None = None,
    path: str = PATH,
) -> DistanceBlock:
    """Return what a segment holds for a plan, of images that may be answers, with their row ids.

    Parameters
    ----------
    opened : OpenSegment
    plan : QueryPlan
    sets : sequence of ImageSet
        What each of them admits may be an answer.
    until, path
        See `scan_segment`.

    Raises
    ------
    DeadlinePassedError
    """
    block = scan_segment(opened.segment, plan.widened, until, path)
    admitted = opened.admitted(sets)
    kept = admitted[block.image]
    found = block if kept.all() else block.some(kept)
    if plan.neighbours:
        short = _short_queries(plan, block, found)
        if len(short):
            alive = admitted[opened.segment.images]
            again = scan_segment(opened.segment, plan.some(short), until, path, alive)
            found = _with_again(found, again, short)
        found = merge_blocks([found], plan.neighbours)
    return replace(found, image=opened.ids[found.image])


def _short_queries(plan: QueryPlan, block: DistanceBlock, found: DistanceBlock) -> NDArray[np.intp]:
    """Return the queries whose nearest rows are too few without those of other images.

    Where the block has fewer than were looked for, it has all there are.
    """
    count = len(plan.codes)
    before = np.bincount(block.query, minlength=count)
    after = np.bincount(found.query, minlength=count)
    return np.flatnonzero((before >= plan.widened.neighbours) & (after < plan.neighbours))


def _with_again(
    found: DistanceBlock, again: DistanceBlock, short: NDArray[np.intp]
) -> DistanceBlock:
    """Return a block with the matches of a second scan in the place of its queries' first ones."""
    first = found.some(~np.isin(found.query, short))
    counts = found.counts + replace(again.counts, rows=0, cells=0)
    second = replace(again, query=short[again.query].astype(np.uint16))
    return replace(merge_blocks([first, second]), counts=counts)


def block_key(batch: Batch, number: int, model: str, opened: OpenSegment) -> str:
    """Return what names the block of one query image and one segment: equal keys, equal blocks.

    It holds what the block is a function of, and nothing else: what is added to other segments,
    or removed, does not change it. The block is ``split_block(scan_segment(opened.segment,
    batch.plan.widened), batch.offsets)[number]``.

    Parameters
    ----------
    batch : Batch
    number : int
        Of the image in the batch.
    model : str
        Names the model (its key in the store), which the rows and the radius come from.
    opened : OpenSegment
    """
    start, stop = batch.offsets[number : number + 2]
    plan = batch.plan.widened.some(np.arange(start, stop))
    return digest(
        batch.images[number].digest,
        model,
        opened.name,
        opened_cells(plan, opened.segment),
        radius_rule(plan),
        plan.neighbours,
    )


def scan_segment(
    segment: Segment,
    plan: QueryPlan,
    until: float | None = None,
    path: str = PATH,
    alive: NDArray[np.bool_] | None = None,
) -> DistanceBlock:
    """Return the rows of a segment that are nearer to a query descriptor than its background.

    A plan with a number of neighbours gets no more than these (and what is as near as the last).

    Parameters
    ----------
    segment : Segment
    plan : QueryPlan
    until : float, optional
        Time (as `time.time`) after which nobody waits for the answer.
    path : str
        Code path of the kernels; the answer is the same.
    alive : ndarray of shape (N,), bool, optional
        Rows that count. Default: all.

    Raises
    ------
    DeadlinePassedError
        It is later than `until`, looked at between cells.
    """
    work = plan_work(plan, segment)
    if alive is None:
        alive = every_row(segment.rows.size)
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
        return concatenate_hits(
            [
                range_search(rows, self.alive, queries, radius, piece, path=self.path)
                for piece in self._each()
            ]
        )

    def nearest_hits(self) -> Hits:
        """Return the nearest rows of each query within its radius, and all that tie with the last.

        One neighbour more than wanted is looked for. If it is as near as the last, there may be
        more of them, and a second scan within that distance finds them all. So the answer does not
        depend on the order of the rows.
        """
        rows, queries, k = self.segment.rows, self.plan.queries(), self.plan.neighbours
        distance, row = merge_k_nearest(
            [
                k_nearest(rows, queries, k + 1, alive=self.alive, work=piece, path=self.path)
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
