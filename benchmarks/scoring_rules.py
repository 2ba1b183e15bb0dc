"""Rules of scoring for `benchmarks.scoring`: how near is near, and what a near pair is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.index.kernels import Hits

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Matches:
    """Of each query descriptor and image the nearest row, with the background's distances."""

    query: Ints
    image: Ints
    row: Ints
    distance: Ints
    background: NDArray[np.int32]
    """(Q, 64) nearest of the background sample."""
    collection: NDArray[np.int32]
    """(Q, 16) nearest of the whole collection."""
    size: int
    """Rows of the background sample."""
    chosen: NDArray[np.int32]
    """The pipeline's squared background distance."""
    features: Ints
    """Rows of each image."""
    neighbour: Ints
    """(Q, 16) rows nearest in the whole collection."""
    hits: Hits | None = None
    """All pairs, before the nearest of each image was chosen."""


Radius = Callable[[Matches], Floats]
Score = Callable[[Matches, Floats], tuple[Ints, Floats]]


def carried(rank: int, share: float, dimension: float = 10.4) -> Radius:
    """Return the rule: r-th nearest of the fixed sample, carried on to a quantile."""

    def rule(m: Matches) -> Floats:
        rank_here = min(rank, m.size)
        scale: float = min(1.0, (share * m.size / rank_here) ** (2 / dimension))
        return m.background[:, rank_here - 1].astype(np.float64) * scale

    return rule


def larger(*rules: tuple[float, Radius]) -> Radius:
    return lambda m: np.max([weight * rule(m) for weight, rule in rules], axis=0)


RADII: dict[str, Radius] = {
    "pipeline": lambda m: m.chosen.astype(np.float64),
    "rank 16 of the collection": lambda m: m.collection[:, 15].astype(np.float64),
    "rank 1 of the sample": lambda m: m.background[:, 0].astype(np.float64),
    "rank 4 of the sample": lambda m: m.background[:, 3].astype(np.float64),
    **{f"rank {r} to 2e-5": carried(r, 2e-5) for r in (1, 2, 4, 8, 16, 64)},
    **{f"rank 2 to {p:g}": carried(2, p) for p in (5e-6, 1e-5, 5e-5, 1e-4)},
    **{f"rank 16 to {p:g}": carried(16, p) for p in (5e-6, 1e-4)},
    **{f"rank 2 to 2e-5, dimension {d}": carried(2, 2e-5, d) for d in (8, 14)},
}


def gains(m: Matches, radius: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Return the pairs nearer than the background and by how much, squared."""
    gain = radius[m.query] - m.distance
    near = np.flatnonzero(gain > 0)
    return near, gain[near]


def every_pair(m: Matches, radius: Floats) -> tuple[Ints, Floats]:
    near, gain = gains(m, radius)
    return m.image[near], gain


def mean_of_row(m: Matches, radius: Floats) -> tuple[Ints, Floats]:
    near, gain = gains(m, radius)
    _, place, count = np.unique(m.row[near], return_inverse=True, return_counts=True)
    return m.image[near], gain / count[place]


def row_once(
    worth: Callable[[Floats, Floats], Floats], shared: float = 0, rows: float = 0
) -> Score:
    """Return the rule: of the pairs of a row only the one worth most counts.

    Parameters
    ----------
    worth : callable
        Worth of a pair, of gain and squared background distance.
    shared : float
        A query descriptor that is near in n images counts n^-shared in each.
    rows : float
        The score of an image of n rows counts n^-rows.
    """

    def rule(m: Matches, radius: Floats) -> tuple[Ints, Floats]:
        near, gain = gains(m, radius)
        value = worth(gain, radius[m.query[near]])
        if shared:
            value = value / np.bincount(m.query[near])[m.query[near]] ** shared
        if rows:
            value = value / m.features[m.image[near]] ** rows
        order = np.lexsort((-value, m.row[near]))
        first = order[np.diff(m.row[near][order], prepend=-1) != 0]
        return m.image[near][first], value[first]

    return rule


def squared(gain: Floats, radius: Floats) -> Floats:
    return gain


once = row_once(squared)

SCORES: dict[str, Score] = {
    "pipeline: bg^2 - d^2, a row counts once": once,
    "a row counts every time": every_pair,
    "a row counts its mean": mean_of_row,
    "1": row_once(lambda gain, radius: np.ones_like(gain)),
    "bg - d": row_once(lambda gain, radius: np.sqrt(radius) - np.sqrt(radius - gain)),
    "(bg^2 - d^2)^0.5": row_once(lambda gain, radius: np.sqrt(gain)),
    "(bg^2 - d^2)^2": row_once(lambda gain, radius: gain**2),
    "1 - d^2 / bg^2": row_once(lambda gain, radius: gain / radius),
    "/ (images it is near in)^0.25": row_once(squared, shared=0.25),
    "/ (images it is near in)^0.5": row_once(squared, shared=0.5),
    "/ (rows of the image)^0.25": row_once(squared, rows=0.25),
    "/ (rows of the image)^0.5": row_once(squared, rows=0.5),
}
