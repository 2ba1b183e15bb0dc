"""Feature containers: the features of a batch of images in one file (the paper's SequenceFile).

A container's name is made of its extractor's configuration and its images, so finished work is
found by name. Containers are kept: an index can be rebuilt without the photographs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import ArrayFile
from pipeline.columns import column, plain_values, require, require_finite, require_offsets
from pipeline.config import ExtractorConfig, digest
from pipeline.records import KEYPOINT_COLUMNS, Features, ImageFailure

UNREADABLE_CODES = frozenset(
    {
        "vanished",
        "permission-denied",
        "read-error",
        "changed",
        "symlink-loop",
        "not-a-file",
        "extractor-failed",
        "kills-worker",
        "outside-roots",
        "too-much-memory",
    }
)
"""Failures that are not caused by an image's content, but by the file, this machine or its
settings. They may pass, so a container must not record them for ever."""


@dataclass(frozen=True)
class Container:
    """The features of a batch of images.

    Attributes
    ----------
    sha256 : tuple of str
        The images that have features, in the order of their rows.
    features : Sequence of Features
        Views into the file.
    failures : tuple of ImageFailure
        Images of the batch without features, and why.
    """

    sha256: tuple[str, ...]
    features: tuple[Features, ...]
    failures: tuple[ImageFailure, ...]

    @property
    def descriptor_count(self) -> int:
        """Descriptors of all images."""
        return sum(len(features) for features in self.features)

    def items(self) -> Iterator[tuple[str, Features]]:
        """Yield (sha256, features)."""
        return zip(self.sha256, self.features, strict=True)


def container_key(config: ExtractorConfig, images: Sequence[str]) -> str:
    """Return the store name of the container of these images (SHA-256, hex)."""
    return f"containers/{config.config_id()}/{digest(sorted(images))}.npz"


def container_arrays(
    done: Sequence[tuple[str, Features]], failures: Sequence[ImageFailure], dimensions: int
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return arrays and meta data of a container's file.

    Parameters
    ----------
    done : sequence of (sha256, Features)
    failures : sequence of ImageFailure
    dimensions : int
        Length of a descriptor, for a container without any.
    """
    features = [item[1] for item in done]
    counts = [len(f) for f in features]
    arrays: dict[str, NDArray[Any]] = {
        "sha256": np.frombuffer(bytes.fromhex("".join(s for s, _ in done)), np.uint8).reshape(
            -1, 32
        ),
        "sizes": np.array([(f.width, f.height) for f in features], np.int32).reshape(-1, 2),
        "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "keypoints": (
            np.concatenate([f.keypoints for f in features])
            if features
            else np.empty((0, 7), np.float32)
        ),
        "descriptors": (
            np.concatenate([f.descriptors for f in features])
            if features
            else np.empty((0, dimensions), np.uint8)
        ),
    }
    meta = {"failures": [[f.sha256, f.code, f.sentence] for f in failures]}
    return arrays, meta


def read_container(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Container:
    """Inverse of `container_arrays`.

    Raises
    ------
    CorruptFileError
        The arrays are not those of a container.
    """
    sizes = column(arrays, "sizes", np.int32, None, 2)
    require(not len(sizes) or sizes.min() > 0, arrays, "an image has a side of no pixels")
    hashes = column(arrays, "sha256", np.uint8, len(sizes), 32)
    keypoints, descriptors = _features(arrays)
    offsets = require_offsets(arrays, "offsets", len(keypoints))
    require(len(offsets) == len(sizes) + 1, arrays, f"{len(offsets)} offsets, {len(sizes)} images")
    features = tuple(
        Features(
            keypoints[offsets[i] : offsets[i + 1]],
            descriptors[offsets[i] : offsets[i + 1]],
            int(width),
            int(height),
        )
        for i, (width, height) in enumerate(sizes)
    )
    names = tuple(row.tobytes().hex() for row in hashes)
    return Container(names, features, read_failures(arrays, meta, "failures"))


def check_container(file: ArrayFile) -> None:
    """Refuse a file that is not a container.

    Raises
    ------
    CorruptFileError
    """
    read_container(file, file.meta)


def _features(
    arrays: Mapping[str, NDArray[Any]],
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Return keypoints and descriptors, which are bytes or float32."""
    keypoints = column(arrays, "keypoints", np.float32, None, len(KEYPOINT_COLUMNS))
    require_finite(arrays, "keypoints", keypoints)
    floats = "descriptors" in arrays and arrays["descriptors"].dtype == np.float32
    kind = np.float32 if floats else np.uint8
    descriptors: NDArray[Any] = column(arrays, "descriptors", kind, len(keypoints), None)
    if floats:
        require_finite(arrays, "descriptors", descriptors)
    return keypoints, descriptors


def read_failures(
    arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any], name: str
) -> tuple[ImageFailure, ...]:
    """Return a list of ``[sha256, code, sentence]`` of a file's plain values."""
    with plain_values(arrays):
        failures = tuple(ImageFailure(*failure) for failure in meta[name])
    texts = [text for one in failures for text in (one.sha256, one.code, one.sentence)]
    require(all(isinstance(text, str) for text in texts), arrays, f"{name} are not texts")
    return failures
