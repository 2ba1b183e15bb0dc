"""What a process works with: settings, database, storage, and the files it has open.

Built after a fork, never before: database connections and memory maps belong to one process.
"""

from __future__ import annotations

import bisect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from sqlalchemy import Engine

from pipeline.config import ExtractorConfig, Settings
from pipeline.containers import Container, read_container
from pipeline.errors import IndexNotBuiltError
from pipeline.extraction.base import Extractor
from pipeline.extraction.registry import get_extractor
from pipeline.index.merge import join_segments
from pipeline.index.model import Model
from pipeline.index.segments import AssignedRows, Segment
from pipeline.metadata import versions
from pipeline.metadata.engine import create_metadata_engine, session_scope
from pipeline.metadata.records import VersionRecord
from pipeline.storage import Storage

T = TypeVar("T")

KEPT_MODELS = 16

KEPT_VERSIONS = 64
"""Versions at hand, of all collections."""

KEPT_OF_COLLECTION = 2
"""Versions at hand of one collection: searches that began before a publication use the former."""

KEPT_SEGMENTS = 4096
"""Open segments. Each holds a file open and mapped, and a byte a row of those that live."""

JOINED_ROWS = 4096
"""Segments of fewer rows are scanned as one, from a copy in memory. A scan of a segment costs up to
a quarter of a millisecond however few rows it has, as much as that of so many."""

JOINED_IN_ALL = 65_536
"""Rows of a group that are copied so, the smallest segments first: 5 MiB. They are joined for each
version, by the first search that uses it."""

KEPT_JOINED = 1024
"""Joined segments at hand, one of each version and group."""


class _Recent:
    """The most recently used values; of two made at once for one key the first is kept."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], T]) -> T:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                value: T = self._values[key]
                return value
        made = make()
        with self._lock:
            kept: T = self._values.setdefault(key, made)
            while len(self._values) > self._size:
                self._values.popitem(last=False)
            return kept

    def values(self) -> list[Any]:
        """Return what is kept."""
        with self._lock:
            return list(self._values.values())

    def keep(self, keys: Collection[str]) -> None:
        """Drop everything else. Whoever uses it still has a reference of his own."""
        with self._lock:
            for key in self._values.keys() - keys:
                del self._values[key]


class Resources:
    """Settings, metadata engine, storage, and caches of what was read from it.

    Parameters
    ----------
    settings : Settings

    Attributes
    ----------
    engine : sqlalchemy.Engine
    storage : Storage
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine: Engine = create_metadata_engine(settings.database_url)
        self.storage = Storage(settings.store, settings.local)
        self._versions = _Recent(KEPT_VERSIONS)
        self._models = _Recent(KEPT_MODELS)
        self._segments = _Recent(KEPT_SEGMENTS)
        self._joined = _Recent(KEPT_JOINED)

    def close(self) -> None:
        """Close the database connections."""
        self.engine.dispose()

    def version(self, version_id: int) -> VersionRecord:
        """Return a version; it never changes, so it is read once.

        When one is read, versions of the same collection are dropped but for the last few, and
        with them the segments that no version at hand names any more: a compaction replaces most.
        """
        fresh: list[VersionRecord] = []

        def read() -> VersionRecord:
            with session_scope(self.engine, write=False) as session:
                fresh.append(versions.get_version(session, version_id))
            return fresh[0]

        version = self._versions.get(str(version_id), read)
        if fresh:
            self._drop_replaced(version.collection_id)
        return version

    def _drop_replaced(self, collection_id: int) -> None:
        """Let go of what no search that begins now will ask for."""
        known: list[VersionRecord] = self._versions.values()
        mine = sorted(v.id for v in known if v.collection_id == collection_id)
        former = set(mine[:-KEPT_OF_COLLECTION])
        kept = [version for version in known if version.id not in former]
        self._versions.keep({str(version.id) for version in kept})
        self._segments.keep({segment.key for version in kept for segment in version.segments})
        self._joined.keep(
            {_joined_key(version, group) for version in kept for group in version.groups}
        )

    def current_version(self, collection: str) -> VersionRecord:
        """Return the version that a search of a collection uses now.

        Raises
        ------
        UnknownNameError, IndexNotBuiltError
        """
        with session_scope(self.engine, write=False) as session:
            version_id = versions.current_version_id(session, collection)
        if version_id is None:
            raise IndexNotBuiltError(collection)
        return self.version(version_id)

    def extractor(self, config: ExtractorConfig) -> Extractor:
        """Return the extractor of a configuration, its model fetched to this host.

        Raises
        ------
        UnknownNameError, ConfigError
            There is no such extractor here, or it cannot be made.
        StateError
            The store has lost its model.
        """
        return get_extractor(config, self.storage.fetch_model)

    def model(self, key: str, checksum: str | None = None) -> Model:
        """Return a trained model."""
        return self._models.get(
            key, lambda: Model.from_arrays(self.storage.open_arrays(key, checksum))
        )

    def segment(self, key: str, checksum: str | None = None) -> Segment:
        """Return a segment, fetched to this host if it is not here yet, and keep it open."""
        return self._segments.get(key, lambda: self.open_segment(key, checksum))

    def group_segments(self, version: VersionRecord, group: int) -> list[Segment]:
        """Return what a scan of a group visits: its segments, small ones joined to one.

        Images that were added one by one lie in a segment each until they are compacted.
        """
        records = version.group_segments(group)
        segments = sorted(
            (self.segment(record.key, record.checksum) for record in records),
            key=lambda segment: segment.rows.size,
        )
        small = _count_small([segment.rows.size for segment in segments])
        if small < 2:
            return segments
        key = _joined_key(version, group)
        return [
            self._joined.get(key, lambda: join_segments(segments[:small])),
            *segments[small:],
        ]

    def open_segment(self, key: str, checksum: str | None = None) -> Segment:
        """Return a segment, fetched to this host, for one use: to merge it, or to look at it."""
        return Segment.from_arrays(self.storage.open_arrays(key, checksum))

    def container(self, key: str, checksum: str | None = None) -> Container:
        """Return a feature container, read in the store: a job reads each a time or two."""
        arrays = self.storage.read_arrays(key, checksum)
        return read_container(arrays, arrays.meta)

    def assigned(self, key: str, checksum: str | None = None) -> AssignedRows:
        """Return the rows that one assignment made, read in the store."""
        return AssignedRows.from_arrays(self.storage.read_arrays(key, checksum))


def _count_small(rows: Sequence[int]) -> int:
    """Return how many segments of these sizes, ascending, are scanned as one."""
    small = bisect.bisect_left(rows, JOINED_ROWS)
    return bisect.bisect_right(list(itertools.accumulate(rows[:small])), JOINED_IN_ALL)


def _joined_key(version: VersionRecord, group: int) -> str:
    """Return what names the joined segment of a group."""
    return f"{version.id}/{group}"
