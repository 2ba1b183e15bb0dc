"""The paper's cache of distances, the D-cache of its reference [36] (Skopal, Lokoč, Bustos, 2012).

A distance that was computed is kept as an entry (object, object, distance) of a bounded table. For
a query and an object it gives the distance itself, or bounds of it: with pivots p, which are
earlier queries and vantage points,

    max |d(q, p) - d(p, o)|  <=  d(q, o)  <=  min d(q, p) + d(p, o).

Bounds never exclude a right answer: of squared distances they are exact integers, of others they
are wider by the metric's error.

    cache = DCache(SquaredEuclidean())
    runtime = cache.begin(query, runtime_id(query.tobytes()))
    bounds = cache.bound(runtime, ids, radius)
    ... compute the distances that the bounds do not decide ...
    cache.insert(runtime, ids[missed], distances)
    cache.count(exact=..., approximate=..., missed=...)

`pipeline.caching.search` does this for flat sets, cells and trees; `pipeline.caching.paths` feeds
the distances of grouping.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.caching.metric import Metric
from pipeline.caching.pivots import EarlierObjects, PivotChoice, Runtime
from pipeline.caching.table import BOUNDED, KNOWN, Bounds, Shape, Table

__all__ = ["Counters", "DCache", "DCacheConfig"]


@dataclass(frozen=True)
class DCacheConfig:
    """Settings of a cache.

    Attributes
    ----------
    shape : Shape
        Size and form of the table; 50 MB by default.
    pivots : int
        Dynamic pivots of a query.
    choice : {"recent", "nearest"}
        Whether these are the most recent earlier queries, as in [36], or the nearest ones.
    among : int
        Of how many recent ones the nearest are taken.
    estimates : bool
        A search may take an estimate for a distance that is neither in the cache nor decided by its
        bounds, instead of computing it. Its answers are no longer exact, and say so.
    """

    shape: Shape = field(default_factory=Shape)
    pivots: int = 8
    choice: PivotChoice = "recent"
    among: int = 32
    estimates: bool = False


@dataclass
class Counters:
    """What was asked of a cache; a look-up is a pair of a query and an object.

    Attributes
    ----------
    exact : int
        Look-ups whose distance was there.
    approximate : int
        Look-ups that bounds decided.
    missed : int
        Look-ups whose distance had to be computed or estimated.
    estimated : int
        Of the missed ones those that got an estimate.
    skipped : int
        Objects of cells and groups that were excluded or taken as a whole: no look-ups.
    """

    exact: int = 0
    approximate: int = 0
    missed: int = 0
    estimated: int = 0
    skipped: int = 0

    @property
    def lookups(self) -> int:
        """All look-ups."""
        return self.exact + self.approximate + self.missed

    def ratios(self) -> dict[str, float]:
        """Return hits over misses, as the paper defines its hit ratio, and shares of look-ups."""
        hits, asked = self.exact + self.approximate, max(self.lookups, 1)
        return {
            "hits over misses": hits / self.missed if self.missed else float("inf"),
            "exact": self.exact / asked,
            "approximate": self.approximate / asked,
            "total": hits / asked,
        }


class DCache:
    """Distances that were computed, and bounds of others.

    Threads may use it at the same time.

    Parameters
    ----------
    metric : Metric
    config : DCacheConfig, optional

    Attributes
    ----------
    metric, config
    counters : Counters
    table : Table
    """

    def __init__(self, metric: Metric, config: DCacheConfig | None = None) -> None:
        self.metric, self.config = metric, config or DCacheConfig()
        self.table = Table(self.config.shape, metric.squared, 3 * metric.error)
        self.counters = Counters()
        chosen = self.config
        self.earlier = EarlierObjects(metric, chosen.pivots, chosen.choice, chosen.among)
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget everything but the counters."""
        with self._lock:
            self.table.clear()
            self.earlier.clear()

    def begin(
        self,
        query: NDArray[Any],
        number: np.uint64,
        centres: tuple[NDArray[np.uint64], NDArray[np.float64]] | None = None,
    ) -> Runtime:
        """Begin a query: choose its pivots; it becomes a pivot of later ones itself.

        Parameters
        ----------
        query : ndarray
            An object of the metric.
        number : uint64
            Its id (`pipeline.caching.object_ids.runtime_id`).
        centres : pair of ndarrays of shape (C,), uint64 and float64, optional
            More pivots: vantage points, and the distances to them that a descent has computed.
        """
        ids, distances = self.earlier.distances(query)
        runtime = self.earlier.runtime(number, ids, distances)
        self.earlier.add(number, query)
        self.insert(runtime, ids, distances)
        if centres is None:
            return runtime
        self.insert(runtime, *centres)
        return Runtime(
            number,
            np.concatenate([runtime.pivots, centres[0]]),
            np.concatenate([runtime.distances, centres[1]]),
        )

    def bound(self, runtime: Runtime, ids: NDArray[np.uint64], radius: float = np.inf) -> Bounds:
        """Return what is known of the distances of a query to objects.

        Parameters
        ----------
        runtime : Runtime
            From `begin`.
        ids : ndarray of shape (M,), uint64
        radius : float
            In the metric's own numbers; beyond it bounds need not be the best ones.
        """
        with self._lock:
            pivots = (runtime.pivots, runtime.distances)
            return self.table.bound(runtime.id, pivots, ids, radius)

    def insert(
        self, runtime: Runtime, ids: NDArray[np.uint64], distances: NDArray[np.float64]
    ) -> None:
        """Insert computed distances of a query to objects."""
        self.feed(np.array([runtime.id]), ids, distances)

    def feed(
        self,
        ones: NDArray[np.uint64],
        ids: NDArray[np.uint64],
        distances: NDArray[np.float64],
    ) -> None:
        """Insert distances of pairs of objects; `ones` may be a single object of all pairs."""
        if len(ids):
            with self._lock:
                self.table.insert(ones, ids, distances, self.earlier.ids)

    def estimate(self, bounds: Bounds) -> NDArray[np.float64]:
        """Return the middle between bounds, and of all distances where there are none."""
        lower, upper = bounds.lower, bounds.upper
        if self.metric.squared:
            between = (np.sqrt(lower) + np.sqrt(upper)) ** 2 / 4
        else:
            between = (lower + upper) / 2
        found = np.where(bounds.states == BOUNDED, between, self.table.middle.value)
        return np.where(bounds.states == KNOWN, lower, found)

    def count(self, **numbers: int) -> None:
        """Add to the counters."""
        with self._lock:
            for name, number in numbers.items():
                setattr(self.counters, name, getattr(self.counters, name) + number)

    def to_dict(self) -> dict[str, float]:
        """Return counters, ratios and size, for a status."""
        table, counters = self.table, self.counters
        return {
            **{one.name: getattr(counters, one.name) for one in fields(counters)},
            **counters.ratios(),
            "inserted": table.inserted,
            "replaced": table.replaced,
            "bytes": table.size,
        }
