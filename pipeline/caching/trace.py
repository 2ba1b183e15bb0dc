"""What a search found in the cache, and what it had to compute."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, Self

from pipeline.caching.tiers import TIERS, TierName
from pipeline.caching.values import KINDS, Kind

__all__ = ["CacheTrace"]

Where = TierName | Literal["computed"]
_PLACES: tuple[Where, ...] = (*TIERS, "computed")


class CacheTrace:
    """Counts of one search; safe in threads.

    Attributes
    ----------
    moved : int
        Bytes that came from other processes.
    bounds : int
        Rows that needed no comparison because of distances known from other queries.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[Kind, Where]] = Counter()
        self._lock = threading.Lock()
        self.moved = 0
        self.bounds = 0

    def note(self, kind: Kind, where: Where, moved: int = 0, count: int = 1) -> None:
        """Count values of a kind."""
        with self._lock:
            self._counts[kind, where] += count
            self.moved += moved

    def count(self, kind: Kind, where: Where) -> int:
        """Return how many values of a kind were found there, or computed."""
        return self._counts[kind, where]

    @property
    def hits(self) -> int:
        """Values that were not computed."""
        return sum(n for (_, where), n in self._counts.items() if where != "computed")

    def add(self, other: CacheTrace) -> None:
        """Add what another part of the search has counted."""
        with self._lock:
            self._counts.update(other._counts)
            self.moved += other.moved
            self.bounds += other.bounds

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: for each kind that was looked for, how many were found where."""
        found: dict[str, Any] = {}
        for kind in KINDS:
            places = {where: self._counts[kind, where] for where in _PLACES}
            if any(places.values()):
                found[kind] = {where: count for where, count in places.items() if count}
        return {**found, "bytes": self.moved, "bounds": self.bounds} if found else {}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; what it does not know is left out."""
        trace = cls()
        for kind in KINDS:
            known: Any = values.get(kind)
            for where in _PLACES if isinstance(known, Mapping) else ():
                count = known.get(where, 0)
                if type(count) is int and count > 0:
                    trace._counts[kind, where] = count
        for name, key in (("moved", "bytes"), ("bounds", "bounds")):
            count = values.get(key, 0)
            if type(count) is int and count > 0:
                setattr(trace, name, count)
        return trace
