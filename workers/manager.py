"""Honcho's process manager, extended for a long-lived ``vantage up``.

* A process that ends unexpectedly is started again after 1, 2 and 4 s. If it ends four times in a
row (a run of a minute resets the count), or with the status for wrong settings, everything is
stopped: half a system that looks alive would be worse. An optional process stays off instead.
* A stop signals the process itself, not its pool: Celery gives running tasks 3 s to finish and puts
the others back. Processes left after 8 s are killed.
* However this process dies, the kernel stops its children (Linux), see `workers.processes`.
* Threads read the output of the processes; honcho's own manager forks itself for each one.

Only this module uses private interfaces of honcho; `tests/unit/test_private_interfaces.py` fails
when an upgrade takes one of them away.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import logging.handlers
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import honcho.manager
from honcho.printer import Message, Printer
from honcho.process import Popen, Process

from pipeline.private_files import make_folder, open_privately
from pipeline.redaction import redacted
from workers.processes import EXIT_CONFIG, die_with_parent

__all__ = ["LogPrinter", "ProcessManager"]

_BACKOFF_S = (1.0, 2.0, 4.0)
_GOOD_RUN_S = 60.0
_KILL_AFTER_S = 8.0
_NOTICE = "vantage"
_LOG_BYTES = 20 * 2**20
_LOG_FILES = 3


class _PrivateFiles(logging.handlers.RotatingFileHandler):
    """Log files that only this user can read."""

    def _open(self) -> Any:
        """Open the file."""
        return open(
            self.baseFilename,
            self.mode,
            encoding=self.encoding,
            errors=self.errors,
            opener=open_privately,
        )


class LogPrinter(Printer):
    """Writes honcho's prefixed lines to a rotated log file, and some of them to the console.

    Parameters
    ----------
    path : Path
        The log file; three older ones of 20 MB are kept beside it.
    say : callable
        Receives the lines for the console.
    secrets : set of str
        Texts replaced by ``***`` wherever they appear.
    verbose : bool
        Show every line on the console.
    """

    def __init__(
        self,
        path: Path,
        say: Callable[[str], None],
        secrets: AbstractSet[str] = frozenset(),
        verbose: bool = False,
    ) -> None:
        super().__init__(output=self)
        make_folder(path.parent)
        self._handler = _PrivateFiles(
            path,
            maxBytes=_LOG_BYTES,
            backupCount=_LOG_FILES,
            encoding="utf-8",
            errors="backslashreplace",  # a path may have bytes that are not UTF-8
        )
        self._handler.setFormatter(logging.Formatter("%(message)s"))
        self._say = say
        self._secrets = set(secrets)
        self._verbose = verbose
        self._lock = threading.RLock()  # the signal handler also prints

    def write(self, message: Any) -> None:
        """Print one message of honcho's."""
        data = message.data
        text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
        text = redacted(text, self._secrets)
        stamp = message.time.strftime("%Y-%m-%d %H:%M:%S")
        name = (message.name or "").ljust(self.width)
        with self._lock:
            for line in text.splitlines():
                full = f"{stamp} {name} | {line}"
                self._handler.emit(logging.makeLogRecord({"msg": full}))
                if self._verbose:
                    self._say(full)
                elif message.name == _NOTICE:
                    self._say(line)

    def isatty(self) -> bool:
        """Tell honcho not to use colours in a file."""
        return False

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


class _Process(Process):
    """A line of the Procfile, and the thread that starts its command again and again."""

    stopping: threading.Event
    optional = False
    off = False
    """True once an optional process has ended too often: it is not started again."""

    def run(self, events: Any = None, ignore_signals: bool = False) -> None:
        """Run the command until it is stopped or has failed too often."""
        self._events = events
        try:
            status = self._run_again_and_again()
        except Exception as error:  # the loop waits for a last message in any case
            status = self._give_up(f"{self.name} cannot be run: {error}", 1)
        self._send_message({"returncode": status}, type="stop")

    def _run_again_and_again(self) -> int:
        """Run the command, again if it ended unexpectedly; return its last exit status."""
        failures = 0
        while True:
            started = time.monotonic()
            status = self._run_once()
            if self.stopping.is_set():
                return status
            failures = 0 if time.monotonic() - started > _GOOD_RUN_S else failures
            told = f"exit status {status}" if status >= 0 else f"signal {-status}"
            if status == EXIT_CONFIG or failures == len(_BACKOFF_S):
                return self._give_up(f"{self.name} ended with {told}", status)
            wait = _BACKOFF_S[failures]
            failures += 1
            self._notice(f"{self.name} ended with {told}; starting it again in {wait:.0f} s")
            if self.stopping.wait(wait):
                return status

    def _give_up(self, reason: str, status: int) -> int:
        """Say why the process is not started again; return a status, which stops everything.

        An optional process stays off, and its status comes when everything else is stopped.
        """
        if not self.optional:
            self._notice(f"{reason}; stopping everything")
            return status or 1
        self._notice(f"{reason}; it stays off, and everything else goes on")
        self.off = True
        self._send_message({"pid": 0}, type="start")  # nothing is left that could be signalled
        self.stopping.wait()
        return 0

    def _run_once(self) -> int:
        """Start the command, relay its lines, return its exit status."""
        # The kernel watches the thread that starts it: this one lives as long as the child.
        dies = die_with_parent(signal.SIGTERM)
        try:
            child = Popen(self.cmd, env=self.env, cwd=self.cwd, preexec_fn=dies)
        except Exception:
            self._send_message(
                {"pid": 0}, type="start"
            )  # honcho stops nothing before all are started
            raise
        self._send_message({"pid": child.pid}, type="start")
        if self.stopping.is_set():  # stopped before the manager knew this pid
            child.terminate()
        for line in iter(child.stdout.readline, b""):
            self._send_message(line)
        child.stdout.close()
        return int(child.wait())

    def _notice(self, text: str) -> None:
        """Send a line that also goes to the console."""
        self._events.put(Message("line", text, datetime.datetime.now(), _NOTICE, None))


class _Signals:
    """How the manager signals: a stop to the process itself, a kill to its whole session."""

    @staticmethod
    def terminate(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)

    @staticmethod
    def kill(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


class ProcessManager(honcho.manager.Manager):
    """Runs the commands of a Procfile until told to stop; call `loop` from the main thread.

    Parameters
    ----------
    printer : LogPrinter
    watch : callable
        Called about twice a second; if it returns a sentence, everything is stopped.
    cancelled : callable
        Called once the manager handles signals itself; tells whether one came before.
    """

    def __init__(
        self,
        printer: LogPrinter,
        watch: Callable[[], str | None],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(printer=printer)
        self._procmgr = _Signals()
        self._process_ctor = _Process
        self._watch = watch
        self._cancelled = cancelled
        self.events: queue.Queue[Message] = queue.Queue()  # from threads, not from processes
        self._stopping = threading.Event()
        self._done = threading.Event()
        self.failed = False
        """True after an end that was not requested."""
        self.on_started: Callable[[], None] = lambda: None
        """Called once all processes are being started."""

    def add(
        self, name: str, command: str, env: Mapping[str, str], cwd: Path, optional: bool = False
    ) -> None:
        """Add a line of the Procfile; everything else goes on without an optional one."""
        process = self.add_process(name, command, env=dict(env), cwd=str(cwd))
        process.stopping, process.optional = self._stopping, optional

    def is_off(self, name: str) -> bool:
        """Tell whether an optional process has ended too often."""
        return bool(self._processes[name]["obj"].off)

    def loop(self) -> None:
        """Start everything, relay its output, return when everything has stopped."""
        try:
            super().loop()
        finally:
            self._done.set()
        # Only a stop by a signal was requested.
        self.failed = self.failed or self.returncode not in (130, 143)

    def notice(self, text: str) -> None:
        """Write a line to the log and the console."""
        self._printer.write(Message("line", text, datetime.datetime.now(), _NOTICE, None))

    def terminate(self) -> None:
        """Stop everything: no more restarts, then the stop signal."""
        self._stopping.set()
        super().terminate()

    def _start(self) -> None:
        """Start a thread for each process, and one that watches them."""
        for name, process in self._processes.items():
            process["process"] = threading.Thread(
                target=process["obj"].run, name=name, args=(self.events,), daemon=True
            )
            process["process"].start()
        threading.Thread(target=self._oversee, name="oversee", daemon=True).start()
        self.on_started()
        if self._cancelled():
            self.returncode = 143
            self.terminate()

    def _oversee(self) -> None:
        """Do what honcho does not: kill what stops too slowly, call `watch`."""
        while not self._stopping.is_set() and not self._done.wait(0.5):
            reason = self._watch()
            if reason:
                self.failed = True
                self.notice(f"{reason}; stopping everything")
                self.terminate()
        if not self._done.wait(_KILL_AFTER_S):
            self.kill()

    def _killall(self, force: bool = False) -> None:
        """Signal the running processes; honcho's method fails for one not started yet."""
        for process in self._processes.values():
            if "returncode" not in process and process.get("pid"):
                (self._procmgr.kill if force else self._procmgr.terminate)(process["pid"])
