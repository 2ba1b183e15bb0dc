"""Counters of the caches of this process, for its heartbeat."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Protocol

__all__ = ["cache_counters", "count_cache"]


class _Counted(Protocol):
    counters: Counter[str]


_counted: weakref.WeakSet[_Counted] = weakref.WeakSet()


def count_cache(part: _Counted) -> None:
    """Add the counters of a part of the cache to those that the heartbeat tells."""
    _counted.add(part)


def cache_counters() -> dict[str, int]:
    """Return the sums of all counters."""
    total: Counter[str] = Counter()
    for part in list(_counted):
        total.update(dict(part.counters))
    return dict(sorted(total.items()))
