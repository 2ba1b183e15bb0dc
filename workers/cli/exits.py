"""Exit codes, and errors as one readable line or as JSON."""

from __future__ import annotations

import difflib
import os
import sys

import typer

from pipeline.errors import ConfigError, InputError, VantageError
from workers.cli.output import printable, to_stderr, wants_colour, write_json

OK = 0
TROUBLE = 1
"""Something must be repaired, or may pass: no worker, no database, a failed check, a failed job."""
USAGE = 2
"""The command line, a setting, or an input (an image, a name) is wrong."""
INCOMPLETE = 4
"""The answer came without some groups."""
INTERRUPTED = 130
"""Ctrl-C."""

EXIT_CODES = (
    "Exit codes: 0 done; 1 something must be repaired, or try again later; 2 wrong command line, "
    "setting or input; 4 an answer lacks some groups; 130 Ctrl-C."
)


class InterruptError(Exception):
    """Ctrl-C, with a sentence about what happens to the work."""


def exit_code(error: VantageError) -> int:
    """Return the exit code of an error."""
    return USAGE if isinstance(error, InputError | ConfigError) else TROUBLE


def show_error(error: VantageError, as_json: bool) -> int:
    """Print an error; return its exit code."""
    from pipeline.redaction import redacted, secrets_of_environment

    # Of what is told, not all is ours: a driver may quote an address.
    secrets = secrets_of_environment(os.environ)
    values = {name: redacted(text, secrets) for name, text in error.to_dict().items()}
    tell(values["message"])
    if as_json:
        write_json({"error": values})
    return exit_code(error)


def show_interrupt(message: str, as_json: bool) -> int:
    """Say that Ctrl-C ended the command; return the exit code."""
    to_stderr(f"\n{message}")
    if as_json:
        write_json({"error": {"type": "Interrupted", "message": message}})
    return INTERRUPTED


def show_usage_error(error: typer.TyperException, as_json: bool) -> int:
    """Say what is wrong with the command line; return the exit code."""
    message = _usage_message(error)
    tell(message)
    context = getattr(error, "ctx", None)
    if context is not None:
        to_stderr(f"Try '{context.command_path} --help' for help.")
    if as_json:
        write_json({"error": {"type": "UsageError", "message": message}})
    return USAGE


def _usage_message(error: typer.TyperException) -> str:
    """Return Typer's message; suggest a similar option, as for commands and collections."""
    near = getattr(error, "possibilities", None)
    if near:
        option = str(getattr(error, "option_name", ""))
        best = difflib.get_close_matches(option, near, n=1, cutoff=0.0)[0]
        return f"No such option: {option}; did you mean {best!r}?"
    # Typer's conversion library begins its messages with the kind of error.
    message = error.format_message().replace(": Value error, ", ": ")
    return message.removesuffix(".")


def tell(message: str) -> None:
    """Print an error for users."""
    mark = "\x1b[1;31merror:\x1b[0m" if wants_colour(sys.stderr) else "error:"
    sys.stderr.write(f"{mark} {printable(message)}\n")
    sys.stderr.flush()
