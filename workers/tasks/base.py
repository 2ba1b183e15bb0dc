"""Base of all tasks: how errors of services are retried."""

from __future__ import annotations

import threading
from typing import Any, NoReturn

from celery import Task
from celery.exceptions import Reject, Retry
from kombu.exceptions import OperationalError

from workers.context import get_context
from workers.job_messages import PASSING, give_back

PUT_OFF_S = 1.0
"""Seconds after which a postponed message is delivered again."""


class PartTask(Task):
    """A task that does parts; it gives a part back when its retries are used up."""

    def on_failure(
        self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: object
    ) -> None:
        """Leave the part to the supervisor; errors that cannot be retried have ended the job."""
        if isinstance(exc, PASSING):
            # In a thread: it may be the database that does not answer.
            work = (get_context(), self.name, list(args))
            threading.Thread(target=give_back, args=work, name="give-back", daemon=True).start()


RETRY: dict[str, Any] = {
    "autoretry_for": PASSING,
    "retry_backoff": True,
    "retry_backoff_max": 30,
    "retry_jitter": True,
    "max_retries": 5,
}
"""Options of tasks with retries: five, after 1, 2, 4, ... seconds with jitter; after that the
supervisor plans the job again when the services answer."""


def put_off(task: Task) -> NoReturn:
    """Send the present message again in a second, as often as necessary.

    Celery's own `retry` would count against the retries for errors. The message's chord waits for
    it as for any retried task.
    """
    again = task.signature_from_request(countdown=PUT_OFF_S, retries=task.request.retries)
    try:
        again.apply_async()
    except OperationalError as exc:
        raise Reject(exc, requeue=True) from exc
    raise Retry(when=PUT_OFF_S, sig=again)
