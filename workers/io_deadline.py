"""Redis in time: what a thread asks of Redis ends with its deadline, whichever library asks.

A Redis that is frozen takes connections and commands and never answers. Without a limit, a search
with a deadline of 5 s would end after the time limits of the sockets that it meets, one by one, and
after the pauses between their tries.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from pipeline.errors import TransientError

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["GRACE_S", "LateRedisError", "end_before_pause", "in_time", "io_until", "keep_in_time"]

GRACE_S = 0.2
"""Seconds after its deadline in which a search may fetch what there is.

It is the shortest time limit, too: who comes late, for lack of processor time, still gets the
answer of a Redis that answers.
"""

_AWAY = (OSError, RedisConnectionError, RedisTimeoutError)

_thread = threading.local()


class LateRedisError(TransientError):
    """Redis has not answered by a deadline. No library takes it for a reason to try again."""


class _Deadline:
    """Until when a thread waits for Redis, and whether it has waited in vain."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.missed: str | None = None

    @property
    def left_s(self) -> float:
        return max(GRACE_S, self.until - time.monotonic())

    def require(self) -> None:
        """Raise if a wait has ended in vain: the next would, too."""
        if self.missed is not None:
            raise LateRedisError(self.missed)

    def end_before(self, pause_s: float, error: BaseException) -> None:
        """Raise if the deadline is over after so many seconds."""
        if time.monotonic() + pause_s >= self.until:
            self.missed = f"{error}; the deadline of the search is over"
            raise LateRedisError(self.missed) from error


@contextlib.contextmanager
def io_until(deadline_at: float) -> Iterator[None]:
    """Limit what this thread waits for Redis to a time (as `time.time`) and `GRACE_S`."""
    before = _deadline()
    _thread.deadline = _Deadline(time.monotonic() + deadline_at - time.time() + GRACE_S)
    try:
        yield
    finally:
        _thread.deadline = before


def _deadline() -> _Deadline | None:
    """Return the deadline of this thread."""
    found: _Deadline | None = getattr(_thread, "deadline", None)
    return found


def end_before_pause(pause_s: float, error: BaseException) -> None:
    """Raise instead of a pause before the next try, if the thread's deadline ends in it.

    Raises
    ------
    LateRedisError
    """
    deadline = _deadline()
    if deadline is not None:
        deadline.end_before(pause_s, error)


def _limited(own_s: float | None) -> float | None:
    """Return a time limit of a socket, shortened to what the thread's deadline leaves."""
    deadline = _deadline()
    if deadline is None:
        return own_s
    return deadline.left_s if own_s is None else min(own_s, deadline.left_s)


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Let nothing be tried again after the deadline of this thread."""
    deadline = _deadline()
    if deadline is None:
        yield
        return
    deadline.require()
    try:
        yield
    except _AWAY as error:
        deadline.end_before(0.0, error)
        raise


class _InTime:
    """What is added to a class of connections of redis-py."""

    _sock: Any
    socket_timeout: float | None
    socket_connect_timeout: float | None

    _shortened = False

    def _limit(self) -> None:
        """Give the socket the time limit that holds now; leave it alone without a deadline."""
        has_deadline = _deadline() is not None
        if self._sock is None or not (has_deadline or self._shortened):
            return
        with contextlib.suppress(OSError):  # it is closed: the call says so
            self._sock.settimeout(_limited(self.socket_timeout))
        self._shortened = has_deadline

    def _connect(self) -> Any:
        own_s = self.socket_connect_timeout
        self.socket_connect_timeout = _limited(own_s)
        try:
            with _watched():
                return super()._connect()  # type: ignore[misc]
        finally:
            self.socket_connect_timeout = own_s

    def send_packed_command(self, *args: Any, **options: Any) -> Any:
        """Send a command."""
        self._limit()
        with _watched():
            return super().send_packed_command(*args, **options)  # type: ignore[misc]

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Read an answer."""
        self._limit()
        with _watched():
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
