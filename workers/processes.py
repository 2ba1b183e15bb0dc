"""Small tools for processes: die with the parent, stop politely, private files, one per home."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import StateError
from pipeline.private_files import make_home, open_privately

__all__ = [
    "EXIT_CONFIG",
    "HomeLock",
    "die_with_parent",
    "free_port",
    "is_the_one",
    "read_json",
    "run_dir",
    "set_death_signal",
    "start_time",
    "stop_process",
    "write_private",
    "writing_home",
]

EXIT_CONFIG = 78
"""Exit status for wrong settings: starting the process again cannot help."""

_PR_SET_PDEATHSIG = 1
# Loaded at import: a child between fork and exec must not load anything.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(signum: int = signal.SIGKILL) -> Callable[[], None]:
    """Return a ``preexec_fn`` that has the kernel signal the child when its parent dies.

    The parent is the *thread* that starts the child: start long-lived children from a thread that
    lives as long (the main thread). Does nothing on other systems than Linux.

    Parameters
    ----------
    signum : int
        Signal the child gets, even if the parent was killed with SIGKILL.
    """
    parent = os.getpid()

    def preexec() -> None:
        set_death_signal(signum)
        if os.getppid() != parent:  # the parent died before the call above
            os._exit(1)

    return preexec


def set_death_signal(signum: int) -> None:
    """Have the kernel send this process a signal when the thread that forked it ends (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)


def stop_process(
    process: subprocess.Popen[Any], grace_s: float, signum: int = signal.SIGTERM
) -> int:
    """Ask a child to end, kill it after `grace_s` seconds, and return its exit status."""
    if process.poll() is None:
        process.send_signal(signum)
        try:
            process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def start_time(pid: int) -> int | None:
    """Return when a process began, in ticks since this machine did; None if that is not known."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(text.rpartition(b")")[2].split()[19])


def is_the_one(known: Mapping[str, Any], run: Path) -> bool:
    """Tell whether the process that was written down still runs, and for this home.

    Without this, whoever listens at the port of a server that is gone would get our password, and a
    copy of a home would use the server of the original.
    """
    if known.get("run") not in (None, run.stat().st_ino):
        return False
    started = known.get("started")
    return started is None or started == start_time(int(known.get("pid", 0)))


def free_port(address: str = "127.0.0.1") -> int:
    """Return a TCP port that was free a moment ago."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def writing_home(home: Path) -> Iterator[None]:
    """Turn an error about a file of the home into a sentence that says what to do.

    Raises
    ------
    StateError
        A file of the home cannot be written.
    """
    try:
        yield
    except OSError as error:
        if not str(error.filename or "").startswith(str(home)):
            raise
        raise StateError(
            f"{error.filename} cannot be written ({error.strerror}); give this user the right to "
            f"write in {home}, or set VANTAGE_HOME to another folder"
        ) from error


def run_dir(home: Path) -> Path:
    """Return ``home/run``, made for this user only: it holds addresses and passwords."""
    path = home / "run"
    make_home(home)
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)
    return path


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read; readers see the old text or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the mapping in a JSON file, or None if it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


class HomeLock:
    """Prevents a second ``vantage up`` on one home; the kernel drops it when the holder dies.

    Parameters
    ----------
    home : Path
        The data directory (``VANTAGE_HOME``).
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file: TextIO | None = None

    def __enter__(self) -> HomeLock:
        """Take the lock.

        Raises
        ------
        StateError
            Another process holds it.
        """
        with writing_home(self._home):
            path = run_dir(self._home) / "up.lock"
            file = open(path, "a+", encoding="utf-8", opener=open_privately)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise StateError(
                f"`vantage up` already runs on {self._home} (process {holder}); use it, stop it "
                "with Ctrl-C, or choose another VANTAGE_HOME"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
            self._file.close()
            self._file = None
