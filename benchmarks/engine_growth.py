"""How the engine's time grows with its rows: real descriptors, multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from benchmarks.engine_data import EngineData, matching_differences, multiply
from benchmarks.engine_measures import Floats, growth, index_recall, time_at
from benchmarks.engine_ours import EFFORTS, build_index, exhaustive, file_bytes, searches
from benchmarks.engine_peers import Bench
from pipeline.config import IndexConfig
from pipeline.index import VantageIndex

BATCHES = 12
RECALL = 0.95


def grow(
    data: EngineData, factors: Sequence[int], cell_size: int, bench: Bench, rounds: int
) -> list[dict[str, object]]:
    """Return a row of figures for each multiple of the rows.

    The queries stay the same, and none of them is a row, a row's original or its copy: they come
    from other photographs. Copies are as far from their originals as real matching pairs
    (`benchmarks.engine_data.multiply`). Sizes follow one another, not in turns: the ratio of two is
    as good as the machine is quiet.
    """
    config = replace(IndexConfig(), cell_size=cell_size, dimensions=data.rows.shape[1])
    differences = matching_differences(data)
    lengths = np.linalg.norm(differences, axis=1)
    print(
        f"{len(differences)} matching pairs, median distance {np.median(lengths):.3f}", flush=True
    )
    times: list[float] = []
    rows: list[dict[str, object]] = []
    for factor in factors:
        built, seconds = build_index(multiplied(data.rows, factor, differences), config, bench)
        curve = _curve(built, data.batches[:BATCHES], rounds, bench)
        times.append(time_at([(recall, ms) for _, recall, ms in curve], RECALL))
        size = factor * len(data.rows)
        rows.append(
            {
                "rows": size,
                "build s": f"{seconds:.1f}",
                "bytes a row": f"{file_bytes(built) / size:.0f}",
                f"ms at {RECALL}": f"{times[-1]:.2f}",
                "points (effort: recall, ms)": "; ".join(
                    f"{effort:g}: {recall:.3f}, {ms:.2f}" for effort, recall, ms in curve
                ),
            }
        )
        print(rows[-1], flush=True)
    sizes = [factor * len(data.rows) for factor in factors]
    for row, exponent in zip(rows[1:], growth(sizes, times), strict=True):
        row["exponent"] = f"{exponent:.2f}"
    rows[0]["exponent"] = ""
    return rows


def multiplied(given: Floats, factor: int, differences: Floats) -> Floats:
    """Return a multiple of the rows in one array."""
    rows = np.empty((factor * len(given), given.shape[1]), np.float32)
    at = 0
    for piece in multiply(given, factor, differences):
        rows[at : at + len(piece)] = piece
        at += len(piece)
    return rows


def _curve(
    index: VantageIndex, batches: Floats, rounds: int, bench: Bench
) -> list[tuple[float, float, float]]:
    """Return (effort, index recall, median ms a batch) of every effort."""
    scan = exhaustive(index)
    exact = np.concatenate([scan(batch)[0] for batch in batches])
    spent: dict[float, list[float]] = {effort: [] for effort in EFFORTS}
    found: dict[float, Floats] = {}
    for turn in range(rounds + 1):
        for effort, search in zip(EFFORTS, searches(index, EFFORTS).values(), strict=True):
            answers: list[Floats] = []
            for batch in batches:
                started = bench.clock()
                distances, _ = search(batch)
                if turn:  # the first round warms up
                    spent[effort].append(bench.clock() - started)
                answers.append(distances)
            found[effort] = np.concatenate(answers)
    return [
        (effort, index_recall(found[effort], exact), 1e3 * median(spent[effort]))
        for effort in EFFORTS
    ]
