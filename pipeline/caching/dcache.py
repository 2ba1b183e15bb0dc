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

Hosts exchange what is new: each sends the deltas of `export_delta` to all, and gives those of the
others to `merge_delta`, in any order and as often as they come. Then the shared entries of their
tables are equal, however many other entries each one has replaced meanwhile. How deltas are sent is
not the business of this module.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.caching.deltas import ENTRIES, DeltaError, Scope
from pipeline.caching.metric import Metric
from pipeline.caching.pivots import EarlierObjects, PivotChoice, Runtime
from pipeline.caching.table import BOUNDED, KNOWN, Bounds, Shape, Table
from pipeline.errors import ConfigError

__all__ = ["GENERATION_S", "Counters", "DCache", "DCacheConfig"]

logger = logging.getLogger(__name__)

GENERATION_S = 600
"""Seconds after which shared entries are older than new ones."""


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
    scope : str
        What the ids are numbers of (`pipeline.caching.deltas.Scope`).
    secret : bytes
        With which hosts know deltas of each other; at most 64 bytes.
    """

    shape: Shape = field(default_factory=Shape)
    pivots: int = 8
    choice: PivotChoice = "recent"
    among: int = 32
    estimates: bool = False
    scope: str = ""
    secret: bytes = field(default=b"", repr=False)


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
    exported, merged : int
        Entries sent to other hosts, and got from them.
    refused : int
        Deltas of other hosts that were refused.
    """

    exact: int = 0
    approximate: int = 0
    missed: int = 0
    estimated: int = 0
    skipped: int = 0
    exported: int = 0
    merged: int = 0
    refused: int = 0

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
        self._scope = Scope(chosen.scope, metric, chosen.secret)
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
        between = np.clip(between, lower, upper)  # the root may have been rounded
        found = np.where(bounds.states == BOUNDED, between, self.table.middle.value)
        return np.where(bounds.states == KNOWN, lower, found)

    def export_delta(self, made: int | None = None, most: int | None = None) -> list[bytes]:
        """Return what is new since the last call, for the other hosts.

        It becomes part of the shared entries here, too.

        Parameters
        ----------
        made : int, optional
            When: later entries replace earlier ones. By default a number that grows by one every
            ten minutes, which is the same on all hosts.
        most : int, optional
            The most deltas; the next call has what is left.

        Returns
        -------
        list of bytes
            Deltas of at most `pipeline.caching.deltas.LARGEST_DELTA` bytes.

        Raises
        ------
        ConfigError
            The table has no shared entries.
        """
        self._require_shared()
        made = int(time.time()) // GENERATION_S if made is None else made
        deltas: list[bytes] = []
        while most is None or len(deltas) < most:
            with self._lock:
                entries = self.table.collect(ENTRIES, made)
                self.table.merge(entries)
            count = len(entries.lows)
            if count:
                deltas.append(self._scope.encode(entries))
                self.count(exported=count)
            if count < ENTRIES:
                break
        return deltas

    def merge_delta(self, delta: bytes) -> bool:
        """Merge a delta of another host, or of this one.

        Returns
        -------
        bool
            False if it was refused: it is damaged, of another scope, or made without the secret.
            That is counted and logged, and changes nothing.

        Raises
        ------
        ConfigError
            The table has no shared entries.
        """
        self._require_shared()
        try:
            entries = self._scope.decode(delta)
        except DeltaError as error:
            logger.warning("%s", error)
            self.count(refused=1)
            return False
        with self._lock:
            self.table.merge(entries)
        self.count(merged=len(entries.lows))
        return True

    def shared_digest(self) -> str:
        """Return a digest of the shared entries: equal on hosts that merged the same deltas."""
        with self._lock:
            return hashlib.blake2b(
                self.table.shared_entries().tobytes(), digest_size=16
            ).hexdigest()

    def _require_shared(self) -> None:
        """Raise unless the table has room for entries of other hosts."""
        if not self.config.shape.shared:
            raise ConfigError("shared", 0, "1 or more entries of each bucket, to exchange deltas")

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
