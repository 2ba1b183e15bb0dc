from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pipeline.job_params import IndexParams
from pipeline.metadata.parts import needs_replanning, runs_on_live_worker
from pipeline.metadata.records import JobRecord, PartRecord, Snapshot, WorkerRecord

NOW = 1000.0
JOB = JobRecord(
    id="j",
    collection_id=1,
    kind="index",
    params=IndexParams(),
    process=None,
    origin="request",
    state="running",
    stage="extract",
    attempt=1,
    broker_epoch="e1",
    message=None,
    counters={},
    created_at=0.0,
    attempt_at=0.0,
    progress_at=NOW - 31.0,
    finished_at=None,
)
WORKER = WorkerRecord("extract@a", ("extract",), "a", 1, (), "ready", NOW, started_at=100.0)


def _part(state: Any = "planned", worker: str | None = None, started: float = 500.0) -> PartRecord:
    return PartRecord("j", "extract", 0, {}, state, 4, worker, started, None, None)


def _decide(job: JobRecord = JOB, *parts: PartRecord, **changes: Any) -> str | None:
    seen = Snapshot([WORKER], "e1", NOW, 30.0)
    names = [field.name for field in dataclasses.fields(Snapshot) if field.name in changes]
    seen = dataclasses.replace(seen, **{name: changes.pop(name) for name in names})
    return needs_replanning(job, parts, seen, **changes)


def test_messages_that_were_put_off_are_not_lost_but_a_dead_worker_is() -> None:
    assert "no worker has its 1 unfinished" in str(_decide(JOB, _part()))
    assert _decide(JOB, _part(), put_off=True) is None
    dead = _part("running", "extract@gone")
    assert _decide(JOB, dead, put_off=True) == "the worker of 1 unfinished parts has died"


def test_a_broker_that_was_restarted_lost_the_messages() -> None:
    busy = _part("running", "extract@a")
    fresh = dataclasses.replace(JOB, progress_at=NOW)
    assert _decide(fresh, busy, broker_epoch="e2") == "the broker lost its messages"


@pytest.mark.parametrize("state", ["paused", "done", "failed"])
def test_a_job_that_does_not_run_needs_nothing(state: Any) -> None:
    job = dataclasses.replace(JOB, state=state)
    assert _decide(job, _part(), broker_epoch="e2") is None


def test_a_job_that_moved_lately_needs_nothing() -> None:
    assert _decide(dataclasses.replace(JOB, progress_at=NOW - 30.0), _part()) is None


def test_parts_without_a_worker_are_sent_again() -> None:
    assert _decide(JOB, _part(), _part("done")) == "no worker has its 1 unfinished parts (31 s)"


def test_a_part_in_the_hands_of_a_live_worker_is_waited_for() -> None:
    assert _decide(JOB, _part(), _part("running", "extract@a")) is None


@pytest.mark.parametrize("busy", [False, True])
def test_a_part_of_a_dead_worker_is_sent_again_at_once(busy: bool) -> None:
    fresh = dataclasses.replace(JOB, progress_at=NOW)
    told = "the worker of 1 unfinished parts has died"
    lost, kept = _part("running", "extract@b"), _part("running", "extract@a")
    assert _decide(fresh, lost, kept, _part(), workers_busy=busy) == told
    assert _decide(fresh, kept, live_workers=[], workers_busy=busy) == told


def test_a_part_of_a_dead_worker_is_sent_again_once() -> None:
    fresh = dataclasses.replace(JOB, progress_at=NOW, attempt_at=501.0)
    assert _decide(fresh, _part("running", "extract@b")) is None


def test_a_worker_that_was_restarted_does_not_hold_its_old_parts() -> None:
    again = dataclasses.replace(WORKER, started_at=501.0)
    assert _decide(JOB, _part("running", "extract@a"), live_workers=[again]) is not None


def test_a_stage_whose_parts_are_done_but_that_does_not_go_on_is_planned_again() -> None:
    assert _decide(JOB, _part("done")) == "stage extract does not go on (31 s)"


def test_a_job_whose_parts_wait_behind_those_of_others_is_given_more_time() -> None:
    assert _decide(JOB, _part(), workers_busy=True) is None
    later = NOW + 20 * 30.0
    worker = dataclasses.replace(WORKER, heartbeat_at=later)
    assert _decide(JOB, _part(), workers_busy=True, now=later, live_workers=[worker]) is not None


def test_a_job_that_was_never_enqueued_is_planned_after_some_patience() -> None:
    job = dataclasses.replace(JOB, broker_epoch=None)
    assert _decide(job) == "it was never enqueued (31 s)"
    assert _decide(dataclasses.replace(job, progress_at=NOW)) is None


@pytest.mark.parametrize(
    ("part", "live"),
    [
        (_part("running", "extract@a"), True),
        (_part("running", "extract@a", started=99.0), False),
        (_part("running", "extract@b"), False),
        (_part("done", "extract@a"), False),
        (_part(), False),
    ],
)
def test_a_part_runs_on_the_life_of_the_worker_that_began_it(part: PartRecord, live: bool) -> None:
    assert runs_on_live_worker(part, [WORKER]) is live
