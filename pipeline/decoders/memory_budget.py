"""The memory that all decodes of a process may take together: those that do not fit wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """Shares of the limit. First come, first served, so that nobody waits for ever."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes in use."""
        return self._used

    @contextmanager
    def taken(self, size: int, bound: int) -> Iterator[Reservation]:
        """Reserve `size` bytes of `bound` within a ``with`` block; wait until they are free."""
        reservation = Reservation(self, bound)
        try:
            reservation.resize(size)
            yield reservation
        finally:
            reservation.release()

    def _take(self, size: int, bound: int) -> None:
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(
                    lambda: self._waiting[0] is ticket and self._used + size <= bound
                )
                self._used += size
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _give(self, size: int) -> None:
        with self._changed:
            self._used -= size
            self._changed.notify_all()


class Reservation:
    """The memory that one decode has reserved."""

    def __init__(self, budget: MemoryBudget, bound: int) -> None:
        self._budget = budget
        self._bound = bound
        self.size = 0

    def resize(self, size: int) -> int:
        """Reserve `size` bytes, at most the limit, instead of what was reserved; return how many.

        The former bytes are given back first, so that two that want more cannot deadlock.
        """
        self.release()
        wanted = min(size, self._bound)
        self._budget._take(wanted, self._bound)
        self.size = wanted
        return wanted

    def release(self) -> None:
        """Give everything back."""
        size, self.size = self.size, 0
        self._budget._give(size)
