"""Register a job's files."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from workers.context import get_context
from workers.jobs import do_part, proceed
from workers.tasks.base import RETRY
from workers.workflows import task


@shared_task(name="job.register", **RETRY)
def register(job_id: str, attempt: int) -> dict[str, Any]:
    """Walk, hash and register the files of a job, then plan the extraction."""
    context = get_context()
    result = do_part(context, job_id, attempt, "register", 0)
    if result.get("more"):
        task("job.register", job_id, attempt).apply_async()
        return result
    return proceed(context, job_id, attempt)
