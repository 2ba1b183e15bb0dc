"""Measures of an index: how well it finds neighbours, and at what cost.

``index recall``
    Share of queries whose nearest *8-bit* row, by exhaustive scan of the same rows, comes back
    first. It measures only the loss from skipping cells.
``1-recall@k``
    Share of queries whose nearest float32 row is among the k returned. Methods that store something
    else than 8-bit rows are compared by it.
``distance ratio``
    Mean over the queries of the float32 distance of the row returned first over that of the nearest
    row: what a wrong answer costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

LEAST_LOSS = 1e-4
"""Recall 1 is drawn and interpolated as this loss: a logarithm needs one."""


@dataclass(frozen=True)
class Point:
    """One setting of a method, measured.

    Attributes
    ----------
    method, setting : str
    family : str
        ``ours``, ``exact``, ``ivf``, ``graph`` or ``trees``.
    ms : float
        Median milliseconds of a batch.
    among : float
        1-recall@k; NaN when nothing is returned (the matrix product alone).
    first : float
        Share of queries whose nearest float32 row comes back first.
    ratio : float
        Mean distance ratio.
    index_recall : float
        NaN for peers.
    """

    method: str
    setting: str
    family: str
    ms: float
    among: float
    first: float
    ratio: float
    index_recall: float


def recall_among(ids: Ids, truth: Ids) -> float:
    """Return 1-recall@k.

    Parameters
    ----------
    ids : ndarray of shape (Q, k)
        Rows returned.
    truth : ndarray of shape (Q,)
        Nearest rows.
    """
    return float((ids == truth[:, None]).any(axis=1).mean())


def recall_first(ids: Ids, truth: Ids) -> float:
    """Return the share of queries whose nearest row comes back first."""
    return float((ids[:, 0] == truth).mean())


def index_recall(distances: Floats, exact: Floats) -> float:
    """Return the share of queries whose first distance is the exhaustive scan's first.

    Distances instead of row numbers: of two rows equally near either is right. 8-bit distances are
    integers times one scale, so that equal ones are equal as float32, too.

    Parameters
    ----------
    distances, exact : ndarray of shape (Q, k)
        Of the search, and of the exhaustive scan of the same rows.
    """
    return float((distances[:, 0] <= exact[:, 0]).mean())


def distance_ratio(rows: Floats, queries: Floats, ids: Ids, truth: Ids) -> float:
    """Return the mean ratio of the distance of the first returned row to the nearest row's.

    Queries equal to their nearest row, or without an answer, are ignored.
    """
    used = ids[:, 0] >= 0
    found = _distances(rows, queries[used], ids[used, 0])
    least = _distances(rows, queries[used], truth[used])
    apart = least > 0
    return float((found[apart] / least[apart]).mean())


def nearest_rows(rows: Floats, queries: Floats, piece: int = 16_384) -> Ids:
    """Return the nearest row of each query, (Q,), by float32 matrix products.

    The two nearest rows of a piece are compared in double precision: the expansion of the square
    loses digits where distances are small.
    """
    best = np.full(len(queries), np.inf)
    nearest = np.full(len(queries), -1, np.int64)
    every = np.arange(len(queries))
    for at in range(0, len(rows), piece):
        block = rows[at : at + piece]
        half = np.einsum("nd,nd->n", block, block) / 2
        far = half[None, :] - queries @ block.T
        for _ in range(min(2, len(block))):
            column = far.argmin(axis=1)
            far[every, column] = np.inf
            distance = _distances(rows, queries, at + column)
            better = distance < best
            best[better], nearest[better] = distance[better], at + column[better]
    return nearest


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (recall, ms) pairs that no other one beats in both, by rising recall."""
    kept: list[tuple[float, float]] = []
    for recall, ms in sorted(points, key=lambda point: (-point[0], point[1])):
        if not kept or ms < kept[-1][1]:
            kept.append((recall, ms))
    return kept[::-1]


def time_at(points: Sequence[tuple[float, float]], recall: float) -> float:
    """Return milliseconds at a recall, between measured points.

    Between two points of the frontier the logarithm of the time is taken for linear in that of the
    loss, as such curves nearly are. Below the lowest recall measured it is the fastest point's
    time (that is allowed to be better than asked); above the highest it is NaN.

    Parameters
    ----------
    points : sequence of (recall, ms)
    recall : float
    """
    line = frontier([(value, ms) for value, ms in points if not math.isnan(value)])
    if not line or recall > line[-1][0]:
        return math.nan
    if recall <= line[0][0]:
        return line[0][1]
    losses = [-math.log(max(1 - value, LEAST_LOSS)) for value, _ in line]
    wanted = -math.log(max(1 - recall, LEAST_LOSS))
    return float(np.exp(np.interp(wanted, losses, [math.log(ms) for _, ms in line])))


def value_at(points: Sequence[tuple[float, float]], at: float) -> float:
    """Return the second number where the first is `at`, linearly between points; NaN outside."""
    line = sorted(points)
    if not line or not line[0][0] <= at <= line[-1][0]:
        return math.nan
    return float(np.interp(at, [x for x, _ in line], [y for _, y in line]))


def growth(sizes: Sequence[int], times: Sequence[float]) -> list[float]:
    """Return the exponent e of ``time ~ size ** e`` between each size and the next."""
    pairs = zip(sizes, times, sizes[1:], times[1:], strict=False)
    return [math.log(later / time) / math.log(more / size) for size, time, more, later in pairs]


def _distances(rows: Floats, queries: Floats, ids: Ids) -> NDArray[np.float64]:
    """Return the distance of each query to its row."""
    difference = queries.astype(np.float64) - rows[ids]
    squared: NDArray[np.float64] = np.einsum("qd,qd->q", difference, difference)
    return np.sqrt(squared)
