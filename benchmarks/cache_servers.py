"""The shared cache by itself: time of a look-up, lag between two hosts, memory of the servers.

A primary and two hosts with a replica each are started here, without workers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from benchmarks.common import markdown, parser
from pipeline.caching.values import CacheKey
from pipeline.config import Settings
from workers.cache_link import Link
from workers.cache_place import running_cache_server
from workers.embedded import answers
from workers.environment import environment
from workers.keys import Keys
from workers.processes import die_with_parent, free_port, stop_process
from workers.redis_cache import RedisTier

_VALUE_BYTES = 4096
_GUARD_S = 60.0
_MB = 64


@contextlib.contextmanager
def server(home: Path, **variables: str) -> Iterator[tuple[Settings, psutil.Process]]:
    """Run the cache server of a home."""
    named = {f"VANTAGE_{name}": value for name, value in variables.items()}
    settings = Settings.from_env({"VANTAGE_HOME": str(home), **named})
    home.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.cache_server"],
        env=environment(settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent(signal.SIGTERM),
    )
    try:
        wait_for(lambda: _is_there(home))
        yield settings, psutil.Process(process.pid)
    finally:
        stop_process(process, 10)


def _is_there(home: Path) -> bool:
    found = running_cache_server(home)
    return found is not None and found.url is not None and answers(found.url, 0)


def wait_for(holds: Callable[[], object], pause_s: float = 0.001) -> None:
    """Wait until something holds; the pauses let the threads of this process work."""
    deadline = time.monotonic() + _GUARD_S
    while not holds():
        time.sleep(pause_s)
        if time.monotonic() > deadline:
            raise SystemExit("a server did not do what it should")


def new_keys(count: int) -> list[CacheKey]:
    """Return keys that nobody has used."""
    return [CacheKey("block", os.urandom(16).hex()) for _ in range(count)]


def in_order(name: str, times: list[float], unit: float = 1e6) -> dict[str, object]:
    """Return a row of percentiles."""
    p50, p99, most = np.percentile(np.array(times) * unit, [50, 99, 100])
    return {"what": name, "p50": f"{p50:.0f}", "p99": f"{p99:.0f}", "max": f"{most:.0f}"}


def timed(work: Callable[[], object], count: int) -> list[float]:
    """Return the seconds of each of many calls."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def fill(tier: RedisTier, keys: list[CacheKey]) -> None:
    """Keep a value under each key, and wait until all are written."""
    before = tier.counters["written"]
    value = os.urandom(_VALUE_BYTES)
    for first in range(0, len(keys), 1000):
        tier.keep(dict.fromkeys(keys[first : first + 1000], value))
        wait_for(partial(_has_written, tier, before + min(first + 1000, len(keys))))


def _has_written(tier: RedisTier, count: int) -> bool:
    return tier.counters["written"] >= count


def look_ups(near: RedisTier, far: RedisTier) -> list[dict[str, object]]:
    """Return times of look-ups at a primary's socket, and at a replica's."""
    keys = new_keys(128)
    fill(near, keys)
    wait_for(lambda: None not in [found and found.tier == "replica" for found in far.find(keys)])
    rows = []
    for name, tier in (("primary, Unix socket", near), ("replica, Unix socket", far)):
        for count in (1, 16, 128):
            times = timed(partial(tier.find, keys[:count]), 3000)
            rows.append(in_order(f"{name}, {count} keys of 4 kB", times))
    times = timed(lambda: near.find(new_keys(16)), 3000)
    rows.append(in_order("primary, Unix socket, 16 keys that it lacks", times))
    times = timed(lambda: far.find(new_keys(16)), 3000)
    return [*rows, in_order("replica, then primary by TCP, 16 keys that both lack", times)]


def lags(writer: RedisTier, reader: RedisTier) -> tuple[list[float], float]:
    """Return the times from `keep` until another host has it, and the share that it has at last."""
    replica = reader._links[0]
    assert replica is not None
    names, times = Keys("identity"), []
    keys = new_keys(2000)
    for key in keys:
        began = time.perf_counter()
        writer.keep({key: b"x" * _VALUE_BYTES})
        wait_for(partial(_has, replica, names.cached(*key)), 0.0)
        times.append(time.perf_counter() - began)
    found = reader.find(keys)
    return times, sum(one is not None and one.tier == "replica" for one in found) / len(found)


def _has(link: Link, name: str) -> bool:
    return link.mget([name]) not in (None, [None])


def frozen(tier: RedisTier, process: psutil.Process) -> list[float]:
    """Return the times of look-ups while a server is stopped."""
    process.suspend()
    try:
        return timed(lambda: tier.find(new_keys(16)), 200)
    finally:
        process.resume()


def main() -> None:
    """Entry point."""
    parser(__doc__ or "").parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="vantage-bench-") as folder,
        contextlib.ExitStack() as stack,
    ):
        port, root = free_port(), Path(folder)
        place, size = f"127.0.0.1:{port}", str(_MB)
        first, primary = stack.enter_context(server(root / "p", CACHE_LISTEN=place, CACHE_MB=size))
        word = (root / "p" / "run" / "cache.password").read_text()
        url = f"redis://vantage:{word}@{place}/0"
        (a, one), (b, two) = (stack.enter_context(server(root / n, CACHE_URL=url)) for n in "ab")
        near, writer, reader = (RedisTier(each, Keys("identity")) for each in (first, a, b))
        for tier in (near, writer, reader):
            stack.callback(tier.close)
        empty = [each.memory_info().rss for each in (primary, one, two)]
        markdown("Look-ups, us", look_ups(near, reader))
        times, share = lags(writer, reader)
        markdown("From keep() on a host to the replica of another, us", [in_order("lag", times)])
        print(f"\nfound at the other host's replica after the lag: {share:.1%}")
        markdown("16 keys while a server is frozen, us", [in_order("replica", frozen(reader, two))])
        fill(near, new_keys(3 * _MB * 2**20 // _VALUE_BYTES))
        full = [each.memory_info().rss for each in (primary, one, two)]
        rows = [
            {"server": name, "empty, MiB": f"{e / 2**20:.1f}", "full, MiB": f"{f / 2**20:.1f}"}
            for name, e, f in zip(("primary", "replica", "replica"), empty, full, strict=True)
        ]
        markdown(f"Memory at VANTAGE_CACHE_MB={_MB}", rows)


if __name__ == "__main__":
    main()
