"""What the settings promise about chords, on a real Redis and real workers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import chord
from celery.result import AsyncResult
from heavy import long_only

from pipeline.config import Settings
from pipeline.metadata.engine import create_metadata_engine, session_scope, upgrade
from pipeline.metadata.heartbeats import live_workers
from pipeline.metadata.records import WorkerRecord
from workers.celery_private import close_connections
from workers.environment import environment
from workers.keys import Keys
from workers.processes import die_with_parent, stop_process
from workers.redis_url import RedisAddress

Eventually = Callable[..., Any]
_HERE = Path(__file__).parent


@dataclasses.dataclass
class Site:
    """Settings, clients, and a way to start workers."""

    settings: Settings
    tasks: Any
    redis: Any

    def live(self) -> dict[str, WorkerRecord]:
        engine = create_metadata_engine(self.settings.database_url)
        with session_scope(engine, write=False) as session:
            rows = live_workers(session, time.time(), self.settings.host_timeout_s)
        engine.dispose()
        return {row.name: row for row in rows}

    @contextlib.contextmanager
    def worker(
        self, name: str, queues: str, pool: str = "threads", **variables: str
    ) -> Iterator[Any]:
        env = environment(self.settings) | variables
        env["PYTHONPATH"] = f"{_HERE}:{env.get('PYTHONPATH', '')}"
        env["REMAP_SIGTERM"] = "SIGQUIT"
        command = [sys.executable, "-m", "celery", "-A", "chord_app", "worker"]
        with (self.settings.home / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "-n", f"{name}@test", "-Q", queues, "-P", pool, "-c", "2"],
                cwd=self.settings.home,
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )
        try:
            yield process
        finally:
            stop_process(process, 600)


@pytest.fixture
def visibility_timeout_s() -> int:
    """So long that no message is delivered again during a test."""
    return 300


@pytest.fixture
def site(
    settings: Settings,
    redis_url: str,
    visibility_timeout_s: int,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    settings = dataclasses.replace(
        settings, redis_url=redis_url, visibility_timeout_s=visibility_timeout_s
    )
    for name, value in environment(settings, {}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(_HERE))
    monkeypatch.delitem(sys.modules, "chord_app", raising=False)
    engine = create_metadata_engine(settings.database_url)
    upgrade(engine)
    engine.dispose()
    import chord_app

    client = chord_app.redis()
    yield Site(settings, chord_app, client)
    client.close()
    close_connections(chord_app.app)
    chord_app.app.backend.client.close()


def _wait(result: AsyncResult, eventually: Eventually, timeout_s: float = 600) -> Any:
    eventually(result.ready, timeout_s)
    return result.get(timeout=1, follow_parents=False)


def test_a_chord_of_parts_that_keep_no_result_is_collected_once_and_in_order(
    site: Site, eventually: Eventually
) -> None:
    with site.worker("all", "extract,reduce"):
        eventually(lambda: site.live().get("all@test", None))
        result = chord(site.tasks.part.s(n) for n in range(8))(site.tasks.collect.s())
        assert _wait(result, eventually) == list(range(8))
        assert site.redis.llen("collected") == 1
        backend = RedisAddress.parse(site.settings.redis_url or "").client()
        kept = list(backend.keys("*celery-task-meta-*"))
        backend.close()
        # Only the collecting task's: the parts' reached it through the join alone.
        name = f"vantage:{site.tasks.app.installation}:celery-task-meta-{result.id}"
        assert kept == [name.encode()]


def test_the_join_of_a_chord_is_kept_a_day_while_a_part_is_late(
    site: Site, eventually: Eventually
) -> None:
    with site.worker("all", "extract,reduce"):
        header = [site.tasks.part.s(0), site.tasks.part.s(1, held=True)]
        result = chord(header)(site.tasks.collect.s())
        backend = RedisAddress.parse(site.settings.redis_url or "").client()
        eventually(lambda: site.redis.llen(site.tasks.RUNS) == 2)
        # The first part is done, and the second may be arbitrarily late.
        joined = eventually(lambda: [k for k in backend.keys("*") if k.endswith(b".j")])
        state = [k for k in backend.keys("*") if k.startswith(joined[0][:-2]) and k[-2:] != b".c"]
        assert len(state) >= 2
        assert {key: backend.ttl(key) > 80_000 for key in state} == dict.fromkeys(state, True)
        backend.close()
        site.redis.rpush(site.tasks.GO, 1)
        assert _wait(result, eventually) == [0, 1]


@pytest.mark.parametrize("visibility_timeout_s", [4])
def test_a_chord_outlives_the_worker_that_is_killed_in_the_middle_of_a_part(
    site: Site, eventually: Eventually
) -> None:
    with site.worker("first", "extract") as first:
        result = chord([site.tasks.part.s(7, held=True)])(site.tasks.collect.s())
        eventually(lambda: site.redis.llen(site.tasks.RUNS) == 1)
        first.kill()
        first.wait()
    site.redis.rpush(site.tasks.GO, *range(99))  # however often it comes again
    with site.worker("second", "extract,reduce"):
        assert _wait(result, eventually) == [7]
    runs = [run.split()[1] for run in site.redis.lrange(site.tasks.RUNS, 0, -1)]
    assert len(set(runs)) == 2, "the part was not run by the second worker"
    assert site.redis.llen("collected") == 1


def test_a_message_of_a_newer_protocol_is_put_back_and_one_of_others_is_refused(
    site: Site, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, keys = site.tasks.app, Keys(site.tasks.app.installation)
    address = RedisAddress.parse(site.settings.redis_url or "")
    with monkeypatch.context() as changed:
        changed.setattr("workers.messages.PROTOCOL", 99)
        newer = site.tasks.part.delay(1).id
        app.send_task("a.task.of.the.future", queue="extract")
    with monkeypatch.context() as changed:
        changed.setitem(app.__dict__, "installation", "0123456789abcdef")
        site.tasks.part.delay(2)
    site.tasks.part.delay(3)
    broker = address.client(database=address.broker_db)

    def waiting() -> list[dict[str, Any]]:
        return [json.loads(text) for text in broker.lrange(keys.queue("extract"), 0, -1)]

    with site.worker("w", "extract") as worker:
        eventually(lambda: site.redis.llen(site.tasks.RUNS) == 1)

        def told() -> list[str]:
            row = site.live().get("w@test")
            return row.details.get("troubles", []) if row else []

        def held() -> set[float]:
            """When each message that is held was received."""
            return {
                at for _, at in broker.zrange(keys.queue("unacked_index"), 0, -1, withscores=True)
            }

        (sentence,) = eventually(told)
        assert "puts back messages of protocol 99" in sentence
        assert "install a newer Vantage" in sentence
        first = eventually(lambda: len(found := held()) == 2 and found)
        # Held for some time, which takes no processor time, then put back, and taken again.
        eventually(lambda: len(found := held()) == 2 and not found & first)
        worker.terminate()
        assert worker.wait(timeout=600) == 0
    assert {message["headers"]["task"] for message in waiting()} == {
        "extract.batch",
        "a.task.of.the.future",
    }
    assert newer in {message["headers"]["id"] for message in waiting()}
    assert {message["headers"]["vantage"]["protocol"] for message in waiting()} == {99}
    assert [run.split()[0] for run in site.redis.lrange(site.tasks.RUNS, 0, -1)] == [b"3"]
    log = (site.settings.home / "w.log").read_text()
    assert log.count("a message of installation 0123456789abcdef is refused") == 1
    broker.close()


@long_only
def test_a_pool_process_that_dies_has_its_part_run_again_within_seconds(
    site: Site, eventually: Eventually
) -> None:
    with site.worker("pool", "extract,reduce", pool="prefork"):
        eventually(lambda: site.live().get("pool@test"))
        result = chord([site.tasks.lethal.s(3)])(site.tasks.collect.s())
        # Celery's own delay before a retry is 180 s.
        assert _wait(result, eventually, 170) == [3]
    assert site.redis.llen(site.tasks.RUNS) == 2


@long_only
def test_a_stopped_worker_puts_back_what_it_had_begun(site: Site, eventually: Eventually) -> None:
    with site.worker("pool", "extract", pool="prefork") as worker:
        result = chord([site.tasks.part.s(5, held=True)])(site.tasks.collect.s())
        eventually(lambda: site.redis.llen(site.tasks.RUNS) == 1)
        worker.terminate()
        worker.wait(timeout=600)
    site.redis.rpush(site.tasks.GO, 1, 1)
    with site.worker("next", "extract,reduce"):
        assert _wait(result, eventually) == [5]


def test_a_worker_is_ready_when_it_consumes_and_gone_when_it_has_stopped(
    site: Site, eventually: Eventually
) -> None:
    with site.worker("g", "group.2,group.11") as worker:
        row = eventually(lambda: (r := site.live().get("g@test")) and r.state == "ready" and r)
        assert (row.roles, row.groups, row.pid) == (("group",), (2, 11), worker.pid)
        first = row.heartbeat_at
        eventually(lambda: site.live()["g@test"].heartbeat_at > first)
        worker.terminate()
        assert worker.wait(timeout=600) == 0
        assert site.live() == {}


def test_a_worker_without_a_database_says_why_it_does_not_start(site: Site) -> None:
    site.settings = dataclasses.replace(site.settings, database_url="mysql://host/db")
    with site.worker("w", "extract") as worker:
        assert worker.wait(timeout=600) != 0
    assert "VANTAGE_DATABASE_URL" in (site.settings.home / "w.log").read_text()


@long_only
def test_a_worker_ends_when_the_process_that_runs_everything_is_gone(
    site: Site, eventually: Eventually
) -> None:
    with subprocess.Popen(["sleep", "600"]) as up:
        try:
            with site.worker("w", "extract", "prefork", VANTAGE_UP_PID=str(up.pid)) as worker:
                eventually(lambda: site.live().get("w@test"))
                family = psutil.Process(worker.pid).children(recursive=True)
                up.kill()
                up.wait()
                worker.wait(timeout=600)
                assert psutil.wait_procs(family, timeout=600)[1] == []
        finally:
            up.kill()
