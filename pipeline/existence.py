"""Whether files exist, as far as that is found out within a time.

A drive that does not answer may hold a process for hours: nobody can take a system call back. So
each drive is asked by a thread of its own, and a drive that owes an answer beyond the time that it
had is not asked again.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

_MOUNTS = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-7]{3})")


class _Asking(NamedTuple):
    """A thread that asks a drive, perhaps for ever, and until when it may take."""

    thread: threading.Thread
    until: float


_asked: dict[str, list[_Asking]] = {}
"""By mount point; several callers may ask a drive at the same time."""

_lock = threading.Lock()


def identity(path: str) -> tuple[int, int]:
    """Return what two names of one file have in common."""
    status = os.stat(path)  # noqa: PTH116
    return status.st_dev, status.st_ino


def shows_removals(folder: str, root: str) -> bool:
    """Tell whether a file that is not in a folder was removed; no if its drive may be missing.

    A drive that is not mounted leaves an empty folder, a link that leads nowhere, or, where its
    mount point was made for it, nothing beside other mount points.

    Parameters
    ----------
    folder : str
        Where the file was; it may be missing, too.
    root : str
        The folder that was indexed, `folder` or one above it.

    Raises
    ------
    OSError
        A folder cannot be listed.
    """
    missing = False
    while True:
        try:
            with os.scandir(folder) as entries:
                if next(entries, None) is None:
                    return False
        except NotADirectoryError:
            return True
        except FileNotFoundError:
            if len(folder) <= len(root) or Path(folder).is_symlink():
                return False
            missing, folder = True, os.path.dirname(folder)  # noqa: PTH120
        else:
            return not (missing and _holds_mounts(folder))


def _holds_mounts(folder: str) -> bool:
    """Tell whether drives are mounted in a folder: each may have a name that comes and goes."""
    real = os.path.realpath(folder)
    return any(os.path.dirname(mount) == real for mount in _mounts() if mount != "/")  # noqa: PTH120


def look(paths: Iterable[str], within_s: float, ask: Callable[[str], T]) -> Mapping[str, T | None]:
    """Ask about files, for at most a time.

    Parameters
    ----------
    paths : iterable of str
        Absolute.
    within_s : float
        Seconds.
    ask : callable
        Takes a path; raises `FileNotFoundError` or `NotADirectoryError` if there is no such file.

    Returns
    -------
    mapping
        By path: what `ask` returned, None if there is no such file. Paths are missing whose drive
        did not answer in time, or with another error.
    """
    until = time.monotonic() + within_s
    by_mount: dict[str, list[str]] = {}
    mounts = _mounts()
    for path in dict.fromkeys(paths):
        by_mount.setdefault(_mount_of(path, mounts), []).append(path)
    found: dict[str, T | None] = {}
    enough = threading.Event()
    threads = []
    for mount, some in by_mount.items():
        thread = threading.Thread(
            target=_ask_all, args=(some, ask, found, enough), name="look", daemon=True
        )
        if _start(mount, thread, until):
            threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    enough.set()
    return dict(found)


def _start(mount: str, thread: threading.Thread, until: float) -> bool:
    """Start a thread that asks a drive, unless the drive has not answered another one in time."""
    with _lock:
        alive = [one for one in _asked.get(mount, ()) if one.thread.is_alive()]
        answers = all(time.monotonic() < one.until for one in alive)
        if answers:
            thread.start()
            alive.append(_Asking(thread, until))
        _asked[mount] = alive
    return answers


def _ask_all(
    paths: Iterable[str],
    ask: Callable[[str], T],
    found: dict[str, T | None],
    enough: threading.Event,
) -> None:
    """Ask about each file until it is enough."""
    for path in paths:
        if enough.is_set():
            return
        try:
            found[path] = ask(path)
        except (FileNotFoundError, NotADirectoryError):
            found[path] = None
        except (OSError, ValueError):
            continue


def _mounts() -> frozenset[str]:
    """Return the mount points of this machine; none where they are not known."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return frozenset()
    names = (line.split(b" ")[4] for line in lines if line.count(b" ") > 4)
    return frozenset(
        os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8)]), name)) for name in names
    )


def _mount_of(path: str, mounts: frozenset[str]) -> str:
    """Return the mount point of a path, without asking the drive."""
    while path not in mounts and path != "/" and path:
        path = os.path.dirname(path)  # noqa: PTH120
    return path


def _forget() -> None:
    """Begin anew in a forked process: threads stay behind."""
    global _lock
    _lock = threading.Lock()
    _asked.clear()


os.register_at_fork(after_in_child=_forget)
