"""The cache that processes share: Redis, of which each host has a copy.

A search asks the replica of its host (one MGET), then the primary for what the replica lacks, if
the primary is *near* or the replica is not to be trusted now (`RedisTier._asks_primary`). What is
kept goes to the primary from one thread. So do, once a second, the keys that were found at the
replica: the primary evicts what it believes to be used least, and does not see reads at replicas.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from redis.exceptions import ReadOnlyError, ResponseError

from pipeline.caching.tiers import Found, RemoteTier
from pipeline.caching.values import CacheKey
from pipeline.config import Settings
from workers.cache_counters import count_cache
from workers.cache_link import Link
from workers.cache_place import CACHE_FILE, role_of, running_cache_server
from workers.cache_writer import WriteQueue
from workers.embedded import server_stamp
from workers.keys import Keys
from workers.redis_url import RedisAddress

__all__ = ["NEAR_S", "RedisTier", "open_remote"]

NEAR_S = 0.001
"""A primary whose answers take no longer is asked for every key that the replica lacks: that is a
hundredth of what extracting the features of a query takes."""

TICK_S = 1.0
_CLOSE_S = 0.2
_TOUCH_AT_ONCE = 4096


def open_remote(settings: Settings, identity: str) -> RemoteTier | None:
    """Return what the processes of an installation share; None if they share nothing.

    It connects at first use, and finds servers that are started, or moved, later.

    Parameters
    ----------
    settings : Settings
    identity : str
        Of the installation.

    Raises
    ------
    ConfigError
        ``VANTAGE_CACHE_URL`` is not usable.
    """
    if role_of(settings).name == "none":
        return None
    return RedisTier(settings, Keys(identity))


class RedisTier:
    """The shared tiers of a cache; see `pipeline.caching.tiers.RemoteTier`.

    Parameters
    ----------
    settings : Settings
    keys : Keys

    Attributes
    ----------
    counters : Counter
        Those of `Link` and `WriteQueue`, and ``written``, ``touched`` and ``write_errors``.
    """

    def __init__(self, settings: Settings, keys: Keys) -> None:
        self._settings, self._keys = settings, keys
        url = settings.cache_url
        self._address = None if url is None else RedisAddress.parse(url, "VANTAGE_CACHE_URL")
        self.counters: Counter[str] = Counter()
        count_cache(self)
        self._begin()

    def _begin(self) -> None:
        """Begin without connections and threads, at first and in a forked process."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._queue = WriteQueue(self.counters, self._settings.cache_mb * 2**20 // 8)
        self._stamp: object = "none was looked for"
        self._links: tuple[Link | None, Link | None] = (None, None)
        self._thread: threading.Thread | None = None
        self._used = self._closed = False

    def find(self, keys: Sequence[CacheKey]) -> list[Found | None]:
        """Return what there is for these keys, in their order."""
        names = [self._keys.cached(key.kind, key.digest) for key in keys]
        found: list[Found | None] = [None] * len(names)
        if not names:
            return found
        replica, primary = self._reach()
        copied = None
        if replica is not None:
            copied = replica.mget(names)
            if copied is not None:
                hit = self._fill(found, range(len(names)), copied, replica)
                self._queue.touch(names[number] for number in hit)
        missing = [number for number, value in enumerate(found) if value is None]
        if primary is None or not missing or not self._asks_primary(copied is not None):
            return found
        values = primary.mget([names[number] for number in missing])
        if values is not None:
            self._fill(found, missing, values, primary)
        return found

    @staticmethod
    def _fill(
        found: list[Found | None],
        numbers: Sequence[int],
        values: Sequence[bytes | None],
        link: Link,
    ) -> list[int]:
        """Enter what a server had; return which."""
        hit = []
        for number, value in zip(numbers, values, strict=True):
            if isinstance(value, bytes):
                found[number] = Found(value, link.tier)
                hit.append(number)
        return hit

    def _asks_primary(self, replica_answered: bool) -> bool:
        """Tell whether the primary may have what the replica lacks, and is worth being asked.

        The two differ by what was written within the replica's lag, milliseconds as a rule. So a
        primary far away is asked only if the replica did not answer, or was behind when the thread
        last compared them.
        """
        replica, primary = self._links
        if primary is None:
            return False
        if not replica_answered or replica is None or primary.is_here:
            return True
        trip = primary.round_trip_s
        return trip is None or trip <= NEAR_S or replica.behind != 0

    def keep(self, values: Mapping[CacheKey, bytes]) -> None:
        """Take sealed values to be written, off the path of the caller."""
        self._reach()
        names = {self._keys.cached(key.kind, key.digest): value for key, value in values.items()}
        self._queue.put(names)

    def close(self) -> None:
        """End connections; what is not written within a moment is lost."""
        if self._pid != os.getpid():
            return
        self._closed = True
        self._queue.wake()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)
        for link in self._links:
            if link is not None:
                link.close_clients()

    def _reach(self) -> tuple[Link | None, Link | None]:
        """Return replica and primary as they are known now; see that the thread runs."""
        if self._pid != os.getpid():
            self._begin()
        stamp = server_stamp(self._settings.home, CACHE_FILE)
        if stamp != self._stamp or not self._used:
            with self._lock:
                if stamp != self._stamp:
                    self._locate()
                    self._stamp = stamp
                self._used = True
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="cache", daemon=True)
                    self._thread.start()
            self._queue.wake()
        return self._links

    def _locate(self) -> None:
        """Look where the servers are."""
        here = running_cache_server(self._settings.home)
        _, primary = self._links
        replica: Link | None = None
        if self._address is not None:
            primary = primary or Link("primary", self._address, self.counters)
            if here is not None and here.state == "replica" and here.url:
                replica = Link("replica", RedisAddress.parse(here.url), self.counters)
        elif here is not None and here.state == "primary" and here.url:
            primary = Link("primary", RedisAddress.parse(here.url), self.counters)
        self._links = (replica, primary)

    def _run(self) -> None:
        """Write, touch and look after the servers, until closed; sleep while nobody uses them."""
        next_tick = 0.0
        while not self._closed:
            for link in self._links:
                if link is not None and not link.probed.is_set():
                    link.probe()
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + TICK_S
                self._used = False
                self._tend()
            self._write()
            busy = self._used or len(self._queue) > 0
            self._queue.wait(max(0.0, next_tick - time.monotonic()) if busy else None)
        self._write()

    def _tend(self) -> None:
        """Do what is due once a second."""
        replica, primary = self._links
        for link in self._links:
            if link is not None:
                link.probe()
        if primary is None or not primary.usable:
            return
        try:
            if replica is not None and (primary.round_trip_s or 0.0) > NEAR_S:
                replica.behind = _lag(primary, replica) if replica.usable else None
            names = self._queue.take_touched()
            for first in range(0, len(names), _TOUCH_AT_ONCE):
                touched = primary.slow_client().touch(*names[first : first + _TOUCH_AT_ONCE])
                self.counters["touched"] += int(touched)
        except ResponseError:
            self.counters["primary.errors"] += 1  # no right to ask: the cache works without
        except Exception as error:
            primary.lost(error)

    def _write(self) -> None:
        """Write what waits to the primary; what it cannot take now waits on."""
        _, primary = self._links
        while primary is not None and primary.usable:
            batch = self._queue.take()
            if not batch:
                return
            try:
                pipeline = primary.slow_client().pipeline(transaction=False)
                for name, value in batch:
                    pipeline.set(name, value)
                answers = pipeline.execute(raise_on_error=False)
            except Exception as error:
                self._queue.put_back(batch)
                primary.lost(error)
                return
            refused = [one for one in answers if isinstance(one, Exception)]
            self.counters["written"] += len(batch) - len(refused)
            self.counters["write_errors"] += len(refused)
            if any(isinstance(one, ReadOnlyError) for one in refused):
                primary.lost(refused[0])  # Sentinels have made another server the primary


def _lag(primary: Link, replica: Link) -> int | None:
    """Return how many bytes a replica lacks of its primary; None if they do not tell it."""
    written = primary.slow_client().info("replication").get("master_repl_offset")
    state = replica.slow_client().info("replication")
    if state.get("master_link_status") != "up" or not isinstance(written, int):
        return None
    return max(0, written - int(state.get("slave_repl_offset", 0)))
