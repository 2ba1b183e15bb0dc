"""Resources of a process: settings, database, storage, and open files.

Make them after a fork, never before: database connections and memory maps belong to one process.
"""

from __future__ import annotations

import bisect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from pipeline.config import ExtractorConfig, Settings, digest
from pipeline.containers import Container, read_container
from pipeline.errors import IndexNotBuiltError
from pipeline.extraction.base import Extractor
from pipeline.extraction.registry import get_extractor
from pipeline.index.identities import Identities
from pipeline.index.merge import join_segments
from pipeline.index.model import Model
from pipeline.index.segments import AssignedRows, Segment
from pipeline.metadata import identities, versions
from pipeline.metadata.engine import create_metadata_engine, session_scope
from pipeline.metadata.records import SegmentRecord, VersionRecord
from pipeline.retrieval.open_segments import UNKNOWN, OpenSegment
from pipeline.storage import Storage

T = TypeVar("T")

KEPT_MODELS = 16

KEPT_VERSIONS = 64
"""Cached versions of all collections."""

KEPT_OF_COLLECTION = 2
"""Cached versions of one collection: searches that began before a publication use the older one."""

KEPT_SEGMENTS = 4096
"""Open segments. Each holds a file open and mapped, and four bytes an image."""

JOINED_ROWS = 4096
"""Segments with fewer rows are joined in memory and scanned as one. Scanning a segment costs up to
a quarter of a millisecond however few rows it has, which is as much as scanning so many rows."""

JOINED_IN_ALL = 65_536
"""The most rows of a group that are joined, smallest segments first: 5 MiB. The first search that
uses them joins them."""


class _Recent:
    """The most recently used values. If two threads make a value for one key, the first wins."""

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
        """Return the kept values."""
        with self._lock:
            return list(self._values.values())

    def keep(self, keys: Collection[str]) -> None:
        """Drop all other values. Threads that use one keep their own reference."""
        with self._lock:
            for key in self._values.keys() - keys:
                del self._values[key]


class Resources:
    """Settings, metadata engine, storage, and caches of opened files.

    Parameters
    ----------
    settings : Settings
    engine : sqlalchemy.Engine, optional
        Of the metadata database; default: a new one.

    Attributes
    ----------
    engine : sqlalchemy.Engine
    storage : Storage
    """

    def __init__(self, settings: Settings, engine: Engine | None = None) -> None:
        self.settings = settings
        self.engine: Engine = engine or create_metadata_engine(settings.database_url)
        self.storage = Storage(settings.store, settings.local)
        self._versions = _Recent(KEPT_VERSIONS)
        self._models = _Recent(KEPT_MODELS)
        self._segments = _Recent(KEPT_SEGMENTS)
        self._opened = _Recent(KEPT_SEGMENTS)

    def close(self) -> None:
        """Close the database connections."""
        self.engine.dispose()

    def version(self, version_id: int) -> VersionRecord:
        """Return a version; it never changes, so it is read once.

        When a new version is read, all but the last few of the same collection are dropped, and
        with them the segments that no cached version has: a compaction replaces most of them.
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
        """Drop what no new search needs."""
        known: list[VersionRecord] = self._versions.values()
        mine = sorted(v.id for v in known if v.collection_id == collection_id)
        former = set(mine[:-KEPT_OF_COLLECTION])
        kept = [version for version in known if version.id not in former]
        self._versions.keep({str(version.id) for version in kept})
        self._segments.keep({segment.key for version in kept for segment in version.segments})
        self._opened.keep(
            {
                _opened_key(version, source)
                for version in kept
                for group in version.groups
                for source in _sources(version, group)
            }
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
            The extractor is not installed here, or cannot be made.
        StateError
            The store has lost its model.
        """
        return get_extractor(config, self.storage.fetch_model)

    def model(self, key: str, checksum: str | None = None) -> Model:
        """Return a trained model."""
        return self._models.get(
            key, lambda: Model.from_arrays(self.storage.open_arrays(key, checksum))
        )

    def group_segments(self, version: VersionRecord, group: int) -> list[OpenSegment]:
        """Return what a scan of a group visits: its segments, with the small ones joined.

        Images added one by one have a segment each until they are compacted.
        """
        return [
            self._opened.get(
                _opened_key(version, source), partial(self._open, version.collection_id, source)
            )
            for source in _sources(version, group)
        ]

    def _open(self, collection_id: int, source: _Source) -> OpenSegment:
        """Open segments to be scanned as one; fetch them to this host if necessary."""
        segments = [
            self._segments.get(record.key, partial(self.open_segment, record.key, record.checksum))
            for record in source.records
        ]
        segment = segments[0] if len(segments) == 1 else join_segments(segments)
        with session_scope(self.engine, write=False) as session:
            found = identities.ids_of(session, collection_id, segment.table.pairs())
        ids = [UNKNOWN if image_id is None else image_id for image_id in found]
        return OpenSegment(source.name, segment, np.array(ids, np.uint32))

    def open_segment(self, key: str, checksum: str | None = None) -> Segment:
        """Return a segment for one use (to merge or inspect it), fetched to this host."""
        return Segment.from_arrays(self.storage.open_arrays(key, checksum), self._former)

    def _former(self, ids: NDArray[np.uint32]) -> Identities:
        """Return the images of database ids, which files had before they had tables."""
        with session_scope(self.engine, write=False) as session:
            return Identities.of(identities.identities_of(session, ids.tolist()))

    def container(self, key: str, checksum: str | None = None) -> Container:
        """Return a feature container, read from the store: a job reads each only once or twice."""
        arrays = self.storage.read_arrays(key, checksum)
        return read_container(arrays, arrays.meta)

    def assigned(self, key: str, checksum: str | None = None) -> AssignedRows:
        """Return the rows of one assignment, read from the store."""
        return AssignedRows.from_arrays(self.storage.read_arrays(key, checksum), self._former)


def _count_small(rows: Sequence[int]) -> int:
    """Return how many of these segments (by ascending size) are scanned as one."""
    small = bisect.bisect_left(rows, JOINED_ROWS)
    return bisect.bisect_right(list(itertools.accumulate(rows[:small])), JOINED_IN_ALL)


class _Source(NamedTuple):
    """Segments that are scanned as one, and the name of their content."""

    name: str
    records: tuple[SegmentRecord, ...]


def _sources(version: VersionRecord, group: int) -> list[_Source]:
    """Return what a scan of a group opens, smallest first."""
    records = sorted(version.group_segments(group), key=lambda record: record.descriptor_count)
    small = _count_small([record.descriptor_count for record in records])
    if small < 2:
        return [_Source(record.key, (record,)) for record in records]
    joined = tuple(sorted(records[:small], key=lambda record: record.key))
    name = f"joined/{digest([record.key for record in joined])}"
    return [_Source(name, joined), *(_Source(record.key, (record,)) for record in records[small:])]


def _opened_key(version: VersionRecord, source: _Source) -> str:
    """Return the cache key of an opened segment: collections share files, but not ids."""
    return f"{version.collection_id}/{source.name}"
