"""Tiers of a cache: where values are looked for, the nearest first."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from pipeline.caching.values import CachedValue, CacheKey

__all__ = ["TIERS", "Found", "ProcessTier", "RemoteTier", "TierName"]

TierName = Literal["process", "replica", "primary"]
"""Where a value was: in this process, in the copy of this host, or at the primary."""

TIERS: tuple[TierName, ...] = ("process", "replica", "primary")

ENTRY_BYTES = 400
"""Memory that an entry of a process takes beside its content: key, objects, place in the queue."""

_QUEUE_FACTOR = 4


class Found(NamedTuple):
    """A value that another process wrote, still sealed, and the tier that had it."""

    sealed: bytes
    tier: TierName


class RemoteTier(Protocol):
    """What is shared with other processes. Neither method raises, and neither waits for long."""

    def find(self, keys: Sequence[CacheKey]) -> list[Found | None]:
        """Return what there is for these keys, in their order."""
        ...

    def keep(self, values: Mapping[CacheKey, bytes]) -> None:
        """Take sealed values to be written, off the path of the caller."""
        ...

    def close(self) -> None:
        """End connections; what has not been written is lost."""
        ...


@dataclass
class _Entry:
    value: CachedValue
    uses: int
    worth: float


class ProcessTier:
    """Values in the memory of this process, bounded in bytes; safe in threads.

    When it is full, what saves the least time a byte goes first: each value is worth the level at
    its last use plus ``uses * cost / bytes``, and the level rises to the worth of what was evicted,
    so that former favourites age.

    Parameters
    ----------
    capacity : int
        Bytes, `ENTRY_BYTES` a value included.

    References
    ----------
    L. Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching
    policy", HP Laboratories HPL-98-69R1, 1998.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: dict[CacheKey, _Entry] = {}
        self._queue: list[tuple[float, int, CacheKey]] = []
        self._turn = itertools.count()
        self._level = 0.0
        self._bytes = 0
        self._evicted = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Bytes in use."""
        return self._bytes

    @property
    def evicted(self) -> int:
        """Values that had to go."""
        return self._evicted

    def get(self, key: CacheKey) -> CachedValue | None:
        """Return a value, which is worth more from now on; None if there is none."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            entry.uses += 1
            self._appraise(key, entry)
            return entry.value

    def put(self, key: CacheKey, value: CachedValue) -> None:
        """Keep a value, unless it is larger than an eighth of all."""
        size = _size(value)
        if size > self._capacity // 8:
            return
        with self._lock:
            if key in self._entries:
                return
            entry = _Entry(value, 1, 0.0)
            self._entries[key] = entry
            self._bytes += size
            self._appraise(key, entry)
            while self._bytes > self._capacity:
                self._evict()

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()
            self._queue.clear()
            self._bytes = 0

    def _appraise(self, key: CacheKey, entry: _Entry) -> None:
        """Set what an entry is worth now."""
        saved = entry.uses * max(1, entry.value.cost_us)
        entry.worth = self._level + saved / _size(entry.value)
        heapq.heappush(self._queue, (entry.worth, next(self._turn), key))
        if len(self._queue) > _QUEUE_FACTOR * len(self._entries) + 64:
            # Former places of entries that were used again.
            self._queue = [
                (known.worth, next(self._turn), name) for name, known in self._entries.items()
            ]
            heapq.heapify(self._queue)

    def _evict(self) -> None:
        """Drop the entry that is worth least."""
        while self._queue:
            worth, _, key = heapq.heappop(self._queue)
            entry = self._entries.get(key)
            if entry is None or entry.worth != worth:
                continue
            del self._entries[key]
            self._bytes -= _size(entry.value)
            self._level = worth
            self._evicted += 1
            return


def _size(value: CachedValue) -> int:
    return len(value.content) + ENTRY_BYTES
