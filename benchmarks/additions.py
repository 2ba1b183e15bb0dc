"""Images added one by one against the same images in one call: searches, additions, compaction.

    python -m benchmarks.additions --photos FOLDER [--base 0] [--additions 200] [--queries 40]

Three collections in one process get the same photographs: ``one call`` after a first call with the
base, ``by itself`` one image a call with automatic compaction, ``never`` one image a call without.
Searches take the collections in turn; the time is that of a search without the extraction of its
query. At the end everything is compacted (``vantage compact``).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.common import parser, percentiles, photographs, show
from pipeline.config import PlanKind, Settings
from vantage import Collection

PLANS: tuple[PlanKind, ...] = ("probed", "exhaustive")
NAME = "bench"
ENDS = 10
"""Additions at the beginning and at the end whose times are compared."""


def main() -> None:
    """Print times of searches and additions."""
    options = parser(str(__doc__).splitlines()[0])
    options.add_argument("--base", type=int, default=0, help="photographs that are there before")
    options.add_argument("--additions", type=int, default=200)
    options.add_argument("--queries", type=int, default=40)
    arguments = options.parse_args()
    files = [Path(file) for file in photographs(arguments.photos)]
    wanted = arguments.base + arguments.additions
    files = files[:: max(1, len(files) // wanted)][:wanted]
    base, added = files[: arguments.base], files[arguments.base :]
    queries = files[:: max(1, len(files) // arguments.queries)][: arguments.queries]
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vantage-bench-")))
        opened = {
            name: stack.enter_context(
                Collection.open(NAME, _settings(home / name, above), local=True)
            )
            for name, above in (("one call", 8), ("by itself", 8), ("never", 0))
        }
        for collection in opened.values():
            if base:
                collection.index(base)
        started = time.perf_counter()
        opened["one call"].index(added)
        print(f"one call: {time.perf_counter() - started:.1f} s")
        rows = [_add_one_by_one(name, opened[name], added) for name in ("by itself", "never")]
        show("an addition, ms", rows, arguments.json)
        show("search before, ms", _compare(opened, queries), arguments.json)
        for name in ("by itself", "never"):
            started = time.perf_counter()
            opened[name].compact()
            print(f"compaction of {name}: {time.perf_counter() - started:.1f} s")
        show("search after, ms", _compare(opened, queries), arguments.json)


def _settings(home: Path, above: int) -> Settings:
    """Return settings with a separate home."""
    own = Settings.from_env({"VANTAGE_HOME": str(home), "VANTAGE_FLOWER_PORT": "0"})
    return replace(own, compact_above=above)


def _add_one_by_one(name: str, collection: Collection, files: Sequence[Path]) -> dict[str, object]:
    """Add images one by one; return the times."""
    times = []
    for file in files:
        started = time.perf_counter()
        collection.index([file])
        times.append((time.perf_counter() - started) * 1e3)
    return {
        "collection": name,
        "first p50": percentiles(times[:ENDS])["p50"],
        "last p50": percentiles(times[-ENDS:])["p50"],
        "all": round(float(np.mean(times)), 1),
        "longest": round(max(times), 1),
    }


def _compare(
    collections: Mapping[str, Collection], queries: Sequence[Path]
) -> list[dict[str, object]]:
    """Search in every collection in turn; returns medians and their ratios to the first."""
    times: dict[tuple[str, str], list[float]] = {}
    for query in [queries[0], *queries]:
        for plan in PLANS:
            for name, collection in collections.items():
                started = time.perf_counter()
                result = collection.search(query, plan=plan)
                took = (time.perf_counter() - started) * 1e3 - result.timings["extract"]
                times.setdefault((name, plan), []).append(took)
    medians = {key: percentiles(values[1:])["p50"] for key, values in times.items()}
    first = next(iter(collections))
    return [
        {
            "collection": name,
            "segments a group": _largest_group(collection),
            **{f"{plan} p50": medians[name, plan] for plan in PLANS},
            **{
                f"{plan} ratio": round(medians[name, plan] / medians[first, plan], 2)
                for plan in PLANS
            },
        }
        for name, collection in collections.items()
    ]


def _largest_group(collection: Collection) -> int:
    """Return the number of segments of the group with the most."""
    return collection.status().largest_group


if __name__ == "__main__":
    main()
