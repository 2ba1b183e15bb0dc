"""What every message says of its sender: the installation, and the protocol that it speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.celery_private.transport import PatientAMQP

__all__ = ["HEADER", "PROTOCOL", "Sender", "VantageAMQP"]

PROTOCOL = 1
"""Version of the messages and of what searches keep in Redis. A release that changes either so that
a former one would misread it has the next number."""

HEADER = "vantage"
"""Header of every message of a task."""


@dataclass(frozen=True)
class Sender:
    """Who has sent a message.

    Attributes
    ----------
    installation : str
    protocol : int
    """

    installation: str
    protocol: int

    @classmethod
    def of(cls, headers: object) -> Sender | None:
        """Read it from a message's headers; None if they do not have it."""
        found = headers.get(HEADER) if isinstance(headers, Mapping) else None
        if not isinstance(found, Mapping):
            return None
        installation, protocol = found.get("installation"), found.get("protocol")
        if not isinstance(installation, str) or type(protocol) is not int:
            return None
        return cls(installation, protocol)


class VantageAMQP(PatientAMQP):
    """Makes messages with the header."""

    def as_task_v2(self, *args: Any, **options: Any) -> Any:
        """Return the message of a task."""
        message = super().as_task_v2(*args, **options)
        message.headers[HEADER] = {"installation": self.app.installation, "protocol": PROTOCOL}
        return message
