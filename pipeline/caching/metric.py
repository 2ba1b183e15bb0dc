"""Metrics: what a distance is, for the distance cache and the searches that use it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.index.rows import read_only
from pipeline.machine_code import CompiledLoop

__all__ = ["LARGEST_REAL", "LARGEST_SQUARE", "Metric", "SquaredEuclidean"]

LARGEST_SQUARE = (1 << 30) - 1
"""Squared distances are at most this, so that bounds are computed exactly in 64 bits."""

LARGEST_REAL = float(np.finfo(np.float32).max)
"""Other distances are at most this."""

_squared_distances = CompiledLoop("pipeline.caching.loops", "squared_distances")


class Metric(Protocol):
    """Distances of objects: symmetric, zero from an object to itself, with the triangle inequality.

    A set of objects is an array whose first axis counts them.

    Attributes
    ----------
    name : str
        With everything that a distance depends on beside the two objects: hosts exchange distances
        of metrics of the same name.
    squared : bool
        `distances` gives squares, which are integers up to `LARGEST_SQUARE`; their roots are the
        metric. Otherwise it gives the metric itself, rounded to float32.
    error : float
        The most by which a distance that is not squared may be wrong, rounding included.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def squared(self) -> bool: ...  # noqa: D102

    @property
    def error(self) -> float: ...  # noqa: D102

    def distances(
        self, query: NDArray[Any], objects: NDArray[Any], which: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the distances of a query to some objects of a set.

        Parameters
        ----------
        query : ndarray of shape (...)
        objects : ndarray of shape (N, ...)
        which : ndarray of shape (M,), int64
            Which of the objects.

        Returns
        -------
        ndarray of shape (M,), float64
        """
        ...


class SquaredEuclidean:
    """Euclidean distance of rows of signed bytes (N, W), as its square, an exact integer."""

    name = "squared-euclidean"
    squared = True
    error = 0.0

    def distances(
        self, query: NDArray[Any], objects: NDArray[Any], which: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the squared distances of a row to some rows."""
        found = np.empty(len(which), np.float64)
        inputs = (read_only(array) for array in (query, objects, which))
        _squared_distances(*inputs, found)
        return found
