"""Real installations for tests: `vantage up`, a second host, and helpers to inspect them."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import text

from pipeline.config import Settings
from pipeline.installation import MARKER
from pipeline.metadata import heartbeats
from pipeline.metadata.engine import create_metadata_engine, session_scope
from pipeline.metadata.records import WorkerRecord
from pipeline.records import SearchResult
from workers.embedded import discover_redis_url
from workers.environment import environment
from workers.processes import die_with_parent, stop_process
from workers.stack import Stack

Eventually = Callable[..., Any]

SECOND = "second"
"""Name of the host that serves groups 2 and 3."""


def make_settings(home: Path, **changes: Any) -> Settings:
    """Settings of a small installation: many small batches and cells.

    A worker on a busy machine may be silent for long, and searches may take long: a test that wants
    one to fail says so (`silence`, ``deadline_s``).
    """
    home.mkdir(parents=True, exist_ok=True)
    values = {
        "VANTAGE_HOME": home,
        "VANTAGE_FLOWER_PORT": 0,
        "VANTAGE_EXTRACT_PROCESSES": 2,
        "VANTAGE_GROUP_THREADS": 2,
        "VANTAGE_HEARTBEAT_S": 1.0,
        "VANTAGE_HOST_TIMEOUT_S": 600,
        "VANTAGE_SEARCH_DEADLINE_S": 600,
        "VANTAGE_BATCH_SIZE": 4,
        "VANTAGE_MAX_FEATURES": 200,
        "VANTAGE_QUERY_MAX_FEATURES": 300,
        "VANTAGE_CELL_SIZE": 100,
    }
    settings = Settings.from_env({name: str(value) for name, value in values.items()})
    return dataclasses.replace(settings, **changes)


def live_workers(settings: Settings) -> dict[str, WorkerRecord]:
    """Return the live workers by name."""
    engine = create_metadata_engine(settings.database_url)
    try:
        with session_scope(engine, write=False) as session:
            rows = heartbeats.live_workers(session, time.time(), settings.host_timeout_s)
        return {row.name: row for row in rows}
    finally:
        engine.dispose()


def served_groups(settings: Settings) -> set[int]:
    """Return the groups that a worker serves now."""
    engine = create_metadata_engine(settings.database_url)
    try:
        with session_scope(engine, write=False) as session:
            return set(heartbeats.groups_served(session, time.time(), settings.host_timeout_s))
    finally:
        engine.dispose()


def worker_of(settings: Settings, role: str) -> WorkerRecord:
    """Return this host's live worker that has a role."""
    (found,) = [
        worker
        for worker in live_workers(settings).values()
        if role in worker.roles and worker.host == settings.host
    ]
    return found


def silence(settings: Settings, role: str) -> None:
    """Let the heartbeat of this host's worker with a role, which is frozen, be as old as can be."""
    engine = create_metadata_engine(settings.database_url)
    try:
        worker = dataclasses.replace(worker_of(settings, role), heartbeat_at=0.0)
        with session_scope(engine) as session:
            heartbeats.beat(session, worker)
    finally:
        engine.dispose()


@contextlib.contextmanager
def frozen(settings: Settings, role: str | None = None) -> Iterator[None]:
    """Freeze this host's worker with a role, or all workers: no work, no heartbeats."""
    workers = list(live_workers(settings).values())
    if role is not None:
        workers = [worker_of(settings, role)]
    held: list[psutil.Process] = []
    engine = create_metadata_engine(settings.database_url)
    try:
        # None of them is held up while it keeps the database from others.
        with session_scope(engine) as session:
            session.execute(text("SELECT 1"))
            # A worker before its pool: it then starts no further processes.
            for worker in workers:
                _hold_up(psutil.Process(worker.pid), held)
        engine.dispose()
        yield
    finally:
        for process in held:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def _hold_up(process: psutil.Process, held: list[psutil.Process]) -> None:
    """Stop a process and those that it has started, if they are still there."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.suspend()
        held.append(process)
        for child in process.children():
            _hold_up(child, held)


class SecondHost:
    """A group worker on another host: it shares database, store and Redis, not its local files."""

    def __init__(self, settings: Settings, groups: Sequence[int], eventually: Eventually) -> None:
        self._first = settings
        self._eventually = eventually
        self.groups = tuple(groups)
        self.settings = dataclasses.replace(
            settings,
            local=settings.home / f"local-of-{SECOND}",
            host=SECOND,
            serve_groups=self.groups,
            redis_url=discover_redis_url(settings),
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the worker and wait until it serves."""
        queues = ",".join(f"group.{group}" for group in self.groups)
        command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-l", "INFO"]
        with (self.settings.home / "logs" / "second.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-n", f"group@{SECOND}", "-Q", queues, "-P", "threads", "-c", "2",
                 "--without-gossip", "--without-mingle"],
                cwd=self.settings.home,
                env=environment(self.settings) | {"REMAP_SIGTERM": "SIGQUIT"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )  # fmt: skip
        self._eventually(self._serves)

    def _serves(self) -> bool:
        """Tell whether this process serves, and not one that was just killed."""
        row = live_workers(self._first).get(f"group@{SECOND}")
        return row is not None and (row.pid, row.state) == (self.pid, "ready")

    def freeze(self) -> None:
        """Freeze it like a hanging host: it sends and receives nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it, as a power failure would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.thaw()
            stop_process(self._process, 600)


@dataclasses.dataclass(frozen=True)
class Site:
    """A running installation of two hosts."""

    stack: Stack
    second: SecondHost

    @property
    def settings(self) -> Settings:
        return self.stack.settings


def ask_flower(settings: Settings, path: str, host: str = "", method: str = "GET") -> str:
    """Return what Flower answers to its user."""
    known = json.loads((settings.home / "run" / "flower.json").read_text())
    token = base64.b64encode(f"{known['user']}:{known['password']}".encode()).decode()
    headers = {"Authorization": f"Basic {token}"} | ({"Host": host} if host else {})
    request = urllib.request.Request(known["url"] + path, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=600) as answer:
        text: str = answer.read().decode()
    return text


def files_below(folder: Path | str, pattern: str = "**/*") -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, but a store's marker, by its path in it."""
    root = Path(folder)
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.glob(pattern))
        if path.is_file() and path.name != MARKER
    }


def answer(result: SearchResult) -> dict[str, Any]:
    """Return what two answers to one query must have in common: all but times and their sum."""
    values = result.to_dict()
    values.pop("timings")
    values.pop("explain")
    return values


def found_names(result: SearchResult) -> list[str]:
    """Return the first file name of every match, best first."""
    return [Path(match.locations[0]).stem for match in result.matches]
