"""Rotation and 8-bit quantisation of descriptors.

Descriptors are centred, rotated by an orthogonal PCA, cut to the leading 64 components and stored
as signed bytes with one scale for all components, so that the squared Euclidean distance of two
stored rows is (but for rounding and the cut) the squared distance of the descriptors times
``scale ** 2``, in exact integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError


@dataclass(frozen=True)
class Quantizer:
    """A trained rotation with its scale.

    Attributes
    ----------
    mean : ndarray of shape (D,), float32
    rotation : ndarray of shape (D, 64), float32
        Orthonormal columns, leading principal axes first.
    scale : float
        Bytes per unit of the normalised descriptor.
    """

    mean: NDArray[np.float32]
    rotation: NDArray[np.float32]
    scale: float

    def encode(self, descriptors: NDArray[np.float32]) -> NDArray[np.int8]:
        """Return the stored bytes of normalised descriptors.

        Parameters
        ----------
        descriptors : ndarray of shape (N, D), float32
            Finite.

        Returns
        -------
        ndarray of shape (N, 64), int8

        Raises
        ------
        InputError
            Wrong shape, or a value that is not finite.
        """
        if descriptors.ndim != 2 or descriptors.shape[1] != len(self.mean):
            raise InputError(
                f"descriptors of shape {descriptors.shape} do not fit: this index holds rows of "
                f"{len(self.mean)} numbers"
            )
        if not np.isfinite(descriptors).all():
            raise InputError("descriptors hold NaN or infinite values; remove those rows")
        rotated = (descriptors - self.mean) @ self.rotation
        return np.clip(np.rint(rotated * self.scale), -127, 127).astype(np.int8)


def train_quantizer(sample: NDArray[np.float32], dimensions: int = 64) -> Quantizer:
    """Fit mean, rotation and scale to a sample of normalised descriptors.

    The scale maps the 99.99th percentile of the absolute rotated components to 127: no value that
    matters is clipped, and the few that are lie in the first components of odd descriptors.

    Parameters
    ----------
    sample : ndarray of shape (N, D), float32
        N may be smaller than D (the remaining axes are then arbitrary but orthonormal), and D
        smaller than `dimensions` (the remaining components are zero).
    dimensions : int
        Components kept.

    Notes
    -----
    The sign of each axis is fixed (largest coefficient positive); the linear algebra library would
    choose it at will.
    """
    width = sample.shape[1]
    mean = sample.mean(axis=0, dtype=np.float64)
    centred = sample.astype(np.float64) - mean
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :dimensions]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, np.arange(axes.shape[1])])
    rotation = np.zeros((width, dimensions), np.float32)
    rotation[:, : axes.shape[1]] = axes
    extent = float(np.quantile(np.abs(centred @ axes), 0.9999)) if len(sample) else 0.0
    return Quantizer(mean.astype(np.float32), rotation, 127.0 / extent if extent > 0 else 127.0)
