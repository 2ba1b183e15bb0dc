"""The bounded table of a distance cache: entries (object, object, distance) in one array.

The array is a hash table of buckets. A bucket is the *collision interval* of its pairs: it has room
for `interval` entries. A new entry takes the first free place; if there is none, a replacement rule
says which entry goes. An entry takes 24 bytes: two ids, the distance as 32 bits, and when it was
used or made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.caching.deltas import Entries
from pipeline.caching.metric import LARGEST_REAL, LARGEST_SQUARE
from pipeline.caching.middle import Middle
from pipeline.errors import ConfigError, InputError
from pipeline.index.rows import aligned_empty, read_only
from pipeline.machine_code import CompiledLoop

__all__ = ["BOUNDED", "ENTRY_BYTES", "KNOWN", "NOTHING", "Bounds", "Replacement", "Shape", "Table"]

ENTRY_BYTES = 24

NOTHING, BOUNDED, KNOWN = 0, 1, 2
"""What is known of a distance: nothing, bounds, the distance itself."""

Replacement = Literal["obsolete", "lru"]
"""``obsolete``: an entry of no current pivot, else the one whose distance is nearest the middle of
all distances. ``lru``: the one that was not used for the longest time."""

_LOOPS = "pipeline.caching.loops"
_bound = CompiledLoop(_LOOPS, "bound")
_insert = CompiledLoop(_LOOPS, "insert")
_collect = CompiledLoop(_LOOPS, "collect")
_merge = CompiledLoop(_LOOPS, "merge")

_TICKS = 1 << 31

_Ids = NDArray[np.uint64]
_Values = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """Size and form of a table.

    Attributes
    ----------
    size : int
        Bytes; at least those of one bucket.
    interval : int
        Collision interval: entries of a bucket.
    shared : int
        Entries of each bucket that only merged deltas fill, by a rule that is the same everywhere.
    replacement : {"obsolete", "lru"}
        Of the other entries.
    middle : float
        Of shared entries that were made at the same time, those farther from this distance are
        kept. Hosts whose tables shall be equal have the same one, for example the median distance
        of the sample that their tree was trained with; in the metric's own numbers.
    """

    size: int = 50_000_000
    interval: int = 4
    shared: int = 0
    replacement: Replacement = "obsolete"
    middle: float = 0.0

    def __post_init__(self) -> None:
        """Check that the values fit together.

        Raises
        ------
        ConfigError
            One is out of range.
        """
        if not 1 <= self.interval <= 64:
            raise ConfigError("interval", self.interval, "1 to 64 entries")
        if not 0 <= self.shared < self.interval:
            raise ConfigError("shared", self.shared, f"0 to {self.interval - 1}, below interval")
        if not 1 <= self.buckets < 1 << 31:
            least = self.interval * ENTRY_BYTES
            raise ConfigError("size", self.size, f"{least} bytes to {least << 31}")
        if self.replacement not in get_args(Replacement):
            raise ConfigError("replacement", self.replacement, "obsolete or lru")
        if not 0 <= self.middle < np.inf:
            raise ConfigError("middle", self.middle, "a distance")

    @property
    def buckets(self) -> int:
        """Number of buckets."""
        return self.size // (self.interval * ENTRY_BYTES)


class Bounds(NamedTuple):
    """What a table knows of the distances of a query to M objects.

    Attributes
    ----------
    lower, upper : ndarray of shape (M,), float64
        In the metric's own numbers; 0 and infinity where nothing is known.
    states : ndarray of shape (M,), uint8
        `NOTHING`, `BOUNDED` or `KNOWN`.
    """

    lower: _Values
    upper: _Values
    states: NDArray[np.uint8]


class Table:
    """The entries. It has no lock: `pipeline.caching.dcache.DCache` has one.

    Parameters
    ----------
    shape : Shape
    squared : bool
        Distances are squares (`pipeline.caching.metric.Metric`).
    slack : float
        What bounds are wider by, for the errors of the distances that they come from.

    Attributes
    ----------
    words : ndarray of shape (S, 3), uint64
        An entry a line; see `pipeline.caching.loops`.
    inserted, replaced, probes : int
        Counted so far.
    """

    def __init__(self, shape: Shape, squared: bool, slack: float = 0.0) -> None:
        self.shape, self.squared, self.slack = shape, squared, slack
        self.words = aligned_empty((shape.buckets * shape.interval, 3), np.uint64)
        self.fields: NDArray[np.uint32] = self.words.view(np.uint32)
        self.reals: NDArray[np.float32] = self.words.view(np.float32)
        self.middle = Middle()
        self.inserted = self.replaced = self.probes = self.tick = 0
        self._next = 0
        self.clear()

    @property
    def size(self) -> int:
        """Bytes of the entries."""
        return self.words.nbytes

    @property
    def entries(self) -> int:
        """Number of entries that are not empty."""
        return int(np.count_nonzero(self.words[:, 1]))

    def clear(self) -> None:
        """Forget all entries."""
        self.words[:] = 0
        self.middle.clear()

    def bound(
        self, query: np.uint64, pivots: tuple[_Ids, _Values], ids: _Ids, radius: float = np.inf
    ) -> Bounds:
        """Look up distances of a query, and bound those that are not there.

        Parameters
        ----------
        query : uint64
        pivots : pair of ndarrays of shape (P,), uint64 and float64
            Pivots, and the distances of the query to them.
        ids : ndarray of shape (M,), uint64
        radius : float
            An object that is farther needs no better bounds.
        """
        count = len(ids)
        found = Bounds(np.empty(count), np.empty(count), np.empty(count, np.uint8))
        self.tick += 1
        limits = np.array([self.slack, radius])
        inputs = (read_only(one) for one in (np.array([query], np.uint64), *pivots, ids, limits))
        probes, _ = _bound(*self._place, *inputs, *found)
        self.probes += probes
        return found

    def insert(self, ones: _Ids, ids: _Ids, values: _Values, pivots: _Ids) -> None:
        """Insert distances, unless they are there.

        Parameters
        ----------
        ones : ndarray of shape (1,) or (M,), uint64
            One object of each pair, or of all pairs.
        ids : ndarray of shape (M,), uint64
            The other one.
        values : ndarray of shape (M,), float64
            In the metric's own numbers.
        pivots : ndarray of shape (P,), uint64
            Entries of none of them are obsolete.

        Raises
        ------
        InputError
            A value is no distance.
        """
        most = LARGEST_SQUARE if self.squared else LARGEST_REAL
        if not ((values >= 0) & (values <= most)).all():
            wrong = values[~((values >= 0) & (values <= most))][0]
            raise InputError(f"{wrong} is no distance: it must be 0 to {most}")
        self.middle.add(values)
        self.tick += 1
        middle = np.array([self.middle.value])
        inputs = (read_only(one) for one in (ones, pivots, ids, values, middle))
        inserted, replaced = _insert(*self._place, *inputs)
        self.inserted += inserted
        self.replaced += replaced

    def collect(self, most: int, made: int) -> Entries:
        """Return at most so many entries that are new since they were last collected."""
        lows, highs = np.empty((2, most), np.uint64)
        codes = np.empty(most, np.uint32)
        words, fields, _, shape = self._place
        count, self._next = _collect(words, fields, shape, self._next, lows, highs, codes)
        return Entries(lows[:count], highs[:count], codes[:count], made)

    def merge(self, entries: Entries) -> int:
        """Merge entries into the shared ones; return how many are among these then.

        The shared entries do not depend on the order in which entries were merged, nor on how
        often.
        """
        numbers, middle = entries.codes.view(np.float32), np.array([self.shape.middle])
        columns = (read_only(column) for column in entries[:3])
        kept: int = _merge(*self._place, *columns, numbers, entries.made, middle)
        return kept

    def shared_entries(self) -> NDArray[np.uint64]:
        """Return the shared entries (B, shared, 3) of all buckets."""
        buckets = self.words.reshape(self.shape.buckets, self.shape.interval, 3)
        return buckets[:, : self.shape.shared]

    @property
    def _place(self) -> tuple[NDArray[Any], ...]:
        """What the loops are told of the table: its array, and what `loops` calls its shape."""
        shape = self.shape
        policy = _POLICIES.index(shape.replacement)
        numbers = (shape.buckets, shape.interval, shape.shared, self.squared, policy)
        return self.words, self.fields, self.reals, np.array([*numbers, self.tick % _TICKS])


_POLICIES: tuple[Replacement, ...] = ("obsolete", "lru")
"""In the order of their numbers in the loops."""
