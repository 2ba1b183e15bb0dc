"""Evaluations: a data set is indexed into collections of its own, and its queries are searched."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine

from pipeline.config import ExtractorConfig, Settings, digest
from pipeline.errors import StateError, UnknownNameError
from pipeline.evaluation import Dataset, EvaluationReport, run_evaluation
from pipeline.lost_database import database_of
from pipeline.metadata.collections import delete_collection
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import JobProgress
from pipeline.opening import choose_extractor
from pipeline.records import FusedResult, SearchResult
from pipeline.request import SearchRequest
from pipeline.status import collection_names
from workers.collection import Collection
from workers.fused_collection import FusedCollection, open_collections
from workers.job_runs import do_job

__all__ = ["FUSED", "Evaluation", "Evaluator", "Reports"]

FUSED = "fused"
"""Name of the figures of all extractors together."""

Reports = dict[str, dict[str, EvaluationReport]]
"""By extractor, then by plan."""


@dataclass(frozen=True)
class Evaluation:
    """What came of an evaluation.

    Attributes
    ----------
    reports : Reports
    unusable : list of int
        For each extractor, how many images of the database could not be indexed.
    kept : list of str
        Collections that are left.
    """

    reports: Reports = field(default_factory=dict)
    unusable: list[int] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates extractors and plans on a data set.

    Attributes
    ----------
    settings : Settings
    dataset : Dataset
    requests : sequence of SearchRequest
        One a plan.
    keep : bool
        Keep the collections, for the next evaluation.
    local : bool
        Work in this process.
    on_job : callable
        Told how far an index job is, as by `do_job`.
    on_query : callable
        Told the plan, how many of its queries are answered, and how many there are.
    """

    settings: Settings
    dataset: Dataset
    requests: Sequence[SearchRequest]
    keep: bool = False
    local: bool = False
    on_job: Callable[[JobProgress, bool], None]
    on_query: Callable[[str, int, int], None]

    def run(self, specs: Sequence[str], *, fuse: bool = False) -> Evaluation:
        """Measure some extractors, each named as for `Collection.open`, and all together.

        Raises
        ------
        StateError
            An index job failed.
        """
        configs = [choose_extractor(self.settings, spec).config for spec in specs]
        found, names = Evaluation(), []
        with database_of(self.settings, make=True) as engine, ExitStack() as collections:
            for spec, config, label in zip(specs, configs, _labels(specs, configs), strict=True):
                names.append(collections.enter_context(self._collection(engine, config, found)))
                found.unusable.append(self._index(names[-1], spec))
                found.reports[label] = self._measure(names[-1:])
            if fuse:
                found.reports[FUSED] = self._measure(names)
        return found

    def _index(self, name: str, spec: str) -> int:
        """Index the database images by one extractor; return how many could not be."""
        files = self.dataset.database_files()
        with Collection.open(name, self.settings, local=self.local, extractor=spec) as collection:
            progress = do_job(
                collection, lambda to, report: to.index(files, report=report), self.on_job
            )
        if progress.state != "done":
            raise StateError(f"job {progress.job_id} is {progress.state}: {progress.message}")
        counters = progress.counters
        return counters.get("images_failed", 0) + counters.get("unreadable", 0)

    def _measure(self, names: Sequence[str]) -> dict[str, EvaluationReport]:
        """Search in a collection, or in several together, by each plan."""
        with open_collections(names, self.settings, local=self.local) as searcher:
            return {request.kind: self._ask_all(searcher, request) for request in self.requests}

    def _ask_all(
        self, searcher: Collection | FusedCollection, request: SearchRequest
    ) -> EvaluationReport:
        """Search with every query by one plan."""

        def ask(query: Path) -> SearchResult | FusedResult:
            return searcher.search(query, request)

        def tell(done: int, total: int) -> None:
            self.on_query(request.kind, done, total)

        return run_evaluation(self.dataset, ask, plan=request.kind, top=request.top, progress=tell)

    @contextmanager
    def _collection(
        self, engine: Engine, extractor: ExtractorConfig, found: Evaluation
    ) -> Iterator[str]:
        """Name the collection to use; delete it afterwards unless it is, or was before, kept.

        Features are found by content, so a second evaluation is fast either way.
        """
        identity = [str(self.dataset.root), list(self.dataset.database)]
        configs = [extractor.to_dict(), self.settings.index.to_dict()]
        kept = f"eval-{digest(identity, configs)[:12]}"
        if self.keep or kept in collection_names(self.settings):
            found.kept.append(kept)
            yield kept
            return
        # Two evaluations at once must not delete each other's.
        temporary = f"{kept}-{uuid.uuid4().hex[:6]}"
        try:
            yield temporary
        finally:
            with suppress(UnknownNameError), session_scope(engine) as session:
                delete_collection(session, temporary)  # unless it was not even made


def _labels(specs: Sequence[str], configs: Sequence[ExtractorConfig]) -> list[str]:
    """Return a short name for each extractor: ``cnn``, or ``cnn:FILE`` if there are two."""
    names = [config.name for config in configs]
    return [
        name if names.count(name) == 1 else spec for name, spec in zip(names, specs, strict=True)
    ]
