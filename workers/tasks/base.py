"""What all tasks share: how trouble outside is tried again."""

from __future__ import annotations

from typing import Any, NoReturn

from celery import Task
from celery.exceptions import Reject, Retry
from kombu.exceptions import OperationalError

from workers.jobs import PASSING

PUT_OFF_S = 1.0
"""Seconds after which a message that was put off comes again."""

RETRY: dict[str, Any] = {
    "autoretry_for": PASSING,
    "retry_backoff": True,
    "retry_backoff_max": 30,
    "retry_jitter": True,
    "max_retries": 5,
}
"""Options of tasks that may try again: 1, 2, 4, ... seconds with jitter, five times; after that the
watchman plans the job anew when the trouble is over."""


def put_off(task: Task) -> NoReturn:
    """Have the present message sent again in a second, as often as need be.

    Celery's own `retry` would count it among the tries that trouble is given. The chord of the
    message waits for it as for any retried one.
    """
    again = task.signature_from_request(countdown=PUT_OFF_S, retries=task.request.retries)
    try:
        again.apply_async()
    except OperationalError as exc:
        raise Reject(exc, requeue=True) from exc
    raise Retry(when=PUT_OFF_S, sig=again)
