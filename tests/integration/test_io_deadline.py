"""What a thread asks of a frozen Redis ends with its deadline, not with the sockets' time limits.

The limits here are as long as a test may hang. After a wait that has ended with the deadline there
is no other one: neither for a socket nor between two tries.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kombu.utils.functional
import pytest
import redis
from sites import make_settings

from pipeline.errors import BrokerUnavailableError
from pipeline.metadata.engine import create_metadata_engine, upgrade
from workers.app import _made
from workers.celery_private import close_connections
from workers.celery_settings import celery_settings
from workers.context import Context
from workers.embedded import EmbeddedRedis
from workers.io_deadline import LateRedisError, io_until
from workers.redis_url import RedisAddress
from workers.workflows import search_canvas

NEVER_S = 1200.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path) as made:
        yield made
        os.kill(made.pid or 0, signal.SIGCONT)


def freeze(server: EmbeddedRedis) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)


@pytest.mark.parametrize("connected", [True, False])
def test_a_command_to_a_frozen_redis_ends_with_the_deadline_of_its_thread(
    server: EmbeddedRedis, connected: bool
) -> None:
    address = RedisAddress.parse(server.url)
    client = address.client(timeout_s=NEVER_S, connect_timeout_s=NEVER_S)
    if connected:
        client.ping()
    freeze(server)
    for ask in (client.ping, lambda: client.blpop(["x"], timeout=int(NEVER_S))):
        with pytest.raises(LateRedisError), io_until(time.time() + 0.1):
            ask()  # type: ignore[operator]
    client.close()


@pytest.mark.parametrize("connected", [True, False])
def test_sending_a_search_to_a_frozen_redis_ends_with_the_deadline_of_its_thread(
    server: EmbeddedRedis, tmp_path: Path, connected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path / "home", redis_url=server.url)
    engine = create_metadata_engine(settings.database_url)
    upgrade(engine)
    engine.dispose()
    context = Context(settings)
    values: dict[str, Any] = celery_settings(settings, context.redis_address, context.keys)
    values["broker_transport_options"] |= {
        "socket_timeout": NEVER_S,
        "socket_connect_timeout": NEVER_S,
    }
    names = ("redis_socket_timeout", "redis_socket_connect_timeout")
    app = _made(values | dict.fromkeys(names, NEVER_S))
    if connected:
        search_canvas(app, "s", [0, 1], 60.0).apply_async()
    freeze(server)
    monkeypatch.setattr(kombu.utils.functional, "sleep", no_pause)
    began = waits(monkeypatch)
    with (
        pytest.raises(BrokerUnavailableError),
        context.broker_errors(),
        io_until(time.time() + 0.1),
    ):
        search_canvas(app, "s", [0, 1], 60.0).apply_async()
    assert began.count("late") == 1
    assert began[-1] == "late"
    os.kill(server.pid or 0, signal.SIGCONT)
    search_canvas(app, "s", [0, 1], 60.0).apply_async()  # the connections can be used again
    close_connections(app)
    context.close()


def no_pause(seconds: float) -> None:
    raise AssertionError(f"it pauses for {seconds} s, although the deadline is over by then")


def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note what this thread waits for, and how each wait ends."""
    noted: list[str] = []

    def noting(method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            try:
                found = method(*args, **options)
            except (OSError, redis.RedisError):
                noted.append("late")
                raise
            noted.append("done")
            return found

        return call

    for kind in (redis.Connection, redis.UnixDomainSocketConnection):
        for name in ("_connect", "read_response"):
            monkeypatch.setattr(kind, name, noting(getattr(kind, name)))
    return noted


def test_a_redis_that_refuses_connections_is_not_tried_again_beyond_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path / "home", redis_url="redis://127.0.0.1:1/0")
    engine = create_metadata_engine(settings.database_url)
    upgrade(engine)
    engine.dispose()
    context = Context(settings)
    monkeypatch.setattr(kombu.utils.functional, "sleep", no_pause)
    with (
        pytest.raises(BrokerUnavailableError),
        context.broker_errors(),
        io_until(time.time()),
    ):
        search_canvas(context.app, "s", [0, 1], 60.0).apply_async()
    context.close()


def test_after_a_wait_in_vain_nothing_else_waits(server: EmbeddedRedis) -> None:
    client = RedisAddress.parse(server.url).client(timeout_s=NEVER_S, connect_timeout_s=NEVER_S)
    other = RedisAddress.parse(server.url).client(timeout_s=NEVER_S, connect_timeout_s=NEVER_S)
    client.ping()
    freeze(server)
    with io_until(time.time()):
        with pytest.raises(LateRedisError):
            client.ping()
        os.kill(server.pid or 0, signal.SIGCONT)
        for one in (client, other):  # not even one that would be answered
            with pytest.raises(LateRedisError):
                one.ping()
    assert client.ping()
    assert other.ping()
    client.close()
    other.close()


def test_the_deadline_is_that_of_one_thread_and_of_its_block(server: EmbeddedRedis) -> None:
    client = RedisAddress.parse(server.url).client(timeout_s=NEVER_S)
    entered, leave = threading.Event(), threading.Event()

    def elsewhere() -> None:
        with io_until(time.time() - NEVER_S):
            entered.set()
            leave.wait(NEVER_S)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    entered.wait(NEVER_S)
    answers: list[Any] = []
    push: Callable[[], object] = lambda: client.rpush("x", 1)  # noqa: E731
    timer = threading.Timer(1.5, push)
    timer.start()
    # Longer than another thread's deadline leaves, and than a block that was left.
    with io_until(time.time() - NEVER_S):
        client.ping()
    answers.append(client.blpop(["x"], timeout=int(NEVER_S)))
    leave.set()
    thread.join()
    timer.join()
    assert list(answers[0]) == [b"x", b"1"]
    client.close()
