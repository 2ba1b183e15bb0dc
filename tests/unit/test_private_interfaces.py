"""What Vantage uses of the inner parts of Celery and honcho: an upgrade that changes it fails here.

Each is used in one module only.
"""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator
from pathlib import Path

import kombu.pools
import pytest
from celery import Celery

import pipeline
from workers import celery_private
from workers.celery_private import close_connections, own_connections

ROOT = Path(pipeline.__file__).parent.parent
MEMORY = {"broker_url": "memory://", "broker_transport_options": {"polling_interval": 0.01}}


def _app(**settings: object) -> Celery:
    app = Celery(set_as_current=False)
    app.config_from_object(own_connections(MEMORY | settings))
    return app


def test_apps_of_one_broker_have_pools_of_their_own_and_close_them_alone() -> None:
    """kombu keys its pools by the connection's transport options, which tell our apps apart."""
    first, second = _app(), _app()
    try:
        connections = [app.pool.acquire() for app in (first, second)]
        assert first.pool is not second.pool
        for connection in connections:
            connection.connect()
            connection.release()
        close_connections(first)
        assert not second.pool._closed
        assert [connection.connected for connection in connections] == [False, True]
        keys = kombu.pools.connections.values()
        assert second.pool in keys
        with first.pool.acquire() as again:  # a closed app that sends again makes new ones
            assert again.connect()
    finally:
        close_connections(first)
        close_connections(second)


def test_the_task_of_a_thread_is_known_there_alone() -> None:
    app = _app(task_always_eager=True)
    seen = []

    @app.task(name="look", bind=True)
    def look(self: object) -> None:
        seen.append((celery_private.current_task().name, celery_private.current_request().id))
        other = threading.Thread(target=lambda: seen.append(celery_private.current_task()))
        other.start()
        other.join()

    look.apply_async(task_id="a task").get()
    assert seen == [("look", "a task"), None]
    assert celery_private.current_request() is None


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    ("private", "module"),
    [
        ("celery._", "workers/celery_private.py"),
        ("kombu.pools", "workers/celery_private.py"),
        ("honcho.manager", "workers/manager.py"),
        ("honcho.process", "workers/manager.py"),
    ],
)
def test_one_module_uses_it(private: str, module: str) -> None:
    used = {
        path.relative_to(ROOT).as_posix()
        for package in ("pipeline", "workers", "demo", "benchmarks")
        for path in (ROOT / package).rglob("*.py")
        if any(name.startswith(private) for name in _imports(path))
    }
    assert used == {module}
