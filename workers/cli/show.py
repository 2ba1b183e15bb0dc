"""``vantage collections``, ``vantage status``, ``vantage failures``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.config import Settings
from pipeline.errors import StateError
from pipeline.job_kinds import kind_of
from pipeline.text import displayable
from workers.cli import exits
from workers.cli.options import CollectionArgument, JsonOption, epilog, one_collection
from workers.cli.output import counted, ranges, say, show_table, write_json
from workers.cli.progress import Bar

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from pipeline.metadata.records import CollectionStatus
    from pipeline.status import SystemStatus

_SHOWN_FAILURES = 50

COLLECTIONS_HELP = epilog(
    """
vantage collections
vantage collections --json
""",
)

STATUS_HELP = epilog(
    """
vantage status
vantage status holiday
vantage status holiday --follow
""",
)

VERIFY_HELP = epilog(
    """
vantage verify
vantage verify holiday
vantage verify --json
""",
    """
It reads the whole store, and needs neither Redis nor workers. Damaged copies on this host are
removed, to be fetched again. Exit code 1: something that searches or a rebuild need is lost or
damaged.
""",
)

FAILURES_HELP = epilog(
    """
vantage failures holiday
vantage failures holiday --limit 0
vantage failures holiday --json
""",
)


def collections(as_json: JsonOption = False) -> None:
    """List the collections."""
    from dataclasses import asdict

    from pipeline.lost_database import database_of
    from pipeline.metadata.collections import list_collections
    from pipeline.metadata.engine import session_scope

    with database_of(Settings.from_env()) as engine, session_scope(engine, write=False) as session:
        found = list_collections(session)
    if as_json:
        shown = [{k: v for k, v in asdict(summary).items() if k != "id"} for summary in found]
        write_json({"collections": shown})
    elif found:
        show_table(
            ("name", "images", "searchable", "files", "version", "extractor"),
            [
                (
                    s.name,
                    f"{s.images:,}",
                    f"{s.indexed:,}",
                    f"{s.locations:,}",
                    "-" if s.version is None else s.version,
                    s.extractor_id,
                )
                for s in found
            ],
            numbers=("images", "searchable", "files", "version"),
        )
    else:
        say("There is no collection yet. Make one: vantage index NAME FOLDER")


def status(
    collection: Annotated[
        str | None,
        one_collection("Only this one."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show the running jobs until they end.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the collections, running jobs, and workers."""
    from pipeline.lost_database import database_of
    from pipeline.status import read_status
    from workers.cache_status import read_cache_status

    settings = Settings.from_env()
    with database_of(settings) as engine:
        if follow:
            _follow(settings, engine, collection)
        found = read_status(settings, engine, collection)
    cache = read_cache_status(settings, found.workers)
    if as_json:
        write_json({**found.to_dict(), "cache": cache.to_dict()})
    else:
        _show_status(found, settings.compact_above, alone=collection is not None)
        for line in cache.sentences() if found.workers or cache.servers else ():
            say(f"Cache: {line}")


def _follow(settings: Settings, engine: Engine, collection: str | None) -> None:
    """Show the running jobs, one after the other."""
    from pipeline.following import follow_job
    from pipeline.metadata.collections import get_collection
    from pipeline.metadata.engine import session_scope
    from pipeline.metadata.jobs import unfinished_jobs

    with session_scope(engine, write=False) as session:
        wanted = get_collection(session, collection).id if collection is not None else None
        running = unfinished_jobs(session, wanted)
    for job in running:
        with Bar() as bar:
            progress = follow_job(engine, job.id, bar.show_job, settings.host_timeout_s)
        if progress.state != "done":
            raise StateError(f"job {job.id} is {progress.state}: {progress.message}")


def _show_status(found: SystemStatus, compact_above: int, *, alone: bool) -> None:
    """Print everything for users."""
    for item in found.collections:
        _show_collection(item, compact_above)
        say()
    if not found.collections:
        say("There is no collection yet. Make one: vantage index NAME FOLDER")
        say()
    if found.jobs:
        show_table(
            ("job", "collection", "kind", "state", "progress"),
            [(j.id[:8], j.collection, j.kind, j.state, j.sentence()) for j in found.jobs],
        )
        say()
    _show_troubles(found)
    if found.locked:
        say("Workers: unknown, because their heartbeats cannot be written.")
        return
    if not found.workers:
        say("Workers: none alive. Start everything here with `vantage up`.")
        return
    show_table(
        ("worker", "does", "state", "heartbeat", "groups"),
        [
            (
                host.name,
                ", ".join(host.roles),
                host.state,
                f"{max(0.0, time.time() - host.heartbeat_at):.1f} s ago",
                ranges(host.groups) or "-",
            )
            for host in found.workers
        ],
    )
    if alone and found.unserved:
        say(
            f"No worker serves group {', '.join(map(str, found.unserved))}: answers are incomplete."
        )


def _show_troubles(found: SystemStatus) -> None:
    """Print what cannot be read of the store, and what to do."""
    from pipeline.store_check import MOST_SHOWN

    sentences = [*(file.sentence() for file in found.files), *found.troubles]
    for sentence in sentences[:MOST_SHOWN]:
        say(f"TROUBLE: {displayable(sentence)}")
    if len(sentences) > MOST_SHOWN:
        say(f"... and {len(sentences) - MOST_SHOWN:,} more: `vantage verify` lists all")
    if sentences:
        say()


def _compaction(item: CollectionStatus, above: int) -> str:
    """Say how many segments there are, and whether they are merged."""
    most = f"at most {item.largest_group:,} segments in a group"
    if any(kind_of(job.kind).merges_segments for job in item.jobs):
        return f"{most}; they are being merged"
    begins = f"begins automatically above {above}" if above else "does not begin automatically"
    return f"{most}; {begins}, or with `vantage compact {item.name}`"


def _show_collection(item: CollectionStatus, compact_above: int) -> None:
    """Print the status of one collection."""
    version = "nothing searchable yet" if item.version is None else f"version {item.version}"
    say(f"{item.name}: {version}, {item.extractor_id}")
    states = [f"{number:,} {state}" for state, number in sorted(item.images.items())]
    say(f"  images       {', '.join(states) or 'none'}")
    unreadable = f", {item.unreadable_locations:,} unreadable" if item.unreadable_locations else ""
    say(f"  files        {item.locations:,}{unreadable}")
    say(f"  descriptors  {item.descriptors:,}")
    groups = [f"group {group}: {number}" for group, number in item.segments.items()]
    if groups:
        say(f"  segments     {sum(item.segments.values()):,} ({', '.join(groups)})")
    if item.largest_group > 1:
        say(f"  compaction   {_compaction(item, compact_above)}")
    if item.median_cell is not None:
        say(f"  median cell  {item.median_cell:,.0f} descriptors (target {item.target_cell:,.0f})")
    if item.images.get("failed") or item.unreadable_locations:
        say(f"  Some files could not be used: vantage failures {item.name}")
    if item.outgrown:
        say(f"  It has outgrown its tree, searches slow down: run `vantage rebuild {item.name}`")


def failures(
    collection: CollectionArgument,
    limit: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=f"Rows to show, 0 for all; default: {_SHOWN_FAILURES}, with --json all.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the files that could not be indexed, and why."""
    from dataclasses import asdict

    from pipeline.lost_database import database_of
    from pipeline.status import read_failures

    wanted = (0 if as_json else _SHOWN_FAILURES) if limit is None else limit
    with database_of(Settings.from_env()) as engine:
        rows = read_failures(engine, collection, wanted + 1 if wanted else None)
    more = 0 < wanted < len(rows)
    rows = rows[: wanted or None]
    if as_json:
        write_json({"collection": collection, "failures": [asdict(row) for row in rows]})
        return
    if not rows:
        say(f"Every file of {collection} could be used.")
        return
    for row in rows:
        say(f"{displayable(row.path)}")
        say(f"    {row.code}: {row.message}")
    if more:
        say(f"... and more: vantage failures {collection} --limit 0 shows all.")
    else:
        say(f"{counted(len(rows), 'file')} could not be used.")


def verify(
    collection: Annotated[
        str | None,
        one_collection("Only the files of this one."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare every file of the store with its checksum, and say what to do."""
    from pipeline.lost_database import database_of
    from pipeline.metadata.collections import list_collections
    from pipeline.metadata.engine import session_scope
    from pipeline.storage import Storage
    from pipeline.verifying import verify_files

    settings = Settings.from_env()
    storage = Storage(settings.store, settings.local)
    with database_of(settings) as engine:
        with session_scope(engine, write=False) as session:
            names = [summary.name for summary in list_collections(session)]
        found = verify_files(engine, storage, names if collection is None else [collection])
    if as_json:
        write_json(found.to_dict())
    else:
        for trouble in found.troubles:
            say(displayable(trouble.sentence()))
        if found.copies_dropped:
            copies = counted(found.copies_dropped, "damaged local copy", "damaged local copies")
            say(f"Removed {copies}; they are fetched again when they are needed.")
        lost = len(found.troubles)
        said = "all are sound" if not lost else f"{lost:,} not as recorded"
        said = f"{counted(found.files, 'file')}, {found.bytes / 2**20:,.1f} MiB: {said}"
        say(f"{said} ({found.seconds:.1f} s).")
    if not found.ok:
        raise typer.Exit(exits.TROUBLE)
