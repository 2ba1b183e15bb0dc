"""Row a: hit ratios of the distance cache against its size (the paper, Figure 9).

A request asks for the ten nearest objects. Each pair of a request and an object is a look-up: an
exact hit if its distance is there, an approximate one if bounds decide it, otherwise a miss. The
paper's text divides hits by misses; its figure has shares of look-ups.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.cache.data import Options, Photographs, Streams, colours, rows
from benchmarks.cache.plots import draw_hit_ratios
from benchmarks.common import markdown, show
from pipeline.caching.dcache import DCache, DCacheConfig
from pipeline.caching.object_ids import runtime_id
from pipeline.caching.search import nearest
from pipeline.caching.table import Shape

SIZES_MB = (10, 20, 50, 100, 200)
NEIGHBOURS = 10

CONFIGS = {
    "colours": {"pivots": 32, "choice": "nearest", "among": 256},
    "rows": {"pivots": 8, "choice": "nearest", "among": 64},
}
"""Pivots: many where a distance is dear."""


def ask(cache: DCache, streams: Streams, stream: str, count: int | None = None) -> None:
    """Send requests of a stream."""
    for query in streams.requests[stream][:count]:
        runtime = cache.begin(query, runtime_id(query.tobytes()))
        nearest(cache, streams.things, query, runtime, NEIGHBOURS)


def measure(streams: Streams, stream: str, size_mb: int) -> dict[str, Any]:
    """Return the hit ratios of a stream with a cache of a size."""
    config: dict[str, Any] = CONFIGS[streams.name]
    cache = DCache(streams.metric, DCacheConfig(Shape(size_mb * 1_000_000), **config))
    started = time.perf_counter()
    ask(cache, streams, stream)
    seconds = time.perf_counter() - started
    ratios = cache.counters.ratios()
    return {
        "objects": streams.name,
        "stream": stream,
        "MB": size_mb,
        **{name: round(ratios[name], 3) for name in ("exact", "approximate", "total")},
        "hits over misses": round(ratios["hits over misses"], 2),
        "entries": cache.table.entries,
        "replaced": cache.table.replaced,
        "ms a request": round(1000 * seconds / len(streams.requests[stream]), 2),
    }


def run(options: Options) -> None:
    """Print the table, and draw the plot."""
    photographs = Photographs(options.photos)
    kinds = [make(photographs, options.requests) for make in (colours, rows)]
    work = [(kind, stream, mb) for kind in kinds for stream in kind.requests for mb in SIZES_MB]
    with ProcessPoolExecutor(2) as processes:
        found = []
        for one in processes.map(measure, *zip(*work, strict=True)):
            print(one, file=sys.stderr, flush=True)  # it takes a while
            found.append(one)
    title = f"a: hit ratios, {options.requests} requests a stream"
    if options.json:
        show(title, found, True)
    else:
        markdown(title, found)
    if options.plots:
        draw_hit_ratios(found, options.plots / "cache-hit-ratios.png")
