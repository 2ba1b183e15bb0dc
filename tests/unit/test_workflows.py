"""Canvases as data: flat, small, JSON, every task on a queue that is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery
from celery.canvas import Signature

from pipeline.job_kinds import INDEX
from pipeline.job_params import IndexParams
from pipeline.metadata.records import JobRecord, JobStage, PartRecord
from workers.app import app
from workers.queues import queue_names, route
from workers.workflows import scan_task, search_canvas, stage_canvas, task

JOB_ID = "f" * 32


def _job(stage: JobStage) -> JobRecord:
    return JobRecord(
        id=JOB_ID,
        collection_id=1,
        kind="index",
        params=IndexParams(paths=("/photographs",) * 100),
        process=None,
        origin="request",
        state="running",
        stage=stage,
        attempt=123,
        broker_epoch="e",
        message=None,
        counters={},
        created_at=0.0,
        attempt_at=0.0,
        progress_at=0.0,
        finished_at=None,
    )


def _parts(stage: JobStage, count: int) -> list[PartRecord]:
    args: dict[str, Any] = {"images": list(range(1000))}
    return [
        PartRecord(
            JOB_ID, stage, n, {"group": n, "tree": 5} if stage == "merge" else args, "planned",
            4, None, None, None, None,
        )
        for n in range(count)
    ]  # fmt: skip


def _tasks(canvas: Signature) -> list[Signature]:
    """Return every task of a canvas."""
    if hasattr(canvas, "body") and hasattr(canvas, "tasks"):
        return [*canvas.tasks, canvas.body]
    return [canvas]


def _queue(signature: Signature) -> str | None:
    options = signature.options
    return options.get("queue") or (route(signature.task, options=options) or {}).get("queue")


CANVASES = {
    **{
        stage.name: stage_canvas(app, _job(stage.name), _parts(stage.name, 4))
        for stage in INDEX.stages
    },
    "search": search_canvas(app, "e" * 32, [0, 1, 7, 15], 5.0),
    "one group": search_canvas(app, "e" * 32, [3], 5.0),
    "prepare": task(app, "retrieve.prepare", "e" * 32, expires=5.0),
}


@pytest.mark.parametrize("name", CANVASES)
def test_every_canvas_is_small_flat_json_on_known_queues(name: str) -> None:
    canvas = CANVASES[name]
    assert json.loads(json.dumps(canvas)) == json.loads(json.dumps(dict(canvas)))
    for one in _tasks(canvas):
        assert type(one) is Signature or type(one).__name__ == "Signature", "a header must be flat"
        assert one.immutable, "a body must not be handed the parts' results"
        assert one.kwargs == {}
        assert all(isinstance(value, str | int) for value in one.args)
        assert _queue(one) in queue_names()
        # A header's message carries the body, so both together must be small.
        assert len(json.dumps(one)) < 600


def test_every_task_is_sent_by_a_canvas() -> None:
    app.loader.import_default_modules()
    names = {name for name in app.tasks if not name.startswith("celery.")}
    sent = {one.task for canvas in CANVASES.values() for one in _tasks(canvas)}
    assert sent == names


@pytest.mark.parametrize("stage", ["extract", "assign", "merge"])
def test_a_stage_of_parts_is_a_chord_whose_parts_keep_no_result(stage: JobStage) -> None:
    canvas = stage_canvas(app, _job(stage), _parts(stage, 3))
    header = canvas.tasks
    assert [one.args for one in header] == [(JOB_ID, 123, n) for n in range(3)]
    found = INDEX.stage(stage)
    assert found is not None
    assert {one.task for one in header} == {found.task}
    assert all(one.options["ignore_result"] for one in header)
    assert canvas.body.task == found.join
    assert canvas.body.args == (JOB_ID, 123)


def test_merging_goes_to_the_queues_of_its_groups() -> None:
    canvas = stage_canvas(app, _job("merge"), _parts("merge", 4))
    assert [one.options["queue"] for one in canvas.tasks] == [f"group.{n}" for n in range(4)]


def test_one_part_left_is_still_joined() -> None:
    canvas = stage_canvas(app, _job("extract"), _parts("extract", 1))
    assert len(_tasks(canvas)) == 2


def test_scans_expire_and_the_ranking_does_not() -> None:
    canvas = search_canvas(app, "s", [2, 5], 3.5)
    assert [one.options["queue"] for one in canvas.tasks] == ["group.2", "group.5"]
    assert {one.options["expires"] for one in canvas.tasks} == {3.5}
    assert "expires" not in canvas.body.options
    assert scan_task(app, "s", 2, 3.5) == canvas.tasks[0]


def test_a_search_for_a_group_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="group 16"):
        search_canvas(app, "s", [16], 1.0)


def test_canvases_are_sent_by_our_app_whatever_app_the_caller_has() -> None:
    callers = Celery("callers", broker="redis://127.0.0.1:1/0")
    callers.set_current()
    try:
        for canvas in (
            task(app, "job.register", JOB_ID, 1),
            scan_task(app, "s", 2, 1.0),
            search_canvas(app, "s", [0, 1], 1.0),
            stage_canvas(app, _job("extract"), _parts("extract", 3)),
        ):
            assert {one.app for one in [canvas, *_tasks(canvas)]} == {app}
    finally:
        app.set_current()
