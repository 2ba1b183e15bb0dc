"""Following jobs, as SQL tells of them: those of workers, and between its reports one of ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from pipeline.driver import JobHandle, Report
from pipeline.errors import VantageError
from pipeline.metadata.engine import session_scope
from pipeline.metadata.heartbeats import live_workers
from pipeline.metadata.jobs import get_job
from pipeline.metadata.records import JobProgress
from pipeline.metadata.sqlite import is_locked

__all__ = ["follow_job", "watched"]

_POLL_S = 0.25
_LOOK_EVERY_S = 3.0


def follow_job(
    engine: Engine,
    job_id: str,
    report: Callable[[JobProgress, bool], None],
    host_timeout_s: float = 10.0,
) -> JobProgress:
    """Wait until a job is done, failed or paused; return what became of it.

    Parameters
    ----------
    engine : Engine
    job_id : str
    report : callable
        Called several times a second with a `JobProgress`, and whether the job is left to workers
        of which none is alive.
    host_timeout_s : float
        Seconds after which a silent worker counts as gone.
    """
    handle = JobHandle(engine, job_id)
    look_at, deserted = 0.0, False
    while (progress := handle.progress()).state == "running":
        if time.monotonic() >= look_at:
            look_at = time.monotonic() + _LOOK_EVERY_S
            deserted = _is_deserted(engine, job_id, host_timeout_s)
        report(progress, deserted)
        time.sleep(_POLL_S)
    return progress


def _is_deserted(engine: Engine, job_id: str, host_timeout_s: float) -> bool:
    """Whether a job is the workers' and none of them lives."""
    with session_scope(engine, write=False) as session:
        if get_job(session, job_id).process is not None:
            return False
        live = live_workers(session, time.time(), host_timeout_s)
    # Of a locked database nobody can tell.
    return not live and not is_locked(engine)


@contextmanager
def watched(engine: Engine, report: Report) -> Iterator[Report]:
    """Give a `Report` for a job of this process that is called between its parts, too.

    One part may take long: a thread reads SQL meanwhile. One call of `report` at a time.
    """
    watcher = _Watcher(engine, report)
    try:
        yield watcher.report
    finally:
        watcher.stop()


class _Watcher:
    """Hands on a job's own reports, so that no stage is passed over, and reads between them."""

    def __init__(self, engine: Engine, report: Report) -> None:
        self._engine = engine
        self._report = report
        self._lock = threading.Lock()
        self._job_id = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def report(self, progress: JobProgress) -> None:
        """Hand on what the job says; from any thread."""
        with self._lock:
            self._report(progress)
            if not self._job_id:
                self._job_id = progress.job_id
                self._thread.start()

    def stop(self) -> None:
        """Read no longer."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        handle = JobHandle(self._engine, self._job_id)
        while not self._stop.wait(_POLL_S):
            try:
                progress = handle.progress()
            except VantageError:
                continue  # a busy database delays the report, not the job
            with self._lock:
                self._report(progress)
