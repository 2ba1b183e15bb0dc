"""The status of an installation: its collections, unfinished jobs and workers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from pipeline.config import Settings
from pipeline.metadata.collections import collection_status, get_collection, list_collections
from pipeline.metadata.engine import create_metadata_engine, database_exists, session_scope
from pipeline.metadata.heartbeats import groups_served, live_workers
from pipeline.metadata.images import failures
from pipeline.metadata.jobs import list_jobs
from pipeline.metadata.parts import job_progress
from pipeline.metadata.records import (
    CollectionStatus,
    FailureRow,
    JobProgress,
    JobRecord,
    WorkerRecord,
)
from pipeline.metadata.sqlite import LOCKED, is_locked
from pipeline.store_check import FileTrouble, look_for_troubles
from pipeline.text import seconds

__all__ = ["JobLine", "SystemStatus", "collection_names", "read_failures", "read_status"]

_PAGE = 1000


@dataclass(frozen=True)
class JobLine:
    """A job that is under way, or the last job of a collection if it failed."""

    id: str
    collection: str
    progress: JobProgress

    @property
    def kind(self) -> str:
        """What it does."""
        return self.progress.kind

    @property
    def state(self) -> str:
        """Its state: ``running``, ``done``, ``paused`` or ``failed``."""
        return self.progress.state

    def sentence(self) -> str:
        """Return how far it is, or why it does not go on."""
        now = self.progress
        if now.state != "running":
            return now.message or now.stage
        done = f"{now.done:,}" if now.total is None else f"{now.done:,}/{now.total:,}"
        unit = "" if now.step is None else f" {now.step.unit}"
        left = "" if now.eta_s is None else f", {seconds(now.eta_s)} left"
        trouble = f"; tried again: {now.message}" if now.message else ""
        return f"{now.stage} {done}{unit}{left}{trouble}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"collection": self.collection, **dataclasses.asdict(self.progress)}


@dataclass(frozen=True)
class SystemStatus:
    """The present status.

    Attributes
    ----------
    collections : tuple of CollectionStatus
    jobs : tuple of JobLine
    workers : tuple of WorkerRecord
        Workers whose heartbeat is fresh.
    served : dict of int to list of str
        Workers by the group that they serve.
    unserved : tuple of int
        Groups that the shown collections need and no worker serves.
    files : tuple of FileTrouble
        Files of the store that the shown collections need and that are not as they should be.
    locked : bool
        Nobody can write to the database, so no worker is known to live.
    troubles : tuple of str
        What else is wrong, a sentence each: what workers could not read, the locked database.
    """

    home: str
    collections: tuple[CollectionStatus, ...]
    jobs: tuple[JobLine, ...]
    workers: tuple[WorkerRecord, ...]
    served: dict[int, list[str]]
    files: tuple[FileTrouble, ...] = ()
    locked: bool = False

    @property
    def troubles(self) -> tuple[str, ...]:
        """What workers say that they cannot read, without what `files` says already."""
        told = [text for worker in self.workers for text in worker.details.get("troubles", ())]
        known = [file.key for file in self.files if file.key]
        fresh = [text for text in told if not any(key in text for key in known)]
        locked = [f"the database is locked: {LOCKED}"] if self.locked else []
        return tuple(dict.fromkeys([*locked, *fresh]))

    @property
    def unserved(self) -> tuple[int, ...]:
        """Groups with data that no live worker serves."""
        needed = {group for item in self.collections for group in item.segments}
        return tuple(sorted(needed - set(self.served)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "home": self.home,
            "collections": [_collection_dict(item) for item in self.collections],
            "jobs": [job.to_dict() for job in self.jobs],
            "workers": [
                {**dataclasses.asdict(worker), "details": dict(worker.details)}
                for worker in self.workers
            ],
            "groups_served": {str(group): names for group, names in self.served.items()},
            "groups_unserved": list(self.unserved),
            "files": [file.to_dict() for file in self.files],
            "troubles": list(self.troubles),
        }


def _collection_dict(item: CollectionStatus) -> dict[str, Any]:
    """Return plain values; the jobs have a list of their own."""
    values = dataclasses.asdict(item)
    del values["id"], values["jobs"]
    values["segments"] = {str(group): number for group, number in item.segments.items()}
    return values


def read_status(settings: Settings, engine: Engine, collection: str | None) -> SystemStatus:
    """Read what is known of one collection, or of all.

    Raises
    ------
    UnknownNameError
        There is no such collection.
    """
    now = time.time()
    with session_scope(engine, write=False) as session:
        every = [summary.name for summary in list_collections(session)]
    files = look_for_troubles(settings, engine, every if collection is None else [collection])
    with session_scope(engine, write=False) as session:
        names = every if collection is None else [collection]
        live = live_workers(session, now, settings.host_timeout_s)
        found = tuple(collection_status(session, name) for name in names)
        return SystemStatus(
            home=str(settings.home),
            collections=found,
            jobs=tuple(
                JobLine(job_id, item.name, job_progress(session, job_id))
                for item in found
                for job_id in _shown_jobs(item, list_jobs(session, item.id, limit=1))
            ),
            workers=tuple(live),
            served=groups_served(session, now, settings.host_timeout_s),
            files=tuple(files),
            locked=not live and is_locked(engine),
        )


def _shown_jobs(item: CollectionStatus, last: Sequence[JobRecord]) -> list[str]:
    """Return a collection's unfinished jobs, and its last one if that failed."""
    failed = [job.id for job in last if job.state == "failed"]
    return [*(job.id for job in item.jobs), *failed]


def collection_names(settings: Settings) -> list[str]:
    """Return the names of all collections; a missing database is not created."""
    if not database_exists(settings.database_url):
        return []
    engine = create_metadata_engine(settings.database_url)
    try:
        with session_scope(engine, write=False) as session:
            return [summary.name for summary in list_collections(session)]
    finally:
        engine.dispose()


def read_failures(engine: Engine, name: str, limit: int | None = None) -> list[FailureRow]:
    """Return the first `limit` files that could not be indexed, and why; by default all.

    Raises
    ------
    UnknownNameError
        There is no such collection.
    """
    with session_scope(engine, write=False) as session:
        number = get_collection(session, name).id
        if limit is not None:
            return failures(session, number, limit=limit)
        rows: list[FailureRow] = []
        while page := failures(session, number, limit=_PAGE, offset=len(rows)):
            rows += page
        return rows
