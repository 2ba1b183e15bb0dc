"""Grouping: train a tree, assign containers to its cells, merge groups, publish a version."""

from __future__ import annotations

from typing import Any

from celery import Task, shared_task

from workers.context import get_context
from workers.jobs import do_merge, do_part, proceed
from workers.tasks.base import RETRY, put_off


@shared_task(name="group.train", **RETRY)
def train(job_id: str, attempt: int) -> dict[str, Any]:
    """Give the job a tree (reduce)."""
    context = get_context()
    do_part(context, job_id, attempt, "train", 0)
    return proceed(context, job_id, attempt)


@shared_task(name="group.assign", ignore_result=True, **RETRY)
def assign(job_id: str, attempt: int, number: int) -> dict[str, Any]:
    """Find the cells of one container's descriptors (map)."""
    return do_part(get_context(), job_id, attempt, "assign", number)


@shared_task(name="group.collect", **RETRY)
def collect(job_id: str, attempt: int) -> dict[str, Any]:
    """Go on when all containers are assigned."""
    return proceed(get_context(), job_id, attempt)


@shared_task(bind=True, name="group.merge", ignore_result=True, **RETRY)
def merge(self: Task, job_id: str, attempt: int, number: int) -> dict[str, Any]:
    """Gather one group's rows into a segment (reduce), on that group's queue.

    Scans come on the same queues: the last thread is left to them.
    """
    result = do_merge(get_context(), job_id, attempt, number)
    return put_off(self) if result is None else result


@shared_task(name="group.publish", **RETRY)
def publish(job_id: str, attempt: int) -> dict[str, Any]:
    """Publish the new version; also the body of the merges' chord, which it first closes."""
    context = get_context()
    result = do_part(context, job_id, attempt, "publish", 0)
    return proceed(context, job_id, attempt) | {"part": result}
