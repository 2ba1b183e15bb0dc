"""Which installations use a Redis: each tells that it is there, and claims its identity.

A copy of a database has the identity of the original until it is started. Where both run (a copy of
a whole machine cannot be told from the original), the claim lets only one of them use a Redis.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis

from pipeline.errors import OtherInstallationError
from pipeline.installation import require_original
from pipeline.metadata.installation import live_address
from workers.context import Context
from workers.keys import CLAIM_KEEP_S, INSTALLATIONS, PROTOCOL

__all__ = [
    "ANNOUNCE_EVERY_S",
    "Presence",
    "announce",
    "announce_first",
    "installations",
    "require_claim",
]

ANNOUNCE_EVERY_S = 10.0
_FORGOTTEN_S = 86_400.0
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Presence:
    """An installation that has used a Redis within the last day.

    Attributes
    ----------
    identity : str
    database : str
        Where its database is, without a password.
    host : str
        The host that announced it last.
    protocol : int
        Of its messages.
    seen_at : float
        Unix seconds.
    """

    identity: str
    database: str
    host: str
    protocol: int
    seen_at: float


def announce(context: Context) -> None:
    """Claim the identity for our database, and tell that the installation is there.

    Raises
    ------
    OtherInstallationError
        Another database has claimed the identity, within the last `CLAIM_KEEP_S` seconds.
    RedisError
        Redis does not answer.
    """
    redis, key = context.redis, context.keys.claim
    place = require_original(context.engine).place
    address = live_address(place)
    redis.set(key, address, ex=CLAIM_KEEP_S, nx=True)
    _compare(context, redis.get(key), address)
    redis.expire(key, CLAIM_KEEP_S)
    values = {
        "database": place["path"],
        "host": context.settings.host,
        "protocol": PROTOCOL,
        "seen_at": time.time(),
    }
    redis.hset(INSTALLATIONS, context.identity, json.dumps(values))


def announce_first(context: Context, say: Callable[[str], None]) -> None:
    """Do the same at a start; wait for the end of a claim that nobody renews.

    A machine that starts again has another id, and the claim from before is kept for a while.

    Parameters
    ----------
    context : Context
    say : callable
        Receives a sentence if it waits.

    Raises
    ------
    OtherInstallationError, RedisError
        As for `announce`.
    """
    left_before = CLAIM_KEEP_S * 1000
    while True:
        left = context.redis.pttl(context.keys.claim)
        try:
            announce(context)
            _prune(context.redis)
            return
        except OtherInstallationError:
            if not 0 < left <= left_before:
                raise
        if left_before == CLAIM_KEEP_S * 1000:
            say(
                f"Redis holds a claim to the identity {context.identity}, perhaps from before this "
                f"machine was started again: waiting up to {CLAIM_KEEP_S} s for its end"
            )
        left_before = left - 1
        time.sleep(_LOOK_EVERY_S)


def _prune(redis: Redis) -> None:
    """Remove what nobody has announced for a day; who is alive announces it again in seconds."""
    found = cast("Mapping[bytes, bytes]", redis.hgetall(INSTALLATIONS))
    fresh = {one.identity.encode() for one in installations(redis)}
    gone = [field for field in found if field not in fresh]
    if gone:
        redis.hdel(INSTALLATIONS, *gone)


def require_claim(context: Context) -> None:
    """Check that no other database has claimed our identity.

    Raises
    ------
    OtherInstallationError, RedisError
        As for `announce`.
    """
    claimed = context.redis.get(context.keys.claim)
    if claimed is not None:
        _compare(context, claimed, live_address(require_original(context.engine).place))


def _compare(context: Context, claimed: Any, address: str) -> None:
    """Raise if the claim is not that of our database."""
    if claimed is None or bytes(claimed).decode(errors="replace") == address:
        return
    known = {one.identity: one for one in installations(context.redis)}.get(context.identity)
    where = f" ({known.database} on host {known.host})" if known else ""
    raise OtherInstallationError(
        f"another database{where} uses the identity {context.identity} of this one at Redis "
        f"{context.redis_address}: one is a copy of the other; stop both, and run `vantage migrate "
        "--new-identity` for the copy"
    )


def installations(redis: Redis) -> list[Presence]:
    """Return the installations that were there within a day, the last seen first."""
    found = cast("Mapping[bytes, bytes]", redis.hgetall(INSTALLATIONS))
    known = [_read(field, value) for field, value in found.items()]
    fresh = [one for one in known if one and one.seen_at > time.time() - _FORGOTTEN_S]
    return sorted(fresh, key=lambda one: -one.seen_at)


def _read(field: bytes, value: bytes) -> Presence | None:
    """Return what was announced; None if it cannot be read."""
    try:
        values = json.loads(value)
        return Presence(
            field.decode(),
            str(values["database"]),
            str(values["host"]),
            int(values["protocol"]),
            float(values["seen_at"]),
        )
    except (ValueError, TypeError, KeyError):
        return None
