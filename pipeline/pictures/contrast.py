"""Contrast: wide samples to 8 bits, and pictures that use a small part of the range.

With ten bits in a file of sixteen, fog, or an eighth of the light, a picture would be lost in 8
bits of the whole range, or fall below an extractor's thresholds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL_RANGE = 0.3
"""Wide samples that use less of their range than this are stretched: 14 bits in 16 are 0.25."""

_TAIL = 0.05
"""Per cent of the values ignored at each end, so that a dead pixel does not decide."""

_FLAT_LEVELS = 4
"""A range of fewer 8-bit levels is rounding and compression, not a picture."""

_LOW_LEVELS = 160
"""An 8-bit picture of more levels than this does not lack contrast."""

_STRUCTURE = 0.2
"""Least correlation of neighbouring values: noise has 0, the finest textures 0.4."""

_SAMPLE = 1 << 20


def to_8_bits(
    values: NDArray[Any],
    full: tuple[float, float] | None,
    visible: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Scale wide samples to 8 bits; those of a small range by that range.

    Parameters
    ----------
    values : ndarray of shape (h, w) or (h, w, 3)
        Integers or floats.
    full : (float, float) or None
        Black and white of the format. None where it has no agreed ones: floats, and integers of
        32 bits. Then values within 0..1 (floats) or 0..65535 are taken as such, all others are
        stretched.
    visible : ndarray of bool of shape (h, w), optional
        Which pixels count for the range; default all.

    Returns
    -------
    ndarray of uint8, the same shape
    """
    values = _finite(values)
    floating = np.issubdtype(values.dtype, np.floating)
    least, most = float(values.min()), float(values.max())
    if full is None and least >= 0 and most <= 65535:
        full = (0.0, 1.0) if floating and most <= 1 else None if floating else (0.0, 65535.0)
    low, high = _range(values, visible)
    if full is None:
        if not (high - low) / max(most - least, 1e-300) > SMALL_RANGE:
            return scaled(values, low, high)
        return scaled(values, least, most)
    width = full[1] - full[0]
    if high > low and high - low < SMALL_RANGE * width and has_structure(values):
        return scaled(values, low, high)
    if values.dtype == np.uint16 and full == (0.0, 65535.0):
        # Pillow drops the low byte of wide colours: pictures with the whole range stay the same.
        return (values >> 8).astype(np.uint8) if values.ndim == 3 else divide_by_257(values)
    return scaled(values, *full)


def divide_by_257(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Scale 0..65535 to 0..255, rounding to the nearest."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def stretched(pixels: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Stretch an 8-bit picture of low contrast to the whole range; None if that does not help.

    Parameters
    ----------
    pixels : ndarray of shape (h, w) or (h, w, 3), uint8

    Returns
    -------
    ndarray or None
        None for a picture that uses much of the range, is flat, or is mere noise.
    """
    low, high = _range(pixels, None)
    if not _FLAT_LEVELS <= high - low <= _LOW_LEVELS or not has_structure(pixels):
        return None
    return scaled(pixels, low, high)


def levels(pixels: NDArray[np.uint8]) -> int:
    """Return how many of the 256 levels are between a picture's darkest and its lightest."""
    return int(pixels.max()) - int(pixels.min())


def has_structure(values: NDArray[Any]) -> bool:
    """Say whether neighbouring values are similar, unlike in mere noise."""
    rows = _sampled_rows(values[..., 1] if values.ndim == 3 else values)
    if rows.size < 64 or rows.shape[1] < 2:
        return True
    rows = rows.astype(np.float64) - float(rows.mean(dtype=np.float64))
    power = float((rows * rows).mean())
    return power > 0 and float((rows[:, 1:] * rows[:, :-1]).mean()) / power >= _STRUCTURE


def _sampled_rows(values: NDArray[Any]) -> NDArray[Any]:
    """Return some whole rows, with enough values to judge by."""
    return values[:: max(1, values.size // _SAMPLE)]


def _range(values: NDArray[Any], visible: NDArray[np.bool_] | None) -> tuple[float, float]:
    """Return the range of nearly all visible values; if it is empty, of all values."""
    step = max(1, math.isqrt(max(1, values.size // _SAMPLE)))
    some = values[::step, ::step]
    if visible is not None and (shown := visible[::step, ::step]).any():
        some = some[shown]
    low, high = (float(value) for value in np.percentile(some, (_TAIL, 100 - _TAIL)))
    return (low, high) if high > low else (float(some.min()), float(some.max()))


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    """Return values without NaN and minus infinity (the darkest) and infinity (the lightest)."""
    if not np.issubdtype(values.dtype, np.floating):
        return values
    finite = np.isfinite(values)
    if finite.all():
        return values
    least, most = (values[finite].min(), values[finite].max()) if finite.any() else (0, 0)
    replaced: NDArray[Any] = np.nan_to_num(values, nan=least, neginf=least, posinf=most)
    return replaced


def scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Map low..high to 0..255, rounding to the nearest, clipped."""
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    out = np.empty(values.shape, np.uint8)
    # In blocks of rows, because a wide picture is large.
    rows = max(1, _SAMPLE // max(1, values[0].size))
    for at in range(0, len(values), rows):
        block = (values[at : at + rows].astype(np.float64) - low) * (255.0 / (high - low))
        out[at : at + rows] = np.rint(np.clip(block, 0, 255))
    return out
