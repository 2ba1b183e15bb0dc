"""SIFT keypoints and descriptors by OpenCV, compared as RootSIFT.

Lowe, "Distinctive image features from scale-invariant keypoints", IJCV 2004; Arandjelovic and
Zisserman, "Three things everyone should know to improve object retrieval", CVPR 2012.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.extraction.base import Extractor
from pipeline.extraction.coordinates import in_original_pixels
from pipeline.extraction.selection import select_strongest
from pipeline.images import DecodedImage
from pipeline.records import KEYPOINT_COLUMNS, Features


class SiftExtractor(Extractor):
    """OpenCV's SIFT with 8-bit descriptors; one detector per thread.

    Parameters
    ----------
    contrast_threshold : float
        Least local contrast of a keypoint, times the number of layers in an octave.
    """

    name = "sift"
    dimensions = 128
    licence = "Apache-2.0 (OpenCV)"
    patents = "US 6,711,293 expired in March 2020"

    def __init__(self, *, contrast_threshold: float = 0.04) -> None:
        self._contrast_threshold = contrast_threshold
        self._threads = threading.local()

    def extract(self, image: DecodedImage, max_features: int) -> Features:
        """Return at most `max_features` keypoints, the strongest (see `select_strongest`).

        Parameters
        ----------
        image : DecodedImage
            Grey pixels.
        max_features : int

        Returns
        -------
        Features
            Keypoints in original pixels; descriptors of shape (N, 128), uint8.
        """
        # One pass: describing all keypoints costs less than building the pyramid a second time to
        # describe the chosen ones, up to about 3,000 keypoints.
        found, described = self._detector().detectAndCompute(image.pixels, None)
        keypoints = _keypoint_rows(found)
        kept = select_strongest(keypoints, max_features)
        descriptors = np.zeros((0, self.dimensions)) if described is None else described[kept]
        return Features(
            in_original_pixels(keypoints[kept], image),
            np.ascontiguousarray(descriptors, dtype=np.uint8),
            image.width,
            image.height,
        )

    def normalize(self, descriptors: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return RootSIFT rows: the square roots of the L1-normalised values, of unit length.

        Parameters
        ----------
        descriptors : ndarray of shape (N, 128)

        Returns
        -------
        ndarray of shape (N, 128), float32
            A row of zeros, which SIFT does not produce, stays zero.
        """
        values = descriptors.astype(np.float32)
        sums = values.sum(axis=1, keepdims=True)
        rows: NDArray[np.float32] = np.sqrt(values / np.maximum(sums, np.float32(1e-12)))
        return rows

    def _detector(self) -> cv2.SIFT:
        """Return this thread's detector: OpenCV's objects keep scratch buffers."""
        detector: cv2.SIFT | None = getattr(self._threads, "detector", None)
        if detector is None:
            detector = cv2.SIFT.create(
                nfeatures=0,
                nOctaveLayers=3,
                contrastThreshold=self._contrast_threshold,
                edgeThreshold=10,
                sigma=1.6,
                descriptorType=cv2.CV_8U,
                enable_precise_upscale=True,
            )
            self._threads.detector = detector
        return detector


def _keypoint_rows(keypoints: Sequence[cv2.KeyPoint]) -> NDArray[np.float32]:
    """Return OpenCV keypoints as rows of `KEYPOINT_COLUMNS`, in pixels of the decoded picture."""
    rows = np.array(
        [(k.pt[0], k.pt[1], k.size, k.angle, k.response, _octave(k.octave), 0) for k in keypoints],
        dtype=np.float32,
    )
    return rows.reshape(-1, len(KEYPOINT_COLUMNS))


def _octave(packed: int) -> int:
    """Return the octave (-1 is the doubled picture) from OpenCV's packed octave, layer, offset."""
    octave = packed & 255
    return octave - 256 if octave >= 128 else octave
