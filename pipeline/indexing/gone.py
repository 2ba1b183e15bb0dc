"""Files that are no longer where they were: found at the end of a registration.

A drive that is not mounted makes nothing gone (`pipeline.existence.shows_removals`).

A file system may ignore the case of names, or how accents are composed: there, a former name still
leads to the renamed file. So a name counts only if the folder lists it in exactly this form.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.existence import shows_removals
from pipeline.metadata import images
from pipeline.metadata.engine import session_scope
from pipeline.resources import Resources
from pipeline.walk import FoundFile

CHECKED_AT_ONCE = 5000


class SeenFiles:
    """The files that a walk has found: eight bytes for each."""

    def __init__(self) -> None:
        self._seen = array("q")
        self._closed: list[str] = []

    def add(self, file: FoundFile) -> None:
        """Remember a file; also one that cannot be read, which may be a folder."""
        self._seen.append(hash(file.path))
        if file.error is not None:
            self._closed.append(os.path.join(file.path, ""))  # noqa: PTH118

    def unseen(self, paths: list[str]) -> list[str]:
        """Return the paths that were not found, but those in folders that could not be listed."""
        hashes = np.fromiter((hash(path) for path in paths), np.int64, len(paths))
        found = np.isin(hashes, np.frombuffer(self._seen, np.int64))
        closed = tuple(self._closed)
        return [
            path
            for path, known in zip(paths, found, strict=True)
            if not known and not path.startswith(closed)
        ]


class Missing(NamedTuple):
    """How many known files are not there.

    Attributes
    ----------
    gone : int
        Marked as gone now.
    unknown : int
        Their drive may not be mounted.
    """

    gone: int
    unknown: int


def mark_gone_files(
    resources: Resources,
    collection_id: int,
    folders: list[str],
    seen: SeenFiles,
    emptied: bool = False,
) -> Missing:
    """Mark the known files below folders that were removed; count those that may be elsewhere.

    Parameters
    ----------
    resources : Resources
    collection_id : int
    folders : list of str
        Folders that were walked, to the end.
    seen : SeenFiles
        What was found there.
    emptied : bool
        All drives are mounted: what is not there is gone.
    """
    marked = unknown = 0
    for folder in folders:
        after = ""
        while True:
            with session_scope(resources.engine, write=False) as session:
                paths = images.paths_below(session, collection_id, folder, after, CHECKED_AT_ONCE)
            if not paths:
                break
            after = paths[-1]
            listings = lru_cache(maxsize=64)(_names)
            gone = [path for path in seen.unseen(paths) if not _is_there(path, folder, listings)]
            if not emptied:
                left = lru_cache(maxsize=1024)(partial(_left, root=folder))
                removed = [path for path in gone if left(os.path.dirname(path))]  # noqa: PTH120
                unknown += len(gone) - len(removed)
                gone = removed
            if gone:
                with session_scope(resources.engine) as session:
                    marked += images.mark_gone(session, collection_id, gone, time.time())
    return Missing(marked, unknown)


def _left(folder: str, root: str) -> bool:
    """Tell whether a file that is not in a folder has left it; no if that cannot be known."""
    try:
        return shows_removals(folder, root)
    except OSError:
        return False


def _is_there(path: str, folder: str, listings: Callable[[str], frozenset[str] | None]) -> bool:
    """Tell whether a file exists under exactly this name; true if that cannot be known."""
    try:
        os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    parent = folder
    for name in Path(path).relative_to(folder).parts:
        names = listings(parent)
        if names is not None and name not in names:
            return False
        parent = os.path.join(parent, name)  # noqa: PTH118
    return True


def _names(folder: str) -> frozenset[str] | None:
    """Return the names in a folder; None if it cannot be listed."""
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return None
