"""Vantage beside other Celery apps, and two installations, in one process.

Global state of a process (the current app, signals) is checked in separate processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sites import make_settings

from pipeline.config import Settings
from pipeline.metadata.engine import create_metadata_engine, upgrade
from workers.context import Context
from workers.embedded import EmbeddedRedis
from workers.environment import environment
from workers.redis_url import RedisAddress

Eventually = Callable[..., Any]

THEIRS = """
    from celery import Celery

    app = Celery("theirs", broker={broker!r}, backend={backend!r})

    import workers.driver  # beside our own tasks we search photographs

    @app.task(name="theirs.add")
    def add(one, other):
        return one + other
"""


def _run(code: str, settings: Settings, cwd: Path, *arguments: str) -> Any:
    """Run code in a separate process and return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=environment(settings),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def two_homes(tmp_path: Path) -> Iterator[list[Settings]]:
    """Two installations, each with its own Redis and database."""
    with contextlib.ExitStack() as stack:
        homes = []
        for name in ("one", "two"):
            settings = make_settings(tmp_path / name)
            engine = create_metadata_engine(settings.database_url)
            upgrade(engine)
            engine.dispose()
            url = stack.enter_context(EmbeddedRedis(settings.home)).url
            homes.append(dataclasses.replace(settings, redis_url=url))
        yield homes


def _waiting(settings: Settings) -> dict[str, int]:
    """Return the number of messages in the queues of an installation."""
    context = Context(settings)
    address = context.redis_address
    with address.client(database=address.broker_db) as broker:
        names = ("reduce", "query", "group.0", "group.1")
        counts = {name: int(broker.llen(context.keys.queue(name))) for name in names}
    context.close()
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("shared", [False, True], ids=["two Redis", "one Redis"])
def test_two_installations_in_one_process_send_to_their_own_queues(
    two_homes: list[Settings], tmp_path: Path, shared: bool
) -> None:
    if shared:
        url = two_homes[0].redis_url
        two_homes[1] = dataclasses.replace(two_homes[1], redis_url=url)
    code = """
        import json, sys, threading
        import celery._state
        from pipeline.config import Settings
        from workers.context import Context
        from workers.workflows import search_canvas, task

        one, two = (Context(Settings.from_env(json.loads(text))) for text in sys.argv[1:])

        def send(context, count):
            for number in range(count):
                task(context.app, "job.register", "j", number).apply_async()
            search_canvas(context.app, "s", [0, 1], 60.0).apply_async()

        threads = [threading.Thread(target=send, args=a) for a in ((one, 20), (two, 30))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        one.close()
        send(two, 5)  # is not cut off by the other's end
        two.close()
        print(json.dumps(celery._state.default_app is None))
    """
    texts = [json.dumps(environment(settings, {})) for settings in two_homes]
    assert _run(code, two_homes[0], tmp_path, *texts), "the process got a default app from us"
    assert _waiting(two_homes[0]) == {"reduce": 20, "group.0": 1, "group.1": 1}
    assert _waiting(two_homes[1]) == {"reduce": 35, "group.0": 2, "group.1": 2}


def test_the_callers_own_app_keeps_its_broker_and_queues(
    two_homes: list[Settings], tmp_path: Path
) -> None:
    """In an empty folder, with the client imported before and a collection open."""
    code = """
        import json, sys
        import celery
        from vantage import Collection

        theirs = celery.Celery("theirs", broker=sys.argv[1])
        with Collection.open("photographs"):
            current = celery.current_app
            print(json.dumps([
                current.main, current.conf.broker_url == sys.argv[1],
                current.conf.task_default_queue, current.conf.task_acks_late,
                sorted(name for name in current.tasks if not name.startswith("celery.")),
            ]))
    """
    empty = tmp_path / "empty"
    empty.mkdir()
    url = two_homes[1].redis_url or ""
    assert _run(code, two_homes[0], empty, url) == ["theirs", True, "celery", False, []]


def test_a_worker_of_the_callers_own_app_runs_with_our_client_imported(
    two_homes: list[Settings], tmp_path: Path, eventually: Eventually
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    address = RedisAddress.parse(two_homes[1].redis_url or "")
    text = THEIRS.format(broker=address.url(3), backend=address.url(4))
    (folder / "theirs.py").write_text(textwrap.dedent(text))
    with (folder / "log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "theirs", "worker", "-P", "solo", "-l", "INFO"],
            env=environment(two_homes[0]) | {"VANTAGE_UP_PID": str(os.getpid())},
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        ask = "import theirs; print(theirs.add.delay(20, 22).get(timeout=600))"
        assert _run(ask, two_homes[0], folder) == 42
        assert worker.poll() is None, (folder / "log").read_text()
    finally:
        worker.terminate()
        worker.wait(timeout=600)
    # It is not our worker: it has no heartbeat, and its log has Celery's format.
    assert "[tasks]" in (folder / "log").read_text()
    assert re.search(r"^\[\d{4}-.*: INFO/MainProcess\]", (folder / "log").read_text(), re.M)
