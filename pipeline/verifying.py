"""Comparing every file of the store that the database knows with its SHA-256."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Engine

from pipeline.arrays import ArrayFile
from pipeline.containers import check_container
from pipeline.cores import usable_cores
from pipeline.errors import CorruptFileError, LostFileError, NewerFormatError
from pipeline.index.identities import NO_IMAGES
from pipeline.index.model import Model
from pipeline.index.segments import Segment
from pipeline.metadata.engine import session_scope
from pipeline.metadata.files import KnownFile, known_files
from pipeline.storage import Storage
from pipeline.store_check import FileTrouble, trouble_of

__all__ = ["Verification", "verify_files"]

_AT_ONCE = 4
"""Files read at the same time, at most."""


@dataclass(frozen=True)
class Verification:
    """What a comparison of all files has found.

    Attributes
    ----------
    files, bytes : int
        Files that were looked at; bytes that were read of them.
    seconds : float
    troubles : tuple of FileTrouble
        Files that are lost, damaged or unreadable, by key.
    copies_dropped : int
        Damaged local copies that were removed: they are fetched again when they are needed.
    """

    files: int
    bytes: int
    seconds: float
    troubles: tuple[FileTrouble, ...]
    copies_dropped: int

    @property
    def ok(self) -> bool:
        """Whether every file that searches or the next rebuild need is as it should be."""
        return not any(trouble.current for trouble in self.troubles)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "ok": self.ok,
            "files": self.files,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "copies_dropped": self.copies_dropped,
            "troubles": [trouble.to_dict() for trouble in self.troubles],
        }


def verify_files(engine: Engine, storage: Storage, collections: Sequence[str]) -> Verification:
    """Read every file of some collections, those of former versions too.

    Parameters
    ----------
    engine : sqlalchemy.Engine
    storage : Storage
    collections : sequence of str

    Raises
    ------
    UnknownNameError
        There is no such collection.
    StorageUnavailableError
        The store does not answer.
    """
    began = time.monotonic()
    with session_scope(engine, write=False) as session:
        files = [one for name in collections for one in known_files(session, name)]
    with ThreadPoolExecutor(min(_AT_ONCE, usable_cores()), "vantage-verify") as pool:
        found = list(pool.map(lambda file: _verify(storage, file), files))
        dropped = sum(pool.map(lambda file: _drop_if_damaged(storage, file), files))
    troubles = [trouble for trouble, _ in found if trouble is not None]
    return Verification(
        len(files),
        sum(size for _, size in found),
        time.monotonic() - began,
        tuple(sorted(troubles, key=lambda trouble: (trouble.key, trouble.collection))),
        dropped,
    )


def _verify(storage: Storage, file: KnownFile) -> tuple[FileTrouble | None, int]:
    """Return what is wrong with one file, and its size."""
    try:
        size = storage.size(file.key)
        if storage.checksum(file.key) != file.checksum:
            return trouble_of(file, "damaged", "its SHA-256 is not the one recorded"), size
        read = _READERS.get(file.kind)
        if read is not None and storage.on_disk:
            read(storage.read_arrays(file.key))
    except LostFileError as exc:
        return trouble_of(file, "lost", exc.args[1]), 0
    except NewerFormatError as exc:
        found = trouble_of(file, "unreadable", exc.args[1])
        return replace(found, remedy="install a newer Vantage"), 0
    except CorruptFileError as exc:
        return trouble_of(file, "damaged", exc.args[1]), 0
    return None, size


def _drop_if_damaged(storage: Storage, file: KnownFile) -> bool:
    """Remove this host's copy of a file if it is not what was recorded; say whether it was."""
    if storage.copy_is_link(file.key) or storage.compare_copy(file.key) in (None, file.checksum):
        return False
    storage.drop_local(file.key)
    return True


_READERS: dict[str, Callable[[ArrayFile], object]] = {
    "segment": lambda file: Segment.from_arrays(file, lambda _ids: NO_IMAGES),
    "tree": Model.from_arrays,
    "container": check_container,
}
"""What makes of a file what it should hold, and refuses another one."""
