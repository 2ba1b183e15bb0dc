"""Files with the machine code of compiled loops; this module loads nothing else.

A file has the SHA-256 of the rest, a line of JSON, and an object file as a linker takes it. It is
executed: so a file of another user is not read, whatever folder it is in, and nobody else may write
into ours.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "ENTRY",
    "MISMATCH",
    "MachineCode",
    "Result",
    "machine_code_folder",
    "read_machine_code",
    "write_machine_code",
]

ENTRY = "vantage_entry"
"""Name of the function in the machine code.

It takes the address of a frame, and that of the addresses of the arrays' types; returns a status.
"""

MISMATCH = -1000
"""The status if the arguments are not of the types that the code was compiled for."""

_PACKAGE = Path(__file__).parent
_DIGEST_BYTES = 32


class Result(NamedTuple):
    """What a loop returns: nothing, numbers, or a tuple of numbers.

    Attributes
    ----------
    kinds : str
        ``q`` for each int64, ``d`` for each float64.
    is_tuple : bool
    """

    kinds: str
    is_tuple: bool


class MachineCode(NamedTuple):
    """Machine code for arguments of certain types.

    Attributes
    ----------
    code : bytes
        An object file.
    result : Result
    needs : tuple of str
        Functions of the C library that it calls.
    """

    code: bytes
    result: Result
    needs: tuple[str, ...]


@functools.cache
def machine_code_folder() -> Path:
    """Return the folder of machine code; it may not exist.

    ``NUMBA_CACHE_DIR``, else one inside the package, else the user's cache directory, else (a user
    without a home) one for temporary files.
    """
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        return Path(given)
    beside = _PACKAGE / "__pycache__"
    if os.access(beside if beside.exists() else _PACKAGE, os.W_OK):
        return beside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111
    if cache.is_absolute():
        return cache / "vantage"
    import tempfile  # not at the top: hardly anybody has no home

    return Path(tempfile.gettempdir()) / f"vantage-{os.geteuid()}"


@functools.cache
def _trusted_users() -> frozenset[int]:
    """Return whose files this process executes: its own, root's, and two more.

    Who owns the package or the user's home decides what runs anyway; a drive of a network may know
    this user by another number, there as in the cache folder.
    """
    users = {os.geteuid(), 0}
    for place in (__file__, os.path.expanduser("~")):  # noqa: PTH111
        if Path(place).is_absolute():
            with contextlib.suppress(OSError):
                users.add(Path(place).stat().st_uid)
    return frozenset(users)


def read_machine_code(path: Path) -> MachineCode | None:
    """Return the machine code of a file; None if it is missing, damaged, or another user's."""
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_uid not in _trusted_users():
                return None
            data = stream.read()
    except OSError:
        return None
    digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None
    header, _, code = body.partition(b"\n")
    result, needs = json.loads(header)
    return MachineCode(code, Result(*result), tuple(needs))


def write_machine_code(path: Path, made: MachineCode) -> None:
    """Write a file as a whole; do nothing where that is not possible."""
    body = json.dumps([made.result, made.needs]).encode() + b"\n" + made.code
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(hashlib.sha256(body).digest() + body)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
