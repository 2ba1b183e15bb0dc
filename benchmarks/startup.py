"""Time of commands and of `vantage up` from the shell to the end, and the memory of an idle system.

Every figure is of whole processes, started as a user starts them. Several checkouts, each with the
interpreter of its own `.venv`, are measured in turns, so that a busy machine is busy for all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.common import markdown, parser, photographs, show
from workers.processes import stop_process

ROOT = Path(__file__).parents[1]
SETTLE_S = 4.0
"""Seconds that an idle system is left alone before its memory is read."""
END_S = 120.0
COLLECTION = "startup"
COMMANDS: Mapping[str, Sequence[str]] = {
    "vantage --help": ["--help"],
    "vantage collections": ["collections"],
    "vantage search --local (warm)": ["search", COLLECTION, "QUERY", "--local"],
}
READY, MEMORY, COUNT = "vantage up until ready", "memory of an idle up", "its processes"
UNITS = {**dict.fromkeys(COMMANDS, "s"), READY: "s", MEMORY: "MiB"}

Figures = dict[str, float]


@dataclass(frozen=True)
class Installation:
    """A checkout with its interpreter, and a home with a collection in it."""

    checkout: Path
    home: Path
    query: str

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command in the home."""
        own = self.checkout / ".venv" / "bin" / "python"
        python = str(own) if own.exists() else sys.executable
        return subprocess.Popen(
            [python, "-m", "workers.cli", *arguments],
            cwd=self.home,
            env=environment(self.checkout, self.home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> float:
        """Run a command to its end; return its seconds."""
        arguments = tuple(self.query if word == "QUERY" else word for word in arguments)
        began = time.perf_counter()
        process = self.start(*arguments)
        out, errors = process.communicate()
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"vantage {' '.join(arguments)} in {self.checkout}:\n{out}{errors}")
        return seconds

    def up(self) -> Figures:
        """Start everything, wait until it serves, look at it while it is idle, and stop it."""
        began = time.perf_counter()
        process = self.start("up", "--json")
        try:
            assert process.stdout is not None
            while line := process.stdout.readline():
                if line == "}\n":
                    break
            seconds = time.perf_counter() - began
            if not line:
                raise SystemExit(f"vantage up in {self.checkout}:\n{process.communicate()[1]}")
            time.sleep(SETTLE_S)
            return {READY: seconds, **idle(process.pid)}
        finally:
            stop_process(process, END_S)
            process.communicate()


def environment(checkout: Path, home: Path) -> dict[str, str]:
    """Return the environment of a user of a checkout with a home of their own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("VANTAGE_")}
    # A user's second start finds all modules compiled.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return env | {
        "PYTHONPATH": str(checkout),
        "VANTAGE_HOME": str(home),
        "VANTAGE_FLOWER_PORT": "0",
    }


def idle(pid: int) -> Figures:
    """Return the proportional set size in MiB of a process and all below it, and their number."""
    first = psutil.Process(pid)
    family = [first, *first.children(recursive=True)]
    sizes = [process.memory_full_info().pss for process in family]
    return {MEMORY: sum(sizes) / 2**20, COUNT: len(sizes)}


def measure(
    installations: Sequence[Installation], rounds: int, ups: int
) -> list[dict[str, list[float]]]:
    """Measure all in turns, every second round in the other order."""
    found: list[dict[str, list[float]]] = [defaultdict(list) for _ in installations]
    order = list(zip(installations, found, strict=True))
    for turn in range(max(rounds, ups)):
        for installation, figures in order:
            if turn < rounds:
                for name, arguments in COMMANDS.items():
                    figures[name].append(installation.run(*arguments))
            if turn < ups:
                for name, value in installation.up().items():
                    figures[name].append(value)
        order.reverse()
    return found


def rows(names: Sequence[str], found: Sequence[dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Return medians, and the last checkout's over the first's."""
    table = []
    for figure in found[0]:
        medians = [median(figures[figure]) for figures in found]
        unit = UNITS.get(figure, "")
        row: dict[str, Any] = {"median": f"{figure}, {unit}" if unit else figure}
        row |= {
            name: f"{value:.2f}" if unit == "s" else f"{value:.0f}"
            for name, value in zip(names, medians, strict=True)
        }
        if len(names) > 1:
            row["ratio"] = f"{medians[-1] / medians[0]:.2f}"
        table.append(row)
    return table


def install(checkout: Path, home: Path, photos: Sequence[str]) -> Installation:
    """Make a home with a collection, and search it once, so that every cache is warm."""
    home.mkdir()
    installation = Installation(checkout.resolve(), home, photos[0])
    installation.run("index", COLLECTION, *photos, "--local")
    installation.run(*COMMANDS["vantage search --local (warm)"])
    return installation


def main() -> None:
    """Measure one checkout, or one before and one after a change."""
    options = parser(str(__doc__).splitlines()[0])
    options.add_argument(
        "--before", type=Path, metavar="CHECKOUT", help="another checkout, to compare with"
    )
    options.add_argument("--after", type=Path, metavar="CHECKOUT", default=ROOT)
    options.add_argument("--rounds", type=int, default=7, help="runs of each command")
    options.add_argument("--ups", type=int, default=3, help="starts of `vantage up`")
    options.add_argument("--markdown", action="store_true", help="print a table in Markdown")
    arguments = options.parse_args()
    checkouts = {"after": arguments.after}
    if arguments.before is not None:
        checkouts = {"before": arguments.before, "after": arguments.after}
    photos = photographs(arguments.photos)
    with tempfile.TemporaryDirectory(prefix="vantage-bench-") as folder:
        installations = [
            install(checkout, Path(folder) / name, photos) for name, checkout in checkouts.items()
        ]
        found = measure(installations, arguments.rounds, arguments.ups)
    table = rows(list(checkouts), found)
    if arguments.markdown:
        markdown("start-up", table)
    else:
        show("start-up", table, arguments.json)


if __name__ == "__main__":
    main()
