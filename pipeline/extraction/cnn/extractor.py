"""One vector for each image, from any ONNX image network."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ExtractorConfig
from pipeline.errors import ConfigError, InputError
from pipeline.extraction.base import Extractor
from pipeline.extraction.cnn.network import TriedNetwork
from pipeline.extraction.cnn.pooling import pooled, unit_rows
from pipeline.extraction.cnn.preprocess import Preprocessor
from pipeline.extraction.cnn.settings import CnnSettings
from pipeline.images import DecodedImage
from pipeline.records import Features

MAX_DIMENSIONS = 8192
"""Longest vector: the PCA decomposes a square matrix of that side (8,192: 512 MiB, minutes)."""


class CnnExtractor(Extractor):
    """Describes an image by one vector: an output of a network, pooled over its positions.

    Parameters
    ----------
    model : Path
        ONNX file.
    settings : CnnSettings
    threads : int
        Threads for a batch. Default 1: a worker has as many processes as cores.

    Raises
    ------
    ConfigError
        The file or the settings are wrong, or do not fit each other.

    Notes
    -----
    An image alone and in a batch give the same vector up to the rounding of float32 sums, which a
    runtime may order by the number of rows (onnxruntime 1.31 was measured to give the same bits).
    """

    name = "cnn"
    one_vector = True
    needs_model = True
    licence = "of the model file"
    patents = "none known on the method; ask of the model"

    def __init__(self, model: Path, settings: CnnSettings, *, threads: int = 1) -> None:
        self._path = model
        self._settings = settings
        self._threads = threads
        self._loading = threading.Lock()
        self._loaded = (os.getpid(), TriedNetwork(model, settings, threads))
        self._of_parents: list[TriedNetwork] = []
        self._preprocess = Preprocessor(settings)
        self.color = settings.channels != "grey"
        self.whiten = settings.whiten
        self.dimensions = self._vector_length()
        self.row_bytes = settings.row_bytes or _row_bytes(self.dimensions)

    @property
    def batch(self) -> int:
        """Images that go through the network at once."""
        return self._network().batch

    def extract(self, image: DecodedImage, max_features: int) -> Features:
        """Return the vector of an image; see `extract_many`."""
        return self.extract_many([image], max_features)[0]

    def extract_many(self, images: Sequence[DecodedImage], max_features: int) -> list[Features]:
        """Return the vectors of images, computed in batches.

        Parameters
        ----------
        images : sequence of DecodedImage
            BGR pixels; grey ones for a network with one channel.
        max_features : int
            Ignored: there is always one.

        Returns
        -------
        list of Features
            Descriptors of shape (1, D), float32. The keypoint is the whole picture: its centre, its
            longer side as size, response 1.

        Raises
        ------
        InputError
            The network fails, or gives NaN or infinite values.
        """
        network = self._network()
        found: list[Features] = []
        # Batch by batch: prepared pictures are larger than decoded ones.
        for first in range(0, len(images), network.batch):
            some = images[first : first + network.batch]
            outputs = network.run([self._preprocess(image.pixels) for image in some])
            found += [self._features(*pair) for pair in zip(some, outputs, strict=True)]
        return found

    def normalize(self, descriptors: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return rows of unit length, so that Euclidean distance ranks like cosine similarity."""
        return unit_rows(descriptors.astype(np.float32))

    def warm_up(self) -> None:
        """Load the network and run it once: runtimes plan their memory in the first run."""
        side = np.zeros((8, 8, 3) if self.color else (8, 8), np.uint8)
        self.extract(DecodedImage(side, 8, 8), 1)

    def _network(self) -> TriedNetwork:
        """Return the network; after a fork a new one, because threads do not survive it."""
        process, network = self._loaded
        if process != os.getpid():
            with self._loading:
                if self._loaded[0] != os.getpid():
                    # Kept: deleting it would wait for threads that do not exist after the fork.
                    self._of_parents.append(self._loaded[1])
                    network = TriedNetwork(self._path, self._settings, self._threads)
                    self._loaded = (os.getpid(), network)
                return self._loaded[1]
        return network

    def _vector_length(self) -> int:
        """Return D; refuse outputs that cannot become a vector."""
        shape, settings = self._network().output_shape, self._settings
        if settings.pooling == "none" or len(shape) == 1:
            length = int(np.prod(shape))
        else:
            length = shape[-1 if settings.layout == "NHWC" else 0]
        if not 1 <= length <= MAX_DIMENSIONS:
            raise ConfigError(
                f"pooling for {self._path.name}",
                settings.pooling,
                f"the output is {' x '.join(map(str, shape))} for an image, a vector of {length:,} "
                f"numbers; at most {MAX_DIMENSIONS:,} are possible: pool it (average, gem), or "
                "choose another output",
            )
        return length

    def _features(self, image: DecodedImage, output: NDArray[np.float32]) -> Features:
        """Return one image's keypoint and vector."""
        if not np.isfinite(output).all():
            raise InputError(
                f"{self._path.name} gives NaN or infinite values for {image.name!r}; are mean, std "
                "and scale those it was trained with?"
            )
        vector = pooled(output, self._settings)
        width, height = image.width, image.height
        whole = [(width - 1) / 2, (height - 1) / 2, max(width, height), 0, 1, 0, 0]
        return Features(np.array([whole], np.float32), vector[None], width, height)


def _row_bytes(dimensions: int) -> int:
    """Return the default number of components: see `CnnSettings.row_bytes`."""
    kept = min(512, max(min(dimensions, 128), dimensions // 4))
    return -(-kept // 64) * 64


def make_cnn(config: ExtractorConfig, open_model: Callable[[str], Path]) -> CnnExtractor:
    """Make the extractor of a configuration.

    Parameters
    ----------
    config : ExtractorConfig
        `model` is the file's SHA-256, `options` are `CnnSettings`.
    open_model : callable
        Returns the local file of a model, given its SHA-256.

    Raises
    ------
    ConfigError
        See `CnnExtractor`.
    """
    return CnnExtractor(open_model(config.model), CnnSettings.from_dict(config.options))
