"""Celery tasks that do nothing, for `benchmarks.chords`: ``celery -A benchmarks.echo worker``."""

from __future__ import annotations

from celery import Celery

from pipeline.config import Settings
from workers.celery_settings import settings_of_environment
from workers.context import Context

# A separate app with the same settings: these tasks do not belong among the real ones.
app = Celery("bench")
app.config_from_object(settings_of_environment())
_context = Context(Settings.from_env())


@app.task(name="bench.scan", ignore_result=True)
def scan(number: int) -> int:
    """Do nothing."""
    return number


@app.task(name="bench.rank", ignore_result=True)
def rank(reply: str) -> None:
    """Say that the chord is complete."""
    _context.redis.rpush(reply, b"1")
