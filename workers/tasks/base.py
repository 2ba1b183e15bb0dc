"""What all tasks share: how trouble outside is tried again."""

from __future__ import annotations

from typing import Any

from workers.jobs import PASSING

RETRY: dict[str, Any] = {
    "autoretry_for": PASSING,
    "retry_backoff": True,
    "retry_backoff_max": 30,
    "retry_jitter": True,
    "max_retries": 5,
}
"""Options of tasks that may try again: 1, 2, 4, ... seconds with jitter, five times; after that the
watchman plans the job anew when the trouble is over."""
