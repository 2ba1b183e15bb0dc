"""The images of a file's rows: numbers within the file, and a table of their identities.

Rows have image numbers from 0 on, so that a file can move between databases. The table says which
image each number is: SHA-256 of its bytes, and the frame in them. Tables are sorted, so that the
numbers depend only on the images.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import column

Identity = tuple[str, int]
"""SHA-256 (hex) of an image's bytes, and the number of the frame or tile in them."""

_HASH_BYTES = 32
_KEY = np.dtype(f"S{_HASH_BYTES + 4}")


@dataclass(frozen=True)
class Identities:
    """A table of images.

    Attributes
    ----------
    sha256 : ndarray of shape (I, 32), uint8
    frames : ndarray of shape (I,), uint32
    """

    sha256: NDArray[np.uint8]
    frames: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.frames)

    @classmethod
    def of(cls, images: Sequence[Identity]) -> Identities:
        """Return the table of some images, in their order."""
        hashes = bytes.fromhex("".join(sha256 for sha256, _ in images))
        return cls(
            np.frombuffer(hashes, np.uint8).reshape(-1, _HASH_BYTES),
            np.array([frame for _, frame in images], np.uint32),
        )

    def pairs(self) -> list[Identity]:
        """Return SHA-256 and frame of every image: the inverse of `of`."""
        text = self.sha256.tobytes().hex()
        step = 2 * _HASH_BYTES
        hashes = (text[at : at + step] for at in range(0, len(text), step))
        return list(zip(hashes, self.frames.tolist(), strict=True))

    @functools.cached_property
    def keys(self) -> NDArray[np.bytes_]:
        """The images as byte strings with the same order."""
        both = np.empty((len(self), _KEY.itemsize), np.uint8)
        both[:, :_HASH_BYTES] = self.sha256
        both[:, _HASH_BYTES:] = self.frames.astype(">u4").view(np.uint8).reshape(-1, 4)
        return both.view(_KEY)[:, 0]

    @functools.cached_property
    def sorted(self) -> bool:
        """Whether the table is sorted."""
        return bool((self.keys[1:] > self.keys[:-1]).all())

    def some(self, chosen: NDArray[Any]) -> Identities:
        """Return the table of some images, given by numbers or by a mask."""
        return Identities(self.sha256[chosen], self.frames[chosen])

    def holds(self, other: Identities) -> NDArray[np.bool_]:
        """Return which images of another table are in this one."""
        known: NDArray[np.bool_] = np.isin(other.keys, self.keys)
        return known

    def numbers_of(self, other: Identities) -> NDArray[np.int64]:
        """Return the numbers of another table's images in this one, which is sorted.

        An image that is not in it gets the number that it would have if inserted.
        """
        return np.searchsorted(self.keys, other.keys)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays for a file with this table."""
        return {"sha256": self.sha256, "frames": self.frames}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Identities:
        """Inverse of `to_arrays`."""
        sha256 = column(arrays, "sha256", np.uint8, None, _HASH_BYTES)
        return cls(sha256, column(arrays, "frames", np.uint32, len(sha256)))


NO_IMAGES = Identities.of([])
"""The empty table: no images."""


def unite(tables: Iterable[Identities]) -> Identities:
    """Return the sorted table of all images of some tables, each once."""
    keys = np.unique(np.concatenate([NO_IMAGES.keys, *(table.keys for table in tables)]))
    both = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, _KEY.itemsize)
    frames = np.ascontiguousarray(both[:, _HASH_BYTES:]).view(">u4")[:, 0].astype(np.uint32)
    return Identities(np.ascontiguousarray(both[:, :_HASH_BYTES]), frames)
