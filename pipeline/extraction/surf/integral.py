"""Integral images: the sum over any upright box from four look-ups.

Viola and Jones, "Rapid object detection using a boosted cascade of simple features", CVPR 2001.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.index.rows import read_only
from pipeline.machine_code import CompiledLoop

_fill = CompiledLoop("pipeline.extraction.surf.integral_loops", "fill")


def integral_image(image: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return the sums of all grey levels above and to the left of every pixel corner.

    The sum over rows ``top`` to ``bottom - 1`` and columns ``left`` to ``right - 1`` is
    ``I[bottom, right] - I[top, right] - I[bottom, left] + I[top, left]``, all in int32.

    Sums wrap round at 32 bits: a bright image of more than 8.4 million pixels passes 2**31.
    Differences of wrapped sums are right as long as the box itself holds less than 2**31, so every
    box of up to 8.4 million pixels is exact in an image of any size.

    Parameters
    ----------
    image : ndarray of shape (H, W), uint8
        Grey levels.

    Returns
    -------
    ndarray of shape (H + 1, W + 1), int32
        The first row and the first column are zero.
    """
    height, width = image.shape
    sums = np.empty((height + 1, width + 1), np.int32)
    _fill(read_only(image), sums)
    return sums


def warm_up() -> None:
    """Compile the loop, or load it from the cache on disk."""
    integral_image(np.zeros((2, 2), np.uint8))
