"""Handle the messages of jobs: send those of a stage, do parts, move on to the next stage.

Code for parts (numba, OpenCV) is imported by the first call that does or plans one: a worker that
only watches stays small.

SQL is the truth. A message only says "look at this part" or "look at this job"; it names the job's
*attempt*, which rises with every stage and every new planning, so that messages of former attempts
are void. The supervisor (`workers.supervise`) plans a stalled job again.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from celery.exceptions import Ignore, SoftTimeLimitExceeded
from kombu.exceptions import OperationalError
from redis import RedisError
from sqlalchemy.orm import Session

from pipeline.errors import (
    BrokerUnavailableError,
    DatabaseUnavailableError,
    MissingRootError,
    TransientError,
    UnknownNameError,
    VantageError,
)
from pipeline.job_kinds import all_stages, kind_of
from pipeline.metadata import heartbeats, jobs, parts
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import JobRecord, JobStage
from workers.context import Context, is_redelivered, worker_name
from workers.keys import PUT_OFF_KEEP_S
from workers.workflows import stage_canvas

__all__ = [
    "broker_epoch",
    "do_group_part",
    "do_join",
    "do_part",
    "do_whole_stage",
    "give_back",
    "keep_up",
    "proceed",
    "release",
    "replan",
    "send_stage",
    "waits_its_turn",
]

_log = logging.getLogger(__name__)

PASSING = (TransientError, RedisError, OperationalError, SoftTimeLimitExceeded, MemoryError)
"""Errors that may not happen again: of database, store and broker; a batch that took too long,
which is begun again while noting each image; lack of memory."""

_GIVE_BACK_AGAIN_S = 1.0

VOID = {"void": True}
"""Result of a message whose attempt has passed."""


def broker_epoch(context: Context) -> str:
    """Return the broker's epoch: a value that is lost with its data and then made again.

    Raises
    ------
    BrokerUnavailableError
        Redis does not answer, or refuses.
    """
    with context.broker_errors():
        context.redis.set(context.keys.epoch, secrets.token_hex(8), nx=True)
        value: Any = context.redis.get(context.keys.epoch)
    return bytes(value).decode()


def do_part(
    context: Context, job_id: str, attempt: int, stage: JobStage, number: int
) -> dict[str, Any]:
    """Do one part of a job's stage, unless the message is void; return the part's result.

    Raises
    ------
    Ignore
        The message was delivered again while a live worker does the part: that worker finishes it,
        and only its message counts in the stage's chord.
    """
    from pipeline import indexing

    def work(job: JobRecord) -> dict[str, Any]:
        if job.stage != stage:
            return VOID
        _leave_to_others(context, job, number)
        return indexing.run_part(context.resources, job_id, stage, number, worker_name())

    return _guarded(context, job_id, attempt, work)


def _leave_to_others(context: Context, job: JobRecord, number: int) -> None:
    """Drop a repeated message for a part that a live worker has begun in this attempt.

    But a pool may lose a process while its worker lives: parts of pool processes are begun again,
    and time limits end them before their message is delivered again.
    """
    if not is_redelivered():
        return
    with session_scope(context.engine, write=False) as session:
        part = parts.get_part(session, job.id, job.stage, number)
        live = heartbeats.live_workers(session, time.time(), context.settings.host_timeout_s)
    threaded = [worker for worker in live if "extract" not in worker.roles]
    begun = (part.started_at or 0.0) >= job.attempt_at
    if begun and parts.runs_on_live_worker(part, threaded):
        _log.info("job %s: part %d of %s is being done", job.id, number, job.stage)
        raise Ignore


def do_group_part(
    context: Context, job_id: str, attempt: int, stage: JobStage, number: int
) -> dict[str, Any] | None:
    """Do a part of a group's stage; None if no thread is free for it.

    A group worker reserves its last thread for scans (`Context.merge_slots`).
    """
    with _slot(context.merge_slots) as free:
        if free:
            return do_part(context, job_id, attempt, stage, number)
        return _wait_its_turn(context, job_id, attempt, number)


def do_whole_stage(
    context: Context, job_id: str, attempt: int, stage: JobStage
) -> dict[str, Any] | None:
    """Do a stage with one part and continue the job; None if no thread is free for it.

    Threads are reserved for searches (`Context.reduce_slots`). A result with ``more`` says that
    another message must continue the stage.
    """
    with _slot(context.reduce_slots) as free:
        if not free:
            return _wait_its_turn(context, job_id, attempt, 0)
        result = do_part(context, job_id, attempt, stage, 0)
        return result if result.get("more") else proceed(context, job_id, attempt)


def do_join(context: Context, job_id: str, attempt: int) -> dict[str, Any] | None:
    """Continue a job whose parts may be done; None if no thread is free for it."""
    with _slot(context.reduce_slots) as free:
        if not free:
            return _wait_its_turn(context, job_id, attempt)
        return proceed(context, job_id, attempt)


@contextlib.contextmanager
def _slot(slots: threading.BoundedSemaphore) -> Iterator[bool]:
    """Take one of several slots for the block; False if none is free."""
    taken = slots.acquire(blocking=False)
    try:
        yield taken
    finally:
        if taken:
            slots.release()


def _wait_its_turn(
    context: Context, job_id: str, attempt: int, number: int | None = None
) -> dict[str, Any] | None:
    """Note that a job's message is postponed; return None, or `VOID` for a void message."""
    job = _wanting(context, job_id, attempt)
    if job is None:
        return VOID
    if number is not None:
        _leave_to_others(context, job, number)
    context.redis.set(context.keys.put_off(job_id), b"1", ex=PUT_OFF_KEEP_S)
    return None


def waits_its_turn(context: Context, job_id: str) -> bool:
    """Say whether a message of a job was postponed lately, so that it is not lost."""
    return bool(context.redis.exists(context.keys.put_off(job_id)))


def release(session: Session, task_name: str, args: list[Any]) -> None:
    """Release the part that a task's message named.

    Other tasks have no part, and neither have void messages: another worker may have theirs.
    """
    stage = next((stage for stage in all_stages() if stage.task == task_name), None)
    if stage is None:
        return
    job_id, attempt, number = args if stage.join else (*args, 0)
    try:
        job = jobs.get_job(session, job_id)
    except UnknownNameError:
        return
    if job.attempt == attempt:
        parts.release_part(session, job_id, stage.name, number)


def give_back(context: Context, task_name: str, args: list[Any]) -> None:
    """Release a part whose retries are used up, as soon as the database answers.

    Then it is planned again. Otherwise it would count as running while this worker lives.
    """
    while True:
        try:
            with session_scope(context.engine) as session:
                release(session, task_name, args)
            return
        except TransientError:
            time.sleep(_GIVE_BACK_AGAIN_S)


def proceed(context: Context, job_id: str, attempt: int) -> dict[str, Any]:
    """Continue a job whose stage may be finished.

    If parts are unfinished (a worker died with one), nothing happens: `workers.supervise` plans
    them again.
    """
    from pipeline import indexing

    def work(job: JobRecord) -> dict[str, Any]:
        if indexing.open_stage(context.resources, job):
            return {"stage": job.stage, "waiting": True}
        moved = indexing.advance(context.resources, job)
        if moved is not None:
            send_stage(context, moved)
            if moved.finished and kind_of(moved.kind).adds_segments:
                keep_up(context, moved.collection_id)
        return {"stage": moved.stage if moved else job.stage}

    return _guarded(context, job_id, attempt, work)


def send_stage(context: Context, job: JobRecord) -> None:
    """Send the messages of a job's present stage; skip stages without parts."""
    from pipeline import indexing

    current: JobRecord | None = job
    while current is not None and not current.finished:
        unfinished = indexing.open_stage(context.resources, current)
        if unfinished:
            stage_canvas(context.app, current, unfinished).apply_async()
            return
        current = indexing.advance(context.resources, current)


def keep_up(context: Context, collection_id: int) -> bool:
    """Begin the upkeep that is due (`pipeline.indexing.due_upkeep`)."""
    from pipeline import indexing

    due = indexing.due_upkeep(context.resources, collection_id)
    if due is None:
        return False
    kind, params = due
    epoch = broker_epoch(context)
    with session_scope(context.engine) as session:
        job = jobs.create_job(
            session, collection_id, kind.name, params, origin="upkeep", broker_epoch=epoch
        )
    if job.process is not None:
        return False  # a process is doing it, without messages
    send_stage(context, job)
    return True


def replan(context: Context, job: JobRecord, reason: str) -> bool:
    """Send a job's unfinished parts again under the next attempt; False if another process did.

    An error that trying again cannot fix ends the job and is raised.
    """
    epoch = broker_epoch(context)
    with session_scope(context.engine) as session:
        renewed = jobs.new_attempt(session, job.id, job.attempt, epoch)
    if renewed is None:
        return False
    _log.warning("job %s, stage %s, is planned again: %s", job.id, job.stage, reason)

    def work(current: JobRecord) -> dict[str, Any]:
        send_stage(context, current)
        return {}

    _guarded(context, renewed.id, renewed.attempt, work)
    return True


def _guarded(
    context: Context, job_id: str, attempt: int, work: Callable[[JobRecord], dict[str, Any]]
) -> dict[str, Any]:
    """Run a block of work for a job; record in the job what stopped it.

    A missing image folder pauses the job; an error that trying again cannot fix ends it. Errors
    that may pass (`PASSING`) are raised, and Celery retries.
    """
    try:
        job = _wanting(context, job_id, attempt)
        return VOID if job is None else work(job)
    except Ignore:
        raise
    except PASSING as exc:
        _note_trouble(context, job_id, attempt, exc)
        raise
    except MissingRootError as exc:
        if _wanting(context, job_id, attempt) is None:
            return VOID
        with session_scope(context.engine) as session:
            jobs.pause_job(session, job_id, str(exc))
        return {"paused": str(exc)}
    except Exception as exc:
        if _wanting(context, job_id, attempt) is None:
            # The job was deleted or planned again meanwhile: the failed work is no longer wanted.
            _log.info("job %s went on without attempt %d: %s", job_id, attempt, exc)
            return VOID
        _log.exception("job %s failed", job_id)
        with session_scope(context.engine) as session:
            jobs.finish_job(session, job_id, "failed", f"{type(exc).__name__}: {exc}")
        raise


def _note_trouble(context: Context, job_id: str, attempt: int, error: Exception) -> None:
    """Let `index` and `status` show what a job waits for; broker and database tell themselves."""
    if isinstance(error, DatabaseUnavailableError | BrokerUnavailableError | RedisError):
        return
    said = str(error) or type(error).__name__
    with contextlib.suppress(VantageError), session_scope(context.engine) as session:
        jobs.note_trouble(session, job_id, attempt, f"{context.settings.host}: {said}")


def _wanting(context: Context, job_id: str, attempt: int) -> JobRecord | None:
    """Return a job if it is running at this attempt, else None."""
    try:
        with session_scope(context.engine, write=False) as session:
            job = jobs.get_job(session, job_id)
    except UnknownNameError:
        return None
    return job if job.state == "running" and job.attempt == attempt else None
