"""Run the queries of a data set through any search and judge the answers."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.errors import InputError
from pipeline.evaluation.dataset import Dataset, EvaluationQuery
from pipeline.evaluation.measures import (
    average_precision,
    first_right_rank,
    found_at,
    judge,
    recall_at,
)
from pipeline.evaluation.report import RANKS, EvaluationReport, QueryOutcome
from pipeline.records import FusedResult, SearchResult

DEFAULT_TOP = 200
"""Matches asked for a query: recall@100 with room for neutral images; mAP hardly sees the rest."""


def run_evaluation(
    dataset: Dataset,
    search: Callable[[Path], SearchResult | FusedResult],
    *,
    plan: str = "auto",
    top: int = DEFAULT_TOP,
    progress: Callable[[int, int], None] | None = None,
    warm_up: int = 1,
) -> EvaluationReport:
    """Search with every query of a data set whose database images are indexed already.

    Parameters
    ----------
    dataset : Dataset
    search : callable
        Takes a query's file and returns the answer. It must request `plan` and `top` itself, so
        that the same function measures searches in this process and by workers. An `InputError` (an
        unreadable query) counts as a query that found nothing; any other error ends the evaluation.
    plan, top
        The values that `search` requests, for the report.
    progress : callable, optional
        Called with (queries done, queries) after each query.
    warm_up : int
        Number of queries that are searched once beforehand, unmeasured, to load kernels and map
        files.

    Returns
    -------
    EvaluationReport
    """
    names = _Names(dataset)
    for query in dataset.queries[:warm_up]:
        try:
            search(dataset.file(query.path))
        except InputError:
            continue
    outcomes = []
    for query in dataset.queries:
        outcomes.append(_ask(dataset, names, query, search))
        if progress is not None:
            progress(len(outcomes), len(dataset.queries))
    return EvaluationReport(
        dataset=str(dataset.root),
        plan=plan,
        top=top,
        database_images=len(dataset.database),
        outcomes=tuple(outcomes),
    )


def judge_result(
    result: SearchResult | FusedResult,
    query: EvaluationQuery,
    names: Callable[[Iterable[str]], set[str]],
) -> list[bool]:
    """Judge the matches of an answer; `names` turns locations into paths of the data set."""
    ranking = (names(match.locations) for match in result.matches)
    return judge(ranking, query.relevant, query.neutral)


def _ask(
    dataset: Dataset,
    names: _Names,
    query: EvaluationQuery,
    search: Callable[[Path], SearchResult | FusedResult],
) -> QueryOutcome:
    """Time one search and judge its answer."""
    started = time.perf_counter()
    try:
        result = search(dataset.file(query.path))
    except InputError as error:
        return QueryOutcome(
            path=query.path,
            subset=query.subset,
            expects_nothing=query.expects_nothing,
            error=str(error),
        )
    milliseconds = 1000 * (time.perf_counter() - started)
    judged = judge_result(result, query, names)
    right = len(query.relevant)
    return QueryOutcome(
        path=query.path,
        subset=query.subset,
        expects_nothing=query.expects_nothing,
        matches=len(judged),
        average_precision=average_precision(judged, right) if right else 0.0,
        recall={k: recall_at(judged, k) for k in RANKS},
        found={k: found_at(judged, right, k) if right else 0.0 for k in RANKS},
        first_right_rank=first_right_rank(judged),
        milliseconds=milliseconds,
        plan=dict(result.plan),
        complete=result.complete,
    )


class _Names:
    """Maps the locations of a match to the paths in the data set.

    A location may be spelled differently (by a link or a relative path), so both the plain and the
    resolved form of every file are known.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._names: dict[str, set[str]] = defaultdict(set)
        paths = set(dataset.database).union(
            *({q.path} | q.relevant | q.neutral for q in dataset.queries)
        )
        for path in paths:
            file = dataset.file(path)
            self._names[os.path.normpath(file)].add(path)
            self._names[os.path.realpath(file)].add(path)

    def __call__(self, locations: Iterable[str]) -> set[str]:
        found: set[str] = set()
        for location in locations:
            found |= self._names.get(os.path.normpath(location)) or self._names.get(
                os.path.realpath(location), set()
            )
        return found
