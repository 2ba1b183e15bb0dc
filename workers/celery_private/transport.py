"""Redis in any state, for kombu's transport and Celery's results.

* A Redis that answers but refuses (a replica, too few replicas, a missing right, a full memory, a
  failed snapshot, a wrong database) counts as one that is away. kombu tells the two apart, and a
  worker would end.
* A message that cannot be read is dropped, logged and counted. With kombu's own transport, it ends
  the worker.
* A channel that is closed says so. kombu raises AttributeError, which ends a worker that wants to
  acknowledge a message.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, ClassVar

from celery.app.amqp import AMQP
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.loaders.app import AppLoader
from kombu.connection import Connection, ConnectionPool, PooledConnection
from kombu.transport import redis as kombu_redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from pipeline.redaction import without_secrets
from workers.io_deadline import end_before_pause, in_time
from workers.redis_url import try_to_write

__all__ = [
    "AWAY",
    "UNREADABLE",
    "PatientAMQP",
    "PatientLoader",
    "count_dropped",
    "dropped_messages",
]

_log = logging.getLogger(__name__)

AWAY = (*kombu_redis.Transport.connection_errors, ResponseError)
"""Errors after which a connection is made again: of a Redis that is away, or that refuses."""

UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, RecursionError)
"""Errors that a message of any content may cause where it is read."""

_RETRY_EVERY_S = 2.0
_PAUSES_GIVEN = 5
"""Positional arguments of kombu's method if the last of them is the longest pause."""

_dropped: Counter[str] = Counter()


def dropped_messages() -> int:
    """Return how many unreadable messages this process has dropped."""
    return _dropped.total()


def count_dropped(where: str, reason: object) -> None:
    """Note that a message was dropped."""
    _dropped[where] += 1
    _log.error(
        "a message in %s cannot be read and is dropped (%d dropped so far): %.300s",
        where,
        _dropped.total(),
        reason,
    )


class _PatientQoS(kombu_redis.QoS):
    """Sends unacknowledged messages again; drops one that cannot be read."""

    def restore_by_tag(self, tag: bytes, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back into its queue."""
        try:
            super().restore_by_tag(tag, client=client, leftmost=leftmost)
        except UNREADABLE as exc:
            # One that stays would be first again: no other message would ever be sent again.
            count_dropped(self.unacked_key, repr(exc))
            self._remove_from_indices(tag).execute()


class _Patience:
    """What the channels of both transports have in common."""

    QoS = _PatientQoS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            try_to_write(self.client)  # type: ignore[attr-defined]
        except Exception:
            self.connection.cycle.discard(self)  # type: ignore[attr-defined]
            self._disconnect_pools()  # type: ignore[attr-defined]
            raise

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """Return the parameters of a connection, unless the channel was closed."""
        if getattr(self.connection, "client", None) is None:  # type: ignore[attr-defined]
            raise RedisConnectionError("the connection of this channel was closed")
        params: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[misc]
        # For receiving, kombu makes a class for each channel: that is not kept.
        made = in_time.__wrapped__ if asynchronous else in_time
        params["connection_class"] = made(params["connection_class"])
        return params

    def _brpop_read(self, **options: Any) -> bool | None:
        """Read a message from a queue and deliver it."""
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except (ValueError, RecursionError) as exc:  # it is not JSON
            count_dropped("a queue", repr(exc))
            return None


class _PatientChannel(_Patience, kombu_redis.Channel):
    """A channel to one Redis."""


class _PatientSentinelChannel(_Patience, kombu_redis.SentinelChannel):
    """A channel to the Redis that Sentinel names."""


class _Delivery:
    """What both transports have in common."""

    def _deliver(self, message: Any, queue: str) -> None:
        """Deliver a message to its consumer, unless it has not the form of one."""
        try:
            self._read(message)
        except UNREADABLE as exc:
            count_dropped(queue, repr(exc))
        else:
            super()._deliver(message, queue)  # type: ignore[misc]

    def _read(self, message: Any) -> None:
        """Read what kombu reads without care for errors."""
        channel = self.channels[0]  # type: ignore[attr-defined]
        made = channel.Message(message, channel=channel)
        _ = made.delivery_info["exchange"], made.delivery_info["routing_key"]
        if not isinstance(made.headers, dict) or not isinstance(made.delivery_tag, str):
            raise TypeError("headers or delivery tag have another type")


class _PatientTransport(_Delivery, kombu_redis.Transport):
    """Redis, by an address."""

    Channel = _PatientChannel
    connection_errors = AWAY


class _PatientSentinelTransport(_Delivery, kombu_redis.SentinelTransport):
    """Redis, by Sentinels."""

    Channel = _PatientSentinelChannel
    connection_errors = AWAY


class _OurTransport:
    """What single connections and those of a pool have in common."""

    def get_transport_cls(self) -> type[Any]:
        """Return our transport in place of kombu's."""
        found: type[Any] = super().get_transport_cls()  # type: ignore[misc]
        return {
            kombu_redis.Transport: _PatientTransport,
            kombu_redis.SentinelTransport: _PatientSentinelTransport,
        }.get(found, found)

    def _ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Try until there is a connection; kombu would come to wait half a minute between tries."""
        options = (
            kwargs if len(args) >= _PAUSES_GIVEN else {"interval_max": _RETRY_EVERY_S} | kwargs
        )
        return super()._ensure_connection(*args, **options)  # type: ignore[misc]

    def _connection_factory(self) -> Any:
        """Connect once; a pause before the next try that outlasts a deadline is not made."""
        try:
            return super()._connection_factory()  # type: ignore[misc]
        except AWAY as exc:
            end_before_pause(_RETRY_EVERY_S, exc)
            raise


class _PooledConnection(_OurTransport, PooledConnection):
    """A connection by which messages are sent."""


class _Pool(ConnectionPool):
    """Connections by which messages are sent."""

    def new(self) -> Connection:
        """Make one; kombu's method takes a class of its own."""
        return _PooledConnection(self, **dict(self.connection._info(resolve=False)))


class _PatientConnection(_OurTransport, Connection):
    """A connection of our apps; those of other apps in the same process stay kombu's own."""

    def info(self) -> dict[str, Any]:
        """Return what remote control tells of a worker's broker: Flower shows it."""
        told: dict[str, Any] = super().info()
        for name in ("hostname", "alternates"):
            value = told.get(name)
            told[name] = (
                [_shown(url) for url in value] if isinstance(value, list) else _shown(value)
            )
        return told

    def Pool(self, limit: int | None = None, **options: Any) -> ConnectionPool:  # noqa: N802
        """Return a pool of connections like this one."""
        return _Pool(self, limit, **options)


def _shown(address: Any) -> Any:
    """Return a URL without its secrets; a host's name as it is."""
    return without_secrets(address) if "://" in str(address) else address


class PatientAMQP(AMQP):
    """How our apps send and receive messages."""

    Connection = _PatientConnection


class _Results:
    """What both result stores have in common."""

    def on_task_call(self, producer: object, task_id: str) -> None:
        """Subscribe to nothing: results of our tasks are read from SQL and from their own keys.

        Celery's method ends in a RuntimeError while Redis is away.
        """

    def add_pending_result(self, result: Any, **_options: object) -> Any:
        """Return the result: a chord would subscribe to those of its header here."""
        return result

    def on_connection_error(self, max_retries: Any, exc: Any, intervals: Any, retries: Any) -> Any:
        """Return the pause before the next try, unless a deadline ends in it."""
        pause_s = super().on_connection_error(max_retries, exc, intervals, retries)  # type: ignore[misc]
        end_before_pause(pause_s, exc)
        return pause_s

    def _get_pool(self, **params: Any) -> Any:
        """Return connections that keep the deadline of the thread that sends."""
        pool = super()._get_pool(**params)  # type: ignore[misc]
        pool.connection_class = in_time(pool.connection_class)
        return pool


class PatientBackend(_Results, RedisBackend):
    """Results in one Redis."""


class PatientSentinelBackend(_Results, SentinelBackend):
    """Results in the Redis that Sentinel names."""


class PatientLoader(AppLoader):
    """Tells our apps which class keeps the results of an address."""

    override_backends: ClassVar[dict[str, str]] = {
        "redis": f"{__name__}:PatientBackend",
        "rediss": f"{__name__}:PatientBackend",
        "sentinel": f"{__name__}:PatientSentinelBackend",
    }
