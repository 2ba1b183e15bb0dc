"""What installations that are gone have left in a Redis, for ``vantage doctor``.

Queues and a few other keys have no time to live, because jobs may wait for weeks. Nobody but their
own installation knows whether it will come back, so they are never removed by themselves.
"""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from collections.abc import Iterator

from redis import Redis

from pipeline.errors import InputError, StateError
from workers.keys import INSTALLATIONS, PREFIX, Keys
from workers.presence import installations
from workers.redis_url import RedisAddress

__all__ = ["forget", "left_behind"]

_IDENTITY = re.compile(r"[0-9a-f]{16}")
_LOOK_S = 2.0
_AT_ONCE = 1000


def left_behind(address: RedisAddress, own: str | None) -> dict[str, int]:
    """Return how many keys installations have here that nobody has seen for a day.

    It looks for two seconds: a Redis may hold very many keys of other programs.

    Parameters
    ----------
    address : RedisAddress
    own : str or None
        Identity of the installation that asks.
    """
    until = time.monotonic() + _LOOK_S
    counts: Counter[str] = Counter()
    seen = {own}
    for client in _databases(address):
        seen |= {one.identity for one in installations(client)}
        for name in client.scan_iter(match=f"{PREFIX}:*", count=_AT_ONCE):
            if time.monotonic() > until:
                break
            identity = name.decode("utf-8", "replace").split(":")[1]
            if _IDENTITY.fullmatch(identity):
                counts[identity] += 1
    return {identity: count for identity, count in counts.items() if identity not in seen}


def forget(address: RedisAddress, identity: str, own: str | None) -> int:
    """Remove all keys of an installation that is gone; return how many there were.

    Raises
    ------
    InputError
        That is no identity.
    StateError
        The installation is this one, or it runs.
    """
    if not _IDENTITY.fullmatch(identity):
        raise InputError(
            f"{identity!r} is no identity: it has 16 digits and letters, see `vantage doctor`"
        )
    if identity == own:
        raise StateError(f"{identity} is this installation: its keys are in use")
    keys, removed = Keys(identity), 0
    with address.client() as client:
        if client.exists(keys.claim):
            raise StateError(
                f"the installation {identity} runs, or did so within the last half minute: stop it "
                "first, or keep its keys"
            )
    for client in _databases(address):
        names = client.scan_iter(match=f"{keys.prefix}*", count=_AT_ONCE)
        while some := list(itertools.islice(names, _AT_ONCE)):
            removed += int(client.unlink(*some))
        client.hdel(INSTALLATIONS, identity)
    return removed


def _databases(address: RedisAddress) -> Iterator[Redis]:
    """Yield a client of each database that installations use."""
    for database in (address.broker_db, address.broker_db + 1):
        with address.client(database) as client:
            yield client
