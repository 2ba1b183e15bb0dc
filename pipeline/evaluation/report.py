"""Results of an evaluation: plain dataclasses that become JSON; callers display them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluation.measures import mean, percentile

RANKS = (1, 10, 100)
"""The k of recall@k and found@k."""


@dataclass(frozen=True)
class QueryOutcome:
    """The outcome of one query.

    Attributes
    ----------
    path, subset : str
        As in the data set.
    expects_nothing : bool
        Whether the right answer is that nothing matches; then only `matches` is judged.
    matches : int
        Matches returned, without neutral ones.
    average_precision : float
        0 to 1.
    recall, found : dict of int to float
        By k; see `pipeline.evaluation.measures`.
    first_right_rank : int or None
        Rank, neutral matches not counted, of the first right answer.
    milliseconds : float
        From the call to the answer.
    plan : dict
        As in `SearchResult.plan`; empty when the query failed.
    complete : bool
        As in `SearchResult.complete`.
    error : str or None
        Why the query image could not be used. It counts as a query that found nothing.
    """

    path: str
    subset: str
    expects_nothing: bool = False
    matches: int = 0
    average_precision: float = 0.0
    recall: dict[int, float] = field(default_factory=dict)
    found: dict[int, float] = field(default_factory=dict)
    first_right_rank: int | None = None
    milliseconds: float = 0.0
    plan: dict[str, Any] = field(default_factory=dict)
    complete: bool = True
    error: str | None = None


@dataclass(frozen=True)
class Figures:
    """Means over some queries; None if there was nothing to average.

    Attributes
    ----------
    queries : int
        Queries with right answers.
    mean_average_precision : float or None
        0 to 1.
    recall, found : dict of int to float or None
        By k.
    p50_ms, p95_ms : float or None
        Response time, milliseconds, of all queries that were answered.
    scanned_share : float or None
        Mean share of the descriptor pairs that were computed, 0 to 1.
    no_match_queries : int
        Queries to which the right answer is "nothing".
    no_match_right : float or None
        Share of those that got no match.
    failed, incomplete : int
        Queries that could not be searched with; answers with missing groups.
    """

    queries: int
    mean_average_precision: float | None
    recall: dict[int, float | None]
    found: dict[int, float | None]
    p50_ms: float | None
    p95_ms: float | None
    scanned_share: float | None
    no_match_queries: int
    no_match_right: float | None
    failed: int
    incomplete: int

    @classmethod
    def of(cls, outcomes: Sequence[QueryOutcome]) -> Figures:
        """Average over some outcomes."""
        asking = [o for o in outcomes if not o.expects_nothing]
        nothing = [o for o in outcomes if o.expects_nothing]
        answered = [o for o in outcomes if o.error is None]
        times = [o.milliseconds for o in answered]
        shares = [float(o.plan["scanned_share"]) for o in answered if "scanned_share" in o.plan]
        return cls(
            queries=len(asking),
            mean_average_precision=mean([o.average_precision for o in asking]),
            recall={k: mean([o.recall.get(k, 0.0) for o in asking]) for k in RANKS},
            found={k: mean([o.found.get(k, 0.0) for o in asking]) for k in RANKS},
            p50_ms=percentile(times, 50),
            p95_ms=percentile(times, 95),
            scanned_share=mean(shares),
            no_match_queries=len(nothing),
            no_match_right=mean([float(o.error is None and o.matches == 0) for o in nothing]),
            failed=len(outcomes) - len(answered),
            incomplete=sum(not o.complete for o in answered),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values under the names that users know: ``mAP``, ``recall@1``, ..."""
        values: dict[str, Any] = {"mAP": _rounded(self.mean_average_precision, 6)}
        values |= {f"recall@{k}": _rounded(value, 6) for k, value in self.recall.items()}
        values |= {f"found@{k}": _rounded(value, 6) for k, value in self.found.items() if k > 1}
        values |= {
            "p50_ms": _rounded(self.p50_ms, 3),
            "p95_ms": _rounded(self.p95_ms, 3),
            "scanned_share": _rounded(self.scanned_share, 6),
            "queries": self.queries,
            "failed": self.failed,
            "incomplete": self.incomplete,
        }
        if self.no_match_queries:
            values["no_match_queries"] = self.no_match_queries
            values["no_match_right"] = _rounded(self.no_match_right, 6)
        return values


@dataclass(frozen=True)
class EvaluationReport:
    """All results of one run over a data set.

    Attributes
    ----------
    dataset : str
        The data set's folder.
    plan : str
        The plan that was asked for: ``auto``, ``probed`` or ``exhaustive``.
    top : int
        Matches asked for a query; a right answer beyond them adds nothing.
    database_images : int
        Number of images to index.
    outcomes : tuple of QueryOutcome
        In the order of the data set.
    """

    dataset: str
    plan: str
    top: int
    database_images: int
    outcomes: tuple[QueryOutcome, ...]

    @property
    def overall(self) -> Figures:
        """Figures over all queries."""
        return Figures.of(self.outcomes)

    @property
    def subsets(self) -> dict[str, Figures]:
        """Figures over the queries of each subset, in the order of the data set."""
        by_subset: dict[str, list[QueryOutcome]] = {}
        for outcome in self.outcomes:
            by_subset.setdefault(outcome.subset, []).append(outcome)
        return {name: Figures.of(outcomes) for name, outcomes in by_subset.items()}

    @property
    def plans_run(self) -> dict[str, int]:
        """Number of queries by the kind of plan that ran."""
        return dict(Counter(str(o.plan["kind"]) for o in self.outcomes if "kind" in o.plan))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-serialisable values, sensibly rounded.

        Keys: ``overall`` and ``parts`` (by subset) with mAP, recall@1/10/100, found@10/100, p50_ms,
        p95_ms, scanned_share, queries, failed, incomplete; ``plan`` (asked for), ``plans_run``,
        ``cells`` and ``cells_probed`` (means), ``dataset``, ``database_images``, ``top`` and
        ``errors`` (query and sentence of those that failed).
        """
        plans = [o.plan for o in self.outcomes]
        return {
            "overall": self.overall.to_dict(),
            "parts": {name: figures.to_dict() for name, figures in self.subsets.items()},
            "plan": self.plan,
            "plans_run": self.plans_run,
            "cells": _rounded(mean([float(p["cells"]) for p in plans if "cells" in p]), 1),
            "cells_probed": _rounded(
                mean([float(p["cells_probed"]) for p in plans if "cells_probed" in p]), 3
            ),
            "dataset": self.dataset,
            "database_images": self.database_images,
            "top": self.top,
            "errors": [
                {"query": o.path, "error": o.error} for o in self.outcomes if o.error is not None
            ],
        }


def _rounded(value: float | None, digits: int) -> float | None:
    """Round a figure; None stays None."""
    return None if value is None else round(value, digits)
