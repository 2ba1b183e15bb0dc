"""What every message says of its sender: the installation, and the protocol that it speaks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.celery_private.transport import PatientAMQP
from workers.keys import PROTOCOL

__all__ = ["HEADER", "Sender", "VantageAMQP", "newer_protocol", "note_newer"]

_TOLD_S = 60.0
_newer: dict[int, float] = {}

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


def note_newer(protocol: int) -> None:
    """Note that a message of a newer protocol has come to this process."""
    _newer[protocol] = time.monotonic()


def newer_protocol() -> int | None:
    """Return the newest protocol of the messages that came within a minute; None if not newer."""
    since = time.monotonic() - _TOLD_S
    return max((protocol for protocol, at in _newer.items() if at >= since), default=None)


class VantageAMQP(PatientAMQP):
    """Makes messages with the header."""

    def as_task_v2(self, *args: Any, **options: Any) -> Any:
        """Return the message of a task."""
        message = super().as_task_v2(*args, **options)
        message.headers[HEADER] = {"installation": self.app.installation, "protocol": PROTOCOL}
        return message
