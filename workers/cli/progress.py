"""Following a job: a bar with stage, count, rate and time left, read from SQL."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from pipeline.errors import VantageError
from pipeline.text import displayable
from workers.cli.output import seconds, to_stderr

if TYPE_CHECKING:
    from rich.progress import Progress
    from sqlalchemy import Engine

    from pipeline.metadata.records import JobProgress

POLL_S = 0.25
_LINE_EVERY_S = 10.0
_LOOK_EVERY_S = 3.0


class Bar:
    """One line about work under way, on standard error.

    On a terminal a bar that moves; elsewhere (a log file, a pipe) a plain line when the stage
    changes and every ten seconds.

    Parameters
    ----------
    title : str
        What the work is about, before the stage.
    """

    def __init__(self, title: str = "") -> None:
        self._title = f"{title} " if title else ""
        self._bar = _rich_progress() if sys.stderr.isatty() else None
        self._task = self._bar.add_task("", total=None, note="") if self._bar else None
        self._last_line: tuple[str, float] = ("", 0.0)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        """Show how far the work is; `total` is None while nobody knows."""
        label = self._title + stage
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=label, completed=done, total=total, note=note)
            return
        last_label, at = self._last_line
        now = time.monotonic()
        if label != last_label or now - at >= _LINE_EVERY_S:
            self._last_line = (label, now)
            count = f" {done:,}/{total:,}" if total else (f" {done:,}" if done else "")
            to_stderr(f"{label}{count}{', ' if note else ''}{note}")

    def show_job(self, progress: JobProgress) -> None:
        """Show a job's present stage."""
        step = progress.step
        if progress.state == "paused":
            self.show("paused", 0, None, displayable(progress.message or ""))
        elif step is not None:
            pace = _pace(progress) if step.by_images else ""
            self.show(step.sentence, progress.done, progress.total or None, pace)


def _pace(progress: JobProgress) -> str:
    """Return failed images, rate and time left, as far as they are known."""
    failed = [f"{progress.images_failed:,} failed"] if progress.images_failed else []
    if progress.rate_per_s is None:
        return ", ".join(failed)
    pace = [f"{progress.rate_per_s:.1f} images/s", f"{seconds(progress.eta_s)} left"]
    return ", ".join([*failed, *pace])


def _rich_progress() -> Progress:
    """Return the bar for a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
        transient=True,
        expand=True,
    )


class JobReader:
    """Reads a job's progress from SQL until it ends.

    Parameters
    ----------
    engine : sqlalchemy.Engine
    host_timeout_s : float
        Seconds after which a silent worker counts as gone.
    """

    def __init__(self, engine: Engine, host_timeout_s: float = 10.0) -> None:
        self._engine = engine
        self._host_timeout_s = host_timeout_s

    def read(self, job_id: str) -> JobProgress:
        """Return how far a job is."""
        from pipeline.metadata.engine import session_scope
        from pipeline.metadata.parts import job_progress

        with session_scope(self._engine, write=False) as session:
            return job_progress(session, job_id)

    def follow(self, job_id: str, title: str = "") -> JobProgress:
        """Show a job until it is done, failed or paused; return what became of it."""
        look_at = time.monotonic() + _LOOK_EVERY_S
        deserted = False
        with Bar(title) as bar:
            while True:
                progress = self.read(job_id)
                if progress.state != "running":
                    return progress
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + _LOOK_EVERY_S
                    deserted = self._is_deserted(job_id)
                if deserted:
                    bar.show("waiting", 0, None, "no worker is alive; start some: vantage up")
                else:
                    bar.show_job(progress)
                time.sleep(POLL_S)

    def _is_deserted(self, job_id: str) -> bool:
        """Whether a job is the workers' and none of them lives."""
        from pipeline.metadata.engine import session_scope
        from pipeline.metadata.heartbeats import live_workers
        from pipeline.metadata.jobs import get_job

        with session_scope(self._engine, write=False) as session:
            if get_job(session, job_id).process is not None:
                return False
            return not live_workers(session, time.time(), self._host_timeout_s)


@contextmanager
def watched(engine: Engine, title: str = "") -> Iterator[Watcher]:
    """Show, from a thread, the job that this process works on; see `Watcher.report`."""
    watcher = Watcher(engine, title)
    try:
        yield watcher
    finally:
        watcher.stop()


class Watcher:
    """Shows a job of this process while its own loop is busy.

    The job's own reports come after each part, so no stage is passed over; between them the thread
    reads SQL, because one part may take long.
    """

    def __init__(self, engine: Engine, title: str) -> None:
        self._reader = JobReader(engine)
        self._bar = Bar(title)
        self._lock = threading.Lock()
        self._job_id = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def report(self, progress: JobProgress) -> None:
        """Show what the job says; from any thread."""
        with self._lock:
            self._bar.show_job(progress)
            if not self._job_id:
                self._job_id = progress.job_id
                self._thread.start()

    def stop(self) -> None:
        """Show no longer."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        with self._bar:
            while not self._stop.wait(POLL_S):
                try:
                    progress = self._reader.read(self._job_id)
                except VantageError:
                    continue  # a busy database delays the bar, not the job
                with self._lock:
                    self._bar.show_job(progress)
