"""One line of docs/scoreboard.md: the figures that no change may worsen silently.

Start-up and idle memory as `benchmarks.startup` measures them; images a second and the median
search on a running system, with a new picture for every query; mAP of two subsets of a data set,
where there is one; what the last `make test` took.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from benchmarks import startup
from benchmarks.common import parser, photographs, running
from vantage import Collection

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scoreboard.md"
PHOTOS = ROOT.parent / "shared" / "photos"
SUBSETS = ("dvd", "landmarks")
QUERIES = 40
IMAGES = 300
"""Photographs that are indexed for the times; of more, evenly spread ones."""


def start_up(photos: Sequence[str]) -> dict[str, str]:
    """Return seconds of commands and of a start, and idle memory."""
    with tempfile.TemporaryDirectory(prefix="vantage-bench-") as folder:
        here = startup.install(ROOT, Path(folder) / "home", photos[:20])
        (found,) = startup.measure([here], rounds=3, ups=1)
    return {
        "help s": f"{median(found['vantage --help']):.2f}",
        "search --local s": f"{median(found['vantage search --local (warm)']):.2f}",
        "up s": f"{median(found[startup.READY]):.1f}",
        "idle MiB": f"{median(found[startup.MEMORY]):.0f}",
    }


def work(photos: Sequence[str]) -> dict[str, str]:
    """Return images a second and the median milliseconds of a search of a fresh query."""
    images, queries = photos[1::2][:IMAGES], photos[::2][:QUERIES]
    with running() as settings, Collection.open("scoreboard", settings) as collection:
        began = time.perf_counter()
        collection.index([Path(image) for image in images]).wait(timeout=3600)
        rate = len(images) / (time.perf_counter() - began)
        times = []
        for query in queries:
            began = time.perf_counter()
            collection.search(query)
            times.append((time.perf_counter() - began) * 1e3)
    return {"images/s": f"{rate:.1f}", "search p50 ms": f"{median(times):.0f}"}


def quality(dataset: Path) -> dict[str, str]:
    """Return the mAP of the subsets, or dashes where the data set is not there."""
    if not (dataset / "groundtruth.json").is_file():
        return {f"mAP {subset}": "–" for subset in SUBSETS}
    command = [sys.executable, "-m", "workers.cli", "eval", str(dataset), "--local", "--json"]
    with tempfile.TemporaryDirectory(prefix="vantage-bench-") as home:
        done = subprocess.run(
            [*command, "--plan", "exhaustive", "--subsets", ",".join(SUBSETS)],
            env=startup.environment(ROOT, Path(home)),
            stdout=subprocess.PIPE,
            check=True,
        )
    found = json.loads(done.stdout)["parts"]
    return {f"mAP {subset}": f"{found[subset]['mAP']:.3f}" for subset in SUBSETS}


def tested(file: Path | None) -> dict[str, str]:
    """Return the minutes of the last `make test`, which left its seconds in a file."""
    minutes = f"{int(file.read_text()) / 60:.1f}" if file and file.is_file() else "–"
    return {"make test min": minutes}


def commit() -> str:
    """Return the short name of the commit, with a plus where files were changed since."""
    name, changed = (
        subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "-uno"))
    )
    return name + ("+" if changed else "")


def append(page: Path, row: dict[str, str]) -> str:
    """Append a line to the page's table; return it."""
    line = f"| {' | '.join(row.values())} |"
    text = page.read_text(encoding="utf-8")
    header = f"| {' | '.join(row)} |"
    if header not in text:
        text += f"\n{header}\n|{'---|' * len(row)}\n"
    page.write_text(f"{text.rstrip()}\n{line}\n", encoding="utf-8")
    return line


def main() -> None:
    """Measure, print and append."""
    options = parser(str(__doc__).splitlines()[0])
    options.add_argument("--test-seconds", type=Path, help="file that `make test` has left")
    options.add_argument("--no-append", action="store_true", help="print only")
    arguments = options.parse_args()
    dataset = arguments.photos or PHOTOS
    photos = photographs(dataset if dataset.is_dir() else None)
    photos = photos[:: max(1, len(photos) // (2 * IMAGES))]
    row = {"commit": commit(), "day": f"{datetime.now(UTC):%Y-%m-%d}"}
    row |= start_up(photos) | work(photos) | quality(dataset) | tested(arguments.test_seconds)
    if arguments.json:
        print(json.dumps(row))
    else:
        print("\n".join(f"{name:>20}  {value}" for name, value in row.items()))
    if not arguments.no_append:
        append(PAGE, row)


if __name__ == "__main__":
    main()
