"""The images of enqueued queries, which wait in Redis until a query worker has read them.

They are the only large things that callers put there, so all of an installation together are
bounded. An image is deleted when its query is prepared, or when its search ends without that.
"""

from __future__ import annotations

import time
from typing import Any, cast

from pipeline.errors import TooManyQueriesError
from workers.context import Context

__all__ = ["forget_image", "make_room"]


def make_room(context: Context, search_id: str, size: int, until: float) -> None:
    """Reserve room for the image of a query; of several callers at once, none exceeds the bound.

    Parameters
    ----------
    context : Context
    search_id : str
    size : int
        Of the image, bytes.
    until : float
        Unix seconds after which the reservation counts no more: Redis deletes the image then.

    Raises
    ------
    TooManyQueriesError
        Too many bytes wait already.
    """
    redis, key = context.redis, context.keys.waiting
    limit = context.settings.queued_bytes
    pipe = redis.pipeline(transaction=True)
    pipe.hset(key, search_id, f"{size} {until:.0f}")
    pipe.hgetall(key)
    known = cast("dict[bytes, bytes]", pipe.execute()[1])
    sizes = {name: _size(value, time.time()) for name, value in known.items()}
    over = [name for name, waiting in sizes.items() if not waiting]
    if over:
        redis.hdel(key, *over)
    waiting = sum(sizes.values())
    if waiting > limit:
        redis.hdel(key, search_id)
        raise TooManyQueriesError(size, waiting - size, limit)


def _size(value: bytes, now: float) -> int:
    """Return the bytes of a reservation; 0 if it is over, or cannot be read."""
    size, _, until = value.partition(b" ")
    if not (size.isdigit() and until.isdigit()):
        return 0
    return int(size) if int(until) > now else 0


def forget_image(context: Context, pipe: Any, search_id: str) -> None:
    """Add to a pipeline the commands that delete a query's image."""
    pipe.delete(context.keys.image(search_id))
    pipe.hdel(context.keys.waiting, search_id)
