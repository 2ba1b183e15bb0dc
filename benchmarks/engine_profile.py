"""Where the time of one search of the engine goes, and what a distance costs.

    python -m benchmarks.engine_profile FOLDER --features CACHE [--cells 384] [--efforts .01 .03]

One thread, processor time: the steps of a batch of 250 descriptors, medians over the batches. *ns a
pair* is the scan over the pairs of a query and a row that it compares. The limit of a processor
without 8-bit dot products (``avx2``): 64 products of 16-bit numbers are four ``vpmaddwd`` of eight
lanes by two and four additions; two of the former a cycle make two cycles a pair for the 64
components, one for the first 32, after which most tiles end.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks.common import markdown
from benchmarks.engine_data import BATCH, read_data
from benchmarks.engine_ours import build_index, exhaustive, processor, searches
from benchmarks.engine_peers import Bench, Floats, Search
from benchmarks.kernels import CHAIN, CYCLES_A_LINK, chain
from pipeline.config import IndexConfig
from pipeline.index import runs
from pipeline.index.cells import MeanCells
from pipeline.index.engine import CELL_SIZE
from pipeline.index.quantizer import Quantizer
from pipeline.index.warm import warm_up
from pipeline.index.work import Work

STEPS: tuple[tuple[str, Any, str], ...] = (
    ("encode", Quantizer, "encode"),
    ("choose cells", MeanCells, "probe"),
    ("list the work", runs, "cell_work"),
    ("first cells", runs, "select_k_nearest"),
    ("scan", runs, "k_nearest"),
    ("merge", runs, "_merge"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", help="evaluation data set with a groundtruth.json")
    parser.add_argument("--features", type=Path, required=True, help="see benchmarks.engine")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--cells", type=int, default=CELL_SIZE)
    parser.add_argument("--efforts", type=float, nargs="+", default=[0.01, 0.03, 0.06])
    options = parser.parse_args()
    data = read_data(options.folder, options.features, options.rows, 12, BATCH, 1)
    warm_up()
    config = replace(IndexConfig(), cell_size=options.cells, dimensions=data.rows.shape[1])
    index, _ = build_index(data.rows, config, Bench(1, time.process_time))
    chain(CHAIN)
    started = time.process_time()
    chain(CHAIN)
    clock = CHAIN * CYCLES_A_LINK / (time.process_time() - started) / 1e9
    print(f"{processor()}, {clock:.2f} GHz; {len(data.rows)} rows, {index.stats['cells']} cells")
    given = {"exact": exhaustive(index), **searches(index, options.efforts)}
    markdown(
        "Steps of a search, ms", [profile(name, run, data.batches) for name, run in given.items()]
    )


def profile(name: str, search: Search, batches: Floats) -> dict[str, object]:
    """Return the median milliseconds of each step of a search."""
    search(batches[0])
    spent: dict[str, list[float]] = {step: [] for step, _, _ in STEPS}
    total: list[float] = []
    pairs: list[int] = []
    for batch in batches:
        with watched() as (seconds, compared):
            started = time.process_time()
            search(batch)
            total.append(time.process_time() - started)
        for step, value in seconds.items():
            spent[step].append(value)
        pairs.append(sum(compared))
    scan = median(spent["scan"])
    return {
        "search": name,
        "total": f"{1e3 * median(total):.2f}",
        **{step: f"{1e3 * median(values):.2f}" for step, values in spent.items()},
        "rows a query": f"{median(pairs) / BATCH:.0f}",
        "ns a pair": f"{1e9 * scan / median(pairs):.3f}",
    }


@contextmanager
def watched() -> Iterator[tuple[dict[str, float], list[int]]]:
    """Add up the seconds of every step, and list the pairs that each scan compares."""
    seconds = {step: 0.0 for step, _, _ in STEPS}
    compared: list[int] = []

    def timed(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*positional: Any, **named: Any) -> Any:
            work = named.get("work")
            if step == "scan" and isinstance(work, Work):
                compared.append(work.pairs)
            started = time.process_time()
            try:
                return function(*positional, **named)
            finally:
                seconds[step] += time.process_time() - started

        return run

    with ExitStack() as stack:
        for step, owner, name in STEPS:
            stack.enter_context(patch.object(owner, name, timed(step, getattr(owner, name))))
        yield seconds, compared


if __name__ == "__main__":
    main()
