"""Texts for users: making untrusted text safe to show, times, counts."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def displayable(text: str) -> str:
    r"""Return a text in which every character is visible.

    Newlines, control and formatting characters (which can reorder or hide what is read) are
    written as escapes, and bytes of a file name that are not UTF-8 as ``\xNN``.

    Examples
    --------
    >>> displayable("two\nlines")
    'two\\nlines'
    """
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    """Escape one unprintable character as Python does."""
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def shortened(text: str, width: int) -> str:
    """Return a text cut in the middle to a number of terminal columns.

    The end of a path says more than its beginning, so it gets two thirds of the space.

    Parameters
    ----------
    text : str
        Printable (see `displayable`).
    width : int
        Columns, at least 1; wide characters take two.

    Examples
    --------
    >>> shortened("/photographs/holiday/beach.jpg", 20)
    '/photo…day/beach.jpg'
    """
    if columns(text) <= width:
        return text
    head = _taken(text, (width - 1) // 3)
    tail = _taken(text[::-1], width - 1 - columns(head))[::-1]
    return f"{head}…{tail}"


def columns(text: str) -> int:
    """Return how many terminal columns a text takes."""
    return sum(_columns(char) for char in text)


def _columns(char: str) -> int:
    """Return the columns of one character: 0 for combining marks, 2 for wide ones."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _taken(text: Iterable[str], width: int) -> str:
    """Return as many characters from the beginning as fit."""
    taken: list[str] = []
    for char in text:
        width -= _columns(char)
        if width < 0:
            break
        taken.append(char)
    return "".join(taken)


def seconds(value: float | None) -> str:
    """Return a time for people: ``0.4 s``, ``12 s``, ``3:25 min``, ``1:02:03 h``."""
    if value is None:
        return "unknown"
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"


def counted(number: int, thing: str, things: str | None = None) -> str:
    """Return ``1 image`` or ``2,000 images``."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"
