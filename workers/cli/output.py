"""Printing: JSON and answers to standard output, everything else to standard error.

File names may contain anything: nothing is printed before `printable` has made every control
character visible, so that a name can neither move the cursor nor forge a line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import IO

from pipeline.text import columns, displayable, shortened
from pipeline.text import counted as counted
from pipeline.text import seconds as seconds

_PIPE_WIDTH = 100_000
"""Columns without a terminal: a program that reads the output needs whole paths."""


class ReaderGoneError(Exception):
    """The reader of our standard output has gone (as with `| head`)."""


def _put(text: str) -> None:
    """Write to standard output."""
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise ReaderGoneError from None


def finish() -> None:
    """Make sure that all of standard output is written."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGoneError from None


def write_json(value: object) -> None:
    r"""Print the one JSON document of a command.

    It is ASCII: a byte of a file name that is not UTF-8 becomes a lone surrogate (``"\udce9"``),
    from which Python's ``os.fsencode`` makes the name again.
    """
    _put(json.dumps(value, indent=2) + "\n")
    finish()


def say(text: str = "") -> None:
    """Print a line of an answer."""
    _put(f"{printable(text)}\n")


def to_stderr(text: str) -> None:
    """Print a note for users."""
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """Return a text with every unprintable character except newlines written as an escape.

    Our own newlines separate lines; those in names are escaped before, by `displayable`.
    """
    return "\n".join(displayable(line) for line in text.split("\n"))


def terminal_width() -> int:
    """Return the columns to fill: the terminal's, or ``COLUMNS``; in a pipe, no limit."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return max(40, int(given))
    try:
        return max(40, os.get_terminal_size(sys.stdout.fileno()).columns)
    except (OSError, ValueError):
        return _PIPE_WIDTH


def wants_colour(stream: IO[str]) -> bool:
    """Whether a stream is a terminal and colours are not turned off."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def show_table(
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Sequence[str] = (),
    indent: int = 0,
) -> None:
    """Print a table; its last column is cut in the middle to fit the terminal.

    Parameters
    ----------
    header : sequence of str
        Column titles.
    rows : iterable of sequence
        Cells, any text; unprintable characters are escaped.
    numbers : sequence of str
        Titles of the right-aligned columns.
    indent : int
        Columns left free on the left.
    """
    lines = [[displayable(str(cell)) for cell in row] for row in rows]
    widths = [
        max(columns(line[i]) for line in [list(header), *lines]) for i in range(len(header) - 1)
    ]
    room = terminal_width() - indent - sum(widths) - 2 * len(widths)
    last = max(len(header[-1]), room)

    def line_of(cells: Sequence[str]) -> str:
        fixed = [
            _padded(cell, width, title in numbers)
            for cell, width, title in zip(cells, widths, header, strict=False)
        ]
        return (" " * indent + "  ".join([*fixed, shortened(cells[-1], last)])).rstrip()

    title = line_of(header)
    _put(f"\x1b[1m{title}\x1b[0m\n" if wants_colour(sys.stdout) else f"{title}\n")
    for line in lines:
        _put(f"{line_of(line)}\n")


def _padded(cell: str, width: int, right: bool) -> str:
    """Pad a cell to its column's width."""
    blanks = " " * (width - columns(cell))
    return blanks + cell if right else cell + blanks


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers with ranges: ``0-3,7``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
