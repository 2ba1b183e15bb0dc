"""Choosing keypoints when there are too many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def select_strongest(keypoints: NDArray[np.float32], max_features: int) -> NDArray[np.intp]:
    """Choose the keypoints with the greatest response times size.

    Two thirds of SIFT's keypoints have the smallest size, a pixel or two. They have strong
    responses, crowd in fine texture and are lost in another photograph of the same thing. Weighting
    by size chooses keypoints that are found again more often and are spread over the picture,
    because large ones keep their distance (measured in docs/decisions/0003-keypoint-selection.md).

    Parameters
    ----------
    keypoints : ndarray of shape (N, 7), float32
        Rows of `KEYPOINT_COLUMNS`.
    max_features : int
        Most keypoints to keep.

    Returns
    -------
    ndarray of shape (min(N, max_features),), intp
        Row numbers, strongest first. Ties are broken by coordinates, size and angle, so that the
        choice does not depend on the order of the rows.
    """
    x, y, size, angle, response = keypoints[:, :5].T
    return np.lexsort((angle, size, x, y, -(response * size)))[:max_features]
