"""Identities of what distances are between: 64 bits, the same on every host.

The two highest bits say what an object is. Objects of a collection have consecutive numbers: an
image's number and a keypoint's, or a row's. Vantage points and centres of cells are *centres*: they
are pivots as long as their tree exists, so that no replacement rule calls them obsolete. Whatever
else distances are computed for, a *runtime object*, has a digest of its content: equal queries have
equal ids, on any host and at any time.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

__all__ = ["MOST_OBJECTS", "centre_ids", "object_ids", "runtime_id"]

MOST_OBJECTS = 1 << 62
"""Numbers of objects, and of centres, are below this."""

_CENTRE = 1 << 62
_RUNTIME = 1 << 63


def object_ids(first: int, count: int) -> NDArray[np.uint64]:
    """Return the ids of `count` objects of a collection, whose numbers begin at `first`."""
    return _consecutive(first, count, 0)


def centre_ids(first: int, count: int) -> NDArray[np.uint64]:
    """Return the ids of `count` vantage points or centres, whose numbers begin at `first`."""
    return _consecutive(first, count, _CENTRE)


def runtime_id(content: bytes) -> np.uint64:
    """Return the id of a query by its content.

    Two of a million different queries have the same id with a probability of 5e-8.
    """
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little") | _RUNTIME)


def _consecutive(first: int, count: int, kind: int) -> NDArray[np.uint64]:
    """Return consecutive numbers with the bits of a kind."""
    if first < 0 or count < 0 or first + count > MOST_OBJECTS:
        raise InputError(f"{count} objects from number {first} on: numbers are 0 to 2^62 - 1")
    return np.arange(first, first + count, dtype=np.uint64) | np.uint64(kind)
