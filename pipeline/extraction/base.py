"""The contract that every extractor keeps."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.images import DecodedImage
from pipeline.records import Features


@runtime_checkable
class Extractor(Protocol):
    """Finds keypoints and descriptors in a decoded image.

    An extractor is deterministic, keeps no state between images and is safe in threads.
    """

    name: str
    dimensions: int
    """Length D of a native descriptor."""

    def extract(self, image: DecodedImage, max_features: int) -> Features:
        """Return at most `max_features` keypoints, the strongest, spread over the picture.

        An image without keypoints gives arrays of shape (0, 7) and (0, D).
        """

    def normalize(self, descriptors: NDArray[np.generic]) -> NDArray[np.float32]:
        """Turn native descriptors (N, D) into float32 rows (N, D) compared by Euclidean distance.

        For SIFT this is RootSIFT: rows of unit length.
        """
