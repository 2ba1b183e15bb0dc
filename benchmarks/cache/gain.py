"""Row c: where the distance cache pays.

Requests are answered without the cache (all distances, then the ten nearest) and with it, after
others of the stream have filled it. The time of the distances is measured apart. What is left, the
look-ups and the rest of the search, is what the cache costs: the gain with distances of another
cost c is

    (N c + selection) / (distances computed * c + what the cache costs).

The crossing point is the c with a gain of 1. The real metrics stand beside it, with their own
measured cost and the measured gain.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cache.data import Options, Photographs, Streams, colours, rows
from benchmarks.cache.hit_ratios import CONFIGS, NEIGHBOURS, ask
from benchmarks.cache.plots import draw_gain
from benchmarks.common import markdown, show
from pipeline.caching.dcache import DCache, DCacheConfig
from pipeline.caching.metric import Metric

COSTS_NS = (1, 100, 10_000)
FILLING, MEASURED = 500, 200


class Timed:
    """A metric that measures its own time.

    Attributes
    ----------
    seconds : float
    count : int
        Distances.
    """

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self.name, self.squared, self.error = metric.name, metric.squared, metric.error
        self.seconds, self.count = 0.0, 0

    def distances(
        self, query: NDArray[Any], objects: NDArray[Any], which: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return what the metric returns."""
        started = time.perf_counter()
        found = self._metric.distances(query, objects, which)
        self.seconds += time.perf_counter() - started
        self.count += len(which)
        return found


def without_cache(metric: Timed, streams: Streams, requests: NDArray[Any]) -> float:
    """Return the seconds of requests that compute all distances."""
    every = np.arange(len(streams.things.ids))
    started = time.perf_counter()
    for query in requests:
        found = metric.distances(query, streams.things.objects, every)
        np.argpartition(found, NEIGHBOURS)
    return time.perf_counter() - started


def measure(streams: Streams, stream: str) -> dict[str, Any]:
    """Return costs and gains of a stream."""
    requests = streams.requests[stream][FILLING : FILLING + MEASURED]
    plain, cached = Timed(streams.metric), Timed(streams.metric)
    config: dict[str, Any] = CONFIGS[streams.name]
    cache = DCache(cached, DCacheConfig(**config))
    ask(cache, streams, stream, FILLING)
    cached.seconds, cached.count = 0.0, 0
    probes, started = cache.table.probes, time.perf_counter()
    ask(cache, Streams(streams.name, cached, streams.things, {stream: requests}), stream)
    with_cache = time.perf_counter() - started
    plain_s = without_cache(plain, streams, requests)
    selection, overhead = plain_s - plain.seconds, with_cache - cached.seconds
    spared = plain.count - cached.count

    def gain(cost: float) -> float:
        return (plain.count * cost + selection) / (cached.count * cost + overhead)

    crossing = (overhead - selection) / spared if spared > 0 else float("inf")
    return {
        "objects": streams.name,
        "stream": stream,
        "computed": round(cached.count / plain.count, 3),
        "cache, ns an object": round(1e9 * overhead / plain.count),
        "probes an object": round((cache.table.probes - probes) / plain.count, 1),
        **{f"{cost:,} ns": round(gain(cost * 1e-9), 3) for cost in COSTS_NS},
        "crossing, ns": round(1e9 * crossing),
        "own distance, ns": round(1e9 * plain.seconds / plain.count),
        "measured gain": round(plain_s / with_cache, 3),
    }


def run(options: Options) -> None:
    """Print the table, and draw the plot."""
    photographs = Photographs(options.photos)
    kinds = [make(photographs, FILLING + MEASURED) for make in (colours, rows)]
    found = [measure(kind, stream) for kind in kinds for stream in kind.requests]
    title = "c: time without the distance cache over time with it, by the cost of one distance"
    if options.json:
        show(title, found, True)
    else:
        markdown(title, found)
    if options.plots:
        draw_gain(found, COSTS_NS, options.plots / "cache-gain.png")
