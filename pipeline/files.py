"""Files of images: hashing them, reading them within limits, and why one cannot be read.

Nothing here decodes. Whatever is wrong with a file becomes an `ImageReadError`; a file of a strange
kind (pipe, device) cannot block the caller.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pipeline.config import ImageLimits
from pipeline.errors import ImageReadError, MissingRootError

# Trouble of this process, not of the file: must not be recorded as the image's fault.
_PROCESS_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def hash_bytes(data: bytes) -> str:
    """Return the SHA-256 of an image's bytes, 64 hex digits: its identity."""
    return hashlib.sha256(data).hexdigest()


def read_file(path: str | Path, *, limits: ImageLimits, roots: Sequence[str] = ("/",)) -> bytes:
    """Read a regular file of at most ``limits.max_bytes`` bytes.

    Parameters
    ----------
    path : str or Path
    limits : ImageLimits
    roots : sequence of str, default ("/",)
        Folders that the file must lie in. The opened file is judged, not its name: a link may be
        laid, or a folder replaced, at any moment before.

    Raises
    ------
    ImageReadError
        Codes ``vanished``, ``permission-denied``, ``not-a-file``, ``symlink-loop``,
        ``outside-roots``, ``too-large-bytes``, ``read-error``.
    """
    name = os.fspath(path)
    try:
        # Looked at before it is opened: opening a device can have effects of its own.
        require_regular(name, Path(name).stat().st_mode)
        # O_NONBLOCK: a pipe put there in between must not hold us.
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            require_regular(name, status.st_mode)
            _require_below(name, descriptor, roots)
            require_bytes(name, status.st_size, limits)
            data: bytes | None = file.read(limits.max_bytes + 1)
    except OSError as error:
        raise_read_error(name, error)
    except ImageReadError:
        raise
    except ValueError as error:
        # A path with a null byte names nothing.
        raise ImageReadError(name, "vanished", f"there can be no such file: {error}") from error
    if data is None:
        # Files of the kernel look regular, and may have nothing to say now.
        raise ImageReadError(name, "not-a-file", "it is a file of the system that would block")
    require_bytes(name, len(data), limits)
    return data


def read_location(
    path: str, root: str, *, limits: ImageLimits, roots: Sequence[str] = ("/",)
) -> bytes:
    """Read a registered file; tell a vanished file from a vanished folder.

    Parameters
    ----------
    path, root : str
        The file and the folder (or file) that was given when it was registered.
    limits : ImageLimits
    roots : sequence of str, default ("/",)
        Folders that images may lie in, on this host and now: a link may have been laid since the
        file was registered.

    Raises
    ------
    ImageReadError
        As `read_file`, and ``outside-roots``: the fault of this one file.
    MissingRootError
        The whole folder is missing, or empty like an unmounted mount point: the images are not at
        fault.
    """
    try:
        return read_file(path, limits=limits, roots=roots)
    except ImageReadError as error:
        if error.code == "vanished" and path != root and _is_missing_folder(root):
            raise MissingRootError(root) from error
        raise


def _require_below(name: str, descriptor: int, roots: Sequence[str]) -> None:
    """Refuse an opened file that lies in none of the folders.

    Raises
    ------
    ImageReadError
        Code ``outside-roots``.
    """
    if "/" in roots:
        return
    try:
        # The kernel's own answer: where the opened file lies now.
        real = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
    except OSError:  # a system without it
        real = os.path.realpath(name)
        if not os.path.samestat(os.stat(real), os.fstat(descriptor)):  # noqa: PTH116
            raise outside_roots(name) from None
    if not _lies_below(real, roots):
        raise outside_roots(name)


def is_below(path: str, roots: Sequence[str]) -> bool:
    """Say whether a path lies in one of the folders, or is one, all links resolved."""
    return _lies_below(os.path.realpath(path), roots)


def _lies_below(resolved: str, roots: Sequence[str]) -> bool:
    """Say whether a path without links lies in one of the folders, or is one."""
    folders = (os.path.realpath(root).rstrip("/") for root in roots)
    return any(resolved == folder or resolved.startswith(folder + "/") for folder in folders)


def outside_roots(path: str) -> ImageReadError:
    """Return the error of a path outside the allowed folders."""
    sentence = "it lies outside the allowed image folders (VANTAGE_IMAGE_ROOTS)"
    return ImageReadError(path, "outside-roots", sentence)


def _is_missing_folder(root: str) -> bool:
    """Whether a folder is not there or has nothing in it."""
    try:
        with os.scandir(root) as entries:
            return next(entries, None) is None
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def require_regular(name: str, mode: int) -> None:
    """Refuse everything that is not a regular file."""
    if stat.S_ISREG(mode):
        return
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    kind = next((word for test, word in kinds if test(mode)), "a device")
    raise ImageReadError(name, "not-a-file", f"it is {kind}, not a file")


def require_bytes(name: str, size: int, limits: ImageLimits) -> None:
    """Refuse a file of more bytes than the limit.

    Raises
    ------
    ImageReadError
        Code ``too-large-bytes``.
    """
    if size > limits.max_bytes:
        raise ImageReadError(
            name,
            "too-large-bytes",
            f"it has {size:,} bytes, more than the limit of {limits.max_bytes:,} "
            "(VANTAGE_MAX_BYTES raises it)",
        )


def raise_read_error(name: str, error: OSError) -> NoReturn:
    """Turn an operating system's error about a file into an `ImageReadError`.

    Raises
    ------
    ImageReadError
        With the matching code.
    OSError
        The same error, if this process is the cause (no file handles, no memory).
    """
    number = error.errno
    if number in _PROCESS_ERRNOS:
        raise error
    if number == errno.ENAMETOOLONG:
        code, sentence = "read-error", "its path is too long to be opened; shorten folder names"
    elif number in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
        code, sentence = "vanished", "there is no such file; it was moved or deleted"
    elif number in (errno.EACCES, errno.EPERM):
        code, sentence = "permission-denied", "this user may not read it; change its permissions"
    elif number == errno.ELOOP:
        code, sentence = "symlink-loop", "its symbolic links form a loop"
    elif number in (errno.EISDIR, errno.ENXIO, errno.ENODEV):
        code, sentence = "not-a-file", "it is not a regular file"
    else:
        code, sentence = "read-error", f"it could not be read: {error.strerror or error}"
    raise ImageReadError(name, code, sentence) from error
