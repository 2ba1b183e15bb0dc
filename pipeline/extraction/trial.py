"""Trying a model in a process of its own, with limits of time and memory.

A model file is a program from outside: it may compute without end, or take all memory. So before it
is accepted, its extractor is made once in a child process that can be killed.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline import errors
from pipeline.config import ExtractorConfig
from pipeline.errors import ConfigError, VantageError

__all__ = ["main", "try_model"]

TRIAL_SECONDS = 120
"""Processor time for a trial: loading the largest usual networks and two images takes a tenth."""

STARVED = 5
"""A trial that gets no processor ends after so many times its processor time."""

TRIAL_MEMORY = 4 * 2**30
"""Bytes of address space for a trial, beside those for the file itself."""

COPIES = 6
"""How often the file may lie in memory: as read, parsed, and prepared by the runtime."""

_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from pipeline.extraction.trial import main; main()"
)


def try_model(config: ExtractorConfig, model: Path) -> None:
    """Make the extractor of a model file once, in a child process.

    Parameters
    ----------
    config : ExtractorConfig
    model : Path

    Raises
    ------
    ConfigError
        The model is wrong, or exceeds the limits.
    VantageError
        Another error of the extractor.
    """
    memory = TRIAL_MEMORY + COPIES * model.stat().st_size
    request = {
        "config": config.to_dict(), "model": str(model), "memory": memory, "seconds": TRIAL_SECONDS
    }  # fmt: skip
    paths = [path or str(Path.cwd()) for path in sys.path]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, json.dumps(paths)],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=STARVED * TRIAL_SECONDS,
            check=False,
            start_new_session=True,  # Ctrl-C is for the parent, which then kills it
        )
        answer = _answer(done.stdout)
    except subprocess.TimeoutExpired:
        answer = None
    if answer is None:
        raise ConfigError(
            "model",
            str(model),
            f"it cannot be tried within {TRIAL_SECONDS} s of processor time and "
            f"{memory / 2**30:,.1f} GiB of memory: the process that tried it has died",
        )
    if answer:
        kind = getattr(errors, str(answer["type"]), VantageError)
        raise kind(*answer["args"])


def _answer(output: bytes) -> dict[str, Any] | None:
    """Return the child's answer, empty if all is well; None if it has died."""
    try:
        answer = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def main() -> None:
    """Try a model: the request is on standard input, the answer goes to standard output."""
    request = json.load(sys.stdin)
    seconds = int(request["seconds"])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from pipeline.extraction.registry import get_extractor

    try:
        get_extractor(
            ExtractorConfig.from_dict(request["config"]), lambda _sha256: Path(request["model"])
        )
        answer: dict[str, Any] = {}
    except VantageError as error:
        answer = {"type": type(error).__name__, "args": list(error.args)}
    except MemoryError:
        return  # no answer: as one that was killed
    print("\n" + json.dumps(answer, default=str))
