"""Cost of a descriptor pair in the distance kernels, against numpy's float32 matrix product.

    python -m benchmarks.kernels [--rounds 15] [--json]

Nanoseconds of processor time (one thread) for each pair of a query row and a stored row, median of
rounds in which all take turns:

``range_search``
                a million rows in items of 128 kB, as the exhaustive plan works; one pair in 50,000
                is within the radius
``k_nearest``   the 16 nearest of 32,768 rows, kept in order during the pass over the rows
``of means``    the nearest of 4,096 means of cells, as a descriptor's cell, by `k_nearest` and by
                `nearest_rows`; and the 25 nearest, as the cells that a query opens, by
                `select_k_nearest`
``sgemm``       ``queries @ rows.T`` in float32 in blocks of 2,048 rows: the inner products alone,
                nothing is compared or kept
``limit``       a ``vpdpbusd`` a pair, two a cycle, and a ``tdpbsud`` for 256 pairs every 16 cycles,
                at the clock that a chain of dependent multiplications shows

``tiles``       the tiles alone, of many queries over rows in the L1 cache, of which none is near:
                rows that begin at a line of the cache, and rows that straddle two

``whole rows``  the scan without the comparison of prefixes, on the fastest path that has it

Every code path that this processor has takes part (`pipeline.index.simd`).
"""

from __future__ import annotations

import os

# One thread for the matrix product too; read when numpy is first imported.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import time
from collections.abc import Callable
from statistics import median

import numba
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import show
from pipeline.index import simd
from pipeline.index.cells import MeanCells, train_cells
from pipeline.index.kernels import (
    k_nearest,
    nearest_rows,
    prepare_queries,
    range_search,
    select_k_nearest,
)
from pipeline.index.paths import BLOCK, PATHS, TILE, WIDE, usable_paths
from pipeline.index.rows import PackedRows, pack_rows
from pipeline.index.work import full_work, whole_work

TILE_ROWS, PASSES = 256, 2000
LEVELS, MEAN_ROWS, OPENED, TIMES = 12, 1 << 17, 25, 16
ROWS, NEAREST_ROWS, QUERIES, NEIGHBOURS = 1_000_000, 32_768, 256, 16
SHARE = 2e-5
PRODUCT_ROWS = 2048
CHAIN = 20_000_000
CYCLES_A_LINK = 4
"""A 64-bit multiplication takes three cycles until its product can be used, an exclusive or one:
so it is on AMD since Zen and on Intel since Nehalem."""

Step = Callable[[], object]


@numba.njit()
def chain(links: int) -> int:
    value = np.uint64(1)
    for link in range(links):
        value = (value * np.uint64(6364136223846793005)) ^ np.uint64(link)
    return int(value)


@numba.njit()
def pass_over(codes, norms, prefixes, times, path):  # type: ignore[no-untyped-def]
    """Compare 16 queries with all blocks, many times; returns how many tiles had a near row."""
    queries, values = simd.aligned_rows(TILE, 4 * codes.shape[1]), simd.new_values()
    marks, seen = simd.new_marks(0), np.zeros(1, np.int64)
    at_once = simd.queries_at_once(False, path)
    found = 0
    simd.set_up(path)
    for _ in range(times):
        for block in range(0, codes.shape[0], WIDE):
            for group in range(0, TILE, at_once):
                bits = simd.tile(
                    codes, queries, norms, prefixes, marks, values, seen,
                    block, codes.shape[0], group, False, path,
                )  # fmt: skip
                found += bits != 0
    simd.clear_away(path)
    return found


def tiles(rows: PackedRows, straddling: bool, path: str) -> Step:
    """Return passes over some rows."""
    codes = rows.codes
    if straddling:
        space = np.empty(codes.nbytes + 128, np.uint8)
        at = 16 - space.ctypes.data % 64 + 64
        codes = space[at : at + codes.nbytes].reshape(codes.shape)
        codes[:] = rows.codes
    marker = PATHS[path].marker
    return lambda: pass_over(codes, rows.norms, rows.prefixes, PASSES, marker)


def make_rows(count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return bytes whose spread falls along the row, as that of principal components does."""
    spread = np.geomspace(45, 6, 64)
    return np.clip(np.rint(rng.normal(128, spread, (count, 64))), 1, 255).astype(np.uint8)


def spent(step: Step) -> float:
    """Return seconds of this thread's processor time."""
    started = time.thread_time()
    step()
    return time.thread_time() - started


def steps() -> dict[str, tuple[Step, float]]:
    """Return what is timed, and the pairs (or cycles) of one call."""
    rng = np.random.default_rng(1)
    unpacked = make_rows(ROWS, rng)
    codes = (make_rows(QUERIES, rng).astype(np.int16) - 128).astype(np.int8)
    rows, few = pack_rows(unpacked), pack_rows(unpacked[:NEAREST_ROWS])
    queries = prepare_queries(codes)
    rank = max(1, round(SHARE * 100_000))
    radius = k_nearest(pack_rows(unpacked[:100_000]), queries, rank)[0][:, -1] + 1
    alive, work = np.ones(ROWS, np.bool_), full_work(ROWS, QUERIES)
    by_prefix = [path for path in usable_paths() if path != "amx"][-1]
    left = codes.astype(np.float32)
    blocks = [
        np.ascontiguousarray(unpacked[at : at + PRODUCT_ROWS].astype(np.float32).T)
        for at in range(0, ROWS // 4, PRODUCT_ROWS)
    ]
    out = np.empty((QUERIES, PRODUCT_ROWS), np.float32)

    def product() -> None:
        for block in blocks:
            np.matmul(left, block, out=out[:, : block.shape[1]])

    def scan(path: str) -> Step:
        return lambda: range_search(rows, alive, queries, radius, work, path=path)

    def scan_whole_rows() -> None:
        range_search(rows, alive, queries, radius, work, bounds=False, path=by_prefix)

    def near(path: str) -> Step:
        return lambda: k_nearest(few, queries, NEIGHBOURS, path=path)

    made: dict[str, tuple[Step, float]] = {
        "sgemm": (product, QUERIES * sum(block.shape[1] for block in blocks)),
        "clock": (lambda: chain(CHAIN), CHAIN * CYCLES_A_LINK),
    }
    for path in reversed(usable_paths()):
        made[f"range_search, {path}"] = (scan(path), ROWS * QUERIES)
        made[f"k_nearest, {path}"] = (near(path), NEAREST_ROWS * QUERIES)
    cells = train_cells((unpacked[:MEAN_ROWS].astype(np.int16) - 128).astype(np.int8), LEVELS)
    assert isinstance(cells, MeanCells)
    made |= of_means(cells.means, codes)
    some = pack_rows(unpacked[:TILE_ROWS])
    for path in reversed(usable_paths()):
        for straddling, how in ((False, "aligned"), (True, "straddling")):
            pairs = TILE_ROWS * TILE * PASSES
            made[f"tiles, {path}, {how}"] = (tiles(some, straddling, path), pairs)
    made["range_search, whole rows"] = (scan_whole_rows, ROWS * QUERIES)
    return made


def of_means(means: PackedRows, codes: NDArray[np.int8]) -> dict[str, tuple[Step, float]]:
    """Return the ways to find the nearest of few rows, each many times over."""
    queries, work = prepare_queries(codes), whole_work(means.size, QUERIES)
    ways: dict[str, Step] = {
        "k_nearest of means": lambda: k_nearest(means, queries, 1, work=work),
        "nearest_rows of means": lambda: nearest_rows(means, codes, work),
        "select_k_nearest of means": lambda: select_k_nearest(means, queries, OPENED, work),
    }

    def repeated(step: Step) -> Step:
        return lambda: [step() for _ in range(TIMES)]

    return {name: (repeated(step), TIMES * means.size * QUERIES) for name, step in ways.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--json", action="store_true", help="print JSON")
    arguments = options.parse_args()
    timed = steps()
    for step, _ in timed.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(arguments.rounds):
        for name, (step, _) in timed.items():
            seconds[name].append(spent(step))
    each = {name: 1e9 * median(seconds[name]) / count for name, (_, count) in timed.items()}
    cycle = each.pop("clock")
    each["limit (vpdpbusd)"] = cycle / 2
    if "amx" in usable_paths():
        each["limit (tdpbsud)"] = cycle / BLOCK
    rows = [
        {
            "": name,
            "ns a pair": f"{each[name]:.3f}",
            "sgemm over it": f"{each['sgemm'] / value:.2f}",
        }
        for name, value in each.items()
    ]
    show(f"one thread, {1 / cycle:.2f} GHz", rows, arguments.json)


if __name__ == "__main__":
    main()
