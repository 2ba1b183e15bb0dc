"""The file of a SQLite database: made on purpose only, and noticed when it is gone.

SQLite makes an empty file where none is, and goes on with a file that was deleted. Both would hide
that a database is lost: readers would find nothing, and writers would write where nobody reads.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError, DisconnectionError

from pipeline.private_files import make_home, touch

__all__ = ["LOCKED", "file_of", "is_locked", "is_missing", "make_file", "watch_file"]

LOCKED = (
    "another process holds the write lock of the SQLite file: nobody can write heartbeats or "
    "results until it ends"
)
"""What to say when the database is locked for long."""

_FILE = "file"
_PROBE_MS = 200


def file_of(engine: Engine) -> Path | None:
    """Return the file of a SQLite database; None for other databases, and one in memory."""
    name = engine.url.database
    if engine.dialect.name != "sqlite" or not name or name == ":memory:":
        return None
    return Path(name)


def is_missing(engine: Engine) -> bool:
    """Tell whether the file of a SQLite database does not exist."""
    path = file_of(engine)
    return path is not None and not path.exists()


def make_file(engine: Engine) -> None:
    """Make an empty file, and its folder, if there is none.

    Raises
    ------
    OSError
    """
    path = file_of(engine)
    if path is not None and not path.exists():
        if not path.parent.exists():
            make_home(path.parent)
        touch(path)


def watch_file(engine: Engine) -> None:
    """Let connections make no file, and end when theirs is deleted or replaced."""
    path = Path(str(engine.url.database))

    def note_file(_connection: object, record: Any) -> None:
        record.info[_FILE] = _identity(path)

    def require_same_file(_connection: object, record: Any, _proxy: object) -> None:
        if record.info[_FILE] != _identity(path):
            raise DisconnectionError(f"{path} was deleted or replaced")

    event.listen(engine, "do_connect", _open_existing)
    event.listen(engine, "connect", note_file)
    event.listen(engine, "checkout", require_same_file)


def _open_existing(
    _dialect: object, _record: object, args: list[Any], options: dict[str, Any]
) -> None:
    """Open the file for reading and writing, without making it."""
    args[0] = f"file:{quote(os.fsencode(args[0]))}?mode=rw"
    options["uri"] = True


def _identity(path: Path) -> tuple[int, int] | None:
    """Return which file a path leads to; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_locked(engine: Engine) -> bool:
    """Tell whether another process holds the write lock of a SQLite database for long.

    A write takes milliseconds: who waits for it in vain for a moment asks a second time.
    """
    if file_of(engine) is None or is_missing(engine):
        return False
    return _is_busy(engine) and _is_busy(engine)


def _is_busy(engine: Engine) -> bool:
    """Try to take the write lock."""
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        before = driver.execute("PRAGMA busy_timeout").fetchone()[0]
        driver.execute(f"PRAGMA busy_timeout={_PROBE_MS}")
        try:
            connection.execute(text("SELECT 1"))  # begins: immediately, as a writer does
        except DBAPIError as error:
            name = str(getattr(error.orig, "sqlite_errorname", ""))
            return name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
        finally:
            driver.execute(f"PRAGMA busy_timeout={before}")
    return False
