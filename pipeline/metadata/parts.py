"""Parts: the units of work of a job's stages, and their progress."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, and_, case, func, select, update
from sqlalchemy.orm import Session

from pipeline.errors import UnknownNameError
from pipeline.job_kinds import kind_of
from pipeline.metadata.jobs import get_job, touch_job
from pipeline.metadata.models import Job, Part, table
from pipeline.metadata.records import (
    JobProgress,
    JobRecord,
    JobStage,
    PartRecord,
    PartResult,
    Snapshot,
    WorkerRecord,
)

BUSY_PATIENCE = 20.0
"""Factor of the patience with a job that may have to wait for others."""


def create_parts(
    session: Session,
    job_id: str,
    stage: JobStage,
    args_list: Sequence[Mapping[str, Any]],
    *,
    images: Sequence[int] | None = None,
) -> list[PartRecord]:
    """Plan the parts of a stage, unless it has parts already.

    Parameters
    ----------
    args_list : sequence of mapping
        JSON-serialisable arguments of every part.
    images : sequence of int, optional
        Number of images of every part, for the progress; default 0 (not counted).

    Returns
    -------
    list of PartRecord
        All parts of the stage.
    """
    touch_job(session, job_id)
    planned = parts(session, job_id, stage)
    return planned or append_parts(session, job_id, stage, args_list, images=images)


def append_parts(
    session: Session,
    job_id: str,
    stage: JobStage,
    args_list: Sequence[Mapping[str, Any]],
    *,
    images: Sequence[int] | None = None,
) -> list[PartRecord]:
    """Plan more parts of a stage, after the existing ones; arguments as for `create_parts`."""
    touch_job(session, job_id)  # locks the job's row, so that no two callers take the same number
    planned = parts(session, job_id, stage)
    first = planned[-1].number + 1 if planned else 0
    rows = [
        {
            "job_id": job_id,
            "stage": stage,
            "number": first + i,
            "args": dict(args),
            "state": "planned",
            "images": 0 if images is None else images[i],
            "failed": 0,
        }
        for i, args in enumerate(args_list)
    ]
    if not rows:
        return planned
    session.execute(table(Part).insert(), rows)
    return parts(session, job_id, stage)


def parts(session: Session, job_id: str, stage: JobStage) -> list[PartRecord]:
    """Return the parts of a stage, by number."""
    return _parts(session, Part.job_id == job_id, Part.stage == stage)


def unfinished_parts(session: Session, job_id: str, stage: JobStage) -> list[PartRecord]:
    """Return the parts of a stage that are not done, by number."""
    return _parts(session, Part.job_id == job_id, Part.stage == stage, Part.state != "done")


def get_part(session: Session, job_id: str, stage: JobStage, number: int) -> PartRecord:
    """Return one part.

    Raises
    ------
    UnknownNameError
        There is none: the job went back a stage, or its collection was deleted.
    """
    found = _parts(session, *_key(job_id, stage, number))
    if not found:
        raise UnknownNameError("part", f"{job_id}/{stage}/{number}", [])
    return found[0]


def stage_result(session: Session, job_id: str, stage: JobStage) -> PartResult:
    """Return the result of a stage with one part; empty while it is not done."""
    return get_part(session, job_id, stage, 0).result or {}


def start_part(
    session: Session, job_id: str, stage: JobStage, number: int, worker: str
) -> PartRecord:
    """Record that a worker has begun a part; a finished part stays done (see ``record.state``)."""
    touch_job(session, job_id)  # everywhere, the job's row is locked before its parts
    values = {
        "state": "running",
        "worker": worker,
        "started_at": time.time(),
        "starts": table(Part).c.starts + 1,
    }
    unfinished = Part.state != "done"
    session.execute(
        update(table(Part)).where(*_key(job_id, stage, number), unfinished).values(values)
    )
    return get_part(session, job_id, stage, number)


def suspect_image(session: Session, part: PartRecord, image_id: int) -> None:
    """Record which image a repeated part is reading, in case it kills the process again.

    The images noted by former starts stay; that of this start is overwritten.
    """
    values = {"suspects": [*part.suspects, image_id]}
    key = _key(part.job_id, part.stage, part.number)
    session.execute(update(table(Part)).where(*key).values(values))


def yield_part(session: Session, part: PartRecord) -> None:
    """Record that an unfinished part will be continued: this start was no failure.

    The part stays with its worker, which has sent itself a message.
    """
    touch_job(session, part.job_id)
    values = {"starts": part.starts - 1, "suspects": list(part.suspects)}
    key = _key(part.job_id, part.stage, part.number)
    session.execute(update(table(Part)).where(*key, Part.state != "done").values(values))


def release_part(session: Session, job_id: str, stage: JobStage, number: int) -> None:
    """Record that no worker has a part any more: its process died, or ran out of time."""
    running = Part.state == "running"
    session.execute(
        update(table(Part)).where(*_key(job_id, stage, number), running).values(state="planned")
    )


def finish_part(
    session: Session,
    job_id: str,
    stage: JobStage,
    number: int,
    result: Mapping[str, Any],
    *,
    failed: int = 0,
) -> PartRecord:
    """Record that a part is done; the first result stays.

    Parameters
    ----------
    result : mapping
        JSON-serialisable.
    failed : int
        Number of its images that could not be used.
    """
    touch_job(session, job_id, "")
    now = time.time()
    values = {
        "state": "done",
        "finished_at": now,
        # Work that was found done was never started.
        "started_at": func.coalesce(table(Part).c.started_at, now),
        "result": dict(result),
        "failed": failed,
    }
    unfinished = Part.state != "done"
    session.execute(
        update(table(Part)).where(*_key(job_id, stage, number), unfinished).values(values)
    )
    return get_part(session, job_id, stage, number)


def job_progress(session: Session, job_id: str, now: float | None = None) -> JobProgress:
    """Return the progress of a job, by two queries on primary keys.

    Parameters
    ----------
    now : float, optional
        Unix seconds; default: the clock.
    """
    job = get_job(session, job_id)
    stages = {row.stage: row for row in session.execute(_progress_query(job))}
    extract, here = stages.get("extract"), stages.get(job.stage)
    rate = eta = None
    if here is not None and here.first_start is not None:
        stage = kind_of(job.kind).stage(job.stage)
        unit = "images" if stage is not None and stage.by_images else "parts"
        elapsed = max((time.time() if now is None else now) - here.first_start, 1e-3)
        fresh = getattr(here, f"fresh_{unit}")
        if fresh:
            rate = fresh / elapsed
            eta = (getattr(here, f"all_{unit}") - getattr(here, f"done_{unit}")) / rate
    return JobProgress(
        job_id=job_id,
        kind=job.kind,
        stage=job.stage,
        state=job.state,
        done_parts=here.done_parts if here is not None else 0,
        total_parts=here.all_parts if here is not None else 0,
        images_total=extract.all_images if extract is not None else 0,
        images_done=extract.done_images if extract is not None else 0,
        images_failed=extract.failed_images if extract is not None else 0,
        rate_per_s=rate,
        eta_s=eta,
        message=job.message,
        counters=job.counters,
    )


def _progress_query(job: JobRecord) -> Any:
    """Sums over the parts of every stage; *fresh*: those done in this attempt."""
    done = Part.state == "done"
    fresh = and_(done, Part.finished_at >= job.attempt_at)

    def total(condition: Any, value: Any) -> Any:
        return func.coalesce(func.sum(case((condition, value), else_=0)), 0)

    return (
        select(
            Part.stage,
            func.count().label("all_parts"),
            func.sum(Part.images).label("all_images"),
            total(done, 1).label("done_parts"),
            total(done, Part.images).label("done_images"),
            total(done, Part.failed).label("failed_images"),
            total(fresh, 1).label("fresh_parts"),
            total(fresh, Part.images).label("fresh_images"),
            func.min(case((Part.started_at >= job.attempt_at, Part.started_at))).label(
                "first_start"
            ),
        )
        .where(Part.job_id == job.id)
        .group_by(Part.stage)
    )


def running_parts(session: Session) -> list[PartRecord]:
    """Return the parts that workers have begun, of all running jobs."""
    jobs = select(Job.id).where(Job.state == "running")
    return _parts(session, Part.job_id.in_(jobs), Part.state == "running")


def runs_on_live_worker(part: PartRecord, live_workers: Iterable[WorkerRecord]) -> bool:
    """Tell whether a live worker has a part."""
    return part.state == "running" and any(
        host.name == part.worker and host.started_at <= (part.started_at or 0.0)
        for host in live_workers
    )


def needs_replanning(
    job: JobRecord,
    parts: Sequence[PartRecord],
    seen: Snapshot,
    *,
    workers_busy: bool = False,
    put_off: bool = False,
) -> str | None:
    """Decide whether the messages of a job are lost and must be sent again.

    Parameters
    ----------
    job : JobRecord
    parts : sequence of PartRecord
        Parts of its present stage.
    seen : Snapshot
    workers_busy : bool
        Live workers have parts of other jobs (see `running_parts`), so this job may be waiting its
        turn: the patience is `BUSY_PATIENCE` times longer. Sending its messages again would only
        lengthen the queue.
    put_off : bool
        A worker has just postponed one of its messages: they are not lost, however long it takes.

    Returns
    -------
    str or None
        The reason, for the log; None if the job needs nothing.
    """
    if job.state != "running":
        return None
    if job.broker_epoch is not None and job.broker_epoch != seen.broker_epoch:
        return "the broker lost its messages"
    left = sum(
        part.state == "running"
        and (part.started_at or 0.0) >= job.attempt_at  # earlier ones have been sent again since
        and not runs_on_live_worker(part, seen.live_workers)
        for part in parts
    )
    if left:
        return f"the worker of {left} unfinished parts has died"
    idle_s = seen.now - job.progress_at
    patience_s = seen.patience_s * (BUSY_PATIENCE if workers_busy else 1.0)
    if (
        put_off
        or idle_s <= patience_s
        or any(runs_on_live_worker(part, seen.live_workers) for part in parts)
    ):
        return None
    if job.broker_epoch is None:
        return f"it was never enqueued ({idle_s:.0f} s)"
    waiting = sum(part.state != "done" for part in parts)
    if waiting:
        return f"no worker has its {waiting} unfinished parts ({idle_s:.0f} s)"
    return f"stage {job.stage} does not go on ({idle_s:.0f} s)"


def _key(job_id: str, stage: JobStage, number: int) -> list[Any]:
    """Condition for one part."""
    return [Part.job_id == job_id, Part.stage == stage, Part.number == number]


def _parts(session: Session, *conditions: Any) -> list[PartRecord]:
    """Return parts by job, stage and number."""
    columns = table(Part)
    statement = select(columns).where(*conditions)
    rows = session.execute(statement.order_by(columns.c.job_id, columns.c.stage, columns.c.number))
    return [_record(row) for row in rows]


def _record(row: Row[Any]) -> PartRecord:
    """Make the record of a row."""
    return PartRecord(
        job_id=row.job_id,
        stage=row.stage,
        number=row.number,
        args=row.args,
        state=row.state,
        images=row.images,
        worker=row.worker,
        started_at=row.started_at,
        finished_at=row.finished_at,
        result=row.result,
        starts=row.starts,
        suspects=tuple(row.suspects or ()),
    )
