"""Addresses that name files: a path in one is taken as it is written, nothing of it is decoded.

A path is not a URL. ``%20``, ``?``, ``#``, ``::`` and bytes that are not UTF-8 are characters of
file names like all others.
"""

from __future__ import annotations

from pathlib import Path

_SQLITE = ("sqlite:///", "sqlite+pysqlite:///")
_FILE = "file://"


def sqlite_file(url: str) -> str | None:
    """Return the path in the address of a SQLite file; None for other addresses."""
    prefix = next((prefix for prefix in _SQLITE if url.startswith(prefix)), None)
    return None if prefix is None else url.removeprefix(prefix)


def sqlite_address(path: Path) -> str:
    """Return the address of a SQLite file."""
    return f"{_SQLITE[0]}{path}"


def store_folder(store: str) -> Path | None:
    """Return the folder of a store on disk; None if it is a URL of another file system.

    A URL has ``://``, but not behind a slash: an absolute path is always a folder.
    """
    if store.startswith(_FILE):
        return Path(store.removeprefix(_FILE))
    if store.startswith("/") or "://" not in store:
        return Path(store)
    return None


def absolute_database(url: str) -> str:
    """Return an address in which the path of a SQLite file does not depend on a folder."""
    path = sqlite_file(url)
    if not path or path == ":memory:":
        return url
    return sqlite_address(Path(path).absolute())


def absolute_store(store: str) -> str:
    """Return a store that does not depend on the process's working directory."""
    folder = store_folder(store)
    return store if folder is None else str(folder.expanduser().absolute())
