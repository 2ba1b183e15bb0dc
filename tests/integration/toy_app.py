"""The Celery app of workers that know a kind of job more."""

from __future__ import annotations

from toy_kind import TOY

from pipeline.kinds import KINDS

KINDS[TOY.name] = TOY

from workers.app import app  # noqa: E402 - tasks are made from the table

__all__ = ["app"]
