"""Memory of the decodes of a process: they share one bound, and large ones wait for each other."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryLedger:
    """Who has how much of the bound; first come, first served, so that nobody waits for ever."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes that are taken now."""
        return self._used

    @contextmanager
    def taken(self, size: int, bound: int) -> Iterator[Reservation]:
        """Take `size` bytes of `bound`, waiting for them if need be, for the time of a block."""
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
    """What one decode has taken."""

    def __init__(self, ledger: MemoryLedger, bound: int) -> None:
        self._ledger = ledger
        self._bound = bound
        self.size = 0

    def resize(self, size: int) -> int:
        """Exchange what is taken for `size` bytes, at most all; returns how many.

        What there was is given back first: two that wait for more cannot wait for each other.
        """
        self.release()
        wanted = min(size, self._bound)
        self._ledger._take(wanted, self._bound)
        self.size = wanted
        return wanted

    def release(self) -> None:
        """Give everything back."""
        size, self.size = self.size, 0
        self._ledger._give(size)
