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

from pipeline.config import ExtractorConfig, digest
from pipeline.records import Features, ImageFailure

UNREADABLE_CODES = frozenset(
    {
        "vanished",
        "permission-denied",
        "read-error",
        "changed",
        "symlink-loop",
        "not-a-file",
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
    """Inverse of `container_arrays`."""
    offsets = arrays["offsets"]
    features = tuple(
        Features(
            arrays["keypoints"][offsets[i] : offsets[i + 1]],
            arrays["descriptors"][offsets[i] : offsets[i + 1]],
            int(width),
            int(height),
        )
        for i, (width, height) in enumerate(arrays["sizes"])
    )
    names = tuple(row.tobytes().hex() for row in arrays["sha256"])
    return Container(names, features, tuple(ImageFailure(*f) for f in meta["failures"]))
