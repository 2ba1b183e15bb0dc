"""The work of collections in one process, without broker or workers.

It calls the same map and reduce functions that `workers` runs as Celery tasks, in plain loops. It
is ``local=True`` of `vantage.Collection`, and tests compare the workers with it. Both share
database and store: one can search what the other has indexed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

from pipeline import indexing
from pipeline.abandoned_jobs import end_abandoned_jobs, this_process
from pipeline.config import Settings
from pipeline.cores import usable_cores
from pipeline.driver import JobHandle, Report
from pipeline.errors import (
    IndexNotBuiltError,
    InputError,
    MissingRootError,
    StateError,
    VantageError,
)
from pipeline.installation import check_store, settle
from pipeline.job_kinds import Kind
from pipeline.job_params import JobParams
from pipeline.locations import check_locations
from pipeline.lost_database import refuse_lost_database
from pipeline.metadata import jobs, parts
from pipeline.metadata.engine import prepare_schema, session_scope
from pipeline.metadata.records import CollectionRecord, JobOrigin, JobRecord, JobStage, PartRecord
from pipeline.private_files import take_over
from pipeline.records import SearchResult
from pipeline.request import SearchRequest
from pipeline.resources import Resources
from pipeline.retrieval.batch import Batch
from pipeline.searching import (
    ImageSource,
    Passes,
    finish_batch,
    only,
    scan_group,
    search_images,
    search_unbuilt,
    searched_groups,
)
from pipeline.store_root import StoreRoot

__all__ = ["LocalDriver", "LocalSearch", "run_job"]

_log = logging.getLogger(__name__)


class LocalSearch:
    """A search in a thread of this process.

    Attributes
    ----------
    id : str
    """

    def __init__(self, future: Future[SearchResult]) -> None:
        self._future = future
        self._pid = os.getpid()
        self.id = uuid.uuid4().hex

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def ready(self) -> bool:
        """Tell whether the search has ended."""
        return self._future.done()

    def wait(self, timeout: float = 30.0) -> SearchResult:
        """Return the answer or raise the error; `TimeoutError` if there is no answer yet.

        Raises
        ------
        StateError
            This is a forked child: the search goes on in its parent alone.
        """
        if self._pid != os.getpid() and not self._future.done():
            raise StateError(f"search {self.id} goes on in this process's parent; search again")
        try:
            return self._future.result(timeout)
        except TimeoutError:
            raise TimeoutError(f"search {self.id} has no answer after {timeout} s") from None


class LocalDriver:
    """Does the work of collections in this process.

    Parameters
    ----------
    settings : Settings
    threads : int, optional
        Number of threads; default: one a core.
    """

    local = True

    def __init__(self, settings: Settings, threads: int | None = None) -> None:
        self._threads = threads or usable_cores()
        self._inherited: list[object] = []
        self.resources = Resources(replace(settings, group_threads=self._threads))
        self._pool = ThreadPoolExecutor(self._threads, "vantage")
        try:
            refuse_lost_database(self.resources.engine, settings.store)
            with contextlib.suppress(OSError):  # it is not there yet, or may not be listed
                take_over(settings.home)
            prepare_schema(self.resources.engine)
            check_store(self.resources.engine, StoreRoot(settings.store))
        except BaseException:
            self.close()
            raise

    @cached_property
    def _searches(self) -> ThreadPoolExecutor:
        """The thread of enqueued searches; it hands work to the pool."""
        return ThreadPoolExecutor(1, "vantage-search")

    def reopen(self) -> None:
        """Open everything again in a forked child; do not touch what belongs to the parent."""
        # Not closed: the parent still uses the connections, and its threads do not exist here.
        self._inherited += [self.resources, self._pool, self.__dict__.pop("_searches", None)]
        self.resources = Resources(self.resources.settings)
        self._pool = ThreadPoolExecutor(self._threads, "vantage")

    def close(self) -> None:
        """End the threads and the database connections."""
        searches = self.__dict__.pop("_searches", None)
        if searches is not None:
            searches.shutdown()
        self._pool.shutdown()
        self.resources.close()

    def require(self, kind: Kind) -> None:
        """Raise nothing: this process can always work."""

    def begin(
        self, record: CollectionRecord, kind: Kind, params: JobParams, report: Report | None
    ) -> JobHandle:
        """Run a job to its end, then the upkeep that is due.

        Raises
        ------
        StateError
            Another job is working on the collection.
        MissingRootError
            A whole folder is missing; the job is kept, paused.
        """
        settle(self.resources.engine, StoreRoot(self.resources.settings.store))
        if params.extracts:
            extractor, _ = params.settings(record.extractor, record.index)
            self.resources.extractor(extractor).warm_up()
        handle = self._run(record, kind, params, report=report)
        if kind.adds_segments:
            self._keep_up(record)
        return handle

    def search(
        self, collection: str, images: Sequence[ImageSource], request: SearchRequest
    ) -> list[SearchResult | InputError]:
        """Search for several images in one pass; the answer for an unusable image is its error."""
        resources, pool = self.resources, self._pool
        try:
            version = resources.current_version(collection)
        except IndexNotBuiltError:
            found = search_unbuilt(resources, collection, images)
            return check_locations(resources.engine, found)

        def answer(batch: Batch) -> list[SearchResult]:
            started = time.perf_counter()

            def scan(group: int) -> Any:
                return scan_group(resources, version, group, batch)

            scans = list(pool.map(scan, searched_groups(version, batch.plan)))
            timings = {"scan": (time.perf_counter() - started) * 1e3}
            return finish_batch(resources, version, batch, scans, {}, timings)

        passes = Passes(answer, request.seconds(resources.settings.search_deadline_s))
        found = search_images(resources, version, images, request, passes, pool.map, self._threads)
        return check_locations(resources.engine, found)

    def enqueue(self, collection: str, image: ImageSource, request: SearchRequest) -> LocalSearch:
        """Begin a search in a thread and return at once."""
        with contextlib.suppress(IndexNotBuiltError):
            self.resources.current_version(collection)

        def search() -> SearchResult:
            return only(self.search(collection, [image], request))

        return LocalSearch(self._searches.submit(search))

    def _run(
        self,
        record: CollectionRecord,
        kind: Kind,
        params: JobParams,
        *,
        origin: JobOrigin = "request",
        report: Report | None = None,
    ) -> JobHandle:
        """Create a job and run all its stages."""
        engine, host = self.resources.engine, self.resources.settings.host
        process = this_process(host)
        end_abandoned_jobs(engine, record.id, host)
        with session_scope(engine) as session:
            job = jobs.create_job(
                session, record.id, kind.name, params, process=process, origin=origin
            )
        if job.process != process:
            raise StateError(
                f"collection {record.name!r} is worked on already, by the {kind.name} job "
                f"{job.id}; wait for it, see `vantage status`"
            )
        handle = JobHandle(engine, job.id)
        try:
            if report is not None:
                report(handle.progress())
            run_job(self.resources, job, self._pool, report)
        except MissingRootError as exc:
            with session_scope(engine) as session:
                jobs.pause_job(session, job.id, str(exc))
            raise
        except BaseException as exc:
            # Ctrl-C too: an unfinished job would block its images for the next one.
            with session_scope(engine) as session:
                jobs.finish_job(session, job.id, "failed", _reason(exc))
            raise
        return handle

    def _keep_up(self, record: CollectionRecord) -> None:
        """Do the upkeep that is due; its errors do not fail the requested job."""
        try:
            due = indexing.due_upkeep(self.resources, record.id)
            if due is not None:
                self._run(record, *due, origin="upkeep")
        except Exception as exc:
            _log.warning("segments of collection %r were not merged: %s", record.name, exc)


def _reason(error: BaseException) -> str:
    """Return the reason why a job ended."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same call goes on from there"
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
