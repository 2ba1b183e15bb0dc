"""What a worker does with messages that are not for it.

A message of another installation is refused, and a message of a newer protocol is put back for a
worker of a newer release: it is held for some seconds first, so that nothing goes round in circles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from workers.celery_private.consumer import PatientConsumer
from workers.keys import PROTOCOL
from workers.messages import Sender, note_newer

__all__ = ["HELD_AT_MOST", "PUT_BACK_S", "VantageConsumer"]

_log = logging.getLogger(__name__)

PUT_BACK_S = 5.0
"""Seconds for which a message of a newer protocol is held before it is put back."""

HELD_AT_MOST = 50
"""Messages that are held beside those on which the worker may work."""


class VantageConsumer(PatientConsumer):
    """A consumer that looks at the sender before the task."""

    _held = 0

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:
        """Return what is called with each message."""
        take = super().create_task_handler(*args, **options)

        def on_task_received(message: Any) -> None:
            sender = Sender.of(message.headers)
            if sender is None or sender.installation != self.app.installation:
                self._refuse(message, sender)
            elif sender.protocol > PROTOCOL:
                self._hold(message, sender.protocol)
            else:
                take(message)

        return on_task_received

    def _refuse(self, message: Any, sender: Sender | None) -> None:
        """Drop a message of another installation."""
        whose = f"installation {sender.installation}" if sender else "no installation of Vantage"
        _log.error(
            "a message of %s is refused: this worker is one of installation %s. Two databases use "
            "one identity, or somebody else writes to our queues: see `vantage doctor`",
            whose,
            self.app.installation,
        )
        message.reject_log_error(_log, self.connection_errors)

    def _hold(self, message: Any, protocol: int) -> None:
        """Keep a message for a while, then put it back at the end of its queue."""
        note_newer(protocol)
        self._held += 1
        # A held message counts as one that is worked on: make room for another beside it.
        qos = self.qos if self._held <= HELD_AT_MOST else None
        if qos is not None:
            qos.increment_eventually()
        self.timer.call_after(PUT_BACK_S, self._put_back, (message, qos))

    def _put_back(self, message: Any, qos: Any) -> None:
        """Put a message back that was held."""
        self._held -= 1
        if qos is not None:
            qos.decrement_eventually()
        message.reject_log_error(_log, self.connection_errors, requeue=True)
