"""The system that the demonstration runs, in its own home."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from demo.samples import DemoQuery
from demo.searches import TOP
from pipeline.config import PlanKind, Settings
from pipeline.records import SearchResult

if TYPE_CHECKING:
    from vantage import JobHandle

COLLECTION = "demo"

# Twenty photographs have some six thousand descriptors: six cells of the usual 1,500. Small cells
# let the probed plan show what it does, as it would in a collection that fills many large ones.
SAMPLE_CELL_SIZE = 64

_KEPT = ("VANTAGE_EXTRACT_PROCESSES", "VANTAGE_GROUP_THREADS", "VANTAGE_FLOWER_PORT")
_INDEX_TIMEOUT_S = 24 * 3600.0
_POLL_S = 0.2
_START_TIMEOUT_S = 300.0  # a first start compiles the kernels


@dataclass(frozen=True)
class System:
    """What is running.

    Attributes
    ----------
    flower_url : str
        Where Flower is, empty when it is not running.
    index : callable
        Indexes folders and waits.
    search : callable
        Searches with a query by a plan.
    """

    flower_url: str
    index: Callable[[Sequence[Path]], None]
    search: Callable[[DemoQuery, PlanKind], SearchResult]


def isolate_environment(home: Path, cell_size: int | None) -> None:
    """Point every ``VANTAGE_*`` variable at the demonstration's own home.

    The user's database, Redis and store are not touched, whatever the environment says; workers
    inherit these variables. Must run before anything of `workers` is imported.
    """
    for name in [name for name in os.environ if name.startswith("VANTAGE_")]:
        if name not in _KEPT:
            del os.environ[name]
    os.environ["VANTAGE_HOME"] = str(home)
    if cell_size is not None:
        os.environ["VANTAGE_CELL_SIZE"] = str(cell_size)


@contextmanager
def running_system(console: Console) -> Iterator[System]:
    """Start everything, yield it, stop everything."""
    from workers.stack import Stack

    settings = Settings.from_env()
    with Stack(settings, _START_TIMEOUT_S) as stack:
        # This imports Celery's settings, which look for the Redis that was just started.
        from vantage import Collection

        with Collection.open(COLLECTION, settings) as collection:

            def index(folders: Sequence[Path]) -> None:
                handle = collection.index([str(folder) for folder in folders])
                _show_progress(handle, console)
                handle.wait(_INDEX_TIMEOUT_S)

            def search(query: DemoQuery, plan: PlanKind) -> SearchResult:
                return collection.search(query.path, top=TOP, plan=plan)

            flower_url = stack.ready.flower_url if stack.ready else None
            yield System(flower_url=flower_url or "", index=index, search=search)


def _show_progress(handle: JobHandle, console: Console) -> None:
    """Draw a bar until the job has ended."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("Indexing")
        while True:
            now = handle.progress()
            bar.update(
                task,
                description=f"Indexing ({now.stage})",
                total=now.images_total or None,
                completed=now.images_done,
            )
            if now.state in ("done", "failed", "paused"):
                return
            time.sleep(_POLL_S)
