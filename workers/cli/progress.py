"""A bar with the stage of a job, its count, rate and time left."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from pipeline.text import displayable
from workers.cli.output import seconds, to_stderr

if TYPE_CHECKING:
    from rich.progress import Progress

    from pipeline.metadata.records import JobProgress

_LINE_EVERY_S = 10.0


class Bar:
    """Progress of work on standard error.

    On a terminal it is a moving bar; elsewhere (a log file, a pipe) a plain line when the stage
    changes and every ten seconds.
    """

    job = ""
    """The job that was shown last."""

    def __init__(self) -> None:
        self._bar = _rich_progress() if sys.stderr.isatty() else None
        self._task = self._bar.add_task("", total=None, note="") if self._bar else None
        self._last_line: tuple[str, float] = ("", 0.0)
        self._trouble = ""

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        """Show the progress; `total` is None while unknown."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=stage, completed=done, total=total, note=note)
            return
        last_stage, at = self._last_line
        now = time.monotonic()
        if stage != last_stage or now - at >= _LINE_EVERY_S:
            self._last_line = (stage, now)
            count = f" {done:,}/{total:,}" if total else (f" {done:,}" if done else "")
            to_stderr(f"{stage}{count}{', ' if note else ''}{note}")

    def show_job(self, progress: JobProgress, deserted: bool = False) -> None:
        """Show a job's present stage."""
        self.job = progress.job_id
        step = progress.step
        if progress.state == "running":
            self._tell_trouble(progress.message or "")
        if deserted:
            self.show("waiting", 0, None, "no worker is alive; start some: vantage up")
        elif progress.state == "paused":
            self.show("paused", 0, None, displayable(progress.message or ""))
        elif step is not None:
            pace = _pace(progress) if step.by_images else ""
            self.show(step.sentence, progress.done, progress.total or None, pace)

    def _tell_trouble(self, message: str) -> None:
        """Print once what keeps a job from going on, above the bar."""
        if message and message != self._trouble:
            text = f"It is tried again: {displayable(message)}"
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False)
            else:
                to_stderr(text)
        self._trouble = message


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
