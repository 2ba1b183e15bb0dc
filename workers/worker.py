"""Run a worker: ``python -m workers.worker``, for the lines of the Procfile.

It takes the options of ``celery -A workers.app worker`` and does the same. That command line loads
Flower, a shell and all other subcommands, which costs each worker 10 MiB and a quarter of a second
of processor time. With any option that is not known here, it takes over.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

__all__ = ["main"]

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL")
_POOLS = ("prefork", "threads", "solo")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a worker until it is stopped; leaves by `SystemExit`.

    Parameters
    ----------
    arguments : sequence of str, optional
        Options of ``celery worker``; default: those of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _read(given)
    if options is None:
        command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", *given]
        os.execv(sys.executable, command)
    else:
        _run(options)


def _read(given: Sequence[str]) -> argparse.Namespace | None:
    """Return the options; None if Celery must read them, or say what is wrong with them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-n", "--hostname")
    parser.add_argument("-l", "--loglevel", type=str.upper, choices=_LEVELS, default="WARNING")
    parser.add_argument("-Q", "--queues", type=lambda text: text.split(","))
    parser.add_argument("-P", "--pool", choices=_POOLS, default="prefork")
    parser.add_argument("-c", "--concurrency", type=_count)
    parser.add_argument("-O", "--optimization", choices=("default", "fair"), default="default")
    parser.add_argument("--without-gossip", action="store_true")
    parser.add_argument("--without-mingle", action="store_true")
    try:
        options, unknown = parser.parse_known_args(given)
    except argparse.ArgumentError:
        return None
    return None if unknown else options


def _count(text: str) -> int | None:
    """Return a number; None for 0, which leaves it to the settings."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError("not a number")
    return int(text) or None


def _run(options: argparse.Namespace) -> None:
    """Run a worker as Celery's command line does."""
    from workers.app import app
    from workers.celery_private.nodes import node_name

    worker = app.Worker(**{**vars(options), "hostname": node_name(options.hostname)})
    worker.start()
    raise SystemExit(worker.exitcode)


if __name__ == "__main__":
    main()
