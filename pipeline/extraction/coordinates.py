"""From pixels of the decoded picture to pixels of the original."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.images import DecodedImage


def in_original_pixels(rows: NDArray[np.float32], image: DecodedImage) -> NDArray[np.float32]:
    """Scale coordinates and sizes; a coordinate is the centre of its pixel, as in OpenCV.

    Parameters
    ----------
    rows : ndarray of shape (N, 7), float32
        Rows of `KEYPOINT_COLUMNS`, in pixels of ``image.pixels``.
    image : DecodedImage

    Returns
    -------
    ndarray of shape (N, 7), float32
        A copy, in pixels of the original.
    """
    scaled = rows.copy()
    scaled[:, 0] = rows[:, 0] * image.scale_x + (image.scale_x - 1) / 2
    scaled[:, 1] = rows[:, 1] * image.scale_y + (image.scale_y - 1) / 2
    scaled[:, 2] = rows[:, 2] * np.sqrt(image.scale_x * image.scale_y)
    return scaled
