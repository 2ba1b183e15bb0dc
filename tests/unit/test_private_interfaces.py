"""The private interfaces of Celery and honcho that Vantage uses; one module uses each of them.

An upgrade that changes one fails here.
"""

from __future__ import annotations

import ast
import functools
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import kombu.pools
import pytest
import redis
from celery import Celery
from celery.app.amqp import AMQP
from celery.app.events import Events
from celery.backends.redis import RedisBackend
from celery.events.dispatcher import EventDispatcher
from celery.worker.consumer import Consumer
from kombu.connection import Connection
from kombu.transport import redis as kombu_redis

import pipeline
from pipeline.config import Settings
from workers import celery_private
from workers.app import make_app
from workers.celery_private import close_connections, own_connections, transport
from workers.celery_private.consumer import PatientConsumer
from workers.celery_private.events import DiscreetDispatcher, DiscreetEvents
from workers.keys import Keys
from workers.manager import LogPrinter, ProcessManager
from workers.messages import VantageAMQP
from workers.redis_url import RedisAddress

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

    @app.task(name="look", bind=True, shared=False)
    def look(self: object) -> None:
        seen.append((celery_private.current_task().name, celery_private.current_request().id))
        other = threading.Thread(target=lambda: seen.append(celery_private.current_task()))
        other.start()
        other.join()

    look.apply_async(task_id="a task").get()
    assert seen == [("look", "a task"), None]
    assert celery_private.current_request() is None


OURS = [
    (transport._PatientQoS, kombu_redis.QoS),
    (transport._Patience, kombu_redis.Channel),
    (transport._Patience, kombu_redis.SentinelChannel),
    (transport._Delivery, kombu_redis.Transport),
    (transport._PatientConnection, Connection),
    (transport._Results, RedisBackend),
    (PatientConsumer, Consumer),
    (DiscreetDispatcher, EventDispatcher),
    (DiscreetEvents, Events),
    (VantageAMQP, AMQP),
]


@pytest.mark.parametrize(("ours", "theirs"), OURS)
def test_what_we_replace_is_there(ours: type, theirs: type) -> None:
    """Otherwise our method would never be called, and its promise be lost without a sign."""
    own = {"_drop", "_read", "_refuse", "_hold", "_put_back"}
    replaced = [
        name
        for name, value in vars(ours).items()
        if name not in own and not name.startswith("__") and (callable(value) or name == "QoS")
    ]
    assert replaced or vars(ours).keys() & {"Connection", "dispatcher_cls"}
    assert [name for name in replaced if not hasattr(theirs, name)] == []


URLS = {
    "redis://127.0.0.1:1/0": (transport._PatientTransport, transport.PatientBackend),
    "rediss://127.0.0.1:1/0": (transport._PatientTransport, transport.PatientBackend),
    "unix://u:hush@/no/such?db=0": (transport._PatientTransport, transport.PatientBackend),
    "sentinel://:hush@127.0.0.1:1;sentinel://127.0.0.1:2/0": (
        transport._PatientSentinelTransport,
        transport.PatientSentinelBackend,
    ),
}


@pytest.mark.parametrize("url", URLS)
def test_our_apps_have_our_connections_and_results_and_others_their_own(url: str) -> None:
    address = RedisAddress.parse(url)
    app = make_app(Settings.from_env({}), address, Keys("0" * 32))
    theirs = Celery(set_as_current=False, broker=address.broker_url, backend=address.result_url)
    try:
        connection = app.connection_for_read()
        assert connection.get_transport_cls() is URLS[url][0]
        assert connection.clone().get_transport_cls() is URLS[url][0]
        assert set(transport.AWAY) <= set(connection.connection_errors)
        assert type(app.backend) is URLS[url][1]
        assert issubclass(app.events.Dispatcher, DiscreetDispatcher)
        assert app.conf.worker_consumer == "workers.consumer:VantageConsumer"
        told = connection.info()
        told.pop("password")  # Celery does the same
        assert "hush" not in str(told)
        other = theirs.connection_for_read().get_transport_cls()
        assert other in (kombu_redis.Transport, kombu_redis.SentinelTransport)
    finally:
        close_connections(app)
        app.close()
        theirs.close()


def test_a_closed_channel_says_so() -> None:
    """kombu: 'NoneType' object has no attribute 'hostname', which ended workers."""
    for connection in (None, SimpleNamespace(client=None)):
        channel = transport._PatientChannel.__new__(transport._PatientChannel)
        channel.connection = connection
        with pytest.raises(redis.ConnectionError, match="was closed"):
            channel._connparams()


def test_no_result_is_subscribed_to_when_a_message_is_sent() -> None:
    """Celery: RuntimeError, "Retry limit exceeded", while Redis is away."""
    app = make_app(Settings.from_env({}), RedisAddress.parse("redis://127.0.0.1:1"), Keys("0" * 32))
    try:
        app.backend.on_task_call(None, "a task")
        assert app.backend.result_consumer.subscribed_to == set()
    finally:
        close_connections(app)
        app.close()


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put back the signal handlers, which honcho's loop sets."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_honcho_runs_our_processes_by_threads_and_stops_them_all(tmp_path: Path) -> None:
    said: list[str] = []
    printer = LogPrinter(tmp_path / "log", said.append, secrets={"hush"})

    def watch() -> str | None:
        text = (tmp_path / "log").read_text()
        return "enough was seen" if "up a hush".replace("hush", "***") in text else None

    manager = ProcessManager(printer, watch)
    env = dict(os.environ)
    manager.add("long", "echo up a hush; exec sleep 600", env, tmp_path)
    manager.add("short", "exit 3", env, tmp_path)
    manager.loop()
    printer.close()
    text = (tmp_path / "log").read_text()
    assert manager.failed
    assert "short ended with exit status 3; starting it again in 1 s" in "\n".join(said)
    assert "enough was seen; stopping everything" in said
    assert "long stopped (rc=-15)" in text
    assert "hush" not in text


@pytest.mark.usefixtures("handlers")
def test_a_command_that_cannot_be_started_stops_the_others(tmp_path: Path) -> None:
    said: list[str] = []
    printer = LogPrinter(tmp_path / "log", said.append)
    manager = ProcessManager(printer, lambda: None)
    manager.add("long", "exec sleep 600", dict(os.environ), tmp_path)
    manager.add("lost", "true", dict(os.environ), tmp_path / "is not there")
    manager.loop()
    printer.close()
    assert any(line.startswith("lost cannot be run: ") for line in said)
    assert "long stopped (rc=-15)" in (tmp_path / "log").read_text()


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("folder", [".", "is not there"], ids=["dies", "cannot be started"])
def test_everything_goes_on_without_an_optional_process(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.manager._BACKOFF_S", (0.0, 0.0, 0.0))
    said: list[str] = []
    printer = LogPrinter(tmp_path / "log", said.append)

    def watch() -> str | None:
        return "enough was seen" if manager.is_off("short") and not manager.is_off("long") else None

    manager = ProcessManager(printer, watch)
    manager.add("long", "exec sleep 600", dict(os.environ), tmp_path)
    manager.add("short", "exit 3", dict(os.environ), tmp_path / folder, optional=True)
    manager.loop()
    printer.close()
    (last,) = [line for line in said if "short" in line and "starting it again" not in line]
    assert last.endswith("; it stays off, and everything else goes on")
    if folder == ".":
        assert sum("starting it again" in line for line in said) == 3
    assert "enough was seen; stopping everything" in said
    assert "long stopped (rc=-15)" in (tmp_path / "log").read_text()


@functools.cache
def _imports(path: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


@pytest.mark.parametrize(
    ("private", "module"),
    [
        ("celery._", "workers/celery_private"),
        ("celery.app.amqp", "workers/celery_private"),
        ("celery.backends", "workers/celery_private"),
        ("celery.loaders", "workers/celery_private"),
        ("celery.worker", "workers/celery_private"),
        ("kombu.pools", "workers/celery_private"),
        ("kombu.transport", "workers/celery_private"),
        ("honcho.manager", "workers/manager.py"),
        ("honcho.process", "workers/manager.py"),
        ("numba.core.compiler", "pipeline/compiling.py"),
        ("numba.core.registry", "pipeline/compiling.py"),
        ("numba.np.numpy_support", "pipeline/compiling.py"),
    ],
)
def test_one_module_or_package_uses_it(private: str, module: str) -> None:
    used = {
        path.relative_to(ROOT).as_posix()
        for package in ("pipeline", "workers", "demo", "benchmarks")
        for path in (ROOT / package).rglob("*.py")
        if any(name.startswith(private) for name in _imports(path))
    }
    assert used
    assert {name for name in used if not name.startswith(module)} == set()
