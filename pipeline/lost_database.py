"""A database that is gone: it is not made anew beside the files that it named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine

from pipeline.addresses import store_folder
from pipeline.config import Settings
from pipeline.errors import StateError
from pipeline.metadata.engine import (
    open_database,
    schema_revision,
    shown,
)
from pipeline.redaction import without_secrets

__all__ = ["RESTORE", "database_of", "refuse_lost_database"]

RESTORE = (
    "restore the backup of the database (and remove its -wal and -shm files before), or, to start "
    "anew, move the store away"
)
"""What to do if a store holds the files of a database that is empty or missing."""

_FOLDERS = ("containers", "groups", "trees")


def refuse_lost_database(engine: Engine, store: str) -> None:
    """Refuse an empty or missing database if the store holds files that one has named.

    Raises
    ------
    StateError
        Says to restore the backup.
    """
    if schema_revision(engine) is None and _holds_files(store):
        place = store if store_folder(store) is not None else without_secrets(store)
        raise StateError(
            f"the database {shown(engine.url)} is empty or missing, but the store {place!r} holds "
            f"the files of a database: {RESTORE}"
        )


def _holds_files(store: str) -> bool:
    """Tell whether a store has files of an index; one that does not answer has none."""
    folder = store_folder(store)
    if folder is not None:
        return any(_has_entries(folder / name) for name in _FOLDERS)
    import fsspec  # not at the top: status would load it for nothing

    try:
        system, root = fsspec.core.url_to_fs(store)
        return any(system.exists(f"{str(root).rstrip('/')}/{name}") for name in _FOLDERS)
    except Exception:
        return False


def _has_entries(folder: Path) -> bool:
    try:
        return next(folder.iterdir(), None) is not None
    except OSError:
        return False


@contextmanager
def database_of(settings: Settings, *, make: bool = False) -> Iterator[Engine]:
    """Give an engine on the database of an installation.

    Parameters
    ----------
    settings : Settings
    make : bool
        See `pipeline.metadata.engine.open_database`; a reader makes nothing.

    Raises
    ------
    StateError
        See `refuse_lost_database`.
    SchemaVersionError, DatabaseUnavailableError
        See `pipeline.metadata.engine.prepare_schema`.
    """
    with open_database(
        settings.database_url,
        make=make,
        check=lambda engine: refuse_lost_database(engine, settings.store),
    ) as opened:
        yield opened
