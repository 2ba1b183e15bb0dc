"""Heartbeats: each worker writes to SQL that it is alive, what it serves, since when.

The same thread notices if ``vantage up``, its parent, was killed without stopping it, and then ends
the process: nothing may be left behind.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psutil
from sqlalchemy.orm import Session

from pipeline.config import Settings
from pipeline.cores import usable_cores
from pipeline.errors import OtherInstallationError, VantageError
from pipeline.metadata.engine import create_metadata_engine, session_scope
from pipeline.metadata.heartbeats import beat, forget_worker
from pipeline.metadata.installation import require_identity
from pipeline.metadata.records import WorkerRecord, WorkerState
from workers.cache_counters import cache_counters
from workers.keys import PROTOCOL
from workers.up_watch import GRACE_S, WATCH_S, UpWatch

__all__ = ["Heartbeat", "write_between_beats"]

_log = logging.getLogger(__name__)

# Prefork pools fork at any time. A child forked while this thread is inside SQLite would inherit
# locked locks and wait for ever, so a fork waits until the thread has left SQLite.
_database_in_use = threading.Lock()
os.register_at_fork(
    before=_database_in_use.acquire,
    after_in_parent=_database_in_use.release,
    after_in_child=_database_in_use.release,
)


def write_between_beats(settings: Settings, work: Callable[[Session], None]) -> None:
    """Write to the database from a worker's main process; leave nothing open for its forks."""
    with _database_in_use:
        engine = create_metadata_engine(settings.database_url)
        try:
            with session_scope(engine) as session:
                work(session)
        finally:
            engine.dispose()


class Heartbeat:
    """Keeps this process's row in ``workers`` fresh from a daemon thread.

    Parameters
    ----------
    settings : Settings
    identity : str
        Of the installation. A database that gets another one ends the process.
    name : str
        Node name, unique among all processes: ``extract@host``.
    roles : sequence of str
        What the process does: some of ``extract``, ``group``, ``query``, ``reduce`` and
        ``supervise``.
    groups : iterable of int
        Groups this process serves.
    details : mapping, optional
        JSON-serialisable facts worth showing (queues, number of threads).
    troubles : callable, optional
        Returns sentences about what this process cannot do now, told with every beat.

    Raises
    ------
    ConfigError
        ``VANTAGE_DATABASE_URL`` is not usable. A database that does not answer is tried again with
        every beat.
    """

    def __init__(
        self,
        settings: Settings,
        identity: str,
        name: str,
        roles: Sequence[str],
        groups: Iterable[int] = (),
        details: Mapping[str, Any] | None = None,
        troubles: Callable[[], list[str]] = list,
    ) -> None:
        create_metadata_engine(settings.database_url).dispose()
        self._settings, self._identity = settings, identity
        self.name, self._roles = name, tuple(roles)
        self._groups = tuple(sorted(groups))
        self._details = {**(details or {}), "installation": identity, "protocol": PROTOCOL}
        self._troubles = troubles
        self._started_at = time.time()
        self._pid = os.getpid()
        self._state: WorkerState = "starting"
        self._wake = threading.Event()
        self._stopped = False
        self._failing = False
        self._watch = UpWatch()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Write the row with the state ``starting``, keep it fresh, remove it at exit."""
        # At exit, not at Celery's `worker_shutdown`: a cold shutdown sends no such signal.
        atexit.register(self.stop)
        self._thread.start()

    def set_state(self, state: WorkerState) -> None:
        """Change the state; the row follows at once. Safe in a signal handler."""
        self._state = state
        self._wake.set()

    def stop(self) -> None:
        """End the thread and remove the row; safe to call twice, and in a fork without one."""
        if self._stopped or os.getpid() != self._pid:
            return
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=GRACE_S)
        self._write(forget=True)

    def _run(self) -> None:
        """Beat until stopped; end the process if `vantage up` is gone."""
        next_beat = 0.0
        while not self._stopped:
            if self._watch.gone():
                self._watch.end_process()
            if self._wake.is_set() or time.monotonic() >= next_beat:
                self._wake.clear()
                next_beat = time.monotonic() + self._settings.heartbeat_s
                self._write()
            self._wake.wait(min(WATCH_S, max(0.01, next_beat - time.monotonic())))

    def _write(self, forget: bool = False) -> None:
        """Write or remove the row; database errors are logged once until they are over."""
        try:
            if forget:
                write_between_beats(self._settings, self._forget)
            else:
                write_between_beats(self._settings, self._beat)
            self._failing = False
        except OtherInstallationError as error:
            if forget:
                return  # a row of this name is that of another process
            self._watch.end_process(str(error))
        except VantageError as error:
            if not self._failing:
                _log.warning("heartbeat not written: %s", error)
            self._failing = True

    def _beat(self, session: Session) -> None:
        """Write the row, unless the database is another one now."""
        require_identity(session, self._identity)
        beat(session, self._record(), _host_details())

    def _forget(self, session: Session) -> None:
        """Remove the row, unless the database is another one now."""
        require_identity(session, self._identity)
        forget_worker(session, self.name)

    def _record(self) -> WorkerRecord:
        """Return the row as it is now."""
        return WorkerRecord(
            name=self.name,
            roles=self._roles,
            host=self._settings.host,
            pid=self._pid,
            groups=self._groups,
            state=self._state,
            heartbeat_at=time.time(),
            started_at=self._started_at,
            details={**self._details, "troubles": self._troubles(), "cache": cache_counters()},
        )


def _host_details() -> dict[str, Any]:
    """Return this host's row of the table of hosts."""
    return {"cores": usable_cores(), "memory": psutil.virtual_memory().total}
