"""Index and search in one process, without broker or workers.

The same map and reduce functions that `workers` runs as Celery tasks, called in plain loops: the
oracle of every test of the distributed form, and the ``--local`` of the command line. Both forms
share database and store: what one indexed the other searches.

Examples
--------
>>> from pipeline.local import Collection
>>> with Collection.open("holiday") as collection:  # doctest: +SKIP
...     collection.index(["/photos"]).wait()
...     for match in collection.search("query.jpg", top=3).matches:
...         print(match.rank, match.score, match.locations)
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from pipeline import indexing
from pipeline.abandoned import end_abandoned_jobs, this_process
from pipeline.config import ExtractorConfig, IndexConfig, PlanKind, Settings
from pipeline.creation import ChosenExtractor, choose_extractor, find_collection, open_collection
from pipeline.errors import InputError, MissingRootError, StateError, VantageError
from pipeline.job_params import CompactParams, IndexParams, JobParams, RebuildParams
from pipeline.kinds import COMPACT, INDEX, REBUILD, Kind
from pipeline.metadata import collections, jobs, parts
from pipeline.metadata.engine import session_scope, upgrade
from pipeline.metadata.records import (
    JobOrigin,
    JobProgress,
    JobRecord,
    JobStage,
    PartRecord,
)
from pipeline.records import SearchResult
from pipeline.request import SearchRequest
from pipeline.resources import Resources
from pipeline.retrieval.batch import Batch
from pipeline.searching import (
    ImageSource,
    finish_batch,
    only,
    scan_group,
    search_images,
    searched_groups,
)

_log = logging.getLogger(__name__)

Report = Callable[[JobProgress], None]
"""Called when a job begins and after every part of it."""


class FinishedJob:
    """The handle of a job that has run to its end in this process."""

    def __init__(self, resources: Resources, job_id: str) -> None:
        self._resources = resources
        self.id = job_id

    def progress(self) -> JobProgress:
        """Return what became of the job."""
        with session_scope(self._resources.engine, write=False) as session:
            return parts.job_progress(session, self.id)

    def wait(self, timeout: float | None = None) -> JobProgress:
        """Return at once: the job has ended."""
        return self.progress()


class Collection:
    """A collection, worked on in this process.

    Use `Collection.open`, as a context manager or with `close`.
    """

    def __init__(
        self,
        name: str,
        resources: Resources,
        threads: int | None = None,
        chosen: ChosenExtractor | None = None,
    ) -> None:
        self.name = name
        self._resources = resources
        self._chosen = chosen
        self._threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads, "vantage")

    @classmethod
    def open(
        cls,
        name: str,
        settings: Settings | None = None,
        *,
        threads: int | None = None,
        extractor: str | None = None,
    ) -> Self:
        """Open a collection; it is created when something is indexed into it.

        Parameters
        ----------
        name : str
        settings : Settings, optional
            Default: from the environment.
        threads : int, optional
            Threads at work; default one a core.
        extractor : str, optional
            ``sift``, ``surf``, ``cnn:FILE`` or another package's. Default: the collection's own;
            of a new one, the settings'. A collection keeps the one that it was made with.

        Raises
        ------
        ConfigError
            The collection was made with another extractor, or there is no such model file.
        """
        settings = settings or Settings.from_env()
        chosen = None if extractor is None else choose_extractor(settings, extractor)
        resources = Resources(settings)
        try:
            upgrade(resources.engine)
            if chosen is not None:
                find_collection(resources, name, chosen)
        except BaseException:
            resources.close()
            raise
        return cls(name, resources, threads, chosen)

    def close(self) -> None:
        """End the threads and the database connections."""
        self._pool.shutdown()
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def index(
        self,
        paths: Sequence[str | Path],
        *,
        extractor: ExtractorConfig | None = None,
        index: IndexConfig | None = None,
        report: Report | None = None,
    ) -> FinishedJob:
        """Index folders and files; returns when it is done.

        When a group has then more segments than the settings allow, small ones are merged in the
        same call (or all made anew, see `pipeline.indexing.due_upkeep`).

        Parameters
        ----------
        paths : sequence of str or Path
            Folders, searched recursively, and files.
        extractor : ExtractorConfig, optional
            Default: as the collection was opened. An existing collection takes no other.
        index : IndexConfig, optional
            Used when the collection is new; default from the settings.
        report : callable, optional
            Called with a `JobProgress` when the job begins and after every part, from any thread.

        Raises
        ------
        ConfigError
            The collection was made with another extractor.
        MissingRootError
            A whole folder is missing; the job is kept, paused.
        """
        chosen = self._chosen if extractor is None else ChosenExtractor(extractor)
        collection = open_collection(self._resources, self.name, chosen, index)
        self._resources.extractor(collection.extractor).warm_up()
        names = tuple(os.path.abspath(path) for path in paths)  # noqa: PTH100 - keeps link names
        finished = self._run(collection.id, INDEX, IndexParams(paths=names), report=report)
        self._keep_up(collection.id)
        return finished

    def rebuild(self, report: Report | None = None) -> FinishedJob:
        """Make a new tree and new segments from the feature containers."""
        with session_scope(self._resources.engine, write=False) as session:
            collection = collections.get_collection(session, self.name)
        return self._run(collection.id, REBUILD, RebuildParams(), report=report)

    def compact(self, report: Report | None = None) -> FinishedJob:
        """Merge the segments of every group into one, without the rows of removed images.

        The counters of its progress tell what was merged, and of how many removed images rows are
        left (so many at once, and none while a rebuild is under way); there are none when there was
        nothing to do.
        """
        with session_scope(self._resources.engine, write=False) as session:
            collection = collections.get_collection(session, self.name)
        return self._run(collection.id, COMPACT, CompactParams(), report=report)

    def search(
        self,
        image: ImageSource,
        top: int = 10,
        plan: PlanKind = "auto",
        effort: float | None = None,
        *,
        exact: bool = False,
    ) -> SearchResult:
        """Find the images that show the same thing.

        Parameters
        ----------
        image : str, Path, bytes or ndarray
            A file, a file's bytes, or pixels (grey or RGB).
        top : int
            Images in the answer.
        plan : {"auto", "probed", "exhaustive"}
        effort : float, optional
            Share of the cells that the probed plan opens for a query descriptor; asks for that
            plan. Default: that of `SearchRequest`.
        exact : bool
            Compare with every row: the exhaustive plan.

        Raises
        ------
        UnknownNameError, IndexNotBuiltError
            There is no such collection, or nothing in it.
        InputError
            The image cannot be used, or plan, effort and exact contradict each other.
        """
        return only(self.search_many([image], top, plan, effort, exact=exact))

    def search_many(
        self,
        images: Sequence[ImageSource],
        top: int = 10,
        plan: PlanKind = "auto",
        effort: float | None = None,
        *,
        exact: bool = False,
    ) -> list[SearchResult | InputError]:
        """Find for each of several images those that show the same thing.

        They are searched for together, up to `pipeline.retrieval.batch.BATCH_IMAGES` at a time:
        cells that several of them want are visited once. The answers are those of single searches.

        Parameters
        ----------
        images : sequence of str, Path, bytes or ndarray
        top, plan, effort, exact
            As for `search`.

        Returns
        -------
        list of SearchResult or InputError
            In the order of the images; for one that cannot be used, the error.

        Raises
        ------
        UnknownNameError, IndexNotBuiltError
            There is no such collection, or nothing in it.
        InputError
            Plan, effort and exact contradict each other.
        """
        resources = self._resources
        request = SearchRequest(top=top, plan=plan, effort=effort, exact=exact)
        version = resources.current_version(self.name)

        def answer(batch: Batch) -> list[SearchResult]:
            started = time.perf_counter()
            groups = searched_groups(version, batch.plan)
            scans = list(
                self._pool.map(
                    lambda group: scan_group(resources, version, group, batch.plan), groups
                )
            )
            timings = {"scan": (time.perf_counter() - started) * 1e3}
            return finish_batch(resources, version, batch, scans, [], timings)

        spread = self._pool.map
        return search_images(resources, version, images, request, answer, spread, self._threads)

    def _run(
        self,
        collection_id: int,
        kind: Kind,
        params: JobParams,
        *,
        origin: JobOrigin = "request",
        report: Report | None = None,
    ) -> FinishedJob:
        """Create a job and run all its stages."""
        host = self._resources.settings.host
        process = this_process(host)
        end_abandoned_jobs(self._resources.engine, collection_id, host)
        with session_scope(self._resources.engine) as session:
            job = jobs.create_job(
                session, collection_id, kind.name, params, process=process, origin=origin
            )
        if job.process != process:
            raise StateError(
                f"collection {self.name!r} is worked on already, by the {kind.name} job {job.id}; "
                "wait for it, see `vantage status`"
            )
        try:
            if report is not None:
                report(FinishedJob(self._resources, job.id).progress())
            run_job(self._resources, job, self._pool, report)
        except MissingRootError as exc:
            with session_scope(self._resources.engine) as session:
                jobs.pause_job(session, job.id, str(exc))
            raise
        except BaseException as exc:
            # Ctrl-C too: a job that looks unfinished would keep its images from the next one.
            with session_scope(self._resources.engine) as session:
                jobs.finish_job(session, job.id, "failed", _reason(exc))
            raise
        return FinishedJob(self._resources, job.id)

    def _keep_up(self, collection_id: int) -> None:
        """Do what is due; trouble with it is no trouble of the job that was asked for."""
        try:
            due = indexing.due_upkeep(self._resources, collection_id)
            if due is not None:
                self._run(collection_id, *due, origin="upkeep")
        except Exception as exc:
            _log.warning("segments of collection %r were not merged: %s", self.name, exc)


def _reason(error: BaseException) -> str:
    """Say why a job ended."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; index again to go on"
    return str(error) if isinstance(error, VantageError) else f"{type(error).__name__}: {error}"


def run_job(
    resources: Resources, job: JobRecord, pool: ThreadPoolExecutor, report: Report | None = None
) -> None:
    """Run a job's stages to the end, the parts of a stage in the threads of `pool`."""
    current: JobRecord | None = job
    while current is not None and not current.finished:
        stage, job_id = current.stage, current.id

        def work(part: PartRecord, stage: JobStage = stage, job_id: str = job_id) -> None:
            while indexing.run_part(resources, job_id, stage, part.number).get("more"):
                pass
            if report is not None:
                with session_scope(resources.engine, write=False) as session:
                    report(parts.job_progress(session, job_id))

        for _ in pool.map(work, indexing.open_stage(resources, current)):
            pass
        current = indexing.advance(resources, current)
    if current is None:
        raise StateError(f"job {job.id} was taken over by another process; see `vantage status`")
