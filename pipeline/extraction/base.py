"""The interface and rules of extractors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.images import DecodedImage
from pipeline.records import Features


class Extractor(ABC):
    """Finds keypoints and descriptors in decoded images.

    An extractor is deterministic, keeps no state between images and is safe in threads.
    `pipeline.testing.extractors.ExtractorContract` has tests of all these rules; docs/extractors.md
    shows how another package adds one.

    Attributes
    ----------
    name : str
        As registered.
    dimensions : int
        Length D of a native descriptor.
    row_bytes : int
        Length of a stored row in a new collection, bytes: a multiple of 64 from 64 to 4096, one
        byte a dimension after PCA. Default 64, one cache line.
    color : bool
        True: `extract` gets BGR pixels (H, W, 3), uint8. Default False: grey (H, W), uint8.
    one_vector : bool
        True: exactly one descriptor an image, compared by cosine similarity; a search returns the
        nearest. Default False: many, which vote.
    whiten : bool
        True: the index whitens the rotation (PCA whitening trained on the collection, then unit
        length). Default False.
    licence : str
        Licence of the code and of the model, for `vantage extractors`.
    patents : str
        Known patents on the method; "" if nothing is known.
    """

    name: str
    dimensions: int
    row_bytes: int = 64
    color: bool = False
    one_vector: bool = False
    whiten: bool = False
    licence: str = "not stated"
    patents: str = "not stated"
    needs_model: ClassVar[bool] = False
    """True: it needs a model file (``--extractor NAME:FILE``)."""

    @abstractmethod
    def extract(self, image: DecodedImage, max_features: int) -> Features:
        """Return at most `max_features` keypoints, the strongest, spread over the picture.

        Parameters
        ----------
        image : DecodedImage
            Grey, or BGR where `color` is set.
        max_features : int

        Returns
        -------
        Features
            Keypoints in pixels of the original; descriptors of shape (N, D), uint8 or float32. An
            image without keypoints gives arrays of shape (0, 7) and (0, D).
        """

    def extract_many(self, images: Sequence[DecodedImage], max_features: int) -> list[Features]:
        """Return the features of several images, in their order.

        Override it if one pass over a batch costs less. Results are those of `extract`, up to
        rounding of float32 descriptors.
        """
        return [self.extract(image, max_features) for image in images]

    @abstractmethod
    def normalize(self, descriptors: NDArray[np.generic]) -> NDArray[np.float32]:
        """Turn native descriptors (N, D) into float32 rows (N, D) compared by Euclidean distance.

        Rows have unit length. For SIFT this is RootSIFT.
        """

    def warm_up(self) -> None:
        """Compile or load what the first call would need; by default nothing.

        Called by ``vantage doctor --warm`` and before a worker takes messages.
        """
        return
