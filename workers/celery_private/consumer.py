"""Celery's consumer, for messages of any content and a Redis in any state. Workers load it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger
from celery.worker.consumer import Consumer
from redis.exceptions import ResponseError

from workers.celery_private.transport import UNREADABLE, count_dropped

__all__ = ["PatientConsumer"]

_log = get_logger(__name__)

_REFUSED_PAUSE_S = 1.0


class PatientConsumer(Consumer):
    """A consumer that no message ends; each that it cannot read is dropped, logged and counted."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Return what handles the message of a task."""
        handle = super().create_task_handler(*args, **kwargs)

        def handle_or_drop(message: Any) -> Any:
            try:
                return handle(message)
            except UNREADABLE as exc:
                # Celery's own reading of headers and body knows no such messages; a KeyError would
                # count as a lost connection, and the same message would come again and again.
                self._drop(message, repr(exc))
                return None

        return handle_or_drop

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Connect again, not at once if Redis refuses what it did not refuse to a first write."""
        super().on_connection_error_after_connected(exc)
        if isinstance(exc, ResponseError):
            time.sleep(_REFUSED_PAUSE_S)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Drop a message whose body cannot be decoded."""
        self._drop(message, repr(exc))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Drop a message whose options cannot be read."""
        self._drop(message, repr(exc))

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Drop a message that names no task."""
        self._drop(message, "it names no task")

    def _drop(self, message: Any, reason: str) -> None:
        """Take a message out of its queue."""
        count_dropped(message.delivery_info.get("routing_key") or "a queue", reason)
        if not message.acknowledged:
            message.reject_log_error(_log, self.connection_errors)
