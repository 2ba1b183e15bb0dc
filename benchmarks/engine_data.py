"""Descriptors for the engine's benchmark: real ones, their queries, and more of the same kind.

Database rows are SIFT descriptors of all photographs of an evaluation data set that it indexes,
as RootSIFT, rotated and cut to 64 numbers by the index's own PCA. Query rows are those of its other
photographs. Every method gets the same float32 rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import ExtractorConfig, ImageLimits
from pipeline.errors import NoFeaturesError
from pipeline.evaluation.dataset import Dataset, read_dataset
from pipeline.extraction.features import extract_image
from pipeline.extraction.sift import SiftExtractor
from pipeline.files import hash_bytes
from pipeline.index.identities import Identities
from pipeline.index.quantizer import Quantizer, train_quantizer

PER_IMAGE = 1000
"""Most descriptors of a photograph: as a query has by default, and enough for a million rows."""

DIMENSIONS = 64
TRAINING_ROWS = 100_000
PIECE = 100_000
"""Rows normalised or copied at once, so that temporary arrays stay small."""

AMBIGUOUS = 0.9
"""A match counts as a candidate when its second best is farther by this factor. Loose on purpose:
geometry decides, so that far pairs are not left out."""

FEWEST_INLIERS = 15
REPROJECTION = 5.0
"""Pixels between a keypoint and where the homography puts its partner."""

BATCH = 250
"""Descriptors of a query photograph that are searched for together."""

Floats = NDArray[np.float32]


def numbered_images(count: int) -> Identities:
    """Return a table of images that are identified by their numbers."""
    hashes = np.zeros((count, 32), np.uint8)
    hashes[:, -4:] = np.arange(count, dtype=">u4").view(np.uint8).reshape(-1, 4)
    return Identities(hashes, np.zeros(count, np.uint32))


class Descriptors:
    """Descriptors and positions of the keypoints of every image of a data set."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._place = {str(path): i for i, path in enumerate(arrays["paths"])}
        self._sha256 = [str(value) for value in arrays["sha256"]]
        self._ends = np.cumsum(arrays["counts"])
        self._starts = self._ends - arrays["counts"]
        self._rows: NDArray[np.generic] = arrays["descriptors"]
        self._positions: Floats = arrays["positions"]

    def sha256(self, path: str) -> str:
        """Return an image's identity."""
        return self._sha256[self._place[path]]

    def rows(self, path: str) -> NDArray[np.generic]:
        """Return an image's descriptors (N, 128), strongest first."""
        return self._rows[self._slice(path)]

    def positions(self, path: str) -> Floats:
        """Return where its keypoints lie (N, 2), pixels."""
        return self._positions[self._slice(path)]

    def _slice(self, path: str) -> slice:
        place = self._place[path]
        return slice(int(self._starts[place]), int(self._ends[place]))


@dataclass(frozen=True)
class EngineData:
    """The data for comparing methods.

    Attributes
    ----------
    rows : ndarray of shape (N, 64), float32
    batches : ndarray of shape (B, 250, 64), float32
        Each the descriptors of one photograph that is not in the database.
    pairs : sequence of tuple of str
        Query photographs, each with one of the database that shows the same thing.
    quantizer : Quantizer
        The quantizer that rotated the rows.
    descriptors : Descriptors
    """

    rows: Floats
    batches: Floats
    pairs: Sequence[tuple[str, str]]
    quantizer: Quantizer
    descriptors: Descriptors


def read_data(
    folder: str, cache: Path, rows: int, batches: int, batch: int, threads: int
) -> EngineData:
    """Read descriptors from the cache, extracting them first when there are none.

    Parameters
    ----------
    folder : str
        Evaluation data set.
    cache : Path
        Folder of the extracted features; made when it is not there.
    rows : int
        Rows of the database; fewer when the photographs have not so many.
    batches, batch : int
        How many batches of queries, and of how many descriptors.
    threads : int
        Of the extraction.
    """
    dataset = read_dataset(folder)
    cache.mkdir(parents=True, exist_ok=True)
    descriptors = Descriptors(_features(dataset, cache / f"engine-sift-{PER_IMAGE}.npz", threads))
    indexed = sorted(dataset.database, key=descriptors.sha256)
    known = set(indexed)
    asked = [query for query in dataset.queries if query.path not in known]
    native = np.concatenate([descriptors.rows(path) for path in indexed])
    chosen = np.random.default_rng(1).choice(len(native), min(TRAINING_ROWS, len(native)), False)
    normalize = SiftExtractor().normalize
    quantizer = train_quantizer(normalize(native[np.sort(chosen)]), DIMENSIONS)
    photographs = _spread(
        [q.path for q in asked if len(descriptors.rows(q.path)) >= batch], batches
    )
    pairs = [(query.path, path) for query in asked for path in sorted(query.relevant)]
    return EngineData(
        rotate(native[:rows], quantizer),
        np.stack([_batch(descriptors.rows(path), batch, quantizer) for path in photographs]),
        pairs,
        quantizer,
        descriptors,
    )


def rotate(native: NDArray[np.generic], quantizer: Quantizer) -> Floats:
    """Return RootSIFT rows (N, 64), float32, of SIFT descriptors (N, 128)."""
    normalize = SiftExtractor().normalize
    out = np.empty((len(native), quantizer.rotation.shape[1]), np.float32)
    for at in range(0, len(native), PIECE):
        piece = normalize(native[at : at + PIECE])
        out[at : at + PIECE] = (piece - quantizer.mean) @ quantizer.rotation
    return out


def matching_differences(data: EngineData) -> Floats:
    """Return the differences (M, 64) of descriptors that show the same point of the same thing.

    Mutually nearest descriptors of two photographs are candidates; those that agree with one
    homography (RANSAC) are taken, when there are enough of them.
    """
    descriptors = data.descriptors
    found = []
    for left, right in data.pairs:
        a, b = (rotate(descriptors.rows(path), data.quantizer) for path in (left, right))
        if min(len(a), len(b)) < FEWEST_INLIERS:
            continue
        near, partner = _mutual(a, b)
        if len(near) < FEWEST_INLIERS:
            continue
        from_, to = descriptors.positions(left)[near], descriptors.positions(right)[partner]
        _, inliers = cv2.findHomography(from_, to, cv2.RANSAC, REPROJECTION)
        good = np.zeros(len(near), bool) if inliers is None else inliers.ravel().astype(bool)
        if good.sum() >= FEWEST_INLIERS:
            found.append(a[near[good]] - b[partner[good]])
    return np.concatenate(found) if found else np.empty((0, DIMENSIONS), np.float32)


def multiply(rows: Floats, factor: int, differences: Floats, seed: int = 1) -> Iterator[Floats]:
    """Yield pieces of `factor` times the rows: the rows, then copies moved by real differences.

    A copy is its original plus the difference of a random matching pair, with a random sign: it is
    as far from it, and in such directions, as photographs of one thing are.

    Parameters
    ----------
    rows : ndarray of shape (N, D), float32
    factor : int
        1 yields the rows alone.
    differences : ndarray of shape (M, D), float32
    seed : int
    """
    rng = np.random.default_rng(seed)
    for copy in range(factor):
        for at in range(0, len(rows), PIECE):
            piece = rows[at : at + PIECE]
            if copy:
                sign: Floats = rng.choice(np.array([-1, 1], np.float32), (len(piece), 1))
                piece = piece + sign * differences[rng.integers(len(differences), size=len(piece))]
            yield piece


def _mutual(a: Floats, b: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows of a and of b that are nearest to one another and not ambiguous."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * (a @ b.T)
    near, back = squared.argmin(axis=1), squared.argmin(axis=0)
    two = np.sqrt(np.maximum(np.partition(squared, 1, axis=1)[:, :2], 0))
    every = np.arange(len(a))
    good = (back[near] == every) & (two[:, 0] < AMBIGUOUS * two[:, 1])
    return every[good], near[good]


def _batch(native: NDArray[np.generic], size: int, quantizer: Quantizer) -> Floats:
    """Return `size` of an image's descriptors, weak and strong ones alike."""
    return rotate(native[np.linspace(0, len(native) - 1, size).astype(int)], quantizer)


def _spread(items: Sequence[str], count: int) -> list[str]:
    """Return `count` of the items, evenly, or all when there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[place] for place in np.linspace(0, len(items) - 1, count).astype(int)]


def _features(dataset: Dataset, file: Path, threads: int) -> dict[str, NDArray[np.generic]]:
    """Read the features from a file, or extract them and write it."""
    if not file.is_file():
        print("extracting SIFT descriptors once", flush=True)
        np.savez(file, allow_pickle=False, **_extract(dataset, threads))
    with np.load(file) as stored:
        return dict(stored)


def _extract(dataset: Dataset, threads: int) -> dict[str, NDArray[np.generic]]:
    """Extract every image and query once."""
    cv2.setNumThreads(1)
    config = ExtractorConfig(max_features=PER_IMAGE)
    paths = sorted({query.path for query in dataset.queries} | set(dataset.database))

    def one(path: str) -> tuple[str, NDArray[np.generic], NDArray[np.generic]]:
        data = dataset.file(path).read_bytes()
        try:
            features = extract_image(data, path, config, ImageLimits())
        except NoFeaturesError:
            empty = np.empty((0, SiftExtractor.dimensions), np.uint8)
            return hash_bytes(data), empty, np.empty((0, 2), np.float32)
        return hash_bytes(data), features.descriptors, features.keypoints[:, :2]

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(one, paths))
    return {
        "paths": np.array(paths),
        "sha256": np.array([sha256 for sha256, _, _ in found]),
        "counts": np.array([len(rows) for _, rows, _ in found]),
        "descriptors": np.concatenate([rows for _, rows, _ in found]),
        "positions": np.concatenate([positions for _, _, positions in found]),
    }
