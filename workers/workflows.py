"""The messages of each stage of a job: small pure functions that build Celery canvases.

A stage with many parts is a chord: its header has one task for each part, its body continues the
job. A stage with one part is one task. Headers are flat and their tasks have no results (the truth
is in SQL); messages contain ids only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery, chord, signature
from celery.canvas import Signature

from pipeline.job_kinds import Stage, kind_of
from pipeline.metadata.records import JobRecord, PartRecord
from workers.queues import group_queue

__all__ = [
    "scan_task",
    "search_canvas",
    "stage_canvas",
    "task",
]


def stage_canvas(app: Celery, job: JobRecord, parts: Sequence[PartRecord]) -> Signature:
    """Return the canvas for the unfinished parts of a job's present stage.

    Parameters
    ----------
    app : Celery
        The app that sends it.
    job : JobRecord
    parts : sequence of PartRecord
        At least one.
    """
    stage = kind_of(job.kind).stage(job.stage)
    assert stage is not None, "nothing is left to do at the end"
    if not stage.join:
        return task(app, stage.task, job.id, job.attempt)
    header = [_part_task(app, stage, job, part) for part in parts]
    return chord(header, task(app, stage.join, job.id, job.attempt), app=app)


def _part_task(app: Celery, stage: Stage, job: JobRecord, part: PartRecord) -> Signature:
    """Return the task of one part, on its group's queue if the stage is the groups' work."""
    options = {"queue": group_queue(part.args["group"])} if stage.queue == "group" else {}
    return task(app, stage.task, job.id, job.attempt, part.number, **options)


def search_canvas(
    app: Celery, search_id: str, groups: Sequence[int], expires_s: float
) -> Signature:
    """Return the chord of a search: a scan on each group's queue, then the ranking.

    Parameters
    ----------
    app : Celery
        The app that sends it.
    search_id : str
    groups : sequence of int
        Groups to scan; at least one.
    expires_s : float
        Seconds after which a scan that has not begun is dropped.
    """
    header = [scan_task(app, search_id, group, expires_s) for group in groups]
    return chord(header, task(app, "retrieve.rank", search_id), app=app)


def scan_task(app: Celery, search_id: str, group: int, expires_s: float) -> Signature:
    """Return the scan of one group."""
    queue = group_queue(group)
    return task(app, "retrieve.scan", search_id, group, queue=queue, expires=expires_s)


def task(app: Celery, name: str, *args: Any, **options: Any) -> Signature:
    """Return an immutable signature by the task's name; its result is not kept."""
    # The app is explicit: the caller's process may have another current app.
    made: Signature = signature(name, args=args, immutable=True, app=app)
    return made.set(ignore_result=True, **options)
