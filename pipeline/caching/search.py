"""Searches with the cache of distances: the k nearest objects, and all within a radius.

The answers are those of computing every distance, whatever is in the cache; equally near objects
are in the order of the set. A distance is looked up, or bounds decide that the object is outside
(or, of a range search, inside), or it is computed and put into the cache. Regions are excluded or
taken as a whole.

With `DCacheConfig.estimates`, a distance that is not decided is estimated instead of computed. Then
an answer may be wrong; it says which of its values are estimates, and of how many objects.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.caching.dcache import DCache
from pipeline.caching.pivots import Runtime
from pipeline.caching.regions import ObjectSet, Regions
from pipeline.caching.table import BOUNDED, KNOWN, NOTHING, Bounds

__all__ = ["DISTANCE", "ESTIMATE", "INSIDE", "Found", "nearest", "within"]

DISTANCE, INSIDE, ESTIMATE = 0, 1, 2
"""What a value of an answer is: the distance; only an upper bound, which is within the radius; an
estimate."""

FIRST_BATCH = 32
"""Distances computed before bounds are compared with a smaller radius; twice as many each time."""

FIRST_PIVOTS = 4
"""Pivots that all objects are bounded with, before there is a radius."""

FEW = 4
"""Objects of a region that are looked up without computing the distance of its centre."""

_ROUNDED = 1e-12
"""Relative error of a few operations on float64, generously."""

_Values = NDArray[np.float64]


class Found(NamedTuple):
    """What a search found, nearest first.

    Attributes
    ----------
    indices : ndarray of shape (M,), int64
        Positions in the set.
    values : ndarray of shape (M,), float64
        In the metric's own numbers.
    kinds : ndarray of shape (M,), uint8
        `DISTANCE`, `INSIDE` or `ESTIMATE`.
    estimated : int
        Objects, found or not, that were judged by an estimate; if 0, the answer is exact.
    """

    indices: NDArray[np.int64]
    values: _Values
    kinds: NDArray[np.uint8]
    estimated: int


def nearest(
    cache: DCache, things: ObjectSet, query: NDArray[Any], runtime: Runtime, k: int
) -> Found:
    """Find the k nearest objects.

    Parameters
    ----------
    cache : DCache
    things : ObjectSet
    query : ndarray
        An object of the metric.
    runtime : Runtime
        From `DCache.begin` with the query.
    k : int
        Of fewer objects all are found.
    """
    search = _Search(cache, things, query, runtime, k, np.inf)
    return search.run(k)


def within(
    cache: DCache, things: ObjectSet, query: NDArray[Any], runtime: Runtime, radius: float
) -> Found:
    """Find all objects within a radius, which is in the metric's own numbers.

    Other parameters are those of `nearest`. Values of objects that are `INSIDE` are upper bounds.
    """
    search = _Search(cache, things, query, runtime, 0, radius)
    return search.run(None)


class _Search:
    """A search that goes on.

    Parameters
    ----------
    k : int
        0 for a range search.
    radius : float
        Of a range search; of k nearest objects it becomes smaller.
    """

    def __init__(
        self,
        cache: DCache,
        things: ObjectSet,
        query: NDArray[Any],
        runtime: Runtime,
        k: int,
        radius: float,
    ) -> None:
        self._cache, self._things, self._query, self._runtime = cache, things, query, runtime
        self._k, self._radius = k, radius
        self._squared, self._slack = cache.metric.squared, 3 * cache.metric.error
        self._least_uppers = np.empty(0)
        self._found: list[tuple[NDArray[np.int64], _Values, NDArray[np.uint8]]] = []
        self._counts: dict[str, int] = defaultdict(int)

    def run(self, most: int | None) -> Found:
        """Search everything; return at most so many objects."""
        regions = self._things.regions
        if regions is None:
            self._scan(0, len(self._things.ids))
        else:
            self._visit(regions)
        self._cache.count(**self._counts)
        if not self._found:
            nothing = np.empty(0, np.int64), np.empty(0), np.empty(0, np.uint8)
            return Found(*nothing, self._counts["estimated"])
        indices, values, kinds = map(np.concatenate, zip(*self._found, strict=True))
        best = np.lexsort((indices, values))
        best = best[values[best] <= self._radius][:most]
        return Found(indices[best], values[best], kinds[best], self._counts["estimated"])

    def _scan(self, start: int, stop: int) -> None:
        """Search some objects."""
        bounds, computed = self._bounded(start, self._things.ids[start:stop])
        exact = bounds.states == KNOWN
        # What bounds put inside of a range search needs no distance.
        inside = ~exact & (bounds.upper <= self._radius) & (self._k == 0)
        missed = np.flatnonzero(~exact & ~inside & ~computed & (bounds.lower <= self._radius))
        kinds = np.where(inside, INSIDE, DISTANCE).astype(np.uint8)
        if self._cache.config.estimates:
            bounds.upper[missed] = self._cache.estimate(bounds)[missed]
            kinds[missed], computed[missed] = ESTIMATE, True
            self._counts["estimated"] += len(missed)
        else:
            self._compute(start, missed, bounds, computed)
        known = exact | inside | computed
        self._counts["exact"] += int(exact.sum())
        self._counts["missed"] += int(computed.sum())
        self._counts["approximate"] += int((~exact & ~computed).sum())
        self._least_uppers = self._uppers(bounds.upper[known])
        kept = np.flatnonzero(known & (bounds.upper <= self._radius))
        self._found.append((start + kept, bounds.upper[kept], kinds[kept]))

    def _bounded(self, start: int, ids: NDArray[np.uint64]) -> tuple[Bounds, NDArray[np.bool_]]:
        """Return bounds of objects, and of which ones the distance was computed on the way.

        Of k nearest objects there is no good radius yet. A few pivots and distances give one; the
        other pivots are asked only about objects that may be within it, until they are not.
        """
        computed = np.zeros(len(ids), np.bool_)
        if not self._k or self._cache.config.estimates:
            return self._cache.bound(self._runtime, ids, self._radius), computed
        first, rest = self._runtime.some(0, FIRST_PIVOTS), self._runtime.some(FIRST_PIVOTS, None)
        bounds = self._cache.bound(first, ids, self._radius)
        self._shrink(bounds.upper)
        if not len(rest.pivots):
            return bounds, computed
        missed = np.flatnonzero((bounds.states != KNOWN) & (bounds.lower <= self._radius))
        if len(missed) > FIRST_BATCH:
            likely = np.argpartition(bounds.lower[missed], FIRST_BATCH)[:FIRST_BATCH]
            self._compute(start, missed[likely], bounds, computed)
        left = missed[~computed[missed] & (bounds.lower[missed] <= self._radius)]
        better = self._cache.bound(rest, ids[left], self._radius)
        bounds.lower[left] = np.maximum(bounds.lower[left], better.lower)
        bounds.upper[left] = np.minimum(bounds.upper[left], better.upper)
        bounds.states[left] = np.maximum(bounds.states[left], better.states)
        self._shrink(bounds.upper)
        return bounds, computed

    def _compute(
        self, start: int, missed: NDArray[np.int64], bounds: Bounds, computed: NDArray[np.bool_]
    ) -> None:
        """Compute distances, those with the least lower bound first, and note which.

        They are written as upper bounds. What gets outside of the radius is not computed.
        """
        missed = missed[np.argsort(bounds.lower[missed], kind="stable")]
        done, batch = 0, FIRST_BATCH if self._k else len(missed)
        while done < len(missed) and bounds.lower[missed[done]] <= self._radius:
            some = missed[done : done + batch]
            some = some[bounds.lower[some] <= self._radius]
            bounds.upper[some] = self._distances(self._things.objects, start + some)
            self._cache.insert(self._runtime, self._things.ids[start + some], bounds.upper[some])
            computed[some] = True
            self._shrink(bounds.upper)
            done, batch = done + len(some), 2 * batch

    def _distances(self, objects: NDArray[Any], which: NDArray[np.int64]) -> _Values:
        """Return computed distances of the query."""
        return self._cache.metric.distances(self._query, objects, which)

    def _uppers(self, uppers: _Values) -> _Values:
        """Return the k least upper bounds of the objects before and of others."""
        both = np.concatenate([self._least_uppers, uppers])
        return np.partition(both, self._k - 1)[: self._k] if 0 < self._k < len(both) else both

    def _shrink(self, uppers: _Values) -> None:
        """Make the radius smaller: there are k objects within the k-th least upper bound."""
        if self._k:
            least = self._uppers(uppers)
            if len(least) >= self._k:
                self._radius = min(self._radius, float(least.max()))

    def _visit(self, regions: Regions) -> None:
        """Search regions, those with the least lower bound first."""
        interval = _Centres(self._cache, self._query, self._runtime, regions)
        children: dict[int, list[int]] = defaultdict(list)
        for number in range(1, len(regions.parents)):
            if regions.stops[number] > regions.starts[number]:
                children[int(regions.parents[number])].append(number)
        waiting = [(0.0, 0)]
        while waiting:
            lower, number = heapq.heappop(waiting)
            start, stop = int(regions.starts[number]), int(regions.stops[number])
            least, most = self._bounds_of(regions, number, interval)
            if max(lower, least) > self._real_radius and number:
                self._counts["skipped"] += stop - start
            elif self._k == 0 and most <= self._inner_radius:
                self._take(start, stop)
            elif number and stop - start > FEW and interval.compute(int(regions.centres[number])):
                heapq.heappush(waiting, (lower, number))
            elif number in children:
                for child in children[number]:
                    heapq.heappush(waiting, (max(lower, least), child))
            else:
                self._scan(start, stop)
        for name, count in interval.counts.items():
            self._counts[name] += count

    def _take(self, start: int, stop: int) -> None:
        """Take all objects of a region that is inside."""
        kinds = np.full(stop - start, INSIDE, np.uint8)
        values = np.full(stop - start, self._radius)
        self._found.append((np.arange(start, stop), values, kinds))
        self._counts["skipped"] += stop - start

    def _bounds_of(self, regions: Regions, number: int, interval: _Centres) -> tuple[float, float]:
        """Return bounds of the distances of the query to all objects of a region."""
        if regions.centres[number] < 0:
            return 0.0, np.inf
        least, most = interval.of(int(regions.centres[number]))
        inner, outer = self._real(regions.inner[number]), self._real(regions.outer[number])
        margin = self._slack + _ROUNDED * (most + outer)
        if not np.isfinite(most):
            return max(0.0, least - outer * (1 + _ROUNDED) - self._slack), np.inf
        return max(0.0, least - outer - margin, inner - most - margin), most + outer + margin

    def _real(self, value: float) -> float:
        """Return a distance of one in the metric's own numbers."""
        return float(np.sqrt(value)) if self._squared else float(value)

    @property
    def _real_radius(self) -> float:
        """The radius, or a little more."""
        return self._real(self._radius) * (1 + _ROUNDED)

    @property
    def _inner_radius(self) -> float:
        """The radius, or a little less."""
        return self._real(self._radius) * (1 - _ROUNDED)


class _Centres:
    """Bounds of the distances of a query to centres, as they are (no squares).

    Attributes
    ----------
    counts : dict of str to int
        Look-ups of centres.
    """

    def __init__(
        self, cache: DCache, query: NDArray[Any], runtime: Runtime, regions: Regions
    ) -> None:
        self._cache, self._query, self._runtime, self._regions = cache, query, runtime, regions
        bounds = cache.bound(runtime, regions.ids)
        root = np.sqrt if cache.metric.squared else np.positive
        self._lower = root(bounds.lower) * (1 - _ROUNDED)
        self._upper = root(bounds.upper) * (1 + _ROUNDED)
        self._states = bounds.states
        self.counts = {"exact": 0, "approximate": 0, "missed": 0}
        self._used = np.zeros(len(regions.ids), np.bool_)

    def of(self, centre: int) -> tuple[float, float]:
        """Return bounds of the distance of a centre."""
        if not self._used[centre] and self._states[centre] != NOTHING:
            self._used[centre] = True
            self.counts["exact" if self._states[centre] == KNOWN else "approximate"] += 1
        return float(self._lower[centre]), float(self._upper[centre])

    def compute(self, centre: int) -> bool:
        """Compute the distance of a centre; return whether it was not known."""
        if self._states[centre] == KNOWN:
            return False
        if self._states[centre] == BOUNDED:  # the bounds have decided nothing
            self.counts["approximate"] -= 1
        metric, regions = self._cache.metric, self._regions
        value = metric.distances(self._query, regions.objects, np.array([centre]))
        self._cache.insert(self._runtime, regions.ids[centre : centre + 1], value)
        real = float(np.sqrt(value[0])) if metric.squared else float(value[0])
        self._lower[centre], self._upper[centre] = real * (1 - _ROUNDED), real * (1 + _ROUNDED)
        self._states[centre], self._used[centre] = KNOWN, True
        self.counts["missed"] += 1
        return True
