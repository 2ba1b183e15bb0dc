"""Objects and streams of requests, of the photographs of a data set.

*Colours*: an object is a photograph by its colours, and the metric the earth mover's distance. A
request is a photograph, or another section of one at another brightness.

*Rows*: an object is a SIFT descriptor as a row of 64 bytes, and so is a request.

The stream ``zipf`` draws from all queries of the data set, the n-th most frequent with a weight of
1 / n. The stream ``scene`` has queries of one scene, all different: that of the query with most
right answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.caching.colours import ColourDistance, colour_signature
from pipeline.caching.metric import Metric, SquaredEuclidean
from pipeline.caching.object_ids import object_ids
from pipeline.caching.regions import ObjectSet
from pipeline.evaluation.dataset import read_dataset
from pipeline.extraction.sift import SiftExtractor
from pipeline.index.quantizer import train_quantizer

SIDE = 256
"""Photographs of the scene, of which sections are taken, are reduced to squares of this side."""

SECTION, BRIGHTNESS = 0.7, 0.2
"""Least side of a section, and the most that its brightness changes."""

PER_IMAGE, ROW_IMAGES, POOL = 20, 250, 10
"""Descriptors of a photograph, photographs, and descriptors of each query, of the rows."""


@dataclass(frozen=True)
class Options:
    """What the command was told."""

    photos: Path
    requests: int
    plots: Path | None
    json: bool


@dataclass(frozen=True)
class Streams:
    """Objects with their metric, and requests.

    Attributes
    ----------
    name : str
    metric : Metric
    things : ObjectSet
    requests : dict of str to ndarray
        By the name of the stream.
    """

    name: str
    metric: Metric
    things: ObjectSet
    requests: dict[str, NDArray[Any]]


def zipf(pool: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return numbers below `pool`, the most frequent ones in a random order."""
    weights = 1 / np.arange(1, pool + 1)
    chosen = rng.choice(pool, count, p=weights / weights.sum())
    order: NDArray[np.int64] = rng.permutation(pool)[chosen]
    return order


class Photographs:
    """Photographs of a data set, at half their size.

    Parameters
    ----------
    folder : path
    """

    def __init__(self, folder: Path) -> None:
        self._dataset = read_dataset(folder)
        self.stored = list(self._dataset.database)
        self.queries = [query.path for query in self._dataset.queries]
        largest = max(self._dataset.queries, key=lambda query: len(query.relevant))
        self.scene = [largest.path, *sorted(largest.relevant)]

    def read(self, path: str) -> NDArray[np.uint8]:
        """Return a photograph (H, W, 3), red first."""
        file = self._dataset.file(path)
        found = cv2.imread(str(file), cv2.IMREAD_REDUCED_COLOR_2)
        if found is None:
            raise SystemExit(f"{file} cannot be read")
        return np.ascontiguousarray(found[:, :, ::-1])


def colours(photographs: Photographs, requests: int) -> Streams:
    """Return the colours of all photographs."""
    rng = np.random.default_rng(1)
    cv2.setNumThreads(1)
    signatures, queries = (
        np.stack(_of_all(lambda path: colour_signature(photographs.read(path)), paths))
        for paths in (photographs.stored, photographs.queries)
    )
    small = [
        cv2.resize(photographs.read(path), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        for path in photographs.scene
    ]
    sections = [_section(small[rng.integers(len(small))], rng) for _ in range(requests)]
    streams = {
        "zipf": queries[zipf(len(queries), requests, rng)],
        "scene": np.stack([colour_signature(section) for section in sections]),
    }
    things = ObjectSet(signatures, object_ids(0, len(signatures)))
    return Streams("colours", ColourDistance(), things, streams)


def _section(picture: NDArray[Any], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a random section of a picture, brighter or darker."""
    side = int(rng.integers(int(SECTION * SIDE), SIDE + 1))
    top, left = rng.integers(0, SIDE - side + 1, 2)
    light = rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS)
    found = picture[top : top + side, left : left + side].astype(np.float32) * light
    return found.clip(0, 255).astype(np.uint8)


def rows(photographs: Photographs, requests: int) -> Streams:
    """Return descriptors of some photographs."""
    rng = np.random.default_rng(1)
    count = min(ROW_IMAGES, len(photographs.stored))
    chosen = rng.choice(photographs.stored, count, replace=False)
    stored = _descriptors(photographs, list(chosen), PER_IMAGE)
    quantizer = train_quantizer(stored)
    pool = quantizer.encode(_descriptors(photographs, photographs.queries, POOL))
    each = -(-requests // len(photographs.scene))
    scene = quantizer.encode(_descriptors(photographs, photographs.scene, each))
    encoded = quantizer.encode(stored)
    streams = {
        "zipf": pool[zipf(len(pool), requests, rng)],
        "scene": scene[rng.permutation(len(scene))[:requests]],
    }
    things = ObjectSet(encoded, object_ids(0, len(encoded)))
    return Streams("rows", SquaredEuclidean(), things, streams)


def _descriptors(photographs: Photographs, paths: list[str], most: int) -> NDArray[np.float32]:
    """Return the strongest descriptors of photographs, normalised."""

    def of(path: str) -> NDArray[np.float32]:
        grey = cv2.cvtColor(photographs.read(path), cv2.COLOR_RGB2GRAY)
        _, found = cv2.SIFT.create(most).detectAndCompute(grey, None)
        rows = np.empty((0, 128)) if found is None else np.asarray(found)
        return rows[:most].astype(np.float32)

    return SiftExtractor().normalize(np.concatenate(_of_all(of, paths)).astype(np.uint8))


def _of_all(make: Callable[[str], NDArray[Any]], paths: Sequence[str]) -> list[NDArray[Any]]:
    """Return what is made of each photograph."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(make, paths))
