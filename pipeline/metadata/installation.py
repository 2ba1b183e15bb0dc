"""Which installation a database belongs to: its identity, and how a copy of it is recognised.

A database gets a random identity with its first migration. It also records where it is: a copy has
the identity of the original, but is somewhere else. `renew` gives it an identity of its own.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from pipeline.errors import OtherInstallationError, StateError
from pipeline.metadata.models import Container, Tree, table
from pipeline.metadata.models import Installation as Row

__all__ = [
    "Installation",
    "Place",
    "holds_files",
    "live_address",
    "new_identity",
    "note_store",
    "place_of",
    "read_installation",
    "renew",
    "require_identity",
    "same_place",
    "secret_of",
]

Place = Mapping[str, Any]
"""Where a database or store is: ``path``, and what tells copies of it apart, if anything does."""

_SECRET_BYTES = 32
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Installation:
    """The identity of a database, and what it knows of its surroundings.

    Attributes
    ----------
    identity : str
        Random; queues, keys, messages, heartbeats and the store's marker carry it.
    former : str or None
        Identity of the database of which this one was a copy.
    place : Place
        Where the database is now.
    copied : bool
        Whether it was somewhere else when it got its identity.
    store : Place or None
        The store that has a marker of this installation.
    """

    identity: str
    former: str | None
    place: Place
    copied: bool
    store: Place | None


def new_identity() -> str:
    """Return a random identity."""
    return secrets.token_hex(8)


def place_of(connection: Connection) -> Place:
    """Return where a database is.

    A SQLite file is known by its inode, which a copy does not share, and by its path or device: the
    same file has other paths in containers, and devices get other numbers when a machine starts. A
    PostgreSQL database is known by its cluster and its object id: both stay when another host of
    the cluster takes over, and a restored dump has others.
    """
    if connection.dialect.name == "sqlite":
        # Not as SQLite tells it: a path need not be UTF-8.
        path = Path(str(connection.engine.url.database)).resolve()
        found = path.stat()
        return {"path": str(path), "inode": found.st_ino, "device": found.st_dev}
    url = connection.engine.url
    path_of_url = f"{url.host or ''}:{url.port or 5432}/{url.database}"
    return {"path": path_of_url, "server": f"{_cluster(connection)}/{_object_id(connection)}"}


def _cluster(connection: Connection) -> str:
    """Return the number that initdb gave to a PostgreSQL cluster; empty if we may not see it."""
    try:
        with connection.begin_nested():
            query = text("SELECT system_identifier FROM pg_control_system()")
            return str(connection.execute(query).scalar_one())
    except DBAPIError:
        return ""


def _object_id(connection: Connection) -> int:
    """Return the object id of a PostgreSQL database in its cluster."""
    query = text("SELECT oid FROM pg_database WHERE datname = current_database()")
    return int(connection.execute(query).scalar_one())


def same_place(recorded: Place, now: Place) -> bool:
    """Tell whether a database is where it was recorded; a copy is not."""
    if "server" in now:
        return bool(recorded.get("server") == now["server"])
    if recorded.get("inode") != now["inode"]:
        return False
    return bool(recorded.get("path") == now["path"] or recorded.get("device") == now["device"])


def live_address(place: Place) -> str:
    """Return a text that two running databases share only if they are one.

    A SQLite database is used on one machine, whose kernel has an id of its own until it stops;
    clones of a machine, whose files have the same paths and inodes, have others.
    """
    if "server" in place:
        return str(place["server"])
    try:
        machine = _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        machine = socket.gethostname()
    return f"{machine}/{place['device']}/{place['inode']}"


def read_installation(session: Session) -> Installation:
    """Return the installation of a database.

    Raises
    ------
    StateError
        Its row has been deleted.
    """
    rows = table(Row)
    row = session.execute(select(rows)).one_or_none()
    if row is None:
        raise StateError("the database has lost its identity (table installation); restore it")
    here = place_of(session.connection())
    copied = row.place is not None and not same_place(row.place, here)
    return Installation(row.identity, row.former, here, copied, row.store)


def require_identity(session: Session, identity: str) -> None:
    """Check that a database still has the identity for which a process was started.

    Raises
    ------
    OtherInstallationError
        It was replaced, or got another identity.
    """
    row = session.execute(select(table(Row).c.identity)).scalar_one_or_none()
    if row != identity:
        path = place_of(session.connection())["path"]
        raise OtherInstallationError(
            f"the database {path} has the identity {row or 'none'} now, and this process was "
            f"started for {identity}: the database was replaced; start Vantage again"
        )


def renew(session: Session, *, force: bool = False) -> Installation:
    """Give a copied database an identity of its own; record where it is.

    Parameters
    ----------
    session : Session
        It must write.
    force : bool
        Do so in any case: a copy that cannot be told from the original, as that of a whole machine,
        gets another identity too.
    """
    rows = table(Row)
    # On PostgreSQL only one of several hosts that start together renews it.
    session.execute(select(rows.c.id).with_for_update())
    own = read_installation(session)
    values: dict[str, Any] = {"place": dict(own.place)}
    if own.copied or force:
        values |= {
            "identity": new_identity(),
            "former": own.identity,
            "secret": secrets.token_hex(_SECRET_BYTES),
            "created_at": time.time(),
        }
    session.execute(update(rows).values(values))
    return read_installation(session)


def note_store(session: Session, place: Place) -> None:
    """Record which store has the marker of this installation."""
    session.execute(update(table(Row)).values(store=dict(place)))


def secret_of(session: Session) -> bytes:
    """Return the secret that signs what caches of this installation hold.

    Raises
    ------
    StateError
        The database has none.
    """
    text = session.execute(select(table(Row).c.secret)).scalar_one_or_none()
    if not text:
        raise StateError("the database has lost the secret of its caches (table installation)")
    return bytes.fromhex(text)


def holds_files(session: Session) -> bool:
    """Tell whether the database names files of a store."""
    return any(
        session.execute(select(table(model).c.id).limit(1)).first() is not None
        for model in (Container, Tree)
    )
