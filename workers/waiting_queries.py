"""The images of enqueued queries, which wait in Redis until a query worker has read them.

They are the only large things that callers put there, so all of an installation together are
bounded. An image is deleted when its query is prepared, or when its search ends without that.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any, cast

from redis import RedisError

from pipeline.errors import TooManyQueriesError
from workers.context import Context
from workers.io_deadline import LateRedisError
from workers.keys import keep_s

__all__ = ["forget_image", "put_query", "take_back"]

_PUT = """
local image, request, in_flight, waiting = unpack(KEYS)
local id, now, limit, kept, look_at = unpack(ARGV)
local bytes, wanted = ARGV[6], ARGV[7]
local sum = 0
local known = redis.call('HGETALL', waiting)
for i = 1, #known, 2 do
    local size, ends = string.match(known[i + 1], '^(%d+) (%d+)$')
    if size and tonumber(ends) > tonumber(now) then
        sum = sum + tonumber(size)
    else
        redis.call('HDEL', waiting, known[i])
    end
end
if sum + #bytes > tonumber(limit) then
    return sum
end
redis.call('SET', image, bytes, 'EX', kept)
redis.call('SET', request, wanted, 'EX', kept)
redis.call('HSET', waiting, id, #bytes .. ' ' .. (now + kept))
redis.call('ZADD', in_flight, look_at, id)
return false
"""
"""Puts a query there if there is room, in one step: of several callers, none exceeds the bound."""


def put_query(
    context: Context, search_id: str, image: bytes, wanted: Mapping[str, Any], look_at: float
) -> None:
    """Write the image and the request of a query, so that the supervisor watches it.

    Parameters
    ----------
    context : Context
    search_id : str
    image : bytes
    wanted : mapping
        The request, with ``deadline_at``. Redis keeps both for `keep_s`.
    look_at : float
        When the supervisor looks at it first, Unix seconds.

    Raises
    ------
    TooManyQueriesError
        Too many bytes wait already.
    """
    keys, limit = context.keys, context.settings.queued_bytes
    if len(image) > limit:  # Redis itself takes at most half a gigabyte, and ends the connection
        raise TooManyQueriesError(len(image), 0, limit)
    names = (keys.image(search_id), keys.request(search_id), keys.in_flight, keys.waiting)
    kept = keep_s(wanted["deadline_at"])
    values = (search_id, int(time.time()), limit, kept, look_at, image, json.dumps(wanted))
    waiting = cast("int | None", context.redis.eval(_PUT, len(names), *names, *values))
    if waiting is not None:
        raise TooManyQueriesError(len(image), waiting, limit)


def forget_image(context: Context, pipe: Any, search_id: str) -> None:
    """Add to a pipeline the commands that delete a query's image."""
    pipe.delete(context.keys.image(search_id))
    pipe.hdel(context.keys.waiting, search_id)


def take_back(context: Context, search_id: str) -> None:
    """Delete a query that was not sent; if Redis does not answer, the supervisor does it later."""
    pipe = context.redis.pipeline(transaction=False)
    forget_image(context, pipe, search_id)
    pipe.delete(context.keys.request(search_id))
    pipe.zrem(context.keys.in_flight, search_id)
    with contextlib.suppress(RedisError, LateRedisError):
        pipe.execute()
