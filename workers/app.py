"""The Celery app: ``celery -A workers.app``."""

from __future__ import annotations

import importlib.util
import threading
from functools import cached_property
from pathlib import Path
from types import ModuleType

import kombu.pools
from celery import Celery
from celery.local import PromiseProxy
from celery.result import AsyncResult

from workers import lifecycle
from workers.redis_url import RedisAddress

__all__ = ["TASK_MODULES", "app", "lifecycle", "settings_module", "use_redis"]

TASK_MODULES = (
    "workers.tasks.stages",
    "workers.tasks.retrieve",
)
"""Modules with tasks, imported when a worker starts (or by `app.loader.import_default_modules`)."""


class _Result(AsyncResult):
    """A task's result, which nobody reads through Celery: jobs are in SQL, answers in Redis.

    Celery's own talks to Redis when it is collected: at the latest while the interpreter shuts
    down, when that fails with a traceback, or waits for a server that has gone.
    """

    def __del__(self) -> None:
        pass


class _Vantage(Celery):
    """Celery with results that go quietly."""

    @cached_property
    def AsyncResult(self) -> type[AsyncResult]:  # noqa: N802 - Celery's name
        """Class of the results of this app's tasks."""
        results: type[AsyncResult] = self.subclass_with_self(_Result)
        return results


app = _Vantage("vantage", include=list(TASK_MODULES))
# Canvases are built in any thread; without a default app Celery would make up one of its own there.
app.set_default()


def settings_module() -> ModuleType:
    """Load the celeryconfig.py that lies beside this package.

    By path, not by name: Celery looks in the working directory first, where another project's
    celeryconfig.py may lie.
    """
    path = Path(__file__).resolve().parent.parent / "celeryconfig.py"
    spec = importlib.util.spec_from_file_location("celeryconfig", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# A promise: the environment is read at first use, not when this module is imported.
app.config_from_object(PromiseProxy(settings_module))


def use_redis(url: str) -> None:
    """Point the app of this process at another Redis.

    For processes that imported the app before they knew the address (the demo, tests) or outlive
    a ``vantage up`` whose embedded server came back at another port.

    Parameters
    ----------
    url : str
        As ``VANTAGE_REDIS_URL``.
    """
    address = RedisAddress.parse(url)
    app.conf.update(
        broker_url=address.broker_url,
        broker_read_url=address.broker_url,
        broker_write_url=address.broker_url,
        result_backend=address.result_url,
        broker_transport_options=app.conf.broker_transport_options | address.transport_options,
        result_backend_transport_options=(
            app.conf.result_backend_transport_options | address.transport_options
        ),
    )
    drop_connections()


def drop_connections() -> None:
    """Close the app's connections to broker and backend; new ones are made when used."""
    # Celery has no call for this: the pools and the backend are dropped as it does itself after a
    # fork.
    kombu.pools.reset()  # type: ignore[no-untyped-call]
    app._after_fork()
    app._backend_cache = None
    app._local = threading.local()
