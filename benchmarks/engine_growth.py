"""How the engine's time grows with its rows: real descriptors, multiplied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import numpy as np

from benchmarks.engine_data import EngineData, matching_differences, multiply
from benchmarks.engine_measures import Floats, growth, index_recall, time_at
from benchmarks.engine_ours import EFFORTS, build_index, exhaustive, file_bytes, searches
from benchmarks.engine_peers import NEIGHBOURS, Bench
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
    (`benchmarks.engine_data.multiply`). All sizes are searched in turns, each with the two efforts
    between whose recalls `RECALL` lies.
    """
    config = replace(IndexConfig(), cell_size=cell_size, dimensions=data.rows.shape[1])
    differences = matching_differences(data)
    lengths = np.linalg.norm(differences, axis=1)
    print(
        f"{len(differences)} matching pairs, median distance {np.median(lengths):.3f}", flush=True
    )
    batches = data.batches[:BATCHES]
    grown: list[Grown] = []
    rows: list[dict[str, object]] = []
    for factor in factors:
        built, seconds = build_index(multiplied(data.rows, factor, differences), config, bench)
        recalls = _recalls(built, batches)
        grown.append(Grown(built, _two_about(recalls)))
        size = factor * len(data.rows)
        rows.append(
            {
                "rows": size,
                "cells": built.stats["cells"],
                "build s": f"{seconds:.1f}",
                "bytes a row": f"{file_bytes(built) / size:.0f}",
                "recalls": ", ".join(f"{effort:g}: {found:.3f}" for effort, found in recalls),
            }
        )
        print(rows[-1], flush=True)
    times = _times(grown, batches, rounds, bench)
    sizes = [factor * len(data.rows) for factor in factors]
    exponents = ["", *(f"{exponent:.2f}" for exponent in growth(sizes, times))]
    for row, ms, exponent in zip(rows, times, exponents, strict=True):
        row.update({f"ms at {RECALL}": f"{ms:.2f}", "exponent": exponent})
    return rows


class Grown(NamedTuple):
    """An index of some size, and the efforts (with their recalls) that are timed."""

    built: VantageIndex
    points: list[tuple[float, float]]


def _recalls(index: VantageIndex, batches: Floats) -> list[tuple[float, float]]:
    """Return the index recall of every effort."""
    exact = np.concatenate([exhaustive(index)(batch)[0] for batch in batches])
    return [
        (effort, index_recall(np.concatenate([search(batch)[0] for batch in batches]), exact))
        for effort, search in zip(EFFORTS, searches(index, EFFORTS).values(), strict=True)
    ]


def _two_about(recalls: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the efforts just below and above the recall that is asked for."""
    below = [point for point in recalls if point[1] < RECALL]
    above = [point for point in recalls if point[1] >= RECALL]
    return [*below[-1:], *above[:1]]


def _times(grown: Sequence[Grown], batches: Floats, rounds: int, bench: Bench) -> list[float]:
    """Return each size's milliseconds a batch at the recall that is asked for."""
    spent: dict[tuple[int, float], list[float]] = defaultdict(list)
    for turn in range(rounds + 1):
        for batch in batches:
            for number, (index, points) in enumerate(grown):
                for effort, _ in points:
                    started = bench.clock()
                    index.search(batch, NEIGHBOURS, effort=effort)
                    if turn:  # the first round warms up
                        spent[number, effort].append(bench.clock() - started)
    return [
        time_at(
            [(recall, 1e3 * median(spent[number, effort])) for effort, recall in points], RECALL
        )
        for number, (_, points) in enumerate(grown)
    ]


def multiplied(given: Floats, factor: int, differences: Floats) -> Floats:
    """Return a multiple of the rows in one array."""
    rows = np.empty((factor * len(given), given.shape[1]), np.float32)
    at = 0
    for piece in multiply(given, factor, differences):
        rows[at : at + len(piece)] = piece
        at += len(piece)
    return rows
