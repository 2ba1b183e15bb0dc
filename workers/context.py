"""What a worker process keeps between tasks: made at first use, never shared over a fork."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from pipeline.config import Settings
from pipeline.errors import BrokerUnavailableError
from workers.embedded import discover_redis_url, server_stamp
from workers.io_deadline import LateRedisError
from workers.keys import Keys
from workers.redis_url import RedisAddress, reason
from workers.troubles import Troubles

if TYPE_CHECKING:
    import redis
    from celery import Celery
    from sqlalchemy import Engine

    from pipeline.resources import Resources
    from pipeline.storage import Storage

__all__ = ["Context", "get_context", "is_redelivered", "worker_name"]


_REDUCE_AT_ONCE = 2


class Context:
    """Settings and the connections made from them.

    Heavy modules are imported when needed: a process that never extracts loads no OpenCV.

    Parameters
    ----------
    settings : Settings
    worker_app : Celery, optional
        The app of this process. Default: the context's own app, whose messages go to the Redis of
        `settings` and whose connections end with the context.
    identity : str, optional
        Of the installation. Default: that of the app of this process, or of the database.

    Attributes
    ----------
    merge_slots : threading.BoundedSemaphore
        Merges that this process may do at once: one less than the threads of a group worker, so
        that one is always free for scans, unless it has only one.
    reduce_slots : threading.BoundedSemaphore
        Messages of the queue ``reduce`` that this process may work on at once: two. The process
        answers searches too, with its other threads.
    troubles : Troubles
        What this process could not read of the store.
    """

    def __init__(
        self, settings: Settings, worker_app: Celery | None = None, identity: str | None = None
    ) -> None:
        self.settings = settings
        self._told = identity or getattr(worker_app, "installation", None)
        self._worker_app = worker_app
        self.pid = os.getpid()
        self.troubles = Troubles()
        self._server: object = None
        self._following = threading.Lock()
        self.merge_slots = threading.BoundedSemaphore(max(1, settings.group_threads - 1))
        self.reduce_slots = threading.BoundedSemaphore(_REDUCE_AT_ONCE)

    @cached_property
    def resources(self) -> Resources:
        """Metadata, storage, and open files of this process.

        Raises
        ------
        OtherInstallationError
            The store belongs to another installation.
        """
        import cv2

        from pipeline.installation import check_store
        from pipeline.resources import Resources
        from pipeline.store_root import StoreRoot

        # Tasks run in threads; OpenCV's own threads would only compete with them.
        cv2.setNumThreads(1)
        resources = Resources(self.settings, self.engine)
        check_store(resources.engine, StoreRoot(self.settings.store))
        return resources

    @cached_property
    def engine(self) -> Engine:
        """Metadata database; using it does not load extraction or index."""
        from pipeline.metadata.engine import create_metadata_engine

        return create_metadata_engine(self.settings.database_url)

    @cached_property
    def identity(self) -> str:
        """The identity of the installation.

        Raises
        ------
        OtherInstallationError
            The database is a copy that was not started yet.
        """
        from pipeline.installation import require_original

        return self._told or require_original(self.engine).identity

    @cached_property
    def keys(self) -> Keys:
        """Names of what the installation has in Redis."""
        return Keys(self.identity)

    @property
    def storage(self) -> Storage:
        """Shared store and local copies."""
        return self.resources.storage

    @cached_property
    def redis_address(self) -> RedisAddress:
        """The address of Redis.

        Raises
        ------
        BrokerUnavailableError
            No URL was given and no embedded server runs.
        """
        self._server = server_stamp(self.settings.home)
        url = discover_redis_url(self.settings)
        if url is None:
            home = self.settings.home
            raise BrokerUnavailableError(f"home {home}", "no Redis is running for it")
        return RedisAddress.parse(url)

    @cached_property
    def redis(self) -> redis.Redis:
        """Results: query features, distance blocks.

        Returns bytes; blocking calls must take less than 5 s.
        """
        return self.redis_address.client()

    @cached_property
    def app(self) -> Celery:
        """The Celery app that sends this context's messages.

        Raises
        ------
        BrokerUnavailableError
            No URL was given and no embedded server runs.
        """
        from workers.app import make_app

        return self._worker_app or make_app(self.settings, self.redis_address, self.keys)

    @contextlib.contextmanager
    def broker_errors(self) -> Iterator[None]:
        """Turn what two libraries raise when Redis is away, or refuses, into one error of ours.

        Raises
        ------
        BrokerUnavailableError
        """
        from kombu.exceptions import BatchPublishError, LimitExceeded, OperationalError
        from redis import RedisError

        self._follow_redis()
        try:
            yield
        except (
            RedisError, OperationalError, LimitExceeded, BatchPublishError, LateRedisError
        ) as exc:  # fmt: skip
            raise BrokerUnavailableError(str(self.redis_address), reason(exc)) from exc

    def _follow_redis(self) -> None:
        """Forget a server of `vantage up` that is gone: the next has another password."""
        if self.settings.redis_url or self._worker_app is not None:
            return
        with self._following:
            known = self.__dict__.get("redis_address")
            if known is not None and server_stamp(self.settings.home) != self._server:
                self._close_redis()

    def close(self) -> None:
        """Close everything that is open; it is opened again when needed."""
        self._close_redis()
        self.__dict__.pop("resources", None)
        engine = self.__dict__.pop("engine", None)
        if engine is not None:
            engine.dispose()

    def _close_redis(self) -> None:
        """Close the connections to Redis, and forget where it is."""
        app = self.__dict__.pop("app", None)
        if app is not None and app is not self._worker_app:
            from workers.celery_private import close_connections

            close_connections(app)
            app.close()
        client = self.__dict__.pop("redis", None)
        if client is not None:
            client.close()
        self.__dict__.pop("redis_address", None)


_current: Context | None = None
_inherited: list[Context] = []


def get_context() -> Context:
    """Return this process's context; after a fork, the child gets its own.

    The parent's stays untouched while the child lives: closing its connections would break them in
    the parent.
    """
    global _current
    if _current is not None and _current.pid != os.getpid():
        _inherited.append(_current)
        _current = None
    if _current is None:
        from celery.app import app_or_default

        _current = Context(Settings.from_env(), app_or_default())
    return _current


def is_redelivered() -> bool:
    """Tell whether the broker delivered the present message before, without acknowledgement."""
    from workers.celery_private import current_request

    return bool((getattr(current_request(), "delivery_info", None) or {}).get("redelivered"))


def worker_name() -> str:
    """Return the worker name of this process: Celery's node name, else host and pid."""
    from workers.celery_private import current_request

    name = getattr(current_request(), "hostname", None)
    return str(name) if name else f"{get_context().settings.host}:{os.getpid()}"
