"""Keypoints of a picture: checked input, the octaves' maxima, OpenCV's order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.extraction.surf.hessian import find_maxima
from pipeline.pixels import pixels_of_array
from pipeline.records import KEYPOINT_COLUMNS

MAX_OCTAVES = 7
"""Most octaves: with `MAX_LAYERS`, the largest filter has sides of 4,032 pixels, whose sums fit 32
bits in the brightest picture."""

MAX_LAYERS = 8
"""Most layers of an octave: 3 is usual, and each additional one costs as much time."""

MAX_THRESHOLD = 255 * 255
"""Largest threshold: no determinant of grey levels up to 255 comes near it."""

MAX_PIXELS = 1 << 30
"""Most pixels: 4 GiB of integral image; a larger picture is a mistake, or needs tiles."""


def grey_pixels(image: object) -> NDArray[np.uint8]:
    """Return a caller's picture as grey levels.

    Parameters
    ----------
    image : array of shape (H, W) or (H, W, 1)
        uint8; or bool, uint16 or floating (0 to 1), which are scaled to 8 bit.

    Returns
    -------
    ndarray of shape (H, W), uint8
        Contiguous; of a contiguous uint8 picture, the same memory.

    Raises
    ------
    InputError
        Not an array, colour, no pixels or too many, another dtype, values outside 0 to 1, NaN.
    """
    if not isinstance(image, np.ndarray):
        raise InputError(f"SURF takes a numpy array of grey levels, not a {type(image).__name__}")
    pixels: NDArray[Any] = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    if pixels.ndim != 2:
        raise InputError(
            f"SURF takes grey levels of shape (H, W), not {image.shape}; convert colour first, "
            "with cv2.cvtColor or PIL's convert('L')"
        )
    if pixels.size > MAX_PIXELS:
        raise InputError(
            f"the picture has {pixels.size:,} pixels, SURF takes up to {MAX_PIXELS:,}; cut it into "
            "tiles, or reduce it"
        )
    if pixels.dtype == np.uint8 and pixels.size > 0:
        return np.ascontiguousarray(pixels)
    return pixels_of_array(pixels, color=False)


def check_parameters(
    hessian_threshold: float, octaves: int, layers: int, max_features: int | None
) -> None:
    """Raise unless the parameters can be used.

    Raises
    ------
    InputError
    """
    if not 0 <= hessian_threshold <= MAX_THRESHOLD:  # nor NaN
        raise InputError(f"hessian_threshold is {hessian_threshold}: 0 to {MAX_THRESHOLD:,}")
    if not 1 <= octaves <= MAX_OCTAVES:
        raise InputError(f"octaves is {octaves}: 1 to {MAX_OCTAVES}")
    if not 1 <= layers <= MAX_LAYERS:
        raise InputError(f"layers is {layers}: 1 to {MAX_LAYERS}")
    if max_features is not None and max_features < 0:
        raise InputError(f"max_features is {max_features}: 0 or more, or None for all")


def find_keypoints(
    sums: NDArray[np.int32], hessian_threshold: float, octaves: int, layers: int
) -> NDArray[np.float32]:
    """Return the keypoints of all octaves, strongest first; their angles are -1.

    Parameters
    ----------
    sums : ndarray of shape (H + 1, W + 1), int32
        Integral image.
    hessian_threshold : float
        Least determinant, grey levels squared.
    octaves, layers : int

    Returns
    -------
    ndarray of shape (N, 7), float32
        Rows of `KEYPOINT_COLUMNS`. Equal responses are ordered by size, octave (large first), y
        and x.
    """
    parts = [find_maxima(sums, octave, layers, hessian_threshold) for octave in range(octaves)]
    found = np.concatenate(parts).reshape(-1, len(KEYPOINT_COLUMNS))
    x, y, size, _angle, response, octave = found[:, :6].T
    return found[np.lexsort((x, y, -octave, -size, -response))]
