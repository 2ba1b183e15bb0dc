"""The search engine against its peers: recall, time, building, size.

    python -m benchmarks.engine FOLDER --features CACHE [--quick] [--curves FILE.png]
    python -m benchmarks.engine FOLDER --features CACHE --grow 1 4 16

FOLDER is an evaluation data set (see `pipeline.evaluation.dataset`), CACHE a folder that keeps its
extracted descriptors. A million SIFT descriptors of its photographs (RootSIFT, rotated and cut to
64 numbers by the index's PCA; all methods get these float32 rows) are searched for the 16 nearest
of each of 250 descriptors of a photograph that is not among them: a batch. Every setting of every
method takes its turn in every round, on the same batches, with two threads; times are medians. What
the columns mean: `benchmarks.engine_measures`. The peers: ``pip install --group bench``.
"""

from __future__ import annotations

import os
import sys

# Read when numpy, OpenMP and numba are first imported.
os.environ["OPENBLAS_NUM_THREADS"] = "1" if "--busy" in sys.argv else "2"
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"]
os.environ["MKL_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"]

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from benchmarks.common import markdown
from benchmarks.engine_curves import draw_curves
from benchmarks.engine_data import BATCH, EngineData, read_data
from benchmarks.engine_growth import grow
from benchmarks.engine_measures import (
    Point,
    distance_ratio,
    index_recall,
    nearest_rows,
    recall_among,
    recall_first,
)
from benchmarks.engine_ours import build_ours, processor
from benchmarks.engine_peers import Bench, Built, Floats, Ids, Search, build_peers, versions
from benchmarks.engine_verdict import verdict
from pipeline.index.engine import CELL_SIZE

THREADS = int(os.environ["OPENBLAS_NUM_THREADS"])
SLOW_BATCHES = 3
"""Batches of a round for the exhaustive methods: they take long, and need no more."""

AT_ONCE = 4
"""Batches that a setting searches in a row, so that its index is in the caches as far as it fits,
as in a searching process."""


class Turn(NamedTuple):
    """A setting of a method, and the batches (B, 250, D) that it is timed on."""

    made: Built
    setting: str
    search: Search
    batches: Floats


def main() -> None:
    arguments = parse()
    rows, batches = (100_000, 16) if arguments.quick else (arguments.rows, arguments.batches)
    data = read_data(arguments.folder, arguments.features, rows, batches, BATCH, THREADS)
    print(f"{processor()}; {THREADS} threads; {versions()}")
    print(f"{len(data.rows)} rows, {len(data.batches)} batches of {BATCH}", flush=True)
    clock = time.process_time if arguments.busy else time.perf_counter
    bench = Bench(THREADS, clock, arguments.keep)
    if arguments.grow:
        for cell_size in arguments.cells:
            grown = grow(data, arguments.grow, cell_size, bench, arguments.rounds)
            markdown(f"Growth, cells of {cell_size}", grown)
        return
    ours = build_ours(data.rows, bench, arguments.cells)
    print(f"ours built in {', '.join(f'{made.build_s:.1f}' for made in ours)} s", flush=True)
    methods = [*ours, *build_peers(data.rows, bench, set(arguments.peers))]
    points = measure(methods, data, arguments.rounds, clock)
    report(methods, points, arguments)


def parse() -> argparse.Namespace:
    """Return the options."""
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("folder", help="evaluation data set with a groundtruth.json")
    options.add_argument(
        "--features", type=Path, required=True, help="folder that keeps the extracted features"
    )
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--batches", type=int, default=40, help="query photographs")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--peers", nargs="*", default=[], help="libraries; default: all")
    options.add_argument("--quick", action="store_true", help="100,000 rows, for a check")
    options.add_argument("--curves", type=Path, help="PNG that the curves are drawn into")
    options.add_argument(
        "--cells", type=int, nargs="+", default=[CELL_SIZE], help="cell sizes of our index"
    )
    options.add_argument(
        "--keep", type=Path, help="folder that keeps the peers' indexes, which take long to build"
    )
    options.add_argument(
        "--busy", action="store_true", help="one thread, processor time: beside other work"
    )
    options.add_argument("--points", type=Path, help="JSON file for all points")
    options.add_argument(
        "--grow", type=int, nargs="+", default=[], help="measure growth instead: multiples of rows"
    )
    return options.parse_args()


def measure(
    methods: Sequence[Built], data: EngineData, rounds: int, clock: Callable[[], float]
) -> list[Point]:
    """Return every setting's time and recall; the first method is the engine's exhaustive scan."""
    turns = [
        Turn(made, setting, search, data.batches[: SLOW_BATCHES if made.slow else None])
        for made in methods
        for setting, search in made.searches.items()
    ]
    times = take_turns(turns, rounds, clock)
    truth = nearest_rows(data.rows, np.concatenate(list(data.batches)))
    (scan,) = methods[0].searches.values()
    nearest = np.concatenate([scan(batch)[0] for batch in data.batches])
    return [
        point_of(turn, 1e3 * median(spent), data.rows, truth, nearest)
        for turn, spent in zip(turns, times, strict=True)
    ]


def point_of(turn: Turn, ms: float, rows: Floats, truth: Ids, nearest: Floats) -> Point:
    """Return a setting's point.

    Parameters
    ----------
    turn : Turn
    ms : float
        Of a batch.
    rows : ndarray of shape (N, D)
    truth : ndarray of shape (Q,)
        The nearest row of each query of all batches.
    nearest : ndarray of shape (Q, k)
        What the engine's exhaustive scan finds.
    """
    made, nan = turn.made, math.nan
    names = (made.name, turn.setting, made.family, ms)
    if made.ids is None:
        return Point(*names, nan, nan, nan, nan)
    found = [turn.search(batch) for batch in turn.batches]
    ids = np.concatenate([made.ids(one) for one in found])
    queries, right = np.concatenate(list(turn.batches)), truth[: len(ids)]
    own = nan
    if made.ours:
        own = index_recall(np.concatenate([one[0] for one in found]), nearest[: len(ids)])
    ratio = distance_ratio(rows, queries, ids, right)
    return Point(*names, recall_among(ids, right), recall_first(ids, right), ratio, own)


def take_turns(turns: Sequence[Turn], rounds: int, clock: Callable[[], float]) -> list[list[float]]:
    """Return the seconds of every batch of every turn; all take turns in every round."""
    for turn in turns:
        turn.search(turn.batches[0])
    spent: list[list[float]] = [[] for _ in turns]
    most = max(len(turn.batches) for turn in turns)
    for _ in range(rounds):
        for at in range(0, most, AT_ONCE):
            for turn, times in zip(turns, spent, strict=True):
                for batch in turn.batches[at : at + AT_ONCE]:
                    started = clock()
                    turn.search(batch)
                    times.append(clock() - started)
    return spent


def report(methods: Sequence[Built], points: Sequence[Point], options: argparse.Namespace) -> None:
    """Print the tables; write the picture and the file of points that were asked for."""
    markdown("All points", [point_row(point) for point in points])
    markdown("Building", [building_row(made) for made in methods])
    markdown("At equal recall", verdict(points))
    if options.points:
        rows = [asdict(point) for point in points]
        built = [building_row(made) for made in methods]
        options.points.write_text(json.dumps({"points": rows, "building": built}, indent=1))
    if options.curves:
        draw_curves(points, f"{options.rows:,} descriptors, {THREADS} threads", options.curves)


def point_row(point: Point) -> dict[str, object]:
    """Return a row of the table of all points."""
    return {
        "method": point.method,
        "setting": point.setting,
        "ms a batch": f"{point.ms:.2f}",
        "1-recall@16": _three(point.among),
        "recall@1": _three(point.first),
        "distance ratio": _four(point.ratio),
        "index recall": _three(point.index_recall),
    }


def building_row(made: Built) -> dict[str, object]:
    """Return a row of the table of build times and sizes."""
    return {
        "method": made.name,
        "build s": f"{made.build_s:.1f}",
        "bytes a row, on disk": _whole(made.bytes_a_row),
        "in memory": _whole(made.memory),
    }


def _whole(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0f}"


def _three(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _four(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


if __name__ == "__main__":
    main()
