"""Extraction: a map over batches of images and its join."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from workers.context import get_context
from workers.jobs import do_part, proceed
from workers.tasks.base import RETRY


@shared_task(name="extract.batch", ignore_result=True, **RETRY)
def batch(job_id: str, attempt: int, number: int) -> dict[str, Any]:
    """Take the features of one batch of images (map)."""
    return do_part(get_context(), job_id, attempt, "extract", number)


@shared_task(name="extract.collect", **RETRY)
def collect(job_id: str, attempt: int) -> dict[str, Any]:
    """Go on when all batches are extracted (reduce)."""
    return proceed(get_context(), job_id, attempt)
