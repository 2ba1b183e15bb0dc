"""Run everything of one machine: ``vantage up``.

Starts Redis (unless a URL is given), migrates, compiles kernels, then runs the Procfile's processes
until Ctrl-C or SIGTERM. All output of the processes goes to ``home/logs/vantage.log``; the console
gets what the user needs to know.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from honcho.environ import parse_procfile
from redis import RedisError
from sqlalchemy import Engine

from pipeline.config import Settings
from pipeline.cores import library_threads
from pipeline.errors import ConfigError, StateError, StorageUnavailableError, VantageError
from pipeline.installation import require_original, settle
from pipeline.lost_database import refuse_lost_database
from pipeline.metadata.engine import create_metadata_engine, session_scope, shown, upgrade
from pipeline.metadata.heartbeats import live_workers
from pipeline.metadata.sqlite import LOCKED, is_locked
from pipeline.private_files import close_to_others, make_home
from pipeline.redaction import secrets_of_environment
from pipeline.store_root import StoreRoot
from pipeline.text import displayable
from workers.cache_place import CacheServer, forget_cache_server, role_of, running_cache_server
from workers.compiled import are_compiled
from workers.dashboard import check_flower_settings, flower_file
from workers.embedded import EmbeddedRedis, answers
from workers.environment import environment
from workers.manager import LogPrinter, ProcessManager
from workers.processes import EXIT_CONFIG, HomeLock, read_json, writing_home
from workers.redis_check import RedisWatch, require_password
from workers.redis_url import RedisAddress

__all__ = ["Ready", "find_procfile", "read_procfile", "run_up"]

OPTIONAL = frozenset({"flower", "cache"})
"""Lines of the Procfile without which everything else goes on."""

_OURS = (
    "logs",
    "run",
    "store",
    "local",
    "vantage.sqlite",
    "vantage.sqlite-wal",
    "vantage.sqlite-shm",
)
"""What lies in a home: former releases made it for all to read."""

_WARM_S = 600.0
_SLOW_START_S = 60.0


@dataclass(frozen=True)
class Ready:
    """The report when everything serves.

    Attributes
    ----------
    home : str
        The data directory.
    log : str
        The log file.
    flower_url : str or None
        Address of the dashboard; None if the Procfile has none, or it cannot be run.
    seconds : float
        How long the start took.
    pid : int
        Process of ``vantage up``.
    """

    home: str
    log: str
    flower_url: str | None
    seconds: float
    pid: int


def find_procfile() -> Path:
    """Return the Procfile's path: inside this package in a wheel, at the top of a checkout."""
    here = Path(__file__).resolve().parent
    for path in (here / "Procfile", here.parent / "Procfile"):
        if path.is_file():
            return path
    raise StateError(f"no Procfile lies in {here} or {here.parent}: install the package again")


def read_procfile() -> dict[str, str]:
    """Return the commands of the Procfile by name."""
    return dict(parse_procfile(find_procfile().read_text(encoding="utf-8")).processes)


def run_up(
    settings: Settings,
    serve_groups: Sequence[int] | None = None,
    *,
    with_redis: bool | None = None,
    on_ready: Callable[[Ready], None] | None = None,
    say: Callable[[str], None] | None = None,
    verbose: bool = False,
) -> int:
    """Run everything until stopped; call it from the main thread.

    Parameters
    ----------
    settings : Settings
    serve_groups : sequence of int, optional
        Groups to serve here; default: those in the settings.
    with_redis : bool, optional
        Start a Redis here. Default: if no URL is given.
    on_ready : callable, optional
        Called once, in a thread, when every process serves.
    say : callable, optional
        Receives the console's lines; default: standard error.
    verbose : bool
        Show every line of every process on the console too.

    Returns
    -------
    int
        Exit status: 0 after Ctrl-C or SIGTERM, 1 if it ended for another reason.

    Raises
    ------
    ConfigError
        A setting is wrong.
    StateError
        It already runs on this home, or there is no Redis server program.
    DatabaseUnavailableError, SchemaVersionError
        The database cannot be used.
    """
    started = time.time()
    say = say or _to_stderr
    if serve_groups is not None:
        settings = dataclasses.replace(settings, serve_groups=tuple(sorted(set(serve_groups))))
    check_flower_settings(settings)
    with writing_home(settings.home):
        make_home(settings.home)
    for name in _OURS:
        close_to_others(settings.home / name)
    interrupt = _Interrupt()
    try:
        with interrupt, HomeLock(settings.home), contextlib.ExitStack() as stack:
            settings, redis = _redis(settings, with_redis, stack, say)
            installation = _migrate(settings, say)
            env = _child_environment(settings) | {"VANTAGE_INSTALLATION": installation}
            _announce(settings, say)
            _warm(settings, env, say)
            printer = _printer(settings, say, verbose)
            stack.callback(printer.close)
            manager = ProcessManager(
                printer, watch=lambda: _redis_trouble(redis), cancelled=lambda: interrupt.came
            )
            return _run(settings, env, manager, started, on_ready, say)
    except KeyboardInterrupt:  # before the processes were started
        return 0


def _printer(settings: Settings, say: Callable[[str], None], verbose: bool) -> LogPrinter:
    """Return the log, with the secrets that it must hide."""
    secrets = secrets_of_environment(environment(settings)) | {settings.flower_password or ""}
    return LogPrinter(_log_file(settings), say, secrets - {""}, verbose)


def _log_file(settings: Settings) -> Path:
    """Return the path of the log with the output of all processes."""
    return settings.home / "logs" / "vantage.log"


def _run(
    settings: Settings,
    env: dict[str, str],
    manager: ProcessManager,
    started: float,
    on_ready: Callable[[Ready], None] | None,
    say: Callable[[str], None],
) -> int:
    """Run the Procfile's processes."""
    flower_file(settings.home).unlink(missing_ok=True)
    log = _log_file(settings)
    commands = read_procfile()
    _say_cache(settings, commands, say)
    for name, command in commands.items():
        manager.add(name, command, env, settings.home, optional=name in OPTIONAL)
    waiter = _ReadyWait(settings, list(commands), started, say, on_ready)
    waiter.is_off = manager.is_off
    manager.on_started = waiter.start
    say(f"Starting {', '.join(commands)}; log: {log}")
    try:
        manager.loop()
    finally:
        waiter.stop()
        forget_cache_server(settings.home)
    say(f"Stopped because of the above; log: {log}" if manager.failed else "Stopped.")
    return 1 if manager.failed else 0


def _say_cache(settings: Settings, commands: dict[str, str], say: Callable[[str], None]) -> None:
    """Say which cache is shared; without one, its line of the Procfile is not run."""
    forget_cache_server(settings.home)
    if settings.cache_url is not None and settings.caches:
        address = RedisAddress.parse(settings.cache_url, "VANTAGE_CACHE_URL")
        say(f"Cache: {address}")
    role = role_of(settings)
    if role.name == "none":
        say(role.reason[0].upper() + role.reason[1:])
        commands.pop("cache", None)


def _to_stderr(line: str) -> None:
    """Print for users, on standard error; standard output is for results."""
    print(displayable(line), file=sys.stderr, flush=True)


class _Interrupt:
    """Makes Ctrl-C and SIGTERM end the block in order while no manager has taken them over.

    The exception can get lost where Python ignores exceptions (in a destructor, in a callback of
    a C library), so it is remembered as well and looked for before the processes are started; what
    Python would print there of an exception that is not lost at all is kept from the console.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: dict[int, Any] = {}
        self._unraisable = sys.unraisablehook

    def _interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._interrupt)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._ignored

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._unraisable

    def _ignored(self, what: Any) -> None:
        """Stand in for Python's note of an exception that it ignores."""
        if not isinstance(what.exc_value, KeyboardInterrupt):
            self._unraisable(what)


def _redis(
    settings: Settings, wanted: bool | None, stack: contextlib.ExitStack, say: Callable[[str], None]
) -> tuple[Settings, EmbeddedRedis | None]:
    """Start the embedded server if needed; return settings that name the Redis."""
    if wanted is None:
        wanted = settings.redis_url is None
    if not wanted:
        if settings.redis_url is None:
            raise ConfigError("VANTAGE_REDIS_URL", None, "must name a Redis to run without our own")
        address = RedisAddress.parse(settings.redis_url)
        require_password(address)
        say(f"Redis: {address}")
        watch = RedisWatch(address, say)
        watch.start()
        stack.callback(watch.stop)
        return settings, None
    server = stack.enter_context(EmbeddedRedis(settings.home, settings.redis_listen))
    say(f"Redis: our own at {RedisAddress.parse(server.url)}")
    return dataclasses.replace(settings, redis_url=server.url), server


def _redis_trouble(server: EmbeddedRedis | None) -> str | None:
    """Say that the embedded Redis has ended, if it has."""
    if server is None or server.pid is not None:
        return None
    return "our Redis has ended (unfinished jobs go on at the next start)"


def _child_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of the processes: settings, this Python, the process to die with."""
    env = library_threads() | environment(settings)
    env["VANTAGE_UP_PID"] = str(os.getpid())
    env["PYTHON"] = sys.executable
    env["PYTHONUNBUFFERED"] = "1"
    # Celery: give running tasks `worker_soft_shutdown_timeout`, then put them back and stop.
    env["REMAP_SIGTERM"] = "SIGQUIT"
    return env


def _migrate(settings: Settings, say: Callable[[str], None]) -> str:
    """Migrate the database to this program's schema; return the installation's identity."""
    engine = create_metadata_engine(settings.database_url)
    try:
        refuse_lost_database(engine, settings.store)
        if is_locked(engine):
            say(f"Everything waits: {LOCKED}; `lsof` or `fuser` name that process")
        upgrade(engine)
        say(f"Database: {shown(engine.url)}")
        try:
            return settle(engine, StoreRoot(settings.store), say).identity
        except StorageUnavailableError as error:
            say(f"The store is not checked now, workers wait for it: {error}")
            return require_original(engine).identity
    finally:
        engine.dispose()


def _announce(settings: Settings, say: Callable[[str], None]) -> None:
    """Claim the installation's identity at Redis; say who else is there."""
    from workers.context import Context
    from workers.presence import announce_first, installations

    context = Context(settings)
    try:
        announce_first(context, say)
        others = [one for one in installations(context.redis) if one.identity != context.identity]
    except RedisError:
        return  # workers wait for it
    finally:
        context.close()
    if others:
        names = ", ".join(sorted(f"{one.database} ({one.host})" for one in others))
        say(f"Others use this Redis too: {names}")


def _warm(settings: Settings, env: dict[str, str], say: Callable[[str], None]) -> None:
    """Compile the kernels once, in a separate process, before many processes need them."""
    if are_compiled():
        return
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "workers.doctor", "--warm"],
        env=env,
        cwd=settings.home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_WARM_S,
        check=False,
    )
    if done.returncode:
        raise StateError(f"the kernels could not be compiled: {done.stderr.strip()[-2000:]}")
    if time.monotonic() - began > 5:
        say(f"Kernels: compiled in {time.monotonic() - began:.0f} s (kept for the next start)")


class _ReadyWait:
    """Looks, from a thread, until every process serves; then tells once."""

    def __init__(
        self,
        settings: Settings,
        names: list[str],
        started: float,
        say: Callable[[str], None],
        on_ready: Callable[[Ready], None] | None,
    ) -> None:
        self._settings, self._names, self._started = settings, names, started
        self._log, self._say, self._on_ready = _log_file(settings), say, on_ready
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ready", daemon=True)
        self.is_off: Callable[[str], bool] = lambda _: False
        """Tells whether an optional process has ended too often."""

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no longer."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        engine = create_metadata_engine(self._settings.database_url)
        told_slow = False
        try:
            while not self._stop.wait(0.1):
                with contextlib.suppress(VantageError):
                    with session_scope(engine, write=False) as session:
                        now = time.time()
                        rows = live_workers(session, now, self._settings.host_timeout_s)
                    ready = {r.name for r in rows if self._is_ours(r.started_at, r.state)}
                    missing = self._missing(ready)
                    if not missing:
                        self._tell()
                        return
                    if not told_slow and now - self._started > _SLOW_START_S:
                        told_slow = True
                        self._say(f"Still waiting for {', '.join(missing)}; see {self._log}")
                        self._say_what_is_wrong(engine)
        finally:
            engine.dispose()

    def _say_what_is_wrong(self, engine: Engine) -> None:
        """Tell why workers cannot write that they are there, if that is it."""
        try:
            with session_scope(engine):
                pass
        except VantageError as error:
            self._say(f"Workers wait: {error}")

    def _is_ours(self, started_at: float, state: str) -> bool:
        """Tell a row of this run from one that an earlier run left."""
        return state == "ready" and started_at >= self._started

    def _missing(self, ready: set[str]) -> list[str]:
        """Return the lines of the Procfile that do not serve yet."""
        missing = [
            name
            for name in self._names
            if name not in OPTIONAL and f"{name}@{self._settings.host}" not in ready
        ]
        for name, is_there in (("flower", self._flower), ("cache", self._cache)):
            if name in self._names and is_there() is None and not self.is_off(name):
                missing.append(name)
        return missing

    def _cache(self) -> CacheServer | None:
        """Return the cache's server, once it answers, or knows that it must wait."""
        server = running_cache_server(self._settings.home)
        if server is None or server.url is None:
            return server
        return server if answers(server.url, 0) else None

    def _flower(self) -> dict[str, Any] | None:
        """Return what Flower has written, once it listens."""
        return read_json(self._flower_file)

    def _tell(self) -> None:
        """Say so on the console and to the caller."""
        flower = self._flower() if "flower" in self._names else None
        info = Ready(
            home=str(self._settings.home),
            log=str(self._log),
            flower_url=str(flower["url"]) if flower else None,
            seconds=round(time.time() - self._started, 2),
            pid=os.getpid(),
        )
        self._say(f"Ready after {info.seconds:.1f} s. Ctrl-C stops everything.")
        if flower:
            self._say(self._flower_line(flower))
        if self._on_ready is not None:
            self._on_ready(info)

    def _flower_line(self, flower: Mapping[str, Any]) -> str:
        """Say where Flower is, why it is not elsewhere, and where its password is."""
        url, wanted = str(flower["url"]), self._settings.flower_port
        taken = f"port {wanted} is not free; " if wanted and not url.endswith(f":{wanted}") else ""
        own = self._settings.flower_password
        where = "that of VANTAGE_FLOWER_PASSWORD" if own else f"in {self._flower_file}"
        return f"Flower: {url} ({taken}user {flower['user']}, password {where})"

    @property
    def _flower_file(self) -> Path:
        return flower_file(self._settings.home)


def main() -> None:
    """Entry point of ``python -m workers.up`` (see `workers.stack.Stack`)."""
    parser = argparse.ArgumentParser(prog="python -m workers.up")
    parser.add_argument("--ready-fd", type=int, help="write one JSON line there when ready")
    parser.add_argument("--verbose", action="store_true", help="show every process's output")
    options = parser.parse_args()

    def tell(info: Ready) -> None:
        if options.ready_fd is not None:
            with os.fdopen(options.ready_fd, "w") as pipe:
                pipe.write(json.dumps(dataclasses.asdict(info)) + "\n")

    if options.ready_fd is not None:
        os.set_inheritable(options.ready_fd, False)
    try:
        status = run_up(Settings.from_env(), on_ready=tell, verbose=options.verbose)
    except ConfigError as error:
        _to_stderr(f"ConfigError: {error}")
        status = EXIT_CONFIG
    except VantageError as error:
        _to_stderr(f"{type(error).__name__}: {error}")
        status = 1
    raise SystemExit(status)


if __name__ == "__main__":
    main()
