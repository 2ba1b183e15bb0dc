"""What a worker process keeps between tasks, made at first use and never shared over a fork."""

from __future__ import annotations

import os
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.config import Settings
from pipeline.errors import BrokerUnavailableError
from workers.embedded import discover_redis_url
from workers.redis_url import RedisAddress

if TYPE_CHECKING:
    import redis
    from sqlalchemy import Engine

    from pipeline.resources import Resources
    from pipeline.storage import Storage

__all__ = ["Context", "get_context", "is_redelivered", "worker_name"]


class Context:
    """Settings and the connections made from them.

    Heavy modules are imported when asked for: a process that never extracts loads no OpenCV.

    Parameters
    ----------
    settings : Settings

    Attributes
    ----------
    merge_slots : threading.BoundedSemaphore
        Merges that this process may do at once: one less than a group worker has threads, so that
        one is always free for scans, unless it has only one.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pid = os.getpid()
        self.merge_slots = threading.BoundedSemaphore(max(1, settings.group_threads - 1))

    @cached_property
    def resources(self) -> Resources:
        """Metadata, storage, and the files this process has open."""
        import cv2

        from pipeline.resources import Resources

        # Tasks are the threads here: OpenCV's own would only fight with them.
        cv2.setNumThreads(1)
        return Resources(self.settings)

    @property
    def engine(self) -> Engine:
        """Metadata database."""
        return self.resources.engine

    @property
    def storage(self) -> Storage:
        """Shared store and local copies."""
        return self.resources.storage

    @cached_property
    def redis_address(self) -> RedisAddress:
        """Where Redis is.

        Raises
        ------
        BrokerUnavailableError
            No URL was given and no embedded server runs.
        """
        url = discover_redis_url(self.settings)
        if url is None:
            raise BrokerUnavailableError("127.0.0.1", "none runs on this home")
        return RedisAddress.parse(url)

    @cached_property
    def redis(self) -> redis.Redis:
        """Results: query features, distance blocks. Answers bytes; give blocking calls < 5 s."""
        return self.redis_address.client()

    def close(self) -> None:
        """Close what was opened; it is opened again when asked for."""
        resources = self.__dict__.pop("resources", None)
        if resources is not None:
            resources.close()
        client = self.__dict__.pop("redis", None)
        if client is not None:
            client.close()


_current: Context | None = None
_inherited: list[Context] = []


def get_context() -> Context:
    """Return this process's context; after a fork the child gets one of its own.

    The parent's is kept, untouched, for the life of the child: closing a connection that the
    parent still uses would break it there.
    """
    global _current
    if _current is not None and _current.pid != os.getpid():
        _inherited.append(_current)
        _current = None
    if _current is None:
        _current = Context(Settings.from_env())
    return _current


def _current_request() -> Any:
    """Return the request of the task that this thread does; None outside of tasks."""
    from celery._state import get_current_task

    return getattr(get_current_task(), "request", None)


def is_redelivered() -> bool:
    """Tell whether the broker sent the present message before: nobody had acknowledged it."""
    return bool((getattr(_current_request(), "delivery_info", None) or {}).get("redelivered"))


def worker_name() -> str:
    """Return a name for the rows this process writes: Celery's node name, else host and pid."""
    name = getattr(_current_request(), "hostname", None)
    return str(name) if name else f"{get_context().settings.host}:{os.getpid()}"
