"""Servers of a cache as hosts run them, and a proxy that hinders who reads through it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.caching.cache import Cache
from pipeline.caching.tiers import ProcessTier
from pipeline.config import Settings
from workers.cache_place import CacheServer, running_cache_server
from workers.environment import environment
from workers.keys import Keys
from workers.processes import die_with_parent, stop_process
from workers.redis_cache import RedisTier
from workers.redis_url import RedisAddress

SECRET = b"secret of the installation"
GUARD_S = 600.0


class CacheHost:
    """A home with its cache server, without the rest of ``vantage up``; a context manager.

    Parameters
    ----------
    home : Path
    variables : str
        Settings without ``VANTAGE_``.
    """

    def __init__(self, home: Path, **variables: str) -> None:
        self.settings = Settings.from_env(
            {"VANTAGE_HOME": str(home)} | {f"VANTAGE_{name}": v for name, v in variables.items()}
        )
        self.home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._tiers: list[RedisTier] = []

    def start(self) -> CacheServer:
        """Start the server, wait until it is written down and answers."""
        self.home.mkdir(exist_ok=True)
        with (self.home / "cache.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers.cache_server"],
                env=environment(self.settings),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(signal.SIGTERM),
            )
        until(lambda: self.server is not None and self._answers(), self.log)
        assert self.server is not None
        return self.server

    @property
    def server(self) -> CacheServer | None:
        """What is written down of it."""
        return running_cache_server(self.home)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What it said."""
        return (self.home / "cache.log").read_text()

    def _answers(self) -> bool:
        server = self.server
        if server is None or server.url is None:
            return server is not None
        client = RedisAddress.parse(server.url).client(0, timeout_s=GUARD_S)
        with contextlib.suppress(Exception):
            info = client.info("replication")
            return info["role"] == "master" or info["master_link_status"] == "up"
        return False

    def tier(self, **changes: str) -> RedisTier:
        """Return what a new process of this host would have."""
        changed = {f"VANTAGE_{name}": value for name, value in changes.items()}
        settings = Settings.from_env(environment(self.settings, {}) | changed)
        tier = RedisTier(settings, Keys("identity"))
        self._tiers.append(tier)
        return tier

    def cache(self, tier: RedisTier | None = None, *, with_process: bool = False) -> Cache:
        """Return a cache of a new process of this host."""
        process = ProcessTier(2**24) if with_process else None
        return Cache(process, tier or self.tier(), lambda: SECRET)

    def kill(self) -> None:
        """End the server abruptly."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End the server and the connections to it."""
        for tier in self._tiers:
            tier.close()
        if self._process is not None:
            stop_process(self._process, 10)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Let the server answer nothing while the block runs."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> CacheHost:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Proxy:
    """Relays bytes to a port; a context manager.

    Attributes
    ----------
    open : threading.Event
        While it is not set, nothing is relayed to the client.
    drips : bool
        One byte at a time comes to the client, for ever.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.open = threading.Event()
        self.open.set()
        self.drips = False
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)

    def _begin(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets.append(server)
            except OSError:
                return
            for source, sink, back in ((client, server, False), (server, client, True)):
                self._begin(self._relay, source, sink, back)

    def _relay(self, source: socket.socket, sink: socket.socket, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                while back and not self.open.wait(0.1):
                    if self._ended.is_set():
                        return
                for piece in [data[i : i + 1] for i in range(len(data))] if self.drips else [data]:
                    sink.sendall(piece)
                    if self.drips and self._ended.wait(0.005):
                        return
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(GUARD_S)
        for one in self._sockets:
            one.close()


def until(holds: Callable[[], object], told: Callable[[], str] | None = None) -> None:
    """Wait until a condition holds; fail after `GUARD_S`, with what was told."""
    deadline = time.monotonic() + GUARD_S
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(told() if told is not None else "it never held")
        time.sleep(0.01)
