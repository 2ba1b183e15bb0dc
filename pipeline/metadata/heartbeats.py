"""Heartbeats: which workers live, which groups they serve, on which hosts they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, delete, select
from sqlalchemy.orm import Session

from pipeline.metadata.models import Host, Worker, table
from pipeline.metadata.records import HostRecord, WorkerRecord
from pipeline.metadata.sql import insert_into


def beat(session: Session, worker: WorkerRecord, host: Mapping[str, Any] | None = None) -> None:
    """Write a worker's heartbeat, and that its host was seen.

    Parameters
    ----------
    session : Session
    worker : WorkerRecord
    host : mapping, optional
        Facts about the host, JSON-serialisable; default: keep the former ones.
    """
    _see_host(session, worker.host, worker.heartbeat_at, host)
    values = {
        "name": worker.name,
        "roles": list(worker.roles),
        "host": worker.host,
        "pid": worker.pid,
        "groups": list(worker.groups),
        "state": worker.state,
        "heartbeat_at": worker.heartbeat_at,
        "started_at": worker.started_at,
        "details": dict(worker.details),
    }
    statement = insert_into(session, Worker).values(values)
    changes = {name: statement.excluded[name] for name in values if name != "name"}
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=changes))


def _see_host(
    session: Session, name: str, seen_at: float, details: Mapping[str, Any] | None
) -> None:
    """Record that a host is alive."""
    values = {
        "name": name,
        "details": dict(details or {}),
        "first_seen_at": seen_at,
        "last_seen_at": seen_at,
    }
    statement = insert_into(session, Host).values(values)
    changes = {"last_seen_at": statement.excluded.last_seen_at}
    if details is not None:
        changes["details"] = statement.excluded.details
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=changes))


def live_workers(session: Session, now: float, timeout_s: float) -> list[WorkerRecord]:
    """Return the workers whose last heartbeat is at most `timeout_s` seconds old, by name."""
    workers = table(Worker)
    rows = session.execute(
        select(workers).where(workers.c.heartbeat_at >= now - timeout_s).order_by(workers.c.name)
    )
    return [_record(row) for row in rows]


def known_hosts(session: Session) -> list[HostRecord]:
    """Return every host that a worker ever ran on, by name."""
    hosts = table(Host)
    return [
        HostRecord(row.name, row.first_seen_at, row.last_seen_at, row.details)
        for row in session.execute(select(hosts).order_by(hosts.c.name))
    ]


def groups_served(
    session: Session, now: float, timeout_s: float, protocol: int = 0
) -> dict[int, list[str]]:
    """Return the names of the live, ready group workers by the groups that they serve.

    Workers that say that they speak only an older protocol of messages are left out.
    """
    served: dict[int, list[str]] = {}
    for worker in live_workers(session, now, timeout_s):
        speaks = worker.details.get("protocol", protocol) >= protocol
        if "group" in worker.roles and worker.state == "ready" and speaks:
            for group in worker.groups:
                served.setdefault(group, []).append(worker.name)
    return served


def forget_worker(session: Session, name: str) -> None:
    """Delete the row of a worker that shuts down."""
    session.execute(delete(table(Worker)).where(Worker.name == name))


def _record(row: Row[Any]) -> WorkerRecord:
    """Make the record of a row."""
    return WorkerRecord(
        name=row.name,
        roles=tuple(row.roles),
        host=row.host,
        pid=row.pid,
        groups=tuple(row.groups),
        state=row.state,
        heartbeat_at=row.heartbeat_at,
        started_at=row.started_at,
        details=row.details,
    )
