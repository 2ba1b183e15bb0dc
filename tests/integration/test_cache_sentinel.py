"""Three Sentinels and a candidate: when the cache's primary dies, writes go on and hosts follow."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cache_hosts import CacheHost, until
from heavy import long_only
from operators_redis import OperatorsRedis
from redis import RedisError

from pipeline.caching.trace import CacheTrace
from pipeline.caching.values import CacheKey
from workers.processes import die_with_parent, free_port, stop_process
from workers.redis_url import RedisAddress
from workers.server_programs import find_server

pytestmark = long_only

_SENTINEL = """\
port {port}
bind 127.0.0.1
dir {folder}
sentinel monitor cache 127.0.0.1 {primary} 2
sentinel auth-pass cache word
sentinel down-after-milliseconds cache 2000
sentinel failover-timeout cache 6000
"""


def _start_sentinel(folder: Path, primary: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start a Sentinel: any Redis server is one, if it is told so."""
    port = free_port()
    folder.mkdir()
    path = folder / "sentinel.conf"
    path.write_text(_SENTINEL.format(port=port, folder=folder, primary=primary))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(find_server()), str(path), "--sentinel"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
    return process, port


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[OperatorsRedis, OperatorsRedis, str]]:
    """A primary, a candidate, and the address of the Sentinels."""
    with ExitStack() as stack:
        pair = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            options = ("--masterauth", "word", "--maxmemory-policy", "allkeys-lfu")
            server = OperatorsRedis(tmp_path / name, *options, password="word")
            pair.append(stack.enter_context(server))
        first, second = pair
        second.client.replicaof("127.0.0.1", first.port)
        until(lambda: second.client.info("replication")["master_link_status"] == "up")
        sentinels = []
        for number in range(3):
            sentinels.append(_start_sentinel(tmp_path / f"sentinel{number}", first.port))
            stack.callback(stop_process, sentinels[-1][0], 10)
        for process, port in sentinels:
            until(lambda one=(process, port): _sees_all(*one))
        login = ":word@"
        url = ";".join(f"sentinel://{login}127.0.0.1:{port}" for _, port in sentinels)
        yield first, second, f"{url}?master_name=cache"


def _sees_all(process: subprocess.Popen[bytes], port: int) -> bool:
    """Tell whether a Sentinel knows the two others and the candidate, and no further replica."""
    if process.poll() is not None:
        pytest.skip("the Redis server of this machine cannot be a Sentinel")
    client: Any = RedisAddress.parse(f"redis://127.0.0.1:{port}/0").client(0)
    try:
        state = client.sentinel_master("cache")
    except (RedisError, OSError):
        return False
    finally:
        client.close()
    return bool(state["num-other-sentinels"] == 2 and state["num-slaves"] == 1)


def test_after_a_failover_writes_and_reads_go_to_the_new_primary(
    servers: tuple[OperatorsRedis, OperatorsRedis, str], tmp_path: Path
) -> None:
    first, second, url = servers
    before, after, late = (CacheKey("features", f"{number:032x}") for number in range(3))
    with (
        CacheHost(tmp_path / "a", CACHE_URL=url) as a,
        CacheHost(tmp_path / "b", CACHE_URL=url) as b,
    ):
        writer, reader = a.cache(), b.cache()
        writer.keep(before, b"before", 1.0)
        until(lambda: reader.find([before], CacheTrace()) == [b"before"])
        # The primary has three replicas; Sentinels know of one, so they never choose another.
        until(lambda: first.client.info("replication")["connected_slaves"] == 3)
        first.kill()
        writer.keep(after, b"after", 1.0)
        assert reader.find([before], CacheTrace()) == [b"before"]
        until(lambda: second.client.info("replication")["role"] == "master")
        until(lambda: writer.find([after], CacheTrace()) == [b"after"])
        trace = CacheTrace()
        writer.keep(late, b"late", 1.0)
        until(lambda: reader.find([late], trace) == [b"late"])
        for host in (a, b):
            until(lambda host=host: _follows(host, second.port))
        assert second.client.info("replication")["connected_slaves"] == 2


def _follows(host: CacheHost, port: int) -> bool:
    """Tell whether a host's replica has another primary now."""
    assert host.server is not None
    assert host.server.url is not None
    client: Any = RedisAddress.parse(host.server.url).client(0)
    try:
        state = client.info("replication")
    finally:
        client.close()
    return bool(state["master_port"] == port and state["master_link_status"] == "up")
