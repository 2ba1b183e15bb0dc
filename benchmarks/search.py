"""Latency of a warm search through Celery, of several together, and what an index costs.

    python -m benchmarks.search [--photos FOLDER] [--queries 60]

Indexes the photographs, then searches with some of them, both plans in turn. ``search`` is all that
comes after the query's features: plan, chord, scans, ranking; ``extract`` stands beside it. Then
the time of 8 searches over that of one pass for their 8 images, medians of rounds in which both
take turns: all of it, extraction included, and sending and waiting for the scans alone.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import psutil

from benchmarks.common import parser, percentiles, photographs, running, show
from pipeline.config import PlanKind, Settings
from pipeline.metadata import heartbeats, versions
from pipeline.metadata.engine import create_metadata_engine, session_scope
from pipeline.records import SearchResult
from vantage import Collection

PLANS: tuple[PlanKind, ...] = ("probed", "exhaustive")
TOGETHER = 8
ROUNDS = 5


def main() -> None:
    """Print latencies and sizes."""
    options = parser(str(__doc__).splitlines()[0])
    options.add_argument("--queries", type=int, default=60)
    arguments = options.parse_args()
    files = photographs(arguments.photos)
    step = max(1, len(files) // arguments.queries)
    queries = files[::step][: arguments.queries]
    with running() as settings, Collection.open("bench", settings) as collection:
        collection.index([Path(file) for file in files]).wait(timeout=3600)
        for plan in PLANS:
            collection.search(queries[0], plan=plan)
        timed: dict[str, list[tuple[float, SearchResult]]] = {plan: [] for plan in PLANS}
        for query in queries:
            for plan in PLANS:
                started = time.perf_counter()
                result = collection.search(query, plan=plan)
                timed[plan].append(((time.perf_counter() - started) * 1e3, result))
        show("warm search, ms", [latency_row(plan, timed[plan]) for plan in PLANS], arguments.json)
        some = queries[:: max(1, len(queries) // TOGETHER)][:TOGETHER]
        gains = [together_row(collection, some, plan) for plan in PLANS]
        show(f"{len(some)} searches over one pass for {len(some)}", gains, arguments.json)
        show("index, per 1,000 images", [footprint(settings, len(files))], arguments.json)


def latency_row(plan: str, timed: list[tuple[float, SearchResult]]) -> dict[str, object]:
    """Return the percentiles of one plan."""
    extract = [result.timings["extract"] for _, result in timed]
    rest = [total - result.timings["extract"] for total, result in timed]
    scan = [result.timings["scan"] for _, result in timed]
    last = timed[-1][1].plan
    return {
        "plan": plan,
        "descriptors": last["descriptors"],
        "scanned": last["scanned_share"],
        "search p50": percentiles(rest)["p50"],
        "search p95": percentiles(rest)["p95"],
        "chord and scans p50": percentiles(scan)["p50"],
        "extract p50": percentiles(extract)["p50"],
    }


def together_row(collection: Collection, queries: list[str], plan: PlanKind) -> dict[str, object]:
    """Return what searching for several images together gains by one plan."""
    apart: list[tuple[float, float]] = []
    at_once: list[tuple[float, float]] = []
    for _ in range(ROUNDS + 1):  # the first warms up
        started = time.perf_counter()
        singles = [collection.search(query, plan=plan) for query in queries]
        between = time.perf_counter()
        many = collection.search_many(queries, plan=plan, deadline_s=60)
        ended = time.perf_counter()
        passes = {result.timings["scan"] for result in many if isinstance(result, SearchResult)}
        apart.append((between - started, sum(single.timings["scan"] for single in singles)))
        at_once.append((ended - between, sum(passes)))
    all_apart, scans_apart = (median(values) for values in zip(*apart[1:], strict=True))
    all_together, scans_together = (median(values) for values in zip(*at_once[1:], strict=True))
    return {
        "plan": plan,
        "searches ms": round(all_apart * 1e3),
        "one pass ms": round(all_together * 1e3),
        "ratio": round(all_apart / all_together, 2),
        "chords and scans ms": round(scans_apart),
        "of one pass ms": round(scans_together),
        "their ratio": round(scans_apart / scans_together, 2),
    }


def footprint(settings: Settings, images: int) -> dict[str, object]:
    """Return disk and memory, scaled to 1,000 images."""
    engine = create_metadata_engine(settings.database_url)
    with session_scope(engine, write=False) as session:
        version = versions.current_version(session, "bench")
        live = heartbeats.live_workers(session, time.time(), settings.host_timeout_s)
    engine.dispose()
    scale = 1000 / images / 2**20
    store = Path(settings.store)
    folders = {
        name: sum(file.stat().st_size for file in (store / name).rglob("*.npz"))
        for name in ("containers", "groups")
    }
    database = Path(settings.database_url.removeprefix("sqlite:///")).stat().st_size
    rows = sum(segment.descriptor_count for segment in version.segments)
    servers = [host for host in live if "group" in host.roles]
    processes = [psutil.Process(host.pid) for host in servers]
    memory = sum(process.memory_info().rss for process in processes)
    mapped = sum(
        part.rss
        for process in processes
        for part in process.memory_maps()
        if part.path.startswith(str(settings.local))
    )
    return {
        "descriptors": round(rows * 1000 / images),
        "containers MiB": round(folders["containers"] * scale, 1),
        "segments MiB": round(folders["groups"] * scale, 1),
        "bytes a descriptor": round(folders["groups"] / max(rows, 1), 1),
        "database MiB": round(database * scale, 2),
        "mapped and resident MiB": round(mapped * scale, 1),
        "group worker MiB, as it is": round(memory / 2**20),
    }


if __name__ == "__main__":
    main()
