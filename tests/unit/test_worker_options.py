"""A worker of the Procfile gets what Celery's own command line would give it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from celery import concurrency
from celery.bin.celery import celery
from celery.utils.log import mlevel

from workers import worker
from workers.app import app
from workers.up import read_procfile


@pytest.fixture
def given() -> Iterator[list[dict[str, Any]]]:
    """What workers are made with, instead of running them."""
    made: list[dict[str, Any]] = []

    class Worker:
        exitcode = 5

        def __init__(self, **options: Any) -> None:
            made.append(options)

        def start(self) -> None:
            pass

    before = app.__dict__.get("Worker")
    app.__dict__["Worker"] = Worker
    yield made
    app.__dict__.pop("Worker")
    if before is not None:
        app.__dict__["Worker"] = before


OPTIONS = [
    [],
    ["-n", "extract@%h", "-l", "INFO", "-Q", "extract", "-P", "prefork", "-c", "2", "-O", "fair"],
    ["-n", "group", "-Q", "group.0,group.3", "-P", "threads", "-c", "4", "--without-gossip"],
    ["--hostname=query@here", "--queues=query,reduce", "--pool=threads", "--concurrency=6"],
    ["-lerror", "-Psolo", "-c0", "--without-mingle"],
    ["--loglevel", "debug", "--optimization", "default"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_a_worker_is_made_as_by_celery(options: list[str], given: list[dict[str, Any]]) -> None:
    """Fails when a release of Celery gives its workers something else."""
    with pytest.raises(SystemExit) as ended:
        worker.main(options)
    assert ended.value.code == 5
    assert celery.main(["-A", "workers.app", "worker", *options], standalone_mode=False) == 5
    ours, theirs = given
    for made in given:
        made["pool"] = concurrency.get_implementation(made["pool"])
        made["loglevel"] = mlevel(made["loglevel"])
    assert ours == {name: theirs.pop(name) for name in ours}
    # What Celery's worker takes from the settings itself, if it is not told.
    assert {name: value for name, value in theirs.items() if value not in (None, False)} == {
        "prefetch_multiplier": app.conf.worker_prefetch_multiplier,
        "schedule_filename": app.conf.beat_schedule_filename,
    }


@pytest.mark.parametrize("name", [name for name in read_procfile() if name != "flower"])
def test_the_procfile_has_no_option_that_needs_celerys_command_line(name: str) -> None:
    line = read_procfile()[name]
    _, _, options = line.partition(" -m workers.worker ")
    words = options.replace('$("${PYTHON:-python}" -m pipeline.cores)}', "2}").split()
    words = ["2" if word.endswith(":-2}") else word for word in words]
    if name == "group":
        first = words.index('"$("${PYTHON:-python}"')
        words[first : first + 3] = ["group.0"]
    assert worker._read(words) is not None


OTHERS = [
    ["--help"],
    ["-E"],
    ["-c", "auto"],
    ["-c", "-1"],
    ["-c"],
    ["-l", "20"],
    ["-l", "loud"],
    ["-P", "gevent"],
    ["--autoscale", "3,1"],
    ["-X", "extract"],
    ["--max-tasks-per-child=5"],
    ["-Q", "query", "--purge"],
    ["--without-heartbeat"],
    ["--concur", "2"],
    ["-B"],
    ["a word"],
]


@pytest.mark.parametrize("options", OTHERS, ids=" ".join)
def test_other_options_are_left_to_celery(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda program, command: run.append([program, *command]))
    worker.main(options)
    start = [sys.executable, "-m", "celery", "-A", "workers.app", "worker"]
    assert run == [[sys.executable, *start, *options]]


LOADED = {
    "from workers.app import app; import workers.worker; app.Worker": {"celery.bin", "flower"},
    "import workers.up, workers.context, workers.presence": {"celery", "kombu", "cv2", "alembic"},
    "import workers.flower_app": {"celery.bin.celery", "celery.apps.worker", "prompt_toolkit"},
}


@pytest.mark.parametrize("code", LOADED)
def test_a_process_that_stays_loads_nothing_in_vain(code: str) -> None:
    script = f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert LOADED[code] & set(done.stdout.split()) == set()
