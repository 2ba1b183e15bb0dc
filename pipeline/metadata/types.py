"""Column types."""

from __future__ import annotations

import re

from sqlalchemy import Dialect, Text
from sqlalchemy.types import TypeDecorator

# Undecodable bytes of a file name are lone surrogates in Python, which no database encodes as
# UTF-8; PostgreSQL refuses NUL; the backslash marks the escapes themselves.
_UNSAFE = re.compile("[\\\\\x00\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(?:\\|u([0-9a-f]{4}))")


def escape_text(value: str) -> str:
    r"""Return `value` with backslash, NUL and surrogates as ``\\`` and ``\uXXXX``.

    Any other text, also with newlines, stays as it is. One to one: `unescape_text` is the inverse.
    """
    return _UNSAFE.sub(lambda m: "\\\\" if m[0] == "\\" else f"\\u{ord(m[0]):04x}", value)


def unescape_text(value: str) -> str:
    """Inverse of `escape_text`."""
    return _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else "\\", value)


def signed64(value: int) -> int:
    """Return a number as a database can hold it: of 64 bits, with a sign.

    Larger ones (an inode above 2**63, a time after the year 2262 in nanoseconds) become negative;
    two different ones of a file system stay different.
    """
    return (value + 2**63) % 2**64 - 2**63


class PathText(TypeDecorator[str]):
    """TEXT that keeps every Python string exactly, also names that are not valid UTF-8."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Escape what a database cannot hold."""
        return None if value is None else escape_text(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """Restore the string."""
        return None if value is None else unescape_text(value)
