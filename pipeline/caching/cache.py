"""The cache of a process: its own values first, then those that other processes have computed."""

from __future__ import annotations

import random
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

from pipeline.caching.tiers import ProcessTier, RemoteTier
from pipeline.caching.trace import CacheTrace
from pipeline.caching.values import CachedValue, CacheKey, Kind, seal, unseal

__all__ = ["Cache"]

_REMEMBERED = 65_536
"""Keys of values not kept at first sight, of which a process remembers that it has met them."""

WORTH_US_A_BYTE = 0.02
"""A block is kept at first sight if computing it took so many microseconds a byte: reading it from
another host, over a network of 1 Gbit/s, takes half of that. Others are kept at second sight."""

_ADMITTED_AT_SIGHT: frozenset[Kind] = frozenset({"features", "ranking", "verification"})


class Cache:
    """Looks values up and keeps them; safe in threads. It never raises and never makes an answer.

    Parameters
    ----------
    process : ProcessTier, optional
        Default: nothing is kept in this process.
    remote : RemoteTier, optional
        Default: nothing is shared with other processes.
    secret : callable
        Returns the secret of the installation; called once, when something remote is needed.
    checked_share : float
        Share of the answers with values from the cache that are computed again and compared.
    """

    def __init__(
        self,
        process: ProcessTier | None = None,
        remote: RemoteTier | None = None,
        secret: Callable[[], bytes] = lambda: b"",
        checked_share: float = 0.0,
    ) -> None:
        self.process, self.remote = process, remote
        self._make_secret = secret
        self._secret: bytes | None = None
        self._checked_share = checked_share
        self._met: OrderedDict[CacheKey, None] = OrderedDict()
        self._lock = threading.Lock()
        self.counters: Counter[str] = Counter()

    def __bool__(self) -> bool:
        """Tell whether anything is kept at all."""
        return self.process is not None or self.remote is not None

    def find(self, keys: Sequence[CacheKey], trace: CacheTrace) -> list[bytes | None]:
        """Return the values of these keys, None for unknown ones.

        What is found at a distance is kept in this process. What was not sealed by this
        installation for this key is counted (``refused``) and not returned.
        """
        found: list[bytes | None] = []
        for key in keys:
            known = self.process.get(key) if self.process is not None else None
            found.append(None if known is None else known.content)
            if known is not None:
                trace.note(key.kind, "process")
                self._bump(f"{key.kind}.process")
        missing = [number for number, value in enumerate(found) if value is None]
        if self.remote is None or not missing:
            return found
        wanted = [keys[number] for number in missing]
        for number, key, got in zip(missing, wanted, self.remote.find(wanted), strict=True):
            if got is None:
                continue
            value = unseal(key, got.sealed, self._known_secret())
            if value is None:
                self._bump("refused")
                continue
            trace.note(key.kind, got.tier, len(got.sealed))
            self._bump(f"{key.kind}.{got.tier}")
            found[number] = value.content
            if self.process is not None:
                self.process.put(key, value)
        return found

    def keep(self, key: CacheKey, content: bytes, cost_s: float) -> None:
        """Keep a value that was computed, if it is worth it.

        Parameters
        ----------
        key : CacheKey
        content : bytes
        cost_s : float
            Seconds that computing it has taken.
        """
        if not self:
            return
        value = CachedValue(content, round(cost_s * 1e6))
        if not self._admits(key, value):
            return
        self._bump(f"{key.kind}.kept")
        if self.process is not None:
            self.process.put(key, value)
        if self.remote is not None:
            self.remote.keep({key: seal(key, value, self._known_secret())})

    def is_checked_again(self) -> bool:
        """Tell whether the next answer with values from the cache is computed again."""
        return self._checked_share > 0 and random.random() < self._checked_share

    def note_check(self, equal: bool) -> None:
        """Count an answer that was computed again."""
        self._bump("checks" if equal else "mismatches")

    def close(self) -> None:
        """End connections."""
        if self.remote is not None:
            self.remote.close()

    def _admits(self, key: CacheKey, value: CachedValue) -> bool:
        """Tell whether a value is kept now: blocks that cost little only at second sight."""
        if key.kind in _ADMITTED_AT_SIGHT:
            return True
        if value.cost_us >= WORTH_US_A_BYTE * len(value.content):
            return True
        with self._lock:
            if key in self._met:
                del self._met[key]
                return True
            self._met[key] = None
            while len(self._met) > _REMEMBERED:
                self._met.popitem(last=False)
        return False

    def _known_secret(self) -> bytes:
        if self._secret is None:
            self._secret = self._make_secret()
        return self._secret

    def _bump(self, name: str) -> None:
        with self._lock:
            self.counters[name] += 1
