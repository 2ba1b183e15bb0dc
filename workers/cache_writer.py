"""What waits to be written to the cache's primary, bounded in bytes and in number."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping

__all__ = ["BATCH_BYTES", "MOST_BYTES", "MOST_VALUES", "WriteQueue"]

MOST_BYTES = 32 * 2**20
MOST_VALUES = 4096
"""More do not wait: what comes then is dropped, and counted."""

BATCH_BYTES = 2**20
_BATCH_VALUES = 256
_MOST_TOUCHED = 16_384


class WriteQueue:
    """Values and keys that a thread takes to the primary; safe in threads.

    Parameters
    ----------
    counters : Counter
        ``dropped``: values that found no place.
    largest : int
        Bytes of the largest value that is taken.
    """

    def __init__(self, counters: Counter[str], largest: int) -> None:
        self._counters, self._largest = counters, largest
        self._values: deque[tuple[str, bytes]] = deque()
        self._bytes = 0
        self._touched: dict[str, None] = {}
        self._changed = threading.Condition()
        self._awake = False

    def __len__(self) -> int:
        return len(self._values)

    def put(self, values: Mapping[str, bytes]) -> None:
        """Let values wait, as far as there is room."""
        with self._changed:
            for name, value in values.items():
                full = len(self._values) >= MOST_VALUES or self._bytes + len(value) > MOST_BYTES
                if full or len(value) > self._largest:
                    self._counters["dropped"] += 1
                    continue
                self._values.append((name, value))
                self._bytes += len(value)
            self.wake()

    def wake(self) -> None:
        """Have the thread look after its work."""
        with self._changed:
            self._awake = True
            self._changed.notify_all()

    def wait(self, most_s: float | None) -> None:
        """Wait until there is work, at most for so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._awake, most_s)
            self._awake = False

    def take(self) -> list[tuple[str, bytes]]:
        """Return the next values to be written."""
        batch: list[tuple[str, bytes]] = []
        size = 0
        with self._changed:
            while self._values and len(batch) < _BATCH_VALUES:
                if batch and size + len(self._values[0][1]) > BATCH_BYTES:
                    break
                one = self._values.popleft()
                batch.append(one)
                size += len(one[1])
            self._bytes -= size
        return batch

    def put_back(self, batch: Iterable[tuple[str, bytes]]) -> None:
        """Let what could not be written wait again, before the others."""
        with self._changed:
            for one in reversed(list(batch)):
                self._values.appendleft(one)
                self._bytes += len(one[1])

    def touch(self, names: Iterable[str]) -> None:
        """Note keys that were read at the replica."""
        with self._changed:
            for name in names:
                if len(self._touched) < _MOST_TOUCHED:
                    self._touched[name] = None

    def take_touched(self) -> list[str]:
        """Return the noted keys."""
        with self._changed:
            names, self._touched = list(self._touched), {}
        return names
