"""What ``vantage status`` and ``vantage doctor`` tell of the cache."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.caching.tiers import TIERS, TierName
from pipeline.config import Settings
from pipeline.metadata.records import WorkerRecord
from workers.cache_place import role_of, running_cache_server

if TYPE_CHECKING:
    from redis import Redis

    from workers.redis_url import RedisAddress

__all__ = ["CacheStatus", "ServerStatus", "read_cache_status"]

_ANSWER_S = 1.0
_LAG_S = 0.5
_PROBE_KEEP_S = 10


@dataclass(frozen=True)
class ServerStatus:
    """A server of the cache.

    Attributes
    ----------
    tier : {"replica", "primary"}
    address : str
        Without a password.
    trouble : str
        Why it does not answer; empty if it does.
    version : str
    memory, limit : int
        Bytes in use, and at most (0: no limit).
    policy : str
        What it evicts.
    evicted : int
        Values that had to go since it was started.
    linked : bool or None
        Whether a replica is connected to its primary.
    behind : int or None
        Bytes that a replica lacks of its primary.
    lag_s : float or None
        Seconds until a replica had what was written to the primary just now.
    """

    tier: TierName
    address: str
    trouble: str = ""
    version: str = ""
    memory: int = 0
    limit: int = 0
    policy: str = ""
    evicted: int = 0
    linked: bool | None = None
    behind: int | None = None
    lag_s: float | None = None

    def sentence(self) -> str:
        """Return it for users."""
        if self.trouble:
            return f"{self.tier} at {self.address} does not answer: {self.trouble}"
        limit = f" of {self.limit / 2**20:,.0f}" if self.limit else ""
        parts = [
            f"{self.tier} at {self.address}",
            self.version,
            f"{self.memory / 2**20:,.1f}{limit} MiB",
            f"{self.evicted:,} evicted",
        ]
        if self.linked is False:
            parts.append("not connected to its primary")
        if self.behind is not None:
            parts.append(f"{self.behind:,} bytes behind")
        if self.lag_s is not None:
            parts.append(f"lag {self.lag_s * 1000:.1f} ms")
        return ", ".join(parts)


@dataclass(frozen=True)
class CacheStatus:
    """The cache as this host sees it.

    Attributes
    ----------
    reason : str
        Why there is no shared cache, or no replica here; empty otherwise.
    servers : tuple of ServerStatus
        The nearest first.
    counters : dict of str to int
        Those of all live workers together.
    """

    reason: str
    servers: tuple[ServerStatus, ...]
    counters: dict[str, int]

    @property
    def mismatches(self) -> int:
        """Answers with values of the cache that were otherwise when computed again."""
        return self.counters.get("mismatches", 0)

    def hit_ratio(self, tier: TierName) -> float | None:
        """Return the share of what was looked for there that was found; None if nothing was."""
        if tier == "process":
            hits = sum(n for name, n in self.counters.items() if name.endswith(".process"))
            asked = max(self._asked("replica"), self._asked("primary")) + hits
        else:
            hits, asked = self.counters.get(f"{tier}.hits", 0), self._asked(tier)
        return hits / asked if asked else None

    def _asked(self, tier: TierName) -> int:
        return self.counters.get(f"{tier}.hits", 0) + self.counters.get(f"{tier}.misses", 0)

    def sentences(self) -> list[str]:
        """Return lines for users."""
        lines = [self.reason] if self.reason else []
        lines += [server.sentence() for server in self.servers]
        ratios = [(tier, self.hit_ratio(tier)) for tier in TIERS]
        told = [f"{tier} {ratio:.0%}" for tier, ratio in ratios if ratio is not None]
        if told:
            lines.append(f"found of what was looked for: {', '.join(told)}")
        troubles = {
            name: count
            for name, count in self.counters.items()
            if name.rpartition(".")[2] in ("errors", "timeouts", "skipped", "dropped", "refused")
            if count
        }
        if troubles:
            lines.append(", ".join(f"{name} {count:,}" for name, count in troubles.items()))
        return lines

    def troubles(self) -> list[tuple[str, str]]:
        """Return what is wrong, and what to do about it."""
        found = []
        for server in self.servers:
            if server.trouble:
                found.append((server.sentence(), "start it, or check VANTAGE_CACHE_URL"))
            elif server.tier == "primary" and server.linked is not None:
                told = f"{server.sentence()}: it is itself a replica, and takes nothing"
                found.append((told, "name its primary in VANTAGE_CACHE_URL"))
            elif server.tier == "primary" and not _evicts_least_used(server):
                found.append(
                    (
                        f"{server.sentence()}: {server.policy or 'no policy'}, so it may get full",
                        "CONFIG SET maxmemory 128mb; CONFIG SET maxmemory-policy allkeys-lfu",
                    )
                )
        if self.mismatches:
            found.append(
                (
                    f"cache_mismatch_total {self.mismatches:,}: answers with values of the cache "
                    "were otherwise when they were computed again",
                    "set VANTAGE_CACHE_URL=off, and report the keys that the log names",
                )
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "reason": self.reason,
            "servers": [dataclasses.asdict(server) for server in self.servers],
            "counters": self.counters,
            "hit_ratio": {tier: self.hit_ratio(tier) for tier in TIERS},
            "cache_mismatch_total": self.mismatches,
        }


def _evicts_least_used(server: ServerStatus) -> bool:
    """Tell whether a primary makes room by itself; unknown counts as so."""
    return not server.policy or (server.policy.startswith("allkeys") and server.limit > 0)


def read_cache_status(settings: Settings, workers: Sequence[WorkerRecord]) -> CacheStatus:
    """Ask the servers that this host uses, and add up what its workers count."""
    counters: Counter[str] = Counter()
    for worker in workers:
        known = worker.details.get("cache")
        if isinstance(known, Mapping):
            counters.update({str(name): int(count) for name, count in known.items()})
    role, here = role_of(settings), running_cache_server(settings.home)
    if role.name == "none":
        return CacheStatus(role.reason, (), dict(counters))
    reason = here.reason if here is not None else ""
    return CacheStatus(reason, _servers(settings), dict(sorted(counters.items())))


def _servers(settings: Settings) -> tuple[ServerStatus, ...]:
    """Ask the replica of this host, if there is one, and the primary."""
    here = running_cache_server(settings.home)
    if settings.cache_url is None and (here is None or here.url is None):
        return ()
    from workers.redis_url import RedisAddress

    url = settings.cache_url or (here.url if here is not None else None)
    assert url is not None
    primary_address = RedisAddress.parse(url, "VANTAGE_CACHE_URL")
    primary, written = _ask("primary", primary_address)
    if here is None or here.state != "replica" or here.url is None:
        return (primary,)
    replica, read = _ask("replica", RedisAddress.parse(here.url))
    if replica.behind is not None and written is not None and read is not None:
        lag = None if primary.trouble or replica.trouble else _lag(primary_address, here.url)
        replica = dataclasses.replace(replica, behind=max(0, written - read), lag_s=lag)
    return (replica, primary)


def _ask(tier: TierName, address: RedisAddress) -> tuple[ServerStatus, int | None]:
    """Ask a server about itself; return its place in the stream of writes, too."""
    from redis import RedisError

    from workers.redis_url import reason

    client = _client(address)
    try:
        info: dict[str, Any] = dict(client.info())
    except (RedisError, OSError) as error:
        return ServerStatus(tier, str(address), trouble=reason(error)), None
    finally:
        client.close()
    is_replica = info.get("role") == "slave"
    offset = info.get("slave_repl_offset" if tier == "replica" else "master_repl_offset")
    status = ServerStatus(
        tier,
        str(address),
        version=str(info.get("redis_version", "?")),
        memory=int(info.get("used_memory", 0)),
        limit=int(info.get("maxmemory", 0)),
        policy=str(info.get("maxmemory_policy", "")),
        evicted=int(info.get("evicted_keys", 0)),
        linked=info.get("master_link_status") == "up" if is_replica else None,
        behind=0 if tier == "replica" else None,
    )
    return status, offset if isinstance(offset, int) else None


def _client(address: RedisAddress) -> Redis:
    return address.client(0, timeout_s=_ANSWER_S, connect_timeout_s=_ANSWER_S)


def _lag(primary: RedisAddress, replica: str) -> float | None:
    """Write to the primary, wait until the replica has it; None if it has not in time."""
    from redis import RedisError

    from workers.keys import Keys
    from workers.redis_url import RedisAddress

    name = Keys("lag").cached("probe", secrets.token_hex(8))
    writer, reader = _client(primary), _client(RedisAddress.parse(replica))
    try:
        reader.ping()
        writer.set(name, b"1", ex=_PROBE_KEEP_S)
        began = time.monotonic()
        while reader.mget([name])[0] is None:
            if time.monotonic() > began + _LAG_S:
                return None
        return time.monotonic() - began
    except (RedisError, OSError):
        return None
    finally:
        writer.close()
        reader.close()
