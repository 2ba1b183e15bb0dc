"""A driver does the work of collections: in this process, or by workers.

`pipeline.local` works in this process, `workers.driver` by workers. All else of a collection is the
same for both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import Engine

from pipeline.errors import InputError, StateError
from pipeline.job_kinds import Kind
from pipeline.job_params import JobParams
from pipeline.metadata import heartbeats, jobs, parts
from pipeline.metadata.engine import after_fork, session_scope
from pipeline.metadata.records import CollectionRecord, JobProgress
from pipeline.records import SearchResult
from pipeline.request import SearchRequest

if TYPE_CHECKING:
    from pipeline.resources import Resources
    from pipeline.searching import ImageSource

Report = Callable[[JobProgress], None]
"""Called with the progress of a job."""

DESERTED_S = 60.0
"""Seconds without any live worker after which a wait without a limit ends."""

_LOOK_EVERY_S = 3.0
_POLL_S = 0.2


class JobHandle:
    """A job of a collection.

    A job done by workers goes on whether or not anybody waits. A job done in this process has ended
    before its handle is returned.

    Attributes
    ----------
    id : str
    """

    def __init__(self, engine: Engine, job_id: str) -> None:
        self._engine = engine
        self._pid = os.getpid()
        self._inherited: list[Engine] = []
        self.id = job_id

    @property
    def _own_engine(self) -> Engine:
        """The engine; in a forked child another one, as the parent still uses its connections."""
        if self._pid != os.getpid():
            self._inherited.append(self._engine)  # kept: to close it would disturb the parent
            self._engine, self._pid = after_fork(self._engine), os.getpid()
        return self._engine

    def __repr__(self) -> str:
        return f"<JobHandle {self.id}>"

    def progress(self) -> JobProgress:
        """Return the job's progress, or its outcome."""
        with session_scope(self._own_engine, write=False) as session:
            return parts.job_progress(session, self.id)

    def wait(self, timeout: float | None = None, report: Report | None = None) -> JobProgress:
        """Wait until the job has ended.

        Parameters
        ----------
        timeout : float, optional
            Seconds; default: as long as the job goes on.
        report : callable, optional
            Called with a `JobProgress` several times a second.

        Returns
        -------
        JobProgress The outcome.

        Raises
        ------
        TimeoutError
            The job is still running; it goes on.
        StateError
            The job failed, or is paused because a whole image folder is missing. Without `timeout`
            also: no worker has been alive for a minute.
        """
        until = None if timeout is None else time.monotonic() + timeout
        look_at = time.monotonic()
        while True:
            progress = self.progress()
            if report is not None:
                report(progress)
            if progress.state == "done":
                return progress
            if progress.state in ("failed", "paused"):
                raise StateError(f"job {self.id} is {progress.state}: {progress.message}")
            if until is not None and time.monotonic() > until:
                raise TimeoutError(
                    f"job {self.id} is in stage {progress.stage} after {timeout} s and goes on"
                )
            if until is None and time.monotonic() >= look_at:
                look_at = time.monotonic() + _LOOK_EVERY_S
                self._require_life(progress)
            time.sleep(_POLL_S)

    def _require_life(self, progress: JobProgress) -> None:
        """Raise if the job is left to workers and none of them has been alive for long."""
        now = time.time()
        with session_scope(self._own_engine, write=False) as session:
            job = jobs.get_job(session, self.id)
            alive = heartbeats.live_workers(session, now, DESERTED_S)
        if job.process is None and not alive and now - job.progress_at > DESERTED_S:
            raise StateError(
                f"job {self.id} is in stage {progress.stage}, and no worker has been alive for "
                f"{DESERTED_S:.0f} s; start everything with `vantage up`, then wait again"
            )


class SearchHandle(Protocol):
    """A search that goes on while the caller does something else."""

    @property
    def id(self) -> str:
        """Its identifier."""
        ...

    def ready(self) -> bool:
        """Tell whether the search has ended."""
        ...

    def wait(self, timeout: float = 30.0) -> SearchResult:
        """Return the answer or raise the error; `TimeoutError` if there is no answer yet."""
        ...


class Driver(Protocol):
    """Does the work of collections.

    Attributes
    ----------
    local : bool
        Whether this process does the work.
    """

    local: bool

    @property
    def resources(self) -> Resources:
        """Database, store, and the files that are open."""
        ...

    def require(self, kind: Kind) -> None:
        """Raise unless a job of this kind can be done now."""
        ...

    def begin(
        self, record: CollectionRecord, kind: Kind, params: JobParams, report: Report | None
    ) -> JobHandle:
        """Do a job of a collection, or send it to the workers."""
        ...

    def search(
        self, collection: str, images: Sequence[ImageSource], request: SearchRequest
    ) -> list[SearchResult | InputError]:
        """Search for several images in one pass; the answer for an unusable image is its error."""
        ...

    def enqueue(self, collection: str, image: ImageSource, request: SearchRequest) -> SearchHandle:
        """Begin a search, extraction included, and return at once."""
        ...

    def reopen(self) -> None:
        """Open everything again in a forked child; do not touch what belongs to the parent."""
        ...

    def close(self) -> None:
        """End threads and connections."""
        ...
