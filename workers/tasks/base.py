"""What all tasks share: how trouble outside is tried again."""

from __future__ import annotations

import threading
from typing import Any, NoReturn

from celery import Task
from celery.exceptions import Reject, Retry
from kombu.exceptions import OperationalError

from workers.context import get_context
from workers.job_messages import PASSING, give_back

PUT_OFF_S = 1.0
"""Seconds after which a message that was put off comes again."""


class PartTask(Task):
    """A task that does parts: it gives back one that it fails with when its tries are used up."""

    def on_failure(
        self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: object
    ) -> None:
        """Leave the part to the supervisor; what cannot be tried again has ended its job."""
        if isinstance(exc, PASSING):
            # In a thread: the database may be what does not answer.
            work = (get_context(), self.name, list(args))
            threading.Thread(target=give_back, args=work, name="give-back", daemon=True).start()


RETRY: dict[str, Any] = {
    "autoretry_for": PASSING,
    "retry_backoff": True,
    "retry_backoff_max": 30,
    "retry_jitter": True,
    "max_retries": 5,
}
"""Options of tasks that may try again: 1, 2, 4, ... seconds with jitter, five times; after that the
supervisor plans the job anew when the trouble is over."""


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
