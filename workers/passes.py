"""Passes of a caller with several images, cut by what scans take here and now.

A pass that is late all the same is done again in halves, for as long as its images would have had
if they had been searched for one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pipeline.records import LATE, SearchResult
from pipeline.retrieval.batch import Batch, cut_batches
from pipeline.searching import Passes
from workers.context import Context
from workers.io_deadline import io_until
from workers.pace import measured_pace

__all__ = ["MeasuredPasses"]

_LEAST_SHARE = 0.1
"""Share of the deadline that is left for a scan, however long the queues are."""


class MeasuredPasses(Passes):
    """Passes by workers, cut by what scans take now.

    Parameters
    ----------
    context : Context
    answer, deadline_s
        As for `Passes`.
    images : int
        How many the caller has given.
    """

    def __init__(
        self,
        context: Context,
        answer: Callable[[Batch], Sequence[SearchResult]],
        deadline_s: float,
        images: int,
    ) -> None:
        super().__init__(answer, deadline_s)
        self._context = context
        self._most = images
        self._until = time.monotonic() + images * deadline_s

    def cut(self, queries: Sequence[Batch]) -> list[list[int]]:
        """Return which images share a pass."""
        if len(queries) < 2:
            return [[number] for number in range(len(queries))]
        with self._context.broker_errors(), io_until(time.time() + self.deadline_s):
            slowness, wait_s = measured_pace(self._context)
        left_s = max(_LEAST_SHARE * self.deadline_s, self.deadline_s - wait_s)
        return cut_batches(queries, left_s / slowness, self._most)

    def is_worth_another(self, results: Sequence[SearchResult]) -> bool:
        """Tell whether a late pass is done again, in halves: if the caller has the patience."""
        if not any(LATE in cause for result in results for cause in result.causes):
            return False
        self._most = max(1, len(results) // 2)
        return time.monotonic() + self.deadline_s <= self._until
