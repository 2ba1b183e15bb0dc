"""Retrieval: prepare a query, scan groups (map), rank (reduce)."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from workers import searches
from workers.context import get_context
from workers.tasks.base import RETRY


@shared_task(name="retrieve.prepare", ignore_result=True)
def prepare(search_id: str) -> dict[str, Any]:
    """Extract and plan a query that a caller left in Redis, and send its chord."""
    return searches.prepare(get_context(), search_id)


@shared_task(name="retrieve.scan", ignore_result=True)
def scan(search_id: str, group: int) -> dict[str, Any]:
    """Scan one group for a query, on that group's queue (map); never raises."""
    return searches.scan(get_context(), search_id, group)


@shared_task(name="retrieve.rank", ignore_result=True, **RETRY)
def rank(search_id: str) -> dict[str, Any]:
    """Make the answers from the available scans (reduce)."""
    results = searches.rank(get_context(), search_id) or []
    return {"matches": sum(len(result.matches) for result in results)}
