"""Celery's events, which Flower shows: without what users wrote and where their files are."""

from __future__ import annotations

import re
from typing import Any

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher

__all__ = ["DiscreetDispatcher", "DiscreetEvents", "discreet"]

_TEXT = re.compile(r"""(?P<quote>['"])(?P<text>(?:(?!(?P=quote))[^\\]|\\.)*)(?:(?P=quote)|\\?$)""")
_WORD = re.compile(r"[a-z_-]{0,24}")
_CLASS = re.compile(r"[A-Za-z_][\w.]*")
_TRACEBACK = "in the log of the worker"


def discreet(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an event without sentences, paths and lines of code.

    Of an exception, its class stays; of a result, numbers and single words.
    """
    changed: dict[str, Any] = {}
    if fields.get("exception"):
        name = _CLASS.match(str(fields["exception"]))
        changed["exception"] = f"{name[0] if name else 'an error'}: {_TRACEBACK}"
    if fields.get("traceback"):
        changed["traceback"] = _TRACEBACK
    if fields.get("result") is not None:
        changed["result"] = _TEXT.sub(_word_or_nothing, str(fields["result"]))
    return {**fields, **changed}


def _word_or_nothing(found: re.Match[str]) -> str:
    """Keep a quoted text that is one word."""
    return found[0] if _WORD.fullmatch(found["text"]) else "'...'"


class DiscreetDispatcher(EventDispatcher):
    """Sends what `discreet` leaves."""

    def send(self, type: str, *args: Any, **fields: Any) -> Any:
        """Send an event."""
        return super().send(type, *args, **discreet(fields))


class DiscreetEvents(Events):
    """Events of our apps."""

    dispatcher_cls = f"{__name__}:DiscreetDispatcher"
