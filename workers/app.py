"""Celery apps: one for each `workers.context.Context`, those of ``celery -A workers.app``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.result import AsyncResult

from pipeline.config import Settings
from workers.celery_private import own_connections
from workers.celery_settings import NO_INSTALLATION, celery_settings, settings_of_environment
from workers.keys import Keys
from workers.redis_url import RedisAddress

if TYPE_CHECKING:
    app: Celery
    watching_app: Celery

__all__ = ["TASK_MODULES", "VantageApp", "make_app"]

TASK_MODULES = (
    "workers.tasks.stages",
    "workers.tasks.retrieve",
)
"""Modules with tasks, imported when a worker starts (or by `app.loader.import_default_modules`)."""


class _Result(AsyncResult):
    """A task's result, which nobody reads through Celery: jobs are in SQL, answers in Redis.

    Celery's own class talks to Redis when it is garbage collected. While the interpreter shuts down
    this fails with a traceback, or waits for a server that is gone.
    """

    def __del__(self) -> None:
        pass


class VantageApp(Celery):
    """Celery, but its results vanish silently, its workers report their state, and wait for Redis.

    See `workers.celery_private.transport`.
    """

    amqp_cls = "workers.messages:VantageAMQP"
    loader_cls = "workers.celery_private.transport:PatientLoader"
    events_cls = "workers.celery_private.events:DiscreetEvents"

    @cached_property
    def installation(self) -> str:
        """Identity of the installation, which every message carries."""
        prefix = self.conf.broker_transport_options.get("global_keyprefix")
        return Keys.of_prefix(prefix).identity if prefix else NO_INSTALLATION

    @cached_property
    def AsyncResult(self) -> type[AsyncResult]:  # noqa: N802 - Celery's name
        """Class of the results of this app's tasks."""
        results: type[AsyncResult] = self.subclass_with_self(_Result)
        return results

    @cached_property
    def Worker(self) -> type[Any]:  # noqa: N802 - Celery's name
        """Class of this app's workers, loaded only when one runs."""
        worker: type[Any] = self.subclass_with_self("workers.lifecycle:VantageWorker")
        return worker


def make_app(settings: Settings, address: RedisAddress, keys: Keys) -> Celery:
    """Return an app that sends to one Redis and is never the current or default app.

    Parameters
    ----------
    settings : Settings
    address : RedisAddress
        Of broker and results.
    keys : Keys
        Of the installation.
    """
    return _made(celery_settings(settings, address, keys))


def _made(settings: dict[str, Any], include: Sequence[str] = TASK_MODULES) -> Celery:
    """Return an app with these settings of Celery's."""
    made = VantageApp("vantage", include=list(include), set_as_current=False)
    made.config_from_object(own_connections(settings))
    return made


@functools.cache
def _environments_app() -> Celery:
    """Return the app of a worker, with the settings of the environment."""
    return _made(settings_of_environment())


@functools.cache
def _watching_app() -> Celery:
    """Return the same app without its tasks, for processes that only watch."""
    return _made(settings_of_environment(), include=())


def __getattr__(name: str) -> Any:
    """Make `app` when ``celery -A workers.app`` asks for it: the import reads no settings."""
    if name == "app":
        return _environments_app()
    if name == "watching_app":
        return _watching_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
