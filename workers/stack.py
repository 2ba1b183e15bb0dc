"""``vantage up`` as a context manager, for the demo, benchmarks and tests."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.config import Settings
from pipeline.errors import StateError
from pipeline.private_files import make_folder, make_home, open_privately
from workers.environment import environment
from workers.processes import die_with_parent
from workers.up import Ready

__all__ = ["Stack"]

_STOP_S = 120.0


class Stack:
    """``vantage up`` in a separate process.

    Leaving the block stops everything and waits until nothing is left. The calling process's
    environment is not changed; a client in it finds Redis by the same home. On Linux everything
    ends with the thread that called `start`: call it from the main thread.

    Parameters
    ----------
    settings : Settings
    deadline_s : float
        Seconds until everything must serve: a guard against hanging only, as a process that ends is
        noticed at once. Compiling the kernels for the first time takes about 20 s on two cores.
    """

    def __init__(self, settings: Settings, deadline_s: float = 600.0) -> None:
        self.settings = settings
        self._deadline_s = deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self.ready: Ready | None = None
        """The report when everything served."""

    @property
    def pid(self) -> int:
        """Process of ``vantage up``."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Ready:
        """Start and wait until everything serves.

        Raises
        ------
        StateError
            It ended, or was not ready in time; the message has its last output.
        """
        logs = self.settings.home / "logs"
        make_home(self.settings.home)
        make_folder(logs)
        reader, writer = os.pipe()
        with (
            open(logs / "up.log", "wb", opener=open_privately) as console,
            os.fdopen(reader, "rb") as pipe,
        ):
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "workers.up", "--ready-fd", str(writer)],
                    env=environment(self.settings),
                    cwd=self.settings.home,
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    pass_fds=(writer,),
                    start_new_session=True,  # Ctrl-C reaches the caller, which then stops this
                    preexec_fn=die_with_parent(signal.SIGTERM),
                )
            finally:
                os.close(writer)
            deadline = time.monotonic() + self._deadline_s
            readable, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            line = pipe.readline() if readable else b""
        if not line:
            self.stop()
            raise StateError(f"vantage up did not get ready:\n{self._last_words()}")
        self.ready = Ready(**json.loads(line))
        return self.ready

    def stop(self) -> int:
        """Stop everything and return the exit status; a second call does nothing."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()  # its children end with it
        return process.wait()

    def wait(self, timeout_s: float) -> int:
        """Wait until it ends and return the exit status.

        Raises
        ------
        subprocess.TimeoutExpired
            It still runs after `timeout_s` seconds.
        """
        assert self._process is not None
        return self._process.wait(timeout=timeout_s)

    def kill(self) -> None:
        """Kill ``vantage up`` abruptly; its children must end by themselves."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def _last_words(self) -> str:
        """Return the end of the console and of the log."""
        parts = []
        for name in ("up.log", "vantage.log"):
            path = Path(self.settings.home) / "logs" / name
            if path.is_file():
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                parts += [f"--- {path}", *lines[-25:]]
        return "\n".join(parts)

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
