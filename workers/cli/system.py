"""What ``vantage status`` reads: collections, unfinished jobs, workers."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from pipeline.config import Settings
from pipeline.metadata.collections import collection_status, list_collections
from pipeline.metadata.engine import session_scope
from pipeline.metadata.heartbeats import groups_served, live_workers
from pipeline.metadata.jobs import list_jobs
from pipeline.metadata.parts import job_progress
from pipeline.metadata.records import CollectionStatus, JobProgress, WorkerRecord
from workers.cli.output import seconds


@dataclass(frozen=True)
class JobLine:
    """One job that is under way, or the last one of a collection where that failed."""

    id: str
    collection: str
    progress: JobProgress

    @property
    def kind(self) -> str:
        """What it does."""
        return self.progress.kind

    @property
    def state(self) -> str:
        """How it is."""
        return self.progress.state

    def sentence(self) -> str:
        """Say how far it is, or why it stands."""
        now = self.progress
        if now.state != "running":
            return now.message or now.stage
        done = f"{now.done:,}" if now.total is None else f"{now.done:,}/{now.total:,}"
        unit = "" if now.step is None else f" {now.step.unit}"
        left = "" if now.eta_s is None else f", {seconds(now.eta_s)} left"
        return f"{now.stage} {done}{unit}{left}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"collection": self.collection, **dataclasses.asdict(self.progress)}


@dataclass(frozen=True)
class SystemStatus:
    """Everything that is known now.

    Attributes
    ----------
    collections : tuple of CollectionStatus
    jobs : tuple of JobLine
    workers : tuple of WorkerRecord
        Workers whose heartbeat is fresh.
    served : dict of int to list of str
        Workers by the group that they serve.
    unserved : tuple of int
        Groups that the shown collections need and nobody serves.
    """

    home: str
    collections: tuple[CollectionStatus, ...]
    jobs: tuple[JobLine, ...]
    workers: tuple[WorkerRecord, ...]
    served: dict[int, list[str]]

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
        names = (
            [summary.name for summary in list_collections(session)]
            if collection is None
            else [collection]
        )
        found = tuple(collection_status(session, name) for name in names)
        return SystemStatus(
            home=str(settings.home),
            collections=found,
            jobs=tuple(_jobs(session, found)),
            workers=tuple(live_workers(session, now, settings.host_timeout_s)),
            served=groups_served(session, now, settings.host_timeout_s),
        )


def _jobs(session: Session, found: tuple[CollectionStatus, ...]) -> list[JobLine]:
    """Return each collection's unfinished jobs, and its last one if that failed."""
    lines = []
    for item in found:
        ids = [job.id for job in item.jobs]
        last = list_jobs(session, item.id, limit=1)
        if last and last[0].state == "failed":
            ids.append(last[0].id)
        lines += [JobLine(i, item.name, job_progress(session, i)) for i in ids]
    return lines
