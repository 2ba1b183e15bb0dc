"""A connection to a server of the cache that costs a search little time, whatever it answers.

A search opens no connection to a server that has not answered the cache's own thread before
(`Link.probe`): finding a host's address, or asking Sentinels, may take seconds. Whatever fails is a
miss and a counter; then the server is left alone for a second, then for two, and so on. Only
an answer that is late once is chance: this machine may have been busy.
"""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from pipeline.caching.tiers import TierName
from workers.redis_url import RedisAddress

__all__ = ["LIMIT_S", "Link"]

LIMIT_S = 0.05
"""Seconds that a search waits for the answers of a server: less than extracting features takes."""

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_CHUNK = 64
"""Keys of one MGET: of many large values, those that come in time count."""

_PROBE_S = 1.0
_NEAR_HOSTS = ("127.", "localhost", "::1")

_thread = threading.local()


class _TimedSocket(socket.socket):
    """A socket whose reads and writes together end at a time, not each after a time."""

    until = float("inf")

    def _limit(self) -> None:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.settimeout(None if left == float("inf") else left)

    def recv(self, *args: Any) -> bytes:
        """Receive bytes."""
        self._limit()
        return super().recv(*args)

    def recv_into(self, *args: Any) -> int:
        """Receive bytes into a buffer."""
        self._limit()
        return super().recv_into(*args)

    def sendall(self, *args: Any) -> None:
        """Send bytes."""
        self._limit()
        super().sendall(*args)


class _Timed:
    """What is added to a class of connections of redis-py."""

    _sock: Any

    def _connect(self) -> Any:
        sock = super()._connect()  # type: ignore[misc]
        if type(sock) is not socket.socket:  # TLS: each read has the limit, not all together
            return sock
        family, kind, protocol = sock.family, sock.type, sock.proto
        return _TimedSocket(family, kind, protocol, fileno=sock.detach())

    def send_packed_command(self, *args: Any, **options: Any) -> Any:
        """Send a command."""
        if isinstance(self._sock, _TimedSocket):
            self._sock.until = getattr(_thread, "until", float("inf"))
        return super().send_packed_command(*args, **options)  # type: ignore[misc]


@functools.cache
def _timed(connection_class: type[Any]) -> type[Any]:
    """Return a class of connections that end in time."""
    return type(connection_class.__name__, (_Timed, connection_class), {})


class Link:
    """One server of the cache; safe in threads.

    Parameters
    ----------
    tier : {"replica", "primary"}
    address : RedisAddress
    counters : Counter
        ``TIER.hits``, ``.misses``, ``.errors``, ``.timeouts`` and ``.skipped``: keys that were not
        asked for because the server did not answer lately.

    Attributes
    ----------
    probed : threading.Event
        Set once the thread has tried to reach it.
    behind : int or None
        Bytes that a replica lacked of its primary when it was last asked; None if that is not
        known.
    """

    def __init__(self, tier: TierName, address: RedisAddress, counters: Counter[str]) -> None:
        self.tier, self.address = tier, address
        self._counters = counters
        self._client: Redis | None = None
        self._slow: Redis | None = None
        self._place: RedisAddress | None = None
        self._pause_s = 0.0
        self._was_late = False
        self._next_probe = 0.0
        self._trips: list[float] = []
        self._lock = threading.Lock()
        self.probed = threading.Event()
        self.usable = False
        self.behind: int | None = None

    @property
    def is_here(self) -> bool:
        """Whether the server is on this machine."""
        place = self._place or self.address
        host = urlsplit(place.urls[0]).hostname or ""
        return place.is_socket or host.startswith(_NEAR_HOSTS)

    @property
    def round_trip_s(self) -> float | None:
        """The least time of the last PINGs; None before one was answered."""
        return min(self._trips, default=None)

    def mget(self, names: Sequence[str]) -> list[bytes | None] | None:
        """Return the values of keys; None if the server does not answer in time."""
        if not self.probed.wait(LIMIT_S) or not self.usable:
            self._count("skipped", len(names))
            return None
        _thread.until = time.monotonic() + LIMIT_S
        found: list[bytes | None] = []
        try:
            client = self._fast_client()
            for first in range(0, len(names), _CHUNK):
                part = client.mget(names[first : first + _CHUNK])
                found += cast("list[bytes | None]", part)
        except Exception as error:  # whatever a server answers, a search goes on without it
            if not found:
                self.failed(error)
                return None
            self._note(error)
        finally:
            _thread.until = float("inf")
        self._pause_s, self._was_late = 0.0, False
        found += [None] * (len(names) - len(found))
        hits = sum(1 for value in found if value is not None)
        self._count("hits", hits)
        self._count("misses", len(found) - hits)
        return found

    def failed(self, error: Exception) -> None:
        """Leave the server alone for a while: a search has asked in vain."""
        first, self._was_late = not self._was_late, True
        if self._note(error) and first:
            return
        with self._lock:
            self.usable = False
            self._pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * self._pause_s))
            self._next_probe = time.monotonic() + self._pause_s

    def lost(self, error: Exception) -> None:
        """Begin anew with the next probe: the thread of the tier has waited in vain."""
        self._note(error)
        self.usable = False
        self.close_clients()

    def _note(self, error: Exception) -> bool:
        """Count an error; tell whether an answer was late."""
        late = isinstance(error, (TimeoutError, RedisTimeoutError))
        self._count("timeouts" if late else "errors", 1)
        return late

    def _count(self, what: str, number: int) -> None:
        if number:
            with self._lock:
                self._counters[f"{self.tier}.{what}"] += number

    def _fast_client(self) -> Redis:
        """Return the client of searches."""
        with self._lock:
            if self._client is None:
                place = self._place or self.address
                client = place.client(0, timeout_s=LIMIT_S, connect_timeout_s=LIMIT_S)
                pool = client.connection_pool
                pool.connection_class = _timed(pool.connection_class)
                self._client = client
            return self._client

    # What follows is for the one thread of the tier, which may wait.

    def probe(self) -> None:
        """Ask whether the server answers, unless it is to be left alone."""
        if time.monotonic() < self._next_probe:
            return
        try:
            began = time.monotonic()
            self.slow_client().ping()
            self._trips = [*self._trips[-4:], time.monotonic() - began]
            self.usable = True
        except Exception as error:
            self.lost(error)
        finally:
            self.probed.set()

    def slow_client(self) -> Redis:
        """Return a client that may wait; where Sentinels name the server, they are asked.

        Raises
        ------
        RedisError
            The Sentinels name none.
        """
        if self._slow is None:
            self._place = self._placed()
            self._slow = self._place.client(0, timeout_s=_PROBE_S, connect_timeout_s=_PROBE_S)
        return self._slow

    def _placed(self) -> RedisAddress:
        """Return the address of the server itself."""
        named = self.address.server() if self.address.master_name is not None else None
        return self.address if named is None else self.address.at(*named)

    def close_clients(self) -> None:
        """End connections: the next are made to where the server is then."""
        with self._lock:
            clients, self._client, self._slow = (self._client, self._slow), None, None
        for client in clients:
            if client is not None:
                client.close()
                client.connection_pool.disconnect()
