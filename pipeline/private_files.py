"""Files and folders that only this user can use, unless their folder is shared on purpose.

A folder is shared on purpose when its group may use it and others may not, or when its group may
write to it and it has the setgid bit: somebody made it so, no usual umask does (022; 002 where each
user has a group of their own). What we make in it is for the group then, as far as the process's
umask allows; never for others. Folders for everybody, like ``/tmp``, are not meant: they have the
sticky bit.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

__all__ = [
    "close_to_others",
    "is_shared",
    "make_folder",
    "make_home",
    "open_privately",
    "take_over",
    "touch",
]

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def is_shared(folder: Path) -> bool:
    """Tell whether a folder is shared with its group; no if it is not there."""
    try:
        mode = folder.stat().st_mode
    except OSError:
        return False
    for_group_alone = mode & stat.S_IRWXG and not mode & stat.S_IRWXO
    inherited = mode & stat.S_IWGRP and mode & stat.S_ISGID
    return bool(for_group_alone or inherited) and not mode & stat.S_ISVTX


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing.

    Raises
    ------
    OSError
    """
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    try:
        path.mkdir(mode=0o770 if is_shared(path.parent) else 0o700)
    except FileExistsError:
        if not path.is_dir():
            raise


def make_home(path: Path) -> None:
    """Make the data directory of this user alone; take over an empty one.

    Raises
    ------
    OSError
    """
    if not path.exists():
        make_folder(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
    else:
        take_over(path)


def take_over(home: Path) -> None:
    """Close an empty folder that shall be a data directory.

    Only for ``VANTAGE_HOME``: the folder of a database elsewhere keeps its mode.

    Raises
    ------
    OSError
    """
    if not any(home.iterdir()):
        close_to_others(home)


def close_to_others(path: Path) -> None:
    """Take the rights of group and others to a file or folder of ours that is not shared.

    A folder for everybody stays so: ``/tmp`` may be empty, and root's.
    """
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
            return
        if found.st_uid == os.geteuid() and found.st_mode & _OTHERS:
            folder = path if path.is_dir() else path.parent
            if not is_shared(folder):
                path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
    except OSError:
        pass  # it is somebody else's, or gone


def open_privately(path: str, flags: int) -> int:
    """Open a file, for the ``opener`` of `open`; a new one is for this user, or the group."""
    return os.open(path, flags, 0o660 if is_shared(Path(path).parent) else 0o600)


def touch(path: Path) -> None:
    """Make an empty file if there is none.

    Raises
    ------
    OSError
    """
    os.close(open_privately(str(path), os.O_CREAT | os.O_WRONLY))
