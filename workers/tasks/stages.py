"""Tasks of jobs: for each stage in `pipeline.job_kinds`, one does a part and one joins the parts.

Messages hold ids only: job, attempt, and the number of a part.
"""

from __future__ import annotations

from typing import Any

from celery import Task, shared_task

from pipeline.job_kinds import Stage, all_stages
from workers.context import get_context
from workers.job_messages import do_group_part, do_join, do_part, do_whole_stage
from workers.tasks.base import RETRY, PartTask, put_off
from workers.workflows import task


def _define_part(stage: Stage) -> None:
    """Define the task that does one part of a stage (map)."""

    @shared_task(bind=True, base=PartTask, name=stage.task, ignore_result=True, **RETRY)
    def part(self: Task, job_id: str, attempt: int, number: int) -> dict[str, Any]:
        if stage.queue != "group":
            done = do_part(get_context(), job_id, attempt, stage.name, number)
            return put_off(self) if done.get("more") else done
        # Scans come on the same queues: the last thread is reserved for them.
        result = do_group_part(get_context(), job_id, attempt, stage.name, number)
        return put_off(self) if result is None else result


def _define_whole(stage: Stage) -> None:
    """Define the task that does a stage with one part and continues the job (reduce).

    Work that would hold its message too long returns ``more`` and continues with another message.
    """

    @shared_task(bind=True, base=PartTask, name=stage.task, **RETRY)
    def whole(self: Task, job_id: str, attempt: int) -> dict[str, Any]:
        context = get_context()
        result = do_whole_stage(context, job_id, attempt, stage.name)
        if result is None:
            return put_off(self)
        if result.get("more"):
            task(context.app, stage.task, job_id, attempt).apply_async()
        return result


def _define_join(name: str) -> None:
    """Define the task that continues a job when the parts of its stage are done (reduce)."""

    @shared_task(bind=True, name=name, **RETRY)
    def join(self: Task, job_id: str, attempt: int) -> dict[str, Any]:
        result = do_join(get_context(), job_id, attempt)
        return put_off(self) if result is None else result


def _define_all() -> None:
    """Define each task once, even if several kinds of job share its stage."""
    stages = {stage.task: stage for stage in all_stages()}
    for stage in stages.values():
        (_define_part if stage.join else _define_whole)(stage)
    for name in sorted({stage.join for stage in stages.values() if stage.join}):
        _define_join(name)


_define_all()
