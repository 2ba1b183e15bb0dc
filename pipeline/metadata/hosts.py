"""Heartbeats: which workers live, and which groups they serve."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, delete, select
from sqlalchemy.orm import Session

from pipeline.metadata.models import Host, table
from pipeline.metadata.records import HostRecord
from pipeline.metadata.sql import insert_into


def beat(session: Session, host: HostRecord) -> None:
    """Write a worker's heartbeat."""
    values = {
        "name": host.name,
        "kind": host.kind,
        "host": host.host,
        "pid": host.pid,
        "groups": list(host.groups),
        "state": host.state,
        "heartbeat_at": host.heartbeat_at,
        "started_at": host.started_at,
        "details": dict(host.details),
    }
    statement = insert_into(session, Host).values(values)
    changes = {name: statement.excluded[name] for name in values if name != "name"}
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=changes))


def live_hosts(session: Session, now: float, timeout_s: float) -> list[HostRecord]:
    """Return the workers whose last heartbeat is at most `timeout_s` seconds old, by name."""
    hosts = table(Host)
    rows = session.execute(
        select(hosts).where(hosts.c.heartbeat_at >= now - timeout_s).order_by(hosts.c.name)
    )
    return [_record(row) for row in rows]


def groups_served(session: Session, now: float, timeout_s: float) -> dict[int, list[str]]:
    """Return the names of the live, ready group workers by the groups that they serve."""
    served: dict[int, list[str]] = {}
    for host in live_hosts(session, now, timeout_s):
        if host.kind == "group" and host.state == "ready":
            for group in host.groups:
                served.setdefault(group, []).append(host.name)
    return served


def forget_host(session: Session, name: str) -> None:
    """Delete a worker's row: it has shut down in order."""
    session.execute(delete(table(Host)).where(Host.name == name))


def _record(row: Row[Any]) -> HostRecord:
    """Make the record of a row."""
    return HostRecord(
        name=row.name,
        kind=row.kind,
        host=row.host,
        pid=row.pid,
        groups=tuple(row.groups),
        state=row.state,
        heartbeat_at=row.heartbeat_at,
        started_at=row.started_at,
        details=row.details,
    )
