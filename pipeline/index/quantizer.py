"""Rotation and 8-bit quantisation of descriptors.

Descriptors are centred, rotated by an orthogonal PCA, reduced to the leading components and stored
as signed bytes with one scale for all components. So the squared Euclidean distance of two stored
rows is, except for rounding and the reduction, the squared distance of the descriptors times
``scale ** 2``, in exact integers.

Vectors of whole pictures are scaled to unit length again before they are rounded. Subtracting the
mean has removed what they all share, so unrelated ones have a cosine near zero, and the distance
measures the cosine of the rest: ``1 - distance / (2 scale ** 2)``. With whitening, each rotated
component is first divided by its standard deviation: directions in which all images differ (and
which say little) no longer outweigh the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import column, require, require_finite
from pipeline.errors import InputError
from pipeline.index.rows import read_only
from pipeline.machine_code import CompiledLoop

_rotate = CompiledLoop("pipeline.index.loops", "rotate")

TRAINING_ROWS = 65_536
"""Approximate limit of the rows from which axes and scale are computed; more for very long
descriptors."""


LARGEST = 1e18
"""Largest number in a descriptor: squares of larger ones overflow float32."""


@dataclass(frozen=True)
class Quantizer:
    """A trained rotation with its scale.

    Attributes
    ----------
    mean : ndarray of shape (D,), float32
    rotation : ndarray of shape (D, W), float32
        Leading principal axes first; orthonormal columns, with whitening each divided by the
        standard deviation along it. W is the length of a stored row; columns beyond D are zero.
    scale : float
        Bytes per unit of the normalised descriptor.
    unit : bool
        Rows are scaled to unit length after the rotation.
    """

    mean: NDArray[np.float32]
    rotation: NDArray[np.float32]
    scale: float
    unit: bool = False

    def encode(self, descriptors: NDArray[np.float32]) -> NDArray[np.int8]:
        """Return the stored bytes of normalised descriptors.

        Parameters
        ----------
        descriptors : ndarray of shape (N, D), float32
            Finite.

        Returns
        -------
        ndarray of shape (N, W), int8

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
        if not (np.abs(descriptors) <= LARGEST).all():
            raise InputError(
                f"descriptors hold NaN or infinite values, or values beyond {LARGEST:g}; "
                "remove those rows"
            )
        inputs = (descriptors, self.mean, self.rotation)
        rotated = np.zeros((len(descriptors), self.rotation.shape[1]), np.float32)
        _rotate(*map(read_only, inputs), rotated)
        if self.unit:
            rotated = _unit_length(rotated)
        codes: NDArray[np.int8] = np.clip(np.rint(rotated * self.scale), -127, 127).astype(np.int8)
        return codes


def read_quantizer(
    arrays: Mapping[str, NDArray[Any]], scale: float, unit: bool = False
) -> Quantizer:
    """Return the rotation of a file, with its scale.

    Raises
    ------
    CorruptFileError
        The arrays are not those of a rotation.
    """
    mean = column(arrays, "mean", np.float32, None)
    rotation = column(arrays, "rotation", np.float32, len(mean), None)
    require_finite(arrays, "mean", mean)
    require_finite(arrays, "rotation", rotation)
    # No float32 needs a scale outside; its square must be a number, too.
    require(1e-50 < scale < 1e50, arrays, f"its scale is {scale}")
    return Quantizer(mean, rotation, scale, unit)


def _unit_length(rows: NDArray[Any]) -> NDArray[Any]:
    """Return rows divided by their lengths; a row of zeros stays zero."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))[:, None]
    return (rows / np.where(lengths > 0, lengths, 1)).astype(rows.dtype)


def _shrunk_variances(centred: NDArray[np.float64], variances: NDArray[np.float64]) -> Any:
    """Return variances along the axes, shrunk towards their mean if the sample is small.

    In a sample of few rows most directions do not vary at all; divided by such a zero, they would
    dominate all others. The optimal share of the mean follows from the sample itself.

    Parameters
    ----------
    centred : ndarray of shape (N, D), float64
    variances : ndarray of shape (D,), float64
        Eigenvalues of the sample's covariance.

    References
    ----------
    O. Ledoit, M. Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
    Journal of Multivariate Analysis 88 (2004), lemma 3.2 to 3.4.
    """
    count, mean = len(centred), variances.mean()
    if mean <= 0:
        return np.ones_like(variances)
    if count**2 <= len(variances):  # too few to estimate even the error of the estimate
        return np.full_like(variances, mean)
    spread = ((variances - mean) ** 2).sum()
    lengths = np.einsum("nd,nd->n", centred, centred)
    error = max((lengths**2).sum() / count**2 - (variances**2).sum() / count, 0.0)
    share = 1.0 if spread <= error else error / spread
    floor = 1e-6 * mean  # of directions that never vary in a large sample
    return np.maximum((1 - share) * variances + share * mean, floor)


def thinned(sample: NDArray[Any]) -> NDArray[Any]:
    """Return every n-th row of a large sample: more rows take time but do not change the axes."""
    return sample[:: max(1, len(sample) // max(TRAINING_ROWS, 16 * sample.shape[1]))]


def train_quantizer(
    sample: NDArray[np.float32],
    dimensions: int = 64,
    unit: bool = False,
    whiten: bool = False,
) -> Quantizer:
    """Fit mean, rotation and scale to a sample of normalised descriptors.

    The scale maps the 99.99th percentile of the absolute rotated components to 127: only a few
    values are clipped, in the first components of unusual descriptors. With `unit` it maps the
    largest.

    Parameters
    ----------
    sample : ndarray of shape (N, D), float32
        N may be smaller than D (the remaining axes are then arbitrary but orthonormal), and D
        smaller than `dimensions` (the remaining components are zero).
    dimensions : int
        Components kept.
    unit : bool
        Scale rows to unit length after the rotation. For vectors of whole pictures (measured in
        docs/decisions/0007-cnn-runtime.md); distances of local features are meaningful as they are.
    whiten : bool
        First divide each component by its standard deviation; implies `unit`.

    Notes
    -----
    The sign of each axis is fixed (largest coefficient positive); the linear algebra library would
    choose it arbitrarily. With `unit`, the mean of N rows is multiplied by N / (N + 1): otherwise a
    single row would be its own mean, and nothing would be left of it.

    References
    ----------
    H. Jegou, O. Chum, "Negative evidences and co-occurences in image retrieval: the benefit of PCA
    and whitening", ECCV 2012.
    """
    sample = thinned(sample)
    width, count = sample.shape[1], len(sample)
    mean = sample.mean(axis=0, dtype=np.float64)
    centred = sample.astype(np.float64) - mean
    values, axes = np.linalg.eigh(centred.T @ centred)
    values, axes = values[::-1], axes[:, ::-1]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, np.arange(width)])
    unit = unit or whiten
    if unit:
        mean = mean * (count / (count + 1))
    if whiten:
        variances = np.maximum(values, 0) / count
        axes = axes / np.sqrt(_shrunk_variances(centred, variances))
    rotation = np.zeros((width, dimensions), np.float32)
    rotation[:, : min(width, dimensions)] = axes[:, :dimensions]
    rotated = (sample - mean) @ rotation
    if unit:
        rotated = _unit_length(rotated)
    # A unit row has few large components and must not lose one; their extent is at most 1 anyway.
    quantile = 1.0 if unit else 0.9999
    extent = float(np.quantile(np.abs(rotated[:, :width]), quantile)) if count else 0.0
    scale = 127.0 / extent if extent > 0 else 127.0
    return Quantizer(mean.astype(np.float32), rotation, scale, unit)
