"""Searching with every query and plan, and summing up the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from demo.samples import DemoQuery
from pipeline.config import PlanKind
from pipeline.errors import InputError
from pipeline.records import Match, SearchResult

PLANS: tuple[PlanKind, ...] = ("probed", "exhaustive")
TOP = 10

Search = Callable[[DemoQuery, PlanKind], SearchResult]


@dataclass(frozen=True)
class Answer:
    """One search: its answer and its time.

    Attributes
    ----------
    result : SearchResult or None
        None when the query could not be searched with.
    milliseconds : float
        From the call to the answer.
    error : str
        Why there is no answer.
    """

    result: SearchResult | None
    milliseconds: float
    error: str = ""

    def right_match(self, query: DemoQuery) -> Match | None:
        """Return the best match that is known to be right."""
        matches = self.result.matches if self.result else ()
        return next((match for match in matches if is_right(query, match)), None)


@dataclass(frozen=True)
class Row:
    """One query with its answers by plan."""

    query: DemoQuery
    answers: dict[PlanKind, Answer]


def is_right(query: DemoQuery, match: Match) -> bool:
    """Whether a match is the photograph that the query shows."""
    return not query.answers.isdisjoint(match.locations)


def search_all(queries: Sequence[DemoQuery], search: Search) -> Iterator[Row]:
    """Search with each query, by each plan.

    Parameters
    ----------
    queries : sequence of DemoQuery
    search : callable
        From a query and a plan to the answer. Its `InputError` (a picture without keypoints) is
        kept in the row; any other error ends the demonstration.

    Yields
    ------
    Row
        As soon as its answers are there.
    """
    for query in queries:
        yield Row(query, {plan: _timed(query, plan, search) for plan in PLANS})


def _timed(query: DemoQuery, plan: PlanKind, search: Search) -> Answer:
    """Search once with a clock."""
    started = time.perf_counter()
    try:
        result = search(query, plan)
    except InputError as error:
        return Answer(None, 1000 * (time.perf_counter() - started), str(error))
    return Answer(result, 1000 * (time.perf_counter() - started))
