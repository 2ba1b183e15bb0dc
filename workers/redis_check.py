"""What Vantage needs of a Redis, tried: by `vantage doctor`, and by `vantage up` while it runs."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

import redis

from pipeline.errors import ConfigError
from workers.keys import PROBE, PROBE_KEEP_S
from workers.redis_url import RedisAddress, reason, try_to_write

__all__ = ["RedisWatch", "refusals", "require_password", "trouble"]

_TIMEOUT_S = 2.0
_WATCH_S = 2.0

Command = tuple[Any, ...]


def trouble(address: RedisAddress) -> str | None:
    """Say why a message cannot be sent now; None if it can."""
    client = address.client(address.broker_db, timeout_s=_TIMEOUT_S)
    try:
        try_to_write(client)
    except redis.RedisError as error:
        return reason(error)
    finally:
        client.close()
    return None


def require_password(address: RedisAddress) -> None:
    """Raise if Redis answers that the user or the password is wrong; wait for no answer.

    Raises
    ------
    ConfigError
    """
    client = address.client(address.broker_db, timeout_s=_TIMEOUT_S)
    try:
        client.ping()
    except redis.AuthenticationError as error:
        raise ConfigError(
            "VANTAGE_REDIS_URL",
            str(address),
            f"Redis refuses its user or password ({reason(error)}); correct one of the two",
        ) from None
    except redis.RedisError:
        pass  # workers wait for it
    finally:
        client.close()


def refusals(address: RedisAddress) -> list[str]:
    """Try every command that Vantage and Celery use; return what is refused, in words.

    Raises
    ------
    RedisError
        There is no connection, or the database is not there.
    """
    found: list[str] = []
    for database in (address.broker_db, address.broker_db + 1):
        client = address.client(database, timeout_s=_TIMEOUT_S)
        try:
            client.ping()
            found += (f"database {database}: {text}" for text in _refused(client))
        finally:
            client.close()
    return list(dict.fromkeys(found))


def _refused(client: redis.Redis) -> Iterator[str]:
    """Send all commands at once; yield those that fail with Redis' words."""
    commands = list(_commands(f"{PROBE}:{secrets.token_hex(8)}"))
    pipe = client.pipeline(transaction=False)
    for command in commands:
        pipe.execute_command(*command)  # type: ignore[no-untyped-call]
    answers = pipe.execute(raise_on_error=False)
    for command, answer in zip(commands, answers, strict=True):
        if isinstance(answer, redis.RedisError):
            yield f"{command[0]}: {answer}"
    yield from _refused_alone(client)


def _commands(name: str) -> Iterator[Command]:
    """Yield the commands on keys of that name; the last ones delete them."""
    text, items, tags, index, table = (f"{name}:{kind}" for kind in "tlszh")
    yield from (
        ("SET", text, 1, "EX", PROBE_KEEP_S, "NX"),
        ("SETEX", text, PROBE_KEEP_S, 1),
        ("GET", text),
        ("MGET", text),
        ("EXISTS", text),
        ("INCRBY", text, 1),
        ("EXPIRE", text, PROBE_KEEP_S),
        ("LPUSH", items, 1, 2),
        ("RPUSH", items, 3),
        ("LLEN", items),
        ("BRPOP", items, 0.1),
        ("BLPOP", items, 0.1),
        ("SADD", tags, 1),
        ("SMEMBERS", tags),
        ("SREM", tags, 1),
        ("ZADD", index, 1, 1),
        ("ZRANGE", index, 1, 0, "BYSCORE", "REV"),
        ("ZRANGEBYSCORE", index, 0, 1),
        ("ZREM", index, 1),
        ("HSET", table, 1, 1),
        ("HGET", table, 1),
        ("HGETALL", table),
        ("HDEL", table, 1),
        ("EVAL", "return redis.call('TIME')", 0),
        ("PUBLISH", name, 1),
        ("DEL", text, items, tags, index, table),
    )


def _refused_alone(client: redis.Redis) -> Iterator[str]:
    """Yield what is refused of transactions and subscriptions."""
    try:
        pipe = client.pipeline(transaction=True)
        pipe.exists(PROBE)
        pipe.execute()
    except redis.ResponseError as error:
        yield f"MULTI: {error}"
    subscription = client.pubsub()  # type: ignore[no-untyped-call]
    try:
        subscription.psubscribe(PROBE)
        subscription.get_message(timeout=_TIMEOUT_S)
    except redis.ResponseError as error:
        yield f"PSUBSCRIBE: {error}"
    finally:
        subscription.close()


class RedisWatch:
    """Says on the console that everything waits for Redis, and when that is over.

    Parameters
    ----------
    address : RedisAddress
    say : callable
        Receives the sentences.
    """

    def __init__(self, address: RedisAddress, say: Callable[[str], None]) -> None:
        self._address, self._say = address, say
        self._stop = threading.Event()
        self._told: str | None = None
        self._thread = threading.Thread(target=self._run, name="redis-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no longer."""
        self._stop.set()

    def look(self) -> None:
        """Try Redis once, and say what has changed."""
        found = trouble(self._address)
        if found == self._told or self._stop.is_set():
            return
        self._told = found
        if found is None:
            self._say(f"Redis at {self._address} can be used again; everything goes on.")
        else:
            self._say(f"Waiting for Redis at {self._address}: {found}")

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(_WATCH_S)
