"""Drive index jobs: send a stage's messages, go on when it is done, say why one cannot go on.

What does a part (numba, OpenCV) is imported by the first that does or plans one: a worker that only
watches stays small.

SQL is the truth. A message only says "look at this part" or "look at this job"; it names the
job's *attempt*, which rises with every stage and every new planning, so that messages of former
plans are void. Whoever finds a job that does not move (`workers.supervise`) plans it anew.
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
from redis import Redis, RedisError
from sqlalchemy.orm import Session

from pipeline.errors import (
    BrokerUnavailableError,
    MissingRootError,
    TransientError,
    UnknownNameError,
)
from pipeline.job_kinds import all_stages, kind_of
from pipeline.metadata import heartbeats, jobs, parts
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import JobRecord, JobStage
from workers.context import Context, is_redelivered, worker_name
from workers.keys import KEYS, PUT_OFF_KEEP_S
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
"""Errors of database, store and broker that the same work may not meet later; too long a batch,
which is begun again with an eye on each image; no memory left."""

_GIVE_BACK_AGAIN_S = 1.0

VOID = {"void": True}
"""Result of a message whose attempt has passed."""


def broker_epoch(redis: Redis) -> str:
    """Return a name for the present life of the broker: lost with its data, then made anew.

    Raises
    ------
    BrokerUnavailableError
        Redis does not answer.
    """
    try:
        redis.set(KEYS.epoch, secrets.token_hex(8), nx=True)
        value: Any = redis.get(KEYS.epoch)
    except RedisError as exc:
        raise BrokerUnavailableError("the broker's address", str(exc)) from exc
    return bytes(value).decode()


def do_part(
    context: Context, job_id: str, attempt: int, stage: JobStage, number: int
) -> dict[str, Any]:
    """Do one part of a job's stage, unless the message is void; returns the part's result.

    Raises
    ------
    Ignore
        The message came again while a live worker does the part: it is that worker's to finish,
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
    """Drop a message that came again for a part that a live worker has begun in this attempt.

    A pool of processes loses one while its worker lives: what those began is begun again, and time
    limits end it before its message comes back.
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
    """Do a part of a stage that is the groups' work; None when no thread is free for it.

    A group worker keeps its last thread for scans (`Context.merge_slots`).
    """
    with _slot(context.merge_slots) as free:
        if free:
            return do_part(context, job_id, attempt, stage, number)
        return _wait_its_turn(context, job_id, attempt, number)


def do_whole_stage(
    context: Context, job_id: str, attempt: int, stage: JobStage
) -> dict[str, Any] | None:
    """Do a stage of one part and go on with the job; None when no thread is free for it.

    The threads of searches are kept free (`Context.reduce_slots`). A result with ``more`` says that
    another message must go on with the stage.
    """
    with _slot(context.reduce_slots) as free:
        if not free:
            return _wait_its_turn(context, job_id, attempt, 0)
        result = do_part(context, job_id, attempt, stage, 0)
        return result if result.get("more") else proceed(context, job_id, attempt)


def do_join(context: Context, job_id: str, attempt: int) -> dict[str, Any] | None:
    """Go on with a job whose parts may be done; None when no thread is free for it."""
    with _slot(context.reduce_slots) as free:
        if not free:
            return _wait_its_turn(context, job_id, attempt)
        return proceed(context, job_id, attempt)


@contextlib.contextmanager
def _slot(slots: threading.BoundedSemaphore) -> Iterator[bool]:
    """Take one of some slots for the block; False where none is free."""
    taken = slots.acquire(blocking=False)
    try:
        yield taken
    finally:
        if taken:
            slots.release()


def _wait_its_turn(
    context: Context, job_id: str, attempt: int, number: int | None = None
) -> dict[str, Any] | None:
    """Note that a job's message is put off; returns None, or `VOID` for a message that is void."""
    job = _wanting(context, job_id, attempt)
    if job is None:
        return VOID
    if number is not None:
        _leave_to_others(context, job, number)
    context.redis.set(KEYS.put_off(job_id), b"1", ex=PUT_OFF_KEEP_S)
    return None


def waits_its_turn(redis: Redis, job_id: str) -> bool:
    """Say whether a message of a job was put off lately: it is not lost."""
    return bool(redis.exists(KEYS.put_off(job_id)))


def release(session: Session, task_name: str, args: list[Any]) -> None:
    """Note that nobody works on the part that a task's message named.

    Other tasks have none, and a void message has none either: its part may be in other hands.
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
    """Release a part whose tries are used up, as soon as the database answers.

    It is then planned again. While this worker lives it would else count as being worked on.
    """
    while True:
        try:
            with session_scope(context.engine) as session:
                release(session, task_name, args)
            return
        except TransientError:
            time.sleep(_GIVE_BACK_AGAIN_S)


def proceed(context: Context, job_id: str, attempt: int) -> dict[str, Any]:
    """Go on with a job whose stage may be finished.

    With parts still unfinished (a worker died with one) nothing is done: `workers.supervise` sees
    it and plans them again.
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
    """Send the messages of a job's present stage; stages without a part are passed at once."""
    from pipeline import indexing

    current: JobRecord | None = job
    while current is not None and not current.finished:
        unfinished = indexing.open_stage(context.resources, current)
        if unfinished:
            stage_canvas(context.app, current, unfinished).apply_async()
            return
        current = indexing.advance(context.resources, current)


def keep_up(context: Context, collection_id: int) -> bool:
    """Begin what is due where a group has too many segments (`pipeline.indexing.due_upkeep`)."""
    from pipeline import indexing

    due = indexing.due_upkeep(context.resources, collection_id)
    if due is None:
        return False
    kind, params = due
    epoch = broker_epoch(context.redis)
    with session_scope(context.engine) as session:
        job = jobs.create_job(
            session, collection_id, kind.name, params, origin="upkeep", broker_epoch=epoch
        )
    if job.process is not None:
        return False  # a process is at it, and sends itself no messages
    send_stage(context, job)
    return True


def replan(context: Context, job: JobRecord, reason: str) -> bool:
    """Send a job's unfinished parts anew under the next attempt; False when somebody else did.

    An error that trying again cannot mend ends the job and is raised.
    """
    epoch = broker_epoch(context.redis)
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
    """Do work for a job that still wants it, and tell the job what stopped it.

    A missing image folder pauses the job; an error that trying again cannot mend ends it. What may
    pass (`PASSING`) is raised for Celery to retry.
    """
    try:
        job = _wanting(context, job_id, attempt)
        return VOID if job is None else work(job)
    except (*PASSING, Ignore):
        raise
    except MissingRootError as exc:
        if _wanting(context, job_id, attempt) is None:
            return VOID
        with session_scope(context.engine) as session:
            jobs.pause_job(session, job_id, str(exc))
        return {"paused": str(exc)}
    except Exception as exc:
        if _wanting(context, job_id, attempt) is None:
            # It was deleted or planned anew meanwhile: what failed is not what is wanted now.
            _log.info("job %s went on without attempt %d: %s", job_id, attempt, exc)
            return VOID
        _log.exception("job %s failed", job_id)
        with session_scope(context.engine) as session:
            jobs.finish_job(session, job_id, "failed", f"{type(exc).__name__}: {exc}")
        raise


def _wanting(context: Context, job_id: str, attempt: int) -> JobRecord | None:
    """Return a job if it runs and is at this attempt; None when it is not, or is gone."""
    try:
        with session_scope(context.engine, write=False) as session:
            job = jobs.get_job(session, job_id)
    except UnknownNameError:
        return None
    return job if job.state == "running" and job.attempt == attempt else None
