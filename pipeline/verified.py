"""Which local copies were compared with their SHA-256, and what they looked like then.

A copy whose inode, size and times are as they were is trusted; otherwise its bytes are read again.
So a process that starts need not read all copies. The record is a file beside the copies, to which
all processes of this host append lines; the last line of a copy counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import NamedTuple

from pipeline.private_files import make_folder, open_privately

__all__ = ["Look", "VerifiedCopies", "file_checksum", "look_at"]

_NAME = "verified.jsonl"
_MOST_LINES = 4
"""The record is written anew when it has so many times more lines than copies."""

_FEWEST_LINES = 1000


class Look(NamedTuple):
    """What tells one state of a file from another without reading it.

    The time of the last status change is set by the system alone: it shows a change whose author
    has put back the time of modification.
    """

    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def look_at(path: Path) -> Look | None:
    """Return what a file looks like; None if it is not there or cannot be reached."""
    try:
        found = path.stat()
    except OSError:
        return None
    return Look(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class VerifiedCopies:
    """Local copies and their SHA-256, valid while the files look the same.

    Parameters
    ----------
    folder : Path
        The folder of the local copies.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, Look]] | None = None

    def checksum(self, key: str, look: Look) -> str | None:
        """Return the SHA-256 that a copy had when it looked like this; None: never compared."""
        with self._lock:
            known = self._read().get(key)
        return known[0] if known is not None and known[1] == look else None

    def note(self, key: str, checksum: str, look: Look | None) -> None:
        """Record a comparison; `look` is from before the bytes were read.

        If the record cannot be written, the next process compares again.
        """
        if look is None:
            return
        with self._lock:
            known = self._read()
            if known.get(key) == (checksum, look):
                return
            known[key] = (checksum, look)
            with contextlib.suppress(OSError):
                self._append(key, checksum, look)

    def forget(self, key: str) -> None:
        """Compare a copy again when it is needed; this process only."""
        with self._lock:
            self._read().pop(key, None)

    def _read(self) -> dict[str, tuple[str, Look]]:
        """Return the record, read once."""
        if self._known is None:
            self._known, lines = {}, 0
            with contextlib.suppress(OSError), self._path.open("rb") as stream:
                for lines, line in enumerate(stream, start=1):  # noqa: B007
                    with contextlib.suppress(ValueError, TypeError, AttributeError):
                        key, checksum, look = json.loads(line)
                        self._known[str(key)] = (str(checksum), Look(*map(int, look)))
            if lines > max(_FEWEST_LINES, _MOST_LINES * len(self._known)):
                with contextlib.suppress(OSError):
                    self._write_anew(self._known)
        return self._known

    @property
    def _path(self) -> Path:
        return self._folder / _NAME

    def _append(self, key: str, checksum: str, look: Look) -> None:
        """Append one line; the system keeps lines of several processes apart."""
        make_folder(self._folder)
        with open(self._path, "ab", 0, opener=open_privately) as stream:
            stream.write(_line(key, checksum, look))

    def _write_anew(self, known: dict[str, tuple[str, Look]]) -> None:
        """Replace the record by one line a copy that is still there."""
        temporary = self._path.with_name(f".{_NAME}.{os.getpid()}.tmp")
        lines = [_line(key, *found) for key, found in known.items()]
        with open(temporary, "wb", opener=open_privately) as stream:
            stream.write(b"".join(lines))
        temporary.replace(self._path)


def _line(key: str, checksum: str, look: Look) -> bytes:
    """Return a line of the record."""
    return json.dumps([key, checksum, look]).encode() + b"\n"
