"""A kind of job is one table entry and its functions: a new one runs locally and by workers."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from heavy import long_only
from sites import Eventually
from toy_kind import TOY, TRIES, TROUBLE

from pipeline.config import Settings
from pipeline.job_kinds import KINDS, load
from pipeline.job_params import JobParams
from pipeline.local import run_job
from pipeline.metadata import collections, jobs, parts
from pipeline.metadata.engine import session_scope, upgrade
from pipeline.metadata.records import JobProgress, JobRecord
from pipeline.resources import Resources
from workers.context import Context
from workers.environment import environment
from workers.job_messages import broker_epoch, send_stage
from workers.processes import die_with_parent, stop_process
from workers.supervise import watch_jobs
from workers.tasks.base import RETRY

_HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, TOY.name, TOY)


def _job(resources: Resources, epoch: str | None = None) -> JobRecord:
    """Make a toy job of a new collection."""
    settings = resources.settings
    upgrade(resources.engine)
    with session_scope(resources.engine) as session:
        collection = collections.get_or_create_collection(
            session, "numbers", settings.extractor, settings.index
        )
        return jobs.create_job(session, collection.id, TOY.name, JobParams(), broker_epoch=epoch)


def _progress(resources: Resources, job: JobRecord) -> JobProgress:
    with session_scope(resources.engine, write=False) as session:
        return parts.job_progress(session, job.id)


def _require_done(progress: JobProgress) -> None:
    """The sum of 0, 0, 1, 10, 2 and 20, taken twice."""
    assert (progress.state, progress.counters) == ("done", {"total": 33, "rounds": 2})
    told = load(TOY.summary)("numbers", progress.counters, 0.1)
    assert told == ["The numbers of numbers are 33 together."]


def test_it_runs_in_this_process(settings: Settings) -> None:
    seen: list[JobProgress] = []
    resources = Resources(settings)
    try:
        job = _job(resources)
        with ThreadPoolExecutor(1) as pool:
            run_job(resources, job, pool, seen.append)
        _require_done(_progress(resources, job))
    finally:
        resources.close()
    steps = [
        (progress.step.sentence, progress.done, progress.total)
        for progress in seen
        if progress.step
    ]
    once = [("adding up", 1, 3), ("adding up", 2, 3), ("adding up", 3, 3), ("telling", 1, 1)]
    assert steps == [*once, *once]


@pytest.fixture
def context(settings: Settings, redis_url: str) -> Iterator[Context]:
    context = Context(dataclasses.replace(settings, redis_url=redis_url))
    yield context
    context.close()


@pytest.fixture
def worker(context: Context) -> Iterator[None]:
    """A worker that knows the kind, for all queues."""
    upgrade(context.engine)
    env = environment(context.settings) | {"REMAP_SIGTERM": "SIGQUIT"}
    env["PYTHONPATH"] = f"{_HERE}:{env.get('PYTHONPATH', '')}"
    queues = "reduce,group.0,group.1,group.2"
    command = [sys.executable, "-m", "celery", "-A", "toy_app", "worker", "-n", "toy@test"]
    with (context.settings.home / "toy.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-Q", queues, "-P", "threads", "-c", "2"],
            cwd=context.settings.home,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
    yield
    stop_process(process, 10)


@pytest.mark.usefixtures("worker")
def test_it_is_done_by_workers(context: Context, eventually: Eventually) -> None:
    job = _job(context.resources, broker_epoch(context))
    send_stage(context, job)
    eventually(lambda: _progress(context.resources, job).state != "running")
    _require_done(_progress(context.resources, job))


@long_only
@pytest.mark.usefixtures("worker")
def test_parts_without_retries_left_are_planned_again_after_the_failure(
    context: Context, eventually: Eventually
) -> None:
    """Their worker stays alive, so that only the parts themselves can show it."""
    trouble, tries = context.settings.home / TROUBLE, context.settings.home / TRIES
    trouble.touch()
    job = _job(context.resources, broker_epoch(context))
    send_stage(context, job)
    wanted = 3 * (1 + RETRY["max_retries"])
    eventually(lambda: tries.exists() and len(tries.read_text().split()) == wanted)

    def states() -> set[str]:
        with session_scope(context.engine, write=False) as session:
            return {part.state for part in parts.parts(session, job.id, "add")}

    eventually(lambda: states() == {"planned"})
    trouble.unlink()
    # Messages that were put off a moment ago are waited for.
    eventually(lambda: watch_jobs(context, patience_s=0.0) == 1)
    eventually(lambda: _progress(context.resources, job).state != "running")
    _require_done(_progress(context.resources, job))
