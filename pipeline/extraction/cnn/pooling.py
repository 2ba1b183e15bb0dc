"""Pooling: from the output of a network to a vector."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.extraction.cnn.settings import CnnSettings


def pooled(output: NDArray[np.float32], settings: CnnSettings) -> NDArray[np.float32]:
    """Return the vector of one image.

    Parameters
    ----------
    output : ndarray of shape (C, h, w), (h, w, C) for ``NHWC``, or any with ``none``
        The network's output for the image, finite. With one axis (C,) there are no positions to
        pool.
    settings : CnnSettings
        `pooling`, `gem_power`, `layout`, `normalize`.

    Returns
    -------
    ndarray of shape (D,), float32
        Of unit length if `normalize` is set; a vector of zeros stays zero.
    """
    vector = output.ravel()
    if settings.pooling != "none" and output.ndim > 1:
        if settings.layout == "NHWC":
            output = np.moveaxis(output, -1, 0)
        # One image at a time, in a fixed order: sums do not depend on the rest of the batch.
        vector = _pool(np.ascontiguousarray(output.reshape(len(output), -1)), settings)
    return unit_rows(vector[None])[0] if settings.normalize else vector


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows (N, D) to unit length; rows of zeros stay."""
    # By the greatest component first: squares neither overflow nor vanish.
    greatest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    safe = rows / np.where(greatest > 0, greatest, np.float32(1))
    lengths = np.sqrt(np.einsum("nd,nd->n", safe, safe, dtype=np.float64))[:, None]
    unit: NDArray[np.float32] = (safe / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit


def _pool(positions: NDArray[np.float32], settings: CnnSettings) -> NDArray[np.float32]:
    """Pool rows of positions (C, P) to (C,)."""
    if settings.pooling == "average":
        average: NDArray[np.float32] = positions.mean(axis=1, dtype=np.float64).astype(np.float32)
        return average
    if settings.pooling == "max":
        greatest: NDArray[np.float32] = positions.max(axis=1)
        return greatest
    return _generalized_mean(positions, settings.gem_power)


def _generalized_mean(positions: NDArray[np.float32], power: float) -> NDArray[np.float32]:
    """Return the `power`-th root of the mean `power`-th power of each row."""
    positive = np.maximum(positions, np.float32(0))
    greatest = positive.max(initial=0)
    if greatest == 0:
        return np.zeros(len(positive), np.float32)
    # Relative to the greatest: high powers of large values overflow.
    powers = np.power(positive / greatest, np.float32(power))
    roots = np.power(powers.mean(axis=1, dtype=np.float64), 1 / power)
    pooled: NDArray[np.float32] = (roots * greatest).astype(np.float32)
    return pooled
