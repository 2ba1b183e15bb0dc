"""The middle of a running distribution of distances."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Middle"]

_STEP = 19
"""Bits of a float32 that do not count: bins are 1/16 of a power of two wide."""

_BINS = 1 << (31 - _STEP)

_MOST = 1 << 22
"""Values after which the counts are halved, so that the middle follows the distances."""

_AT_ONCE = 4096
"""Values of one call that are counted; of more, every n-th."""


class Middle:
    """A histogram of distances, and their median to a sixteenth.

    Of squares the median is the square of the median.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all distances."""
        self._counts = np.zeros(_BINS, np.int64)
        self._total = 0
        self._value: float | None = None

    def add(self, values: NDArray[np.float64]) -> None:
        """Count distances."""
        some = values[:: max(1, len(values) // _AT_ONCE)].astype(np.float32)
        self._counts += np.bincount(some.view(np.uint32) >> _STEP, minlength=_BINS)
        self._total += len(some)
        self._value = None
        if self._total > _MOST:
            self._counts //= 2
            self._total = int(self._counts.sum())

    @property
    def value(self) -> float:
        """The median of all distances; 0 before the first."""
        if self._value is None:
            at = int(np.searchsorted(np.cumsum(self._counts), (self._total + 1) // 2))
            middle = np.array([(at << _STEP) + (1 << _STEP - 1)], np.uint32).view(np.float32)
            self._value = float(middle[0]) if self._total else 0.0
        return self._value
