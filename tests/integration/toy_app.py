"""The Celery app of workers with one more kind of job."""

from __future__ import annotations

from toy_kind import TOY

from pipeline.job_kinds import KINDS

KINDS[TOY.name] = TOY

from workers.app import app  # noqa: E402 - tasks are made from the table
from workers.tasks.base import RETRY  # noqa: E402

RETRY |= {"retry_backoff": False, "default_retry_delay": 0.05}

__all__ = ["app"]
