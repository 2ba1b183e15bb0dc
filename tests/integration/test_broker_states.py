"""A Redis that refuses is one that is away, and no message ends its worker: with real workers."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import chord, signature
from heavy import long_only
from kombu.exceptions import OperationalError
from operators_redis import MORE_REFUSALS, REFUSALS, OperatorsRedis
from sites import make_settings

import pipeline
from pipeline.config import Settings
from pipeline.errors import BrokerUnavailableError
from pipeline.metadata import heartbeats
from pipeline.metadata.engine import create_metadata_engine, session_scope, upgrade
from pipeline.metadata.records import WorkerRecord
from vantage import Collection
from workers import doctor
from workers.celery_private.transport import PatientAMQP
from workers.context import Context
from workers.environment import environment
from workers.keys import PROTOCOL
from workers.processes import die_with_parent, stop_process
from workers.redis_check import RedisWatch, refusals, trouble
from workers.redis_rights import RIGHTS
from workers.redis_url import RedisAddress
from workers.workflows import task

SAMPLE = [pytest.param(one, marks=long_only if one == "loading" else ()) for one in REFUSALS]
"""Every refusal; one that loads takes Redis ten seconds to get there."""

Eventually = Callable[..., Any]
_HERE = Path(__file__).parent
RUNS_DATABASE = 5


class Worker:
    """A worker of the tasks in `chord_app`, on a Redis of an operator."""

    def __init__(self, settings: Settings, redis: OperatorsRedis, name: str, pool: str) -> None:
        self.settings, self.redis = settings, redis
        self._log = settings.home / f"{name}.log"
        self.context = Context(settings)
        env = environment(settings) | {"REMAP_SIGTERM": "SIGQUIT"}
        env["PYTHONPATH"] = f"{_HERE}:{env.get('PYTHONPATH', '')}"
        command = [sys.executable, "-m", "celery", "-A", "chord_app", "worker", "-c", "2"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "-n", f"{name}@test", "-Q", "extract,reduce", "-P", pool],
                cwd=settings.home,
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )

    def log(self) -> str:
        assert self.process.poll() is None, f"it has ended:\n{self._log.read_text()}"
        return self._log.read_text()

    def runs(self) -> set[int]:
        """Return the numbers of the tasks that were run."""
        client = self.context.redis_address.client(RUNS_DATABASE)
        try:
            return {int(run.split()[0]) for run in client.lrange("runs", 0, -1)}
        finally:
            client.close()

    def send(self, number: int) -> None:
        task(self.context.app, "extract.batch", number).apply_async()

    def stop(self) -> int:
        self.context.close()
        return stop_process(self.process, 600)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorsRedis]:
    with OperatorsRedis(tmp_path_factory.mktemp("operator")) as server:
        yield server


@pytest.fixture(scope="module")
def settings(redis: OperatorsRedis, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return _installation(tmp_path_factory.mktemp("states") / "home", redis.url)


def _installation(home: Path, url: str) -> Settings:
    """Make a database; its identity gives it queues of its own."""
    settings = make_settings(home, redis_url=url)
    engine = create_metadata_engine(settings.database_url)
    upgrade(engine)
    engine.dispose()
    return dataclasses.replace(settings, visibility_timeout_s=4)


@contextlib.contextmanager
def _worker(
    settings: Settings, redis: OperatorsRedis, name: str, pool: str, eventually: Eventually
) -> Iterator[Worker]:
    worker = Worker(settings, redis, name, pool)
    try:
        first = -len(name)  # each name has another length
        worker.send(first)
        eventually(lambda: worker.log() and first in worker.runs())
        yield worker
    finally:
        status = worker.stop()
    assert status == 0


@pytest.fixture(scope="module")
def worker(settings: Settings, redis: OperatorsRedis, eventually: Eventually) -> Iterator[Worker]:
    with _worker(settings, redis, "threads", "threads", eventually) as worker:
        yield worker


def _outlives(worker: Worker, state: str, number: int, eventually: Eventually) -> None:
    """Refuse until the worker has noticed; see that it goes on, without a new start."""
    before = len(worker.log())
    # One that loads was killed before; the next try to connect takes as long as it loads.
    told = "Trying again" if state == "loading" else REFUSALS[state]
    with worker.redis.refusing(state):
        eventually(lambda: told in worker.log()[before:])
    worker.send(number)
    eventually(lambda: worker.log() and number in worker.runs())


@pytest.mark.parametrize("state", SAMPLE)
def test_a_worker_waits_while_redis_refuses(
    worker: Worker, state: str, eventually: Eventually
) -> None:
    _outlives(worker, state, list(REFUSALS).index(state), eventually)


@long_only
@pytest.mark.parametrize("state", MORE_REFUSALS)
def test_a_worker_outlives_other_states_of_redis(
    worker: Worker, state: str, eventually: Eventually
) -> None:
    number = 100 + MORE_REFUSALS.index(state)
    before = len(worker.log())
    with worker.redis.refusing(state):
        eventually(lambda: len(worker.log()) > before)  # it has noticed
    worker.send(number)
    eventually(lambda: worker.log() and number in worker.runs())


@long_only
@pytest.mark.parametrize("state", REFUSALS)
def test_a_worker_with_a_pool_of_processes_waits_while_redis_refuses(
    redis: OperatorsRedis, tmp_path: Path, state: str, eventually: Eventually
) -> None:
    settings = _installation(tmp_path / "home", redis.url)
    with _worker(settings, redis, "pool", "prefork", eventually) as worker:
        _outlives(worker, state, 20 + list(REFUSALS).index(state), eventually)


def test_a_task_that_ends_while_redis_is_killed_does_not_end_its_worker(
    redis: OperatorsRedis, tmp_path: Path, eventually: Eventually
) -> None:
    """Its message cannot be acknowledged, and comes again; the result is ready while none listens.

    kombu: 'NoneType' object has no attribute 'hostname'.
    """
    settings = _installation(tmp_path / "home", redis.url)
    with _worker(settings, redis, "processes", "prefork", eventually) as worker:
        pool = psutil.Process(worker.process.pid).children()
        task(worker.context.app, "extract.batch", 40, held=True).apply_async()
        eventually(lambda: 40 in worker.runs())
        before = len(worker.log())
        redis.kill()
        eventually(lambda: "Trying again" in worker.log()[before:])
        redis.start()
        for _ in range(4):  # of each time that it runs
            worker.context.redis_address.client(RUNS_DATABASE).rpush("go", 1)
        worker.send(41)
        eventually(lambda: worker.log() and 41 in worker.runs())
        assert psutil.Process(worker.process.pid).children() == pool


BODY = base64.b64encode(b'[[1], {}, {"chord": null}]').decode()
HEADERS = {"task": "extract.batch", "id": "an id", "lang": "py", "argsrepr": "", "kwargsrepr": ""}
SENDER = {"vantage": {"installation": "ours", "protocol": PROTOCOL}}
PROPERTIES = {
    "delivery_tag": "a tag",
    "delivery_info": {"exchange": "extract", "routing_key": "extract"},
    "body_encoding": "base64",
    "delivery_mode": 2,
    "priority": 0,
}
MESSAGE = {
    "body": BODY,
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "headers": {**HEADERS, **SENDER},
    "properties": PROPERTIES,
}


def _body(text: str | bytes) -> dict[str, Any]:
    data = text if isinstance(text, bytes) else text.encode()
    return {"body": base64.b64encode(data).decode()}


UNREADABLE: dict[str, bytes | dict[str, Any]] = {
    "nothing": b"",
    "not JSON": b"hello",
    "half a message": json.dumps(MESSAGE).encode()[:100],
    "not UTF-8": b"\xff\xfe\x00{",
    "a number": b"5",
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "deeply nested": b"[" * 100_000,
    "no properties": {"properties": None},
    "properties of another type": {"properties": [1]},
    "no delivery tag": {"properties": {**PROPERTIES, "delivery_tag": None}},
    "no delivery information": {"properties": {**PROPERTIES, "delivery_info": None}},
    "delivery information of another type": {"properties": {**PROPERTIES, "delivery_info": 3}},
    "an unknown encoding of the body": {"properties": {**PROPERTIES, "body_encoding": "none"}},
    "a body that is not base64": {"body": "!"},
    "a body of another type": {"body": 7},
    "an unknown type of content": {"content-type": "application/x-none"},
    "pickle": {"content-type": "application/x-python-serialize", **_body(b"\x80\x04N.")},
    "headers of another type": {"headers": [1]},
    "headers that are null": {"headers": None},
    "no task": {"headers": SENDER},
    "a task of another type": {"headers": {**HEADERS, **SENDER, "task": [1]}},
    "an unknown task": {"headers": {**HEADERS, **SENDER, "task": "no.such.task"}},
    "no id": {"headers": {"task": "extract.batch", **SENDER}},
    "a time that is none": {"headers": {**HEADERS, **SENDER, "eta": "soon"}},
    "an end that is none": {"headers": {**HEADERS, **SENDER, "expires": {"a": 1}}},
    "an unknown compression": {"headers": {**HEADERS, **SENDER, "compression": "none"}},
    "a body that is not JSON": _body("hello"),
    "a body that is a number": _body("5"),
    "a body of two": _body("[1, 2]"),
    "a body of four": _body("[1, 2, 3, 4]"),
    "time limits of another type": {"headers": {**HEADERS, **SENDER, "timelimit": "long"}},
}


OTHERWISE_DROPPED = ("an unknown task", "headers that are null")
"""Celery itself drops the one; the other is one of no installation."""


def _raw(change: bytes | dict[str, Any], installation: str) -> bytes:
    if isinstance(change, bytes):
        return change
    return json.dumps({**MESSAGE, **change}).replace("ours", installation).encode()


def test_messages_that_cannot_be_read_are_dropped_and_counted(
    worker: Worker, eventually: Eventually
) -> None:
    keys = worker.context.keys
    for change in UNREADABLE.values():
        worker.redis.client.lpush(keys.queue("extract"), _raw(change, keys.identity))
    worker.send(60)
    eventually(lambda: worker.log() and 60 in worker.runs())
    assert worker.redis.client.llen(keys.queue("extract")) == 0
    unacked = keys.queue("unacked")
    eventually(lambda: worker.log() and worker.redis.client.hlen(unacked) == 0)
    dropped = len(UNREADABLE) - len(OTHERWISE_DROPPED)
    told = f"threads@test has dropped {dropped} messages that it could not read: see the log"
    eventually(lambda: _details(worker.settings, "threads@test")["troubles"] == [told])
    assert worker.log().count("cannot be read and is dropped") == dropped


def test_unacknowledged_messages_that_cannot_be_read_hold_up_no_other(
    worker: Worker, eventually: Eventually
) -> None:
    """What a dead worker had not acknowledged is sent again, after the visibility timeout."""
    client, keys = worker.redis.client, worker.context.keys
    unacked, index = keys.queue("unacked"), keys.queue("unacked_index")
    headers = {**HEADERS, "vantage": {"installation": keys.identity, "protocol": PROTOCOL}}
    sound = {**MESSAGE, **_body("[[61], {}, {}]"), "headers": headers}
    entries = {
        "1": b"not JSON",
        "2": b"5",
        "3": b"[1, 2]",
        "4": json.dumps([5, "extract", "extract"]).encode(),
        "5": json.dumps([MESSAGE, ["of another type"], "extract"]).encode(),
        "6": b"\xff",
        "7": json.dumps([sound, "extract", "extract"]).encode(),
    }
    for tag, entry in entries.items():
        client.hset(unacked, tag, entry)
        client.zadd(index, {tag: 1000.0 - int(tag)})
    eventually(lambda: worker.log() and 61 in worker.runs())
    eventually(lambda: worker.log() and client.hlen(unacked) == client.zcard(index) == 0)


def _details(settings: Settings, name: str) -> Mapping[str, Any]:
    engine = create_metadata_engine(settings.database_url)
    with session_scope(engine, write=False) as session:
        rows = heartbeats.live_workers(session, time.time(), 600)
    engine.dispose()
    return {row.name: row for row in rows}[name].details


def test_the_rights_in_operations_suffice(tmp_path: Path, eventually: Eventually) -> None:
    """For a worker, a chord with its scripts, events and remote control; doctor finds no other."""
    page = (Path(pipeline.__file__).parent.parent / "docs" / "operations.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("ACL SETUSER vantage")]
    (line,) = [line for line in lines if "+@pubsub" in line]  # the other one is for the cache
    assert line.endswith(f" {RIGHTS}")
    with OperatorsRedis(tmp_path) as redis:
        # The keys of the tasks in `chord_app` are not those of Vantage.
        own = ("~runs", "~go", "~collected")
        redis.client.execute_command(*line.replace("PASSWORD", "word").split(), *own)
        url = redis.url.replace("//", "//vantage:word@")
        settings = _installation(tmp_path / "home", url)
        assert refusals(RedisAddress.parse(url)) == []
        with _worker(settings, redis, "rights", "threads", eventually) as worker:
            app = worker.context.app
            header = [task(app, "extract.batch", number) for number in (1, 2)]
            chord(header, signature("extract.collect", app=app), app=app).apply_async()
            results = worker.context.redis_address.client(RUNS_DATABASE)
            eventually(lambda: worker.log() and results.llen("collected") == 1)
            results.close()
            assert app.control.inspect(timeout=600, limit=1).ping() == {
                "rights@test": {"ok": "pong"}
            }
        assert "NOPERM" not in (settings.home / "rights.log").read_text()
        assert "no permissions" not in (settings.home / "rights.log").read_text()


@pytest.mark.parametrize("state", [*SAMPLE, "no right to send"])
def test_every_refusal_reaches_a_caller_as_one_error(
    redis: OperatorsRedis, tmp_path: Path, state: str
) -> None:
    settings = make_settings(tmp_path / "home", redis_url=redis.url)
    engine = create_metadata_engine(settings.database_url)
    upgrade(engine)
    with session_scope(engine) as session:  # as if workers were there
        roles = ("extract", "group", "query", "reduce")
        now = time.time()
        row = WorkerRecord("all@test", roles, "test", os.getpid(), (0, 1, 2, 3), "ready", now, now)
        heartbeats.beat(session, row)
    engine.dispose()
    (tmp_path / "a.png").write_bytes(b"any")
    with Collection.open("all", settings) as collection, redis.refusing(state):
        for call in (
            lambda: collection.index(tmp_path),
            lambda: collection.enqueue_search(tmp_path / "a.png"),
        ):
            with pytest.raises(BrokerUnavailableError) as caught:
                call()
            assert redis.url in str(caught.value)
            # Redis calls a missing right by another name where a script meets it.
            told = str(caught.value).replace("can't run this command", "no permissions")
            assert REFUSALS.get(state, "no permissions") in told
    with redis.refusing(state), contextlib.ExitStack() as stack:
        if state in ("a failed snapshot", "loading", "another password"):
            stack.enter_context(pytest.raises(BrokerUnavailableError))
        Collection.open("all", settings).close()  # a ping is answered in the other states


@pytest.mark.parametrize("state", SAMPLE)
def test_doctor_and_up_say_what_redis_refuses(
    redis: OperatorsRedis, state: str, eventually: Eventually
) -> None:
    address = RedisAddress.parse(redis.url)
    said: list[str] = []
    watch = RedisWatch(address, said.append)
    watch.look()
    with redis.refusing(state):
        # A server that loads does not answer every question in time.
        right = (REFUSALS[state], "Timeout") if state == "loading" else (REFUSALS[state],)
        check = doctor.running_redis(address)
        assert not check.ok
        assert any(part in check.detail for part in right), check.detail
        for _ in range(2):
            watch.look()
        eventually(lambda: watch.look() or REFUSALS[state] in said[-1])
        waiting = f"Waiting for Redis at {redis.url}: "
        assert all(line.startswith(waiting) for line in said), said
        assert all(any(part in line for part in right) for line in said), said
        assert len(said) == 1 or state == "loading", said
        said.clear()
    watch.look()
    assert said == [f"Redis at {redis.url} can be used again; everything goes on."]
    assert doctor.running_redis(address).ok


COMMANDS = ("brpop", "lpush", "hset", "zadd", "zrange", "eval", "publish", "psubscribe", "multi")


@pytest.mark.parametrize("command", COMMANDS)
def test_doctor_names_the_command_that_is_refused(redis: OperatorsRedis, command: str) -> None:
    try:
        redis.client.execute_command("ACL", "SETUSER", "default", f"-{command}")
        check = doctor.running_redis(RedisAddress.parse(redis.url))
    finally:
        redis.client.execute_command("ACL", "SETUSER", "default", "+@all")
    assert not check.ok
    assert f" refuses database 0: {command.upper()}: " in check.detail


def test_workers_wait_for_a_database_that_redis_does_not_have(redis: OperatorsRedis) -> None:
    """As for a server that is away: the error is one after which they try again."""
    address = RedisAddress.parse(redis.url.replace("/0", "/99"))
    assert trouble(address) == "DB index is out of range"
    connection = PatientAMQP.Connection(address.broker_url)
    with pytest.raises(OperationalError, match="DB index is out of range"):
        connection.ensure_connection(max_retries=1, interval_start=0)
    assert not doctor.running_redis(address).ok


def test_a_database_that_redis_does_not_have_is_an_error_of_the_broker(
    redis: OperatorsRedis, tmp_path: Path
) -> None:
    url = redis.url.replace("/0", "/99")
    settings = make_settings(tmp_path / "home", redis_url=url)
    with pytest.raises(BrokerUnavailableError, match="DB index is out of range"):
        Collection.open("all", settings)
