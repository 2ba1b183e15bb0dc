"""Notice that the ``vantage up`` that started this process is gone."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping

import psutil

__all__ = ["GRACE_S", "WATCH_S", "UpWatch"]

_log = logging.getLogger(__name__)

WATCH_S = 1.0
"""How often a process looks."""

GRACE_S = 6.0
"""How long a process may take to stop."""


class UpWatch:
    """Ends this process when the ``vantage up`` that started it is gone.

    The kernel does the same at once on Linux (see `workers.processes.die_with_parent`); this
    works everywhere, and also when the process ignores the kernel's first, polite signal.

    Parameters
    ----------
    environ : mapping of str to str, optional
        ``VANTAGE_UP_PID`` is read from it; without that, nothing is watched.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        text = (os.environ if environ is None else environ).get("VANTAGE_UP_PID", "")
        self._up: psutil.Process | None = None
        self._gone = self._own_group = False
        if text.isdigit():
            try:
                self._up = psutil.Process(int(text))  # knows its start: a reused pid is another
                self._own_group = os.getpgrp() != os.getpgid(self._up.pid)
            except (psutil.NoSuchProcess, ProcessLookupError):
                self._gone, self._own_group = True, False

    def gone(self) -> bool:
        """Tell whether the process that started us has ended."""
        if self._up is not None and not self._gone:
            self._gone = not self._up.is_running() or self._up.status() == psutil.STATUS_ZOMBIE
        return self._gone

    def end_process(self, reason: str = "vantage up has ended: this process ends too") -> None:
        """Ask this process to stop; kill it and its children when it has not after 6 s."""
        _log.error("%s", reason)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        if self._own_group:
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def start_thread(self) -> None:
        """Watch from a thread of its own, for processes without a heartbeat."""
        threading.Thread(target=self._watch, name="up-watch", daemon=True).start()

    def _watch(self) -> None:
        while not self.gone():
            time.sleep(WATCH_S)
        self.end_process()
