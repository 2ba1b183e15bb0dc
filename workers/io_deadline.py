"""Redis in time: what a thread asks of Redis ends with its deadline, whichever library asks.

A Redis that is frozen takes connections and commands and never answers. Without a limit, a search
with a deadline of 5 s would end after the time limits of the sockets that it meets, one by one.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["GRACE_S", "in_time", "io_until", "keep_in_time"]

GRACE_S = 0.5
"""Seconds after its deadline in which a search may fetch what there is."""

_LEAST_S = 0.25
"""The shortest time limit: an answer that is under way shall arrive."""

_thread = threading.local()


@contextlib.contextmanager
def io_until(deadline_at: float) -> Iterator[None]:
    """Limit what this thread waits for Redis to a time (as `time.time`) and `GRACE_S`."""
    before = getattr(_thread, "until", None)
    _thread.until = time.monotonic() + deadline_at - time.time() + GRACE_S
    try:
        yield
    finally:
        _thread.until = before


def _limited(own_s: float | None) -> float | None:
    """Return a time limit of a socket, shortened to what the thread's deadline leaves."""
    until = getattr(_thread, "until", None)
    if until is None:
        return own_s
    left_s: float = max(_LEAST_S, until - time.monotonic())
    return left_s if own_s is None else min(own_s, left_s)


class _InTime:
    """What is added to a class of connections of redis-py."""

    _sock: Any
    socket_timeout: float | None
    socket_connect_timeout: float | None

    _shortened = False

    def _limit(self) -> None:
        """Give the socket the time limit that holds now; leave it alone without a deadline."""
        has_deadline = getattr(_thread, "until", None) is not None
        if self._sock is None or not (has_deadline or self._shortened):
            return
        with contextlib.suppress(OSError):  # it is closed: the call says so
            self._sock.settimeout(_limited(self.socket_timeout))
        self._shortened = has_deadline

    def _connect(self) -> Any:
        own_s = self.socket_connect_timeout
        self.socket_connect_timeout = _limited(own_s)
        try:
            return super()._connect()  # type: ignore[misc]
        finally:
            self.socket_connect_timeout = own_s

    def send_packed_command(self, *args: Any, **options: Any) -> Any:
        """Send a command."""
        self._limit()
        return super().send_packed_command(*args, **options)  # type: ignore[misc]

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Read an answer."""
        self._limit()
        return super().read_response(*args, **options)  # type: ignore[misc]


@functools.cache
def in_time(connection_class: type[Any]) -> type[Any]:
    """Return a class of connections of redis-py that keep a thread's deadline."""
    return type(connection_class.__name__, (_InTime, connection_class), {})


def keep_in_time(client: Redis) -> Redis:
    """Let the connections of a client keep the deadline of the thread that uses them."""
    pool = client.connection_pool
    pool.connection_class = in_time(pool.connection_class)
    return client
