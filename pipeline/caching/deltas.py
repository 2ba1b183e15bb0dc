"""Deltas: new entries of a host's table, for the other hosts.

A delta is at most 64 KiB::

    bytes  0 ..  3   "VDD1"
           4 .. 19   digest of the scope: what the ids and distances are of
          20 .. 23   number n of entries
          24 .. 27   when they were made: a number that grows with time
          28 .. 59   BLAKE2b of all that is before and behind it, keyed with the secret
          60 ..      n lower ids (8 bytes each), n higher ids (8), n distances (4)

All numbers are little-endian. A distance is an integer if the metric is squared, otherwise a
float32.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.caching.metric import LARGEST_SQUARE, Metric
from pipeline.errors import InputError

__all__ = ["ENTRIES", "LARGEST_DELTA", "DeltaError", "Entries", "Refusal", "Scope"]

LARGEST_DELTA = 1 << 16
"""Bytes."""

_MAGIC = b"VDD1"
_HEAD = struct.Struct("<4s16sII")
_DIGEST = 32
_ENTRY = 20

ENTRIES = (LARGEST_DELTA - _HEAD.size - _DIGEST) // _ENTRY
"""The most entries of a delta."""

_LARGEST_FLOAT = int(np.array(np.finfo(np.float32).max).view(np.uint32))

Refusal = Literal["length", "header", "scope", "checksum", "values"]


class DeltaError(InputError):
    """A delta cannot be merged: what is wrong with it, and how."""

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(refusal, message)

    @property
    def refusal(self) -> Refusal:
        """What is wrong with it."""
        found: Refusal = self.args[0]
        return found

    def __str__(self) -> str:
        return f"a delta is refused for its {self.args[0]}: {self.args[1]}"


class Entries(NamedTuple):
    """Entries of a delta.

    Attributes
    ----------
    lows, highs : ndarray of shape (N,), uint64
        The ids of each pair, the lower one first.
    codes : ndarray of shape (N,), uint32
        The distances: squares, or the bits of float32.
    made : int
        When they were made.
    """

    lows: NDArray[np.uint64]
    highs: NDArray[np.uint64]
    codes: NDArray[np.uint32]
    made: int


@dataclass(frozen=True)
class Scope:
    """What the entries of a delta are of, and who may write one.

    Attributes
    ----------
    name : str
        What the ids are numbers of, for example the identity of the installation and the
        collection.
    metric : Metric
    secret : bytes
        Known to all hosts; a delta of somebody who does not know it is refused. At most 64 bytes.
        Without one, only damage is noticed.
    """

    name: str
    metric: Metric
    secret: bytes = b""

    def encode(self, entries: Entries) -> bytes:
        """Return a delta of at most `ENTRIES` entries."""
        columns = (entries.lows.astype("<u8"), entries.highs.astype("<u8"))
        body = b"".join([*map(np.ndarray.tobytes, columns), entries.codes.astype("<u4").tobytes()])
        head = _HEAD.pack(_MAGIC, self._digest(), len(entries.lows), entries.made)
        return head + self._checksum(head, body) + body

    def decode(self, delta: bytes) -> Entries:
        """Inverse of `encode`.

        Raises
        ------
        DeltaError
            It is not a delta of this scope, or was changed.
        """
        if not _HEAD.size + _DIGEST <= len(delta) <= LARGEST_DELTA:
            raise DeltaError("length", f"it has {len(delta)} bytes")
        magic, scope, count, made = _HEAD.unpack_from(delta)
        if magic != _MAGIC or len(delta) != _HEAD.size + _DIGEST + count * _ENTRY:
            raise DeltaError("header", f"{len(delta)} bytes begin with {delta[: _HEAD.size].hex()}")
        if scope != self._digest():
            raise DeltaError("scope", f"its entries are not of {self.name}, {self.metric.name}")
        head, body = delta[: _HEAD.size], delta[_HEAD.size + _DIGEST :]
        given = delta[_HEAD.size : _HEAD.size + _DIGEST]
        if not hmac.compare_digest(given, self._checksum(head, body)):
            raise DeltaError("checksum", "it was damaged, or made without the secret of the hosts")
        lows, highs = np.frombuffer(body, "<u8", 2 * count).astype(np.uint64).reshape(2, count)
        codes = np.frombuffer(body, "<u4", count, 16 * count).astype(np.uint32)
        most = LARGEST_SQUARE if self.metric.squared else _LARGEST_FLOAT
        if not ((lows < highs).all() and (codes <= most).all()):
            raise DeltaError(
                "values", "it has a pair out of order, or a number that is no distance"
            )
        return Entries(lows, highs, codes, made)

    def _digest(self) -> bytes:
        """Return the digest of the scope."""
        text = repr((self.name, self.metric.name, self.metric.squared))
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def _checksum(self, head: bytes, body: bytes) -> bytes:
        """Return what shows that a delta was made by somebody who knows the secret."""
        return hashlib.blake2b(head + body, digest_size=_DIGEST, key=self.secret).digest()
