"""Which installation this is: a database and its store, known by one random identity.

The identity is made with the database; a marker in the store carries it too. So several
installations may share a Redis, a wrong ``VANTAGE_STORE`` is found before anything is read from it,
and a copy of a home is not taken for the original. `check_store` and `require_original` only read.
`settle` writes: it makes the marker, and gives a copy an identity of its own.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Engine

from pipeline.errors import (
    NewerFormatError,
    OtherInstallationError,
    StateError,
    StorageUnavailableError,
)
from pipeline.lost_database import RESTORE
from pipeline.metadata.engine import (
    create_metadata_engine,
    database_exists,
    require_schema,
    schema_revision,
    session_scope,
)
from pipeline.metadata.installation import (
    Installation,
    Place,
    holds_files,
    note_store,
    read_installation,
    renew,
)
from pipeline.store_root import StoreRoot

__all__ = [
    "MARKER",
    "check_store",
    "find_installation",
    "require_original",
    "settle",
]

MARKER = "installation.json"
"""Name of the store's file that says to which installation it belongs."""

_FORMAT = 1


@dataclass(frozen=True)
class Marker:
    """What the store says.

    Attributes
    ----------
    identity : str
        Of the installation to which it belongs.
    database : str
        Where its database was.
    store : Place
        Where the store was: a copied store is somewhere else.
    """

    identity: str
    database: str
    store: Place


def find_installation(database_url: str) -> Installation | None:
    """Return the installation of a database; None if there is no database, or an empty one.

    Raises
    ------
    OtherInstallationError
        It is a copy that was not started yet.
    SchemaVersionError, DatabaseUnavailableError
        It has another schema, or does not answer.
    """
    if not database_exists(database_url):
        return None
    engine = create_metadata_engine(database_url)
    try:
        if schema_revision(engine) is None:
            return None
        require_schema(engine)
        return require_original(engine)
    finally:
        engine.dispose()


def require_original(engine: Engine) -> Installation:
    """Return the installation of a database that is no copy.

    Raises
    ------
    OtherInstallationError
        It is a copy that was not started yet: its messages would be those of the original.
    """
    with session_scope(engine, write=False) as session:
        own = read_installation(session)
    if own.copied:
        raise OtherInstallationError(
            f"the database {own.place['path']} is a copy, with the identity {own.identity} of the "
            "original; start it with `vantage up`, or run `vantage migrate`: it then gets an "
            "identity of its own"
        )
    return own


def check_store(engine: Engine, root: StoreRoot) -> None:
    """Check that the store is that of the database; a store that does not answer is not judged.

    Raises
    ------
    OtherInstallationError
        It is another one.
    """
    with session_scope(engine, write=False) as session:
        own = read_installation(session)
        used = holds_files(session)
    try:
        found, here = _read_marker(root), root.place
    except StorageUnavailableError:
        return
    if found is None:
        if used and own.store is not None and not _same_store(own.store, here):
            raise _unmarked(own, here)
    elif found.identity != own.identity:
        raise _foreign(own, found, here, used)


def settle(
    engine: Engine,
    root: StoreRoot,
    say: Callable[[str], None] | None = None,
    *,
    force: bool = False,
    take: bool = False,
) -> Installation:
    """Give a copy an identity of its own, and the store its marker; return the installation.

    A store whose marker has the identity of the original follows, if it was copied too, or if the
    database has taken the place of the original.

    Parameters
    ----------
    engine : sqlalchemy.Engine
        Of a database with this program's schema.
    root : StoreRoot
    say : callable, optional
        Receives a sentence if there is a new identity.
    force : bool
        Make a new identity in any case.
    take : bool
        Make the store that of the database, whatever its marker says.

    Raises
    ------
    OtherInstallationError
        The store belongs to another installation.
    StorageUnavailableError
        The store does not answer, or is empty although it has files.
    """
    with session_scope(engine, write=False) as session:
        own = read_installation(session)
        used = holds_files(session)
    if own.copied or force:
        why = "This database is a copy: it" if own.copied else "This database"
        with session_scope(engine) as session:
            own = renew(session, force=force)
        if say is not None:
            say(f"{why} has an identity of its own now, {own.identity}.")
    if take:
        _mark(engine, root, own)
    else:
        _settle_store(engine, root, own, used)
    return own


def _settle_store(engine: Engine, root: StoreRoot, own: Installation, used: bool) -> None:
    """Write the marker if it is missing, or that of the original; refuse another store."""
    found, here = _read_marker(root), root.place
    if found is None:
        if used and own.store is not None:
            if not _same_store(own.store, here):
                raise _unmarked(own, here)
            if root.is_empty():
                reason = "the store is empty, although the database names files in it"
                raise StorageUnavailableError(here["path"], reason)
        _mark(engine, root, own)
    elif found.identity != own.identity:
        if not _follows(own, found, here):
            raise _foreign(own, found, here, used)
        _mark(engine, root, own)
    elif own.store != here or found.store != here:
        # It is ours. A host may mount it for reading only, and every mount has another number.
        with contextlib.suppress(StorageUnavailableError):
            _mark(engine, root, own)


def _follows(own: Installation, found: Marker, here: Place) -> bool:
    """Tell whether the store of the original is that of its copy now."""
    if found.identity != own.former:
        return False
    return not _same_store(found.store, here) or found.database == own.place["path"]


def _same_store(recorded: Place, here: Place) -> bool:
    """Tell whether a store is where it was recorded; a copy is not."""
    if recorded["path"] == here["path"]:
        return True
    keys = ("inode", "device")
    return "inode" in here and all(recorded.get(key) == here[key] for key in keys)


def _mark(engine: Engine, root: StoreRoot, own: Installation) -> None:
    """Write the marker and note it in the database.

    Two installations may begin with one empty store at the same time: the marker is read again, and
    the one that finds the other's is refused.
    """
    root.make()
    here = root.place
    values = asdict(Marker(own.identity, own.place["path"], here)) | {"format": _FORMAT}
    root.replace(MARKER, json.dumps(values, indent=1, sort_keys=True).encode() + b"\n")
    found = _read_marker(root)
    if found is not None and found.identity != own.identity:
        raise _foreign(own, found, here, used=True)
    with session_scope(engine) as session:
        note_store(session, here)


def _read_marker(root: StoreRoot) -> Marker | None:
    """Return the store's marker; None if there is none.

    Raises
    ------
    StateError
        It cannot be read.
    """
    data = root.read(MARKER)
    if data is None:
        return None
    try:
        values: dict[str, Any] = json.loads(data)
        if values.get("format", _FORMAT) > _FORMAT:
            place = f"{root.place['path']}/{MARKER}"
            reason = f"format {values['format']}, and this Vantage reads formats up to {_FORMAT}"
            raise NewerFormatError(place, reason)
        return Marker(str(values["identity"]), str(values["database"]), dict(values["store"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StateError(
            f"{root.place['path']}/{MARKER} cannot be read ({type(error).__name__}: {error}); "
            "take it from a backup, or run `vantage migrate --take-store` if the store is that of "
            "this database"
        ) from error


def _foreign(own: Installation, found: Marker, here: Place, used: bool) -> OtherInstallationError:
    """Return the error for a store with the marker of another installation.

    An empty database in the place of the one that the store was used with has replaced a lost one.
    """
    if not used and found.database == own.place["path"]:
        return OtherInstallationError(
            f"the database {own.place['path']} is empty, but the store {here['path']} holds the "
            f"files of the one that was there: {RESTORE}"
        )
    mine = f"set VANTAGE_STORE to its own store, {own.store['path']}" if own.store else ""
    return OtherInstallationError(
        f"the store {here['path']} belongs to another installation (identity {found.identity}, "
        f"database {found.database}), not to the database {own.place['path']} (identity "
        f"{own.identity}); {mine or 'set VANTAGE_STORE to another folder'}, or, if this store "
        "shall be that of this database from now on, run `vantage migrate --take-store`"
    )


def _unmarked(own: Installation, here: Place) -> OtherInstallationError:
    """Return the error for a store without a marker where another was used before."""
    assert own.store is not None
    return OtherInstallationError(
        f"the store {here['path']} has no file of this installation (database "
        f"{own.place['path']}, identity {own.identity}), whose files are in {own.store['path']}; "
        "set VANTAGE_STORE to that, or, if the files were moved here without their "
        f"{MARKER}, run `vantage migrate --take-store`"
    )
