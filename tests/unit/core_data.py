"""A small trained model and features for it, for the tests of index and retrieval."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import ArrayFile
from pipeline.config import IndexConfig
from pipeline.index.identities import Identities, Identity
from pipeline.index.merge import assigned_rows, write_segment
from pipeline.index.model import Model, train_model
from pipeline.index.segments import AssignedRows, Segment, assign_features
from pipeline.records import Features
from pipeline.request import SearchRequest
from pipeline.retrieval.open_segments import OpenSegment

WIDTH = 32


def descriptors(seed: int, count: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1, (6, WIDTH))
    rows = centres[rng.integers(0, 6, count)] + rng.normal(0, 0.4, (count, WIDTH))
    return rows.astype(np.float32)


def features(seed: int, count: int) -> Features:
    rng = np.random.default_rng(seed)
    keypoints = np.zeros((count, 7), np.float32)
    keypoints[:, :4] = rng.random((count, 4)) * [640, 480, 60, 360]
    return Features(keypoints, descriptors(seed, count), 640, 480)


@functools.cache
def model(groups: int = 4) -> Model:
    config = IndexConfig(groups=groups, cell_size=50)
    return train_model(descriptors(1, 800), descriptors(2, 300), 1000, config)


def named(images: Iterable[int]) -> list[Identity]:
    """Return identities that sort as their numbers do."""
    return [(f"{number:064x}", 0) for number in images]


def ids(table: Identities) -> NDArray[np.uint32]:
    """Inverse of `named`."""
    return np.array([int(sha256, 16) for sha256, _ in table.pairs()], np.uint32)


def opened(segment: Segment) -> OpenSegment:
    """Open a segment in a database where every image has the id that it is named by."""
    return OpenSegment("segment", segment, ids(segment.table))


def assign(trained: Model, images: dict[int, Features]) -> AssignedRows:
    normalized = [f.descriptors for f in images.values()]
    return assign_features(trained, normalized, list(images.values()), named(images))


def merge_rows(trained: Model, group: int, assignments: Sequence[AssignedRows]) -> Segment:
    """Merge one group's rows of assignments, as an index job does."""
    cells, stream = trained.cells_per_group, io.BytesIO()
    inputs = [functools.partial(assigned_rows, assigned, group, cells) for assigned in assignments]
    write_segment(stream, inputs, group * cells, {})
    return Segment.from_arrays(ArrayFile(stream.getvalue()))


@functools.cache
def collection() -> dict[int, Features]:
    """Thirty images of 0 to 60 descriptors by id; 7 and 8 are equal."""
    images = {number: features(number, number * 2) for number in range(31)}
    images[8] = images[7]
    return images


@functools.cache
def segments() -> tuple[Segment, ...]:
    """The collection in one segment a group, group 0 in two."""
    trained, images = model(), collection()
    first = assign(trained, {i: f for i, f in images.items() if i < 12})
    second = assign(trained, {i: f for i, f in images.items() if i >= 12})
    return (
        merge_rows(trained, 0, [first]),
        merge_rows(trained, 0, [second]),
        *(merge_rows(trained, group, [first, second]) for group in (1, 2, 3)),
    )


def asked(kind: Any, effort: float | None = None) -> SearchRequest:
    """Ask for a plan; the exhaustive one takes no effort."""
    return SearchRequest(plan=kind, effort=None if kind == "exhaustive" else effort)
