"""Jobs, from creation to the end; every change of stage is a compare-and-set."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import Row, and_, delete, select, update
from sqlalchemy.orm import Session

from pipeline.errors import StateError, UnknownNameError
from pipeline.job_kinds import kind_of
from pipeline.job_params import JobParams
from pipeline.metadata.models import Job, Part, table
from pipeline.metadata.records import JobKind, JobOrigin, JobRecord, JobStage
from pipeline.metadata.sql import changed_rows, lock_collection

LOCAL_SILENCE_S = 600.0
"""Seconds without progress after which a job of ``pipeline.local`` no longer blocks others: only
its own host can see whether its process is alive."""


def is_silent(job: JobRecord) -> bool:
    """Tell whether a job belongs to a process that has shown no progress for long."""
    return job.process is not None and time.time() - job.progress_at > LOCAL_SILENCE_S


def create_job(
    session: Session,
    collection_id: int,
    kind: JobKind,
    params: JobParams,
    *,
    process: str | None = None,
    origin: JobOrigin = "request",
    broker_epoch: str | None = None,
) -> JobRecord:
    """Create a running job of attempt 1.

    If an unfinished job already does everything that this one should (`JobParams.covers`), that job
    is returned. A collection has one rebuild at a time. Silent jobs (`is_silent`) do not
    count.

    Parameters
    ----------
    params : JobParams
        Of the kind's class; everything that the stages need to do the job from scratch.
    process : str, optional
        The process of a local job; default: the workers do it.
    origin : {"request", "upkeep"}
    broker_epoch : str, optional
        The broker's epoch when its messages are sent.

    Raises
    ------
    StateError
        The collection is being rebuilt in another way.
    """
    assert type(params) is kind_of(kind).params, f"{kind} jobs take no {type(params).__name__}"
    lock_collection(session, collection_id)
    for job in unfinished_jobs(session, collection_id):
        if is_silent(job):
            continue
        if job.kind == kind and job.params.covers(params):
            return job
        if kind_of(job.kind).replaces and kind_of(kind).replaces:
            raise StateError(
                f"the {job.kind} job {job.id} makes the index of this collection anew already, "
                "in another way; wait for it, see `vantage status`"
            )
    now = time.time()
    job_id = uuid.uuid4().hex
    values = {
        "id": job_id,
        "collection_id": collection_id,
        "kind": kind,
        "params": params.to_dict(),
        "process": process,
        "origin": origin,
        "state": "running",
        "stage": kind_of(kind).first.name,
        "attempt": 1,
        "broker_epoch": broker_epoch,
        "counters": {},
        "created_at": now,
        "attempt_at": now,
        "progress_at": now,
    }
    session.execute(table(Job).insert().values(values))
    return get_job(session, job_id)


def get_job(session: Session, job_id: str) -> JobRecord:
    """Return a job.

    Raises
    ------
    UnknownNameError
        There is none (its collection was deleted).
    """
    jobs = table(Job)
    return _record(_found(session.execute(select(jobs).where(jobs.c.id == job_id)), job_id))


def unfinished_jobs(session: Session, collection_id: int | None = None) -> list[JobRecord]:
    """Return the running and paused jobs (of one collection), oldest first."""
    jobs = table(Job)
    statement = select(jobs).where(jobs.c.state.in_(["running", "paused"]))
    if collection_id is not None:
        statement = statement.where(jobs.c.collection_id == collection_id)
    rows = session.execute(statement.order_by(jobs.c.created_at, jobs.c.id))
    return [_record(row) for row in rows]


def list_jobs(
    session: Session, collection_id: int | None = None, limit: int = 20
) -> list[JobRecord]:
    """Return the newest jobs (of one collection), newest first."""
    jobs = table(Job)
    statement = select(jobs)
    if collection_id is not None:
        statement = statement.where(jobs.c.collection_id == collection_id)
    rows = session.execute(statement.order_by(jobs.c.created_at.desc(), jobs.c.id).limit(limit))
    return [_record(row) for row in rows]


def touch_job(session: Session, job_id: str, message: str | None = None) -> None:
    """Record progress, so that the supervisor leaves the job alone; set its message if given.

    An empty message removes it: what was in the way (`note_trouble`) is over.
    """
    values: dict[str, Any] = {"progress_at": time.time()}
    if message is not None:
        values["message"] = message or None
    session.execute(update(table(Job)).where(Job.id == job_id).values(values))


def note_trouble(session: Session, job_id: str, attempt: int, message: str) -> None:
    """Say what keeps a running job from going on; it is tried again, and this is no progress."""
    mine = and_(Job.id == job_id, Job.attempt == attempt, Job.state == "running")
    session.execute(update(table(Job)).where(mine).values(message=message))


def advance_stage(
    session: Session,
    job_id: str,
    expected_stage: JobStage,
    expected_attempt: int,
    new_stage: JobStage,
) -> JobRecord | None:
    """Move a running job to another stage and the next attempt, if it is at the expected one.

    One of several callers gets the record and continues; the others get None and stop. A paused job
    does not advance either: resuming it plans its stage again. Going back (the collection has a new
    tree) deletes the parts from `new_stage` on, whose work was for the old tree, except those of
    stages that keep them (`Stage.kept`).
    """
    values = {"stage": new_stage}
    if not _compare_and_set(session, job_id, expected_attempt, values, expected_stage):
        return None
    job = get_job(session, job_id)
    kind = kind_of(job.kind)
    later = kind.from_stage(new_stage)
    if expected_stage in later:
        void = [stage.name for stage in kind.stages if stage.name in later and not stage.kept]
        session.execute(delete(table(Part)).where(Part.job_id == job_id, Part.stage.in_(void)))
    return job


def new_attempt(
    session: Session, job_id: str, expected_attempt: int, broker_epoch: str | None
) -> JobRecord | None:
    """Begin a new attempt at the present stage of a running job; None if another process did."""
    values = {"broker_epoch": broker_epoch}
    if not _compare_and_set(session, job_id, expected_attempt, values):
        return None
    return get_job(session, job_id)


def _compare_and_set(
    session: Session,
    job_id: str,
    expected_attempt: int,
    values: Mapping[str, Any],
    expected_stage: JobStage | None = None,
) -> bool:
    """Set values and raise the attempt of a running job; return whether it was as expected."""
    # The collection's lock first, as everywhere.
    lock_collection(session, get_job(session, job_id).collection_id)
    now = time.time()
    jobs = table(Job)
    statement = update(jobs).where(
        jobs.c.id == job_id, jobs.c.state == "running", jobs.c.attempt == expected_attempt
    )
    if expected_stage is not None:
        statement = statement.where(jobs.c.stage == expected_stage)
    statement = statement.values(
        **values, attempt=expected_attempt + 1, attempt_at=now, progress_at=now
    )
    return changed_rows(session, statement) == 1


def finish_job(
    session: Session,
    job_id: str,
    state: Literal["done", "failed"],
    message: str | None = None,
) -> JobRecord:
    """End a job, unless it has ended already."""
    now = time.time()
    values: dict[str, Any] = {"state": state, "progress_at": now, "finished_at": now}
    values["message"] = message
    if state == "done":
        values["stage"] = "done"
    unfinished = Job.state.in_(["running", "paused"])
    session.execute(update(table(Job)).where(Job.id == job_id, unfinished).values(values))
    return get_job(session, job_id)


def pause_job(session: Session, job_id: str, message: str) -> JobRecord:
    """Pause a running job; the message says what the user must do."""
    values = {"state": "paused", "message": message, "progress_at": time.time()}
    running = Job.state == "running"
    session.execute(update(table(Job)).where(Job.id == job_id, running).values(values))
    return get_job(session, job_id)


def resume_job(session: Session, job_id: str) -> JobRecord:
    """Resume a paused job; its stage must then be planned again (`new_attempt`)."""
    values = {"state": "running", "message": None, "progress_at": time.time()}
    paused = Job.state == "paused"
    session.execute(update(table(Job)).where(Job.id == job_id, paused).values(values))
    return get_job(session, job_id)


def add_counters(session: Session, job_id: str, **increments: int) -> dict[str, int]:
    """Add to a job's counters and return them. Not for work that may run twice: `set_counters`."""
    counters = _locked_counters(session, job_id)
    for name, value in increments.items():
        counters[name] = counters.get(name, 0) + value
    session.execute(update(table(Job)).where(Job.id == job_id).values(counters=counters))
    return counters


def set_counters(session: Session, job_id: str, **values: int) -> dict[str, int]:
    """Set some counters of a job and return all."""
    counters = {**_locked_counters(session, job_id), **values}
    session.execute(update(table(Job)).where(Job.id == job_id).values(counters=counters))
    return counters


def _locked_counters(session: Session, job_id: str) -> dict[str, int]:
    """Return a job's counters; its row stays locked."""
    jobs = table(Job)
    statement = select(jobs.c.counters).where(jobs.c.id == job_id).with_for_update(key_share=True)
    return dict(_found(session.execute(statement), job_id).counters)


def _found(result: Any, job_id: str) -> Row[Any]:
    """Return the only row of a result."""
    row: Row[Any] | None = result.one_or_none()
    if row is None:
        raise UnknownNameError("job", job_id, [])
    return row


def _record(row: Row[Any]) -> JobRecord:
    """Make the record of a row."""
    return JobRecord(
        id=row.id,
        collection_id=row.collection_id,
        kind=row.kind,
        params=kind_of(row.kind).params.from_dict(row.params),
        process=row.process,
        origin=row.origin,
        state=row.state,
        stage=row.stage,
        attempt=row.attempt,
        broker_epoch=row.broker_epoch,
        message=row.message,
        counters=row.counters,
        created_at=row.created_at,
        attempt_at=row.attempt_at,
        progress_at=row.progress_at,
        finished_at=row.finished_at,
    )
