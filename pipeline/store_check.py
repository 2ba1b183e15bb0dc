"""Which files of the store are lost or plainly damaged, found without reading them.

It lists folders and looks at the sizes of a limited number of files, and loads little, so that
``vantage status`` can afford it. `pipeline.verifying` reads every byte.
"""

from __future__ import annotations

import functools
import os
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from pipeline.addresses import store_folder
from pipeline.config import Settings
from pipeline.errors import file_remedy
from pipeline.metadata.engine import session_scope
from pipeline.metadata.files import KnownFile, known_files

__all__ = ["FileTrouble", "look_for_troubles", "trouble_of"]

PATIENCE_S = 10.0
"""Seconds to wait for a store that does not answer (a network folder whose server is gone)."""

MOST_LOOKED_AT = 2000
"""Files that are looked at one by one, those whose size is known first: a look at one on a network
drive takes a millisecond. The others are only looked for in the list of their folder."""

MOST_SHOWN = 20
"""Files that are named one by one."""


@dataclass(frozen=True)
class FileTrouble:
    """A file of the store that is not as it should be.

    Attributes
    ----------
    collection, kind, key : str
        As in `KnownFile`; all empty if the store as a whole is meant.
    state : str
        ``lost``, ``damaged``, ``unreadable`` or ``unreachable``.
    reason : str
        What was found.
    remedy : str
        What to do.
    current : bool
        Searches, or the next rebuild, need it.
    """

    collection: str
    kind: str
    key: str
    state: str
    reason: str
    remedy: str
    current: bool = True

    def sentence(self) -> str:
        """Say what is wrong and what to do."""
        if not self.key:
            return f"{self.reason}; {self.remedy}"
        former = "" if self.current else "former "
        return (
            f"{self.collection}: the {former}{self.kind} {self.key!r} is {self.state} "
            f"({self.reason}); {self.remedy}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def trouble_of(file: KnownFile, state: str, reason: str) -> FileTrouble:
    """Return what is wrong with a file, with the remedy."""
    remedy = file_remedy(file.key).replace("COLLECTION", file.collection)
    if not file.current:
        remedy = "only former versions need it"
    return FileTrouble(file.collection, file.kind, file.key, state, reason, remedy, file.current)


def look_for_troubles(
    settings: Settings, engine: Engine, collections: Sequence[str]
) -> list[FileTrouble]:
    """Return what the store lacks of some collections, if it is a folder.

    A store at a URL is not asked: the workers tell what they cannot read of it.
    """
    folder = store_folder(settings.store)
    if folder is None:
        return []
    with session_scope(engine, write=False) as session:
        files = [one for name in collections for one in known_files(session, name, current=True)]
    if not files:
        return []
    found: list[FileTrouble] = []
    unreachable = FileTrouble(
        *("", "", "", "unreachable"),
        f"the store {str(folder)!r} does not answer",
        "is its server reachable?",
    )
    # A folder of a network whose server is gone blocks whoever touches it.
    looking = threading.Thread(target=lambda: found.extend(_look(folder, files)), daemon=True)
    looking.start()
    looking.join(PATIENCE_S)
    return [unreachable] if looking.is_alive() else found


def _look(folder: Path, files: Sequence[KnownFile]) -> list[FileTrouble]:
    """Look at the files, or for them."""
    try:
        with os.scandir(folder) as entries:
            reason = "" if next(entries, None) else f"the store {str(folder)!r} is empty"
    except OSError as exc:
        reason = f"the store {str(folder)!r} cannot be listed ({exc.strerror})"
    if reason:
        remedy = "is it mounted, and is VANTAGE_STORE right? Or restore it from the backup"
        return [FileTrouble("", "", "", "unreachable", reason, remedy)]
    names = functools.cache(functools.partial(_names, folder))
    closely = {one.key for one in sorted(files, key=lambda one: one.size is None)[:MOST_LOOKED_AT]}
    found = (
        None if one.key not in closely and _is_listed(one.key, names) else _trouble(folder, one)
        for one in files
    )
    return [one for one in found if one is not None]


def _names(folder: Path, prefix: str) -> frozenset[str]:
    """Return the names in a folder of the store; none if it cannot be listed."""
    try:
        return frozenset(os.listdir(folder / prefix))  # noqa: PTH208
    except OSError:
        return frozenset()


def _is_listed(key: str, names: Callable[[str], frozenset[str]]) -> bool:
    """Tell whether the folder of a file has its name."""
    prefix, _, name = key.rpartition("/")
    return name in names(prefix)


def _trouble(folder: Path, file: KnownFile) -> FileTrouble | None:
    """Return what can be seen of one file without reading it."""
    path = folder / file.key
    try:
        seen = path.stat()
    except (FileNotFoundError, NotADirectoryError) as exc:
        return trouble_of(file, "lost", exc.strerror or "it is not there")
    except OSError as exc:
        return trouble_of(file, "unreadable", exc.strerror or str(exc))
    if not stat.S_ISREG(seen.st_mode):
        return trouble_of(file, "damaged", "it is not a file")
    if file.size is not None and seen.st_size != file.size:
        reason = f"it has {seen.st_size:,} bytes instead of {file.size:,}"
        return trouble_of(file, "damaged", reason)
    if not seen.st_size:
        return trouble_of(file, "damaged", "it is empty")
    if not os.access(path, os.R_OK):
        return trouble_of(file, "unreadable", "this user may not read it")
    return None
