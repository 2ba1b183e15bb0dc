"""Features of an evaluation data set, extracted once and kept in a file, for the measurements."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import ExtractorConfig, ImageLimits, IndexConfig
from pipeline.errors import NoFeaturesError
from pipeline.evaluation.dataset import Dataset, read_dataset
from pipeline.extraction.features import extract_image
from pipeline.extraction.sift import SiftExtractor
from pipeline.files import hash_bytes
from pipeline.index.model import Model, train_model
from pipeline.index.sampling import draw_samples

CONFIG = ExtractorConfig()


class FeatureSet:
    """Descriptors of every image and query of a data set.

    A query has ``query_max_features`` rows, strongest first; the first ``max_features`` of them are
    the rows of the same picture as an image of the collection.
    """

    def __init__(self, dataset: Dataset, arrays: dict[str, NDArray[np.generic]]) -> None:
        self.dataset = dataset
        self._place = {str(path): i for i, path in enumerate(arrays["paths"])}
        self._sha256 = [str(value) for value in arrays["sha256"]]
        self._ends = np.cumsum(arrays["counts"])
        self._starts = self._ends - arrays["counts"]
        self._rows = arrays["descriptors"]

    def sha256(self, path: str) -> str:
        """Return an image's identity."""
        return self._sha256[self._place[path]]

    def query(self, path: str) -> NDArray[np.generic]:
        """Return the descriptors of a query, native precision."""
        place = self._place[path]
        return self._rows[self._starts[place] : self._ends[place]]

    def image(self, path: str) -> NDArray[np.generic]:
        """Return the descriptors of an image of the collection, native precision."""
        return self.query(path)[: CONFIG.max_features]

    def train(self, paths: Sequence[str], config: IndexConfig) -> Model:
        """Train a collection of these images as the pipeline does."""
        images = [(self.sha256(path), self.image(path)) for path in paths]
        descriptors = sum(len(rows) for _, rows in images)
        samples = draw_samples(images, len(images), config)
        return train_model(*samples, descriptors, config, normalize=SiftExtractor().normalize)


def add_options(parser: ArgumentParser) -> None:
    """Add the options that say which data set and where its features are kept."""
    parser.add_argument("folder", help="evaluation data set with a groundtruth.json")
    parser.add_argument(
        "--features", type=Path, help="file (.npz) in which the extracted features are kept"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of the extraction")


def read_features(folder: str, file: Path | None = None, threads: int = 1) -> FeatureSet:
    """Read the features of a data set from a file, or extract them and write it."""
    dataset = read_dataset(folder)
    if file is not None and file.is_file():
        with np.load(file) as stored:
            return FeatureSet(dataset, dict(stored))
    arrays = _extract(dataset, threads)
    if file is not None:
        np.savez(file, allow_pickle=False, **arrays)
    return FeatureSet(dataset, arrays)


def _extract(dataset: Dataset, threads: int) -> dict[str, NDArray[np.generic]]:
    """Extract every image and query once."""
    cv2.setNumThreads(1)
    asked = {query.path for query in dataset.queries}
    paths = sorted(asked | set(dataset.database))

    def one(path: str) -> tuple[str, NDArray[np.generic]]:
        data = dataset.file(path).read_bytes()
        most = CONFIG.query_max_features if path in asked else CONFIG.max_features
        try:
            rows = extract_image(data, path, CONFIG, ImageLimits(), most).descriptors
        except NoFeaturesError:
            rows = np.empty((0, SiftExtractor.dimensions), np.uint8)
        return hash_bytes(data), rows

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(one, paths))
    return {
        "paths": np.array(paths),
        "sha256": np.array([sha256 for sha256, _ in found]),
        "counts": np.array([len(rows) for _, rows in found]),
        "descriptors": np.concatenate([rows for _, rows in found]),
    }
