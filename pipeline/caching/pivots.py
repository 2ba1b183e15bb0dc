"""Dynamic pivots: earlier runtime objects, whose distances bound those of later ones."""

from __future__ import annotations

import threading
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.caching.metric import Metric
from pipeline.errors import ConfigError

__all__ = ["EarlierObjects", "PivotChoice", "Runtime"]

PivotChoice = Literal["recent", "nearest"]
"""Which earlier runtime objects are the pivots of a new one: the most recent, or the nearest."""


class Runtime(NamedTuple):
    """A runtime object, and what its distances are bounded with.

    Attributes
    ----------
    id : uint64
    pivots : ndarray of shape (P,), uint64
    distances : ndarray of shape (P,), float64
        From the object to the pivots, in the metric's own numbers.
    """

    id: np.uint64
    pivots: NDArray[np.uint64]
    distances: NDArray[np.float64]

    def some(self, first: int, last: int | None) -> Runtime:
        """Return the same object with some of its pivots."""
        return Runtime(self.id, self.pivots[first:last], self.distances[first:last])


class EarlierObjects:
    """The last runtime objects, of which each new one gets its pivots.

    Threads may use it at the same time.

    Parameters
    ----------
    metric : Metric
    pivots : int
        Pivots of an object.
    choice : {"recent", "nearest"}
    among : int
        How many objects are kept for ``nearest``; as many distances are computed for each new one.
    """

    def __init__(self, metric: Metric, pivots: int, choice: PivotChoice, among: int) -> None:
        if choice not in get_args(PivotChoice):
            raise ConfigError("choice", choice, "recent or nearest")
        if pivots < 0:
            raise ConfigError("pivots", pivots, "0 or more")
        self._metric, self._pivots = metric, pivots
        self._kept = pivots if choice == "recent" else max(pivots, among)
        self._lock = threading.Lock()
        self.clear()

    @property
    def ids(self) -> NDArray[np.uint64]:
        """Ids of the objects, oldest first."""
        return self._ids

    def clear(self) -> None:
        """Forget all objects."""
        self._ids = np.empty(0, np.uint64)
        self._objects: list[NDArray[Any]] = []

    def add(self, number: np.uint64, one: NDArray[Any]) -> None:
        """Add an object, or make it the newest one; the oldest is forgotten."""
        if not self._kept:
            return
        with self._lock:
            kept = [i for i, other in enumerate(self._ids) if other != number][1 - self._kept :]
            kept = kept if self._kept > 1 else []
            self._objects = [*(self._objects[i] for i in kept), one]
            self._ids = np.append(self._ids[kept], number)

    def distances(self, one: NDArray[Any]) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        """Return the ids of all kept objects, and the distances of an object to them."""
        with self._lock:
            ids, objects = self._ids, self._objects
        if not objects:
            return ids, np.empty(0)
        return ids, self._metric.distances(one, np.stack(objects), np.arange(len(objects)))

    def runtime(
        self, number: np.uint64, ids: NDArray[np.uint64], distances: NDArray[np.float64]
    ) -> Runtime:
        """Choose the pivots of an object by its distances to the kept ones."""
        latest = np.arange(len(ids))[::-1]
        other = latest[ids[latest] != number]
        if self._kept > self._pivots:
            other = other[np.argsort(distances[other], kind="stable")]
        chosen = other[: self._pivots]
        return Runtime(number, ids[chosen], distances[chosen])
