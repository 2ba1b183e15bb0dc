"""Segments opened for searches: with ids of this database and masks of allowed images."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.index.segments import Segment

UNKNOWN = np.iinfo(np.uint32).max
"""Stands for the id of an image that is not in the database."""

KEPT_MASKS = 4
"""Cached masks of a segment. Every search uses the one of the version's removed images, so it
stays, whatever other sets of images searches use."""


@dataclass(frozen=True)
class ImageSet:
    """Images that an answer must not have, or the only ones that it may have.

    Attributes
    ----------
    ids : frozenset of int
    only : bool
        True: an answer has only these images; false: none of them.
    """

    ids: frozenset[int]
    only: bool = False

    @classmethod
    def from_array(cls, ids: NDArray[np.uint32], only: bool) -> Self:
        """Inverse of `to_array`."""
        return cls(frozenset(ids.tolist()), only)

    def to_array(self) -> NDArray[np.uint32]:
        """Return the ids, ascending."""
        return self._array

    @cached_property
    def _array(self) -> NDArray[np.uint32]:
        return np.sort(np.fromiter(self.ids, np.uint32, len(self.ids)))

    def admits(self, ids: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Return which images an answer may have."""
        admitted: NDArray[np.bool_] = np.isin(ids, self._array, invert=not self.only)
        return admitted


class _Masks:
    """The most recently used masks."""

    def __init__(self) -> None:
        self._known: OrderedDict[ImageSet, NDArray[np.bool_]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, images: ImageSet, ids: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Return which ids a set allows."""
        with self._lock:
            known = self._known.get(images)
            if known is not None:
                self._known.move_to_end(images)
                return known
        made = images.admits(ids)
        with self._lock:
            self._known[images] = made
            while len(self._known) > KEPT_MASKS:
                self._known.popitem(last=False)
        return made


@dataclass(frozen=True)
class OpenSegment:
    """A segment, or several small ones joined.

    Attributes
    ----------
    name : str
        Identifies the content: equal names mean equal rows, in any database.
    segment : Segment
    ids : ndarray of shape (I,), uint32
        Row id of each image of the segment; `UNKNOWN` if this database lacks it.
    """

    name: str
    segment: Segment
    ids: NDArray[np.uint32]
    _masks: _Masks = field(default_factory=_Masks, repr=False, compare=False)

    def admitted(self, sets: Sequence[ImageSet]) -> NDArray[np.bool_]:
        """Return which of the segment's images may be answers."""
        admitted: NDArray[np.bool_] = self.ids != UNKNOWN
        for images in sets:
            if images.ids or images.only:
                admitted &= self._masks.get(images, self.ids)
        return admitted
