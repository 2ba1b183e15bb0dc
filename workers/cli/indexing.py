"""``vantage index``, ``vantage rebuild`` and ``vantage compact``."""

from __future__ import annotations

import difflib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.config import Settings
from pipeline.errors import InputError, StateError
from pipeline.job_kinds import kind_of, load
from workers.cli import exits
from workers.cli.options import (
    CollectionArgument,
    ExtractorOption,
    JsonOption,
    LocalOption,
    NewExtractorOption,
    NoWaitOption,
    epilog,
)
from workers.cli.output import counted, say, to_stderr, write_json
from workers.cli.progress import Bar

if TYPE_CHECKING:
    from pipeline.metadata.records import CollectionStatus, JobProgress
    from workers.collection import Collection
    from workers.job_runs import Begin

INDEX_HELP = epilog(
    """
vantage index holiday ~/Pictures/2024
vantage index holiday ~/Pictures/2024 --local
vantage index covers a.jpg b.png more/ --json
vantage index looks ~/Pictures/2024 --extractor cnn:resnet50.onnx
""",
    """
Folders are searched recursively. Known files are not read again unless their size, inode or
times have changed: repeat the command with the same folder to add new files. Images that cannot
be used are listed by `vantage failures`; the others are indexed. A collection keeps its extractor.
""",
)

REBUILD_HELP = epilog(
    """
vantage rebuild holiday
vantage rebuild holiday --local
vantage rebuild holiday --extractor surf
""",
    """
Needs no photographs, because the features are kept; only with another extractor, all images are
read again. Searches use the old index until the new one is ready.
""",
)

COMPACT_HELP = epilog(
    """
vantage compact holiday
vantage compact holiday --local
""",
    """
Merges the segments that many small `vantage index` calls have left, and drops the rows of
removed images. Answers stay the same; searches go on meanwhile. Small segments are merged
automatically when a group has more than VANTAGE_COMPACT_ABOVE.
""",
)


def index(
    collection: CollectionArgument,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Folders and image files.", show_default=False),
    ],
    local: LocalOption = False,
    no_wait: NoWaitOption = False,
    extractor: ExtractorOption = None,
    elsewhere: Annotated[
        bool,
        typer.Option(
            "--elsewhere", help="The paths exist only on the workers' hosts: do not check them."
        ),
    ] = False,
    reread: Annotated[
        bool,
        typer.Option("--reread", help="Read every file again, also those that look unchanged."),
    ] = False,
    emptied: Annotated[
        bool,
        typer.Option(
            "--emptied", help="All drives are mounted: what is missing in empty folders is gone."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Add the images of folders and files to a collection (made if there is none)."""
    if not elsewhere:
        for path in paths:
            _require_path(path)
    run_job(
        collection,
        lambda opened, report: opened.index(paths, reread=reread, emptied=emptied, report=report),
        extractor=extractor,
        local=local,
        wait=not no_wait,
        as_json=as_json,
    )


def rebuild(
    collection: CollectionArgument,
    local: LocalOption = False,
    no_wait: NoWaitOption = False,
    extractor: NewExtractorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new tree and index, or change the extractor of a collection."""
    run_job(
        collection,
        lambda opened, report: opened.rebuild(extractor=extractor, report=report),
        local=local,
        wait=not no_wait,
        as_json=as_json,
    )


def compact(
    collection: CollectionArgument,
    local: LocalOption = False,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Merge a collection's segments into one a group, for faster searches."""
    run_job(
        collection,
        lambda opened, report: opened.compact(report),
        local=local,
        wait=not no_wait,
        as_json=as_json,
    )


def _require_path(path: Path) -> None:
    """Refuse a path that does not exist, before a job is created."""
    if os.path.lexists(path):
        return
    try:
        names = [sibling.name for sibling in path.parent.iterdir()]
    except OSError:
        names = []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
    raise InputError(f"there is no file or folder {str(path)!r}{hint}")


def run_job(
    name: str,
    begin: Begin,
    *,
    local: bool,
    wait: bool,
    as_json: bool,
    extractor: str | None = None,
) -> None:
    """Do a job, show its progress and its outcome."""
    if local and not wait:
        raise typer.BadParameter("--local works in this process, so it cannot go without waiting")
    from pipeline.lost_database import database_of
    from workers.collection import Collection
    from workers.job_runs import do_job

    settings = Settings.from_env()
    began = time.monotonic()
    with (
        database_of(settings, make=True),
        Collection.open(name, settings, local=local, extractor=extractor) as collection,
    ):
        with Bar() as bar:
            try:
                progress = do_job(collection, begin, bar.show_job, wait=wait)
            except KeyboardInterrupt:
                raise exits.InterruptError(_interrupted(collection, bar.job)) from None
        _tell(collection.status(), progress, time.monotonic() - began, as_json)


def _interrupted(collection: Collection, job: str) -> str:
    """Say what becomes of a job after Ctrl-C."""
    if collection.local:
        return "Interrupted. Finished work is kept: the same command continues from here."
    if not job:
        return "Interrupted."
    return (
        f"No longer waiting. Job {job} goes on with the workers; follow it with:\n"
        f"  vantage status {collection.name} --follow"
    )


def _tell(status: CollectionStatus, progress: JobProgress, took: float, as_json: bool) -> None:
    """Print the outcome of a job."""
    others = [job for job in status.jobs if job.id != progress.job_id]
    for job in others:
        to_stderr(
            f"Note: job {job.id} of this collection is unfinished ({job.state}) and keeps its "
            "images; the workers go on with it: see `vantage status`, start them with `vantage up`."
        )
    if as_json:
        shown = {
            "collection": status.name,
            "job": progress.job_id,
            "kind": progress.kind,
            "state": progress.state,
            "message": progress.message,
            "version": status.version,
            "seconds": round(took, 3),
            "counters": progress.counters,
            "unfinished_jobs": [job.id for job in others],
        }
        write_json(shown)
    elif progress.state == "running":
        say(f"Job {progress.job_id} is with the workers; follow it with:")
        say(f"  vantage status {status.name} --follow")
    else:
        tell = load(kind_of(progress.kind).summary)
        for line in tell(status.name, progress.counters, took):
            say(line)
        searchable = counted(status.images.get("indexed", 0), "image")
        say(f"Searchable: {searchable}, version {status.version or 'none yet'}.")
    if progress.state in ("failed", "paused"):
        raise StateError(f"job {progress.job_id} is {progress.state}: {progress.message}")
