"""The private interfaces of Celery and kombu that Vantage relies on, all in one place.

`workers.celery_private.transport` and `workers.celery_private.consumer` change how both deal with
Redis. `tests/unit/test_private_interfaces.py` fails when an upgrade takes one of them away.
"""

from __future__ import annotations

import itertools
from typing import Any

import kombu.pools
from celery import Celery
from celery._state import get_current_task

__all__ = ["close_connections", "current_request", "current_task", "own_connections"]

_owners = itertools.count(1)


def own_connections(settings: dict[str, Any]) -> dict[str, Any]:
    """Return Celery settings whose app shares its connections with no other app.

    kombu keeps a pool of connections for each broker, identified by address and transport options.
    An extra option makes a separate pool, which one app can close.
    """
    options = settings["broker_transport_options"] | {"vantage_app": next(_owners)}
    return settings | {"broker_transport_options": options}


def close_connections(app: Celery) -> None:
    """Close an app's connections to the broker; new ones are made when it sends again."""
    connection = app.connection_for_write()
    for group in (kombu.pools.producers, kombu.pools.connections):
        group[connection].force_close_all()
        del group[connection]
    app._after_fork()


def current_task() -> Any:
    """Return the task that this thread is running; None outside of tasks."""
    return get_current_task()


def current_request() -> Any:
    """Return the request of the task that this thread is running; None outside of tasks."""
    return getattr(get_current_task(), "request", None)
