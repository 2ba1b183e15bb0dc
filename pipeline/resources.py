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

from pipeline.arrays import ArrayFile
from pipeline.config import ExtractorConfig, Settings, digest
from pipeline.containers import Container, read_container
from pipeline.errors import (
    CorruptFileError,
    IndexNotBuiltError,
    StorageUnavailableError,
    VantageError,
)
from pipeline.extraction.base import Extractor
from pipeline.extraction.registry import get_extractor
from pipeline.index.identities import Identities
from pipeline.index.merge import join_segments
from pipeline.index.model import Model
from pipeline.index.segments import AssignedRows, Segment
from pipeline.metadata import identities, versions
from pipeline.metadata.engine import create_metadata_engine, session_scope
from pipeline.metadata.records import SegmentRecord, TreeRecord, VersionRecord
from pipeline.retrieval.open_segments import UNKNOWN, OpenSegment
from pipeline.storage import Storage
from pipeline.verified import Look, look_at

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

    def known(self, key: str) -> bool:
        """Say whether there is a value for a key."""
        with self._lock:
            return key in self._values

    def drop(self, key: str) -> None:
        """Drop a value, if it is there."""
        with self._lock:
            self._values.pop(key, None)

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
        self._looks: dict[str, tuple[str, Look | None]] = {}

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
        self.drop_changed()
        known: list[VersionRecord] = self._versions.values()
        mine = sorted(v.id for v in known if v.collection_id == collection_id)
        former = set(mine[:-KEPT_OF_COLLECTION])
        kept = [version for version in known if version.id not in former]
        self._versions.keep({str(version.id) for version in kept})
        self._segments.keep(
            {_segment_key(segment) for version in kept for segment in version.segments}
        )
        self._opened.keep(
            {
                _opened_key(version, source)
                for version in kept
                for group in version.groups
                for source in _sources(version, group)
            }
        )

    def drop_changed(self) -> None:
        """Drop open segments whose local copy was replaced or written to since it was opened.

        One that is only gone stays: what is mapped outlives its name.
        """
        for name, (key, before) in list(self._looks.items()):
            now = look_at(self.storage.local / key)
            if not self._segments.known(name):
                self._looks.pop(name, None)
            elif now is not None and now != before:
                self._looks.pop(name, None)
                self._segments.drop(name)
                self._opened.keep(())

    def forget_file(self, key: str) -> None:
        """Open a segment or tree again when it is needed next: its file was damaged."""
        for name, (known, _) in list(self._looks.items()):
            if known == key:
                self._looks.pop(name, None)
                self._segments.drop(name)
        self._opened.keep(())
        self._models.keep(())

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
            f"{key}/{checksum}", lambda: Model.from_arrays(self.storage.open_arrays(key, checksum))
        )

    def group_segments(self, version: VersionRecord, group: int) -> GroupSegments:
        """Return what a scan of a group visits: its segments, with the small ones joined.

        Images added one by one have a segment each until they are compacted. A segment that the
        store has lost, or that is damaged, is left out and named.
        """
        found = GroupSegments([], {})
        for source in _sources(version, group):
            if not self._opened.known(_opened_key(version, source)):
                source, lost = self._readable(version, source)
                found.lost.update(lost)
            if source.records:
                key = _opened_key(version, source)
                opened = self._opened.get(key, partial(self._open, version, source))
                found.opened.append(opened)
        return found

    def _readable(
        self, version: VersionRecord, source: _Source
    ) -> tuple[_Source, dict[str, VantageError]]:
        """Return the segments of a source that can be read, and why the others cannot."""
        lost: dict[str, VantageError] = {}
        for record in source.records:
            try:
                self._segment(version, record)
            except (CorruptFileError, StorageUnavailableError) as exc:
                lost[record.key] = exc
        left = tuple(record for record in source.records if record.key not in lost)
        return _source_of(left) if lost else source, lost

    def _segment(self, version: VersionRecord, record: SegmentRecord) -> Segment:
        """Return a segment of a version, kept open; fetch it to this host if necessary."""

        def read() -> Segment:
            segment = self.recorded_segment(record, version.tree)
            found, wanted = segment.rows.dimensions, version.index.dimensions
            if found != wanted:
                raise CorruptFileError(record.key, f"its rows have {found} bytes, not {wanted}")
            self._looks[_segment_key(record)] = record.key, look_at(self.storage.local / record.key)
            return segment

        return self._segments.get(_segment_key(record), read)

    def _open(self, version: VersionRecord, source: _Source) -> OpenSegment:
        """Open segments to be scanned as one."""
        segments = [self._segment(version, record) for record in source.records]
        segment = segments[0] if len(segments) == 1 else join_segments(segments)
        with session_scope(self.engine, write=False) as session:
            found = identities.ids_of(session, version.collection_id, segment.table.pairs())
        ids = [UNKNOWN if image_id is None else image_id for image_id in found]
        return OpenSegment(source.name, segment, np.array(ids, np.uint32))

    def recorded_segment(self, record: SegmentRecord, tree: TreeRecord) -> Segment:
        """Return a segment that the database names, fetched to this host.

        Raises
        ------
        CorruptFileError
            It is not as the database says.
        StorageUnavailableError
        """
        segment = self.open_segment(record.key, record.checksum)
        require_group(segment, record.key, record.group_number, tree)
        if segment.rows.size != record.descriptor_count:
            reason = f"it has {segment.rows.size:,} rows, not {record.descriptor_count:,}"
            raise CorruptFileError(record.key, reason)
        return segment

    def open_segment(self, key: str, checksum: str | None = None) -> Segment:
        """Return a segment for one use (to merge or inspect it), fetched to this host."""
        return self.read_segment(self.storage.open_arrays(key, checksum))

    def read_segment(self, file: ArrayFile) -> Segment:
        """Return the segment that a file holds."""
        return Segment.from_arrays(file, self._former)

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


def require_group(segment: Segment, key: str, group: int, tree: TreeRecord) -> None:
    """Check that a segment holds rows of a group of a tree.

    Raises
    ------
    CorruptFileError
    """
    cells = tree.cells // tree.groups
    found, wanted = (segment.first_cell, len(segment.cell_offsets) - 1), (group * cells, cells)
    if found != wanted:
        raise CorruptFileError(key, f"first cell and cells are {found}, not {wanted}")


def _count_small(rows: Sequence[int]) -> int:
    """Return how many of these segments (by ascending size) are scanned as one."""
    small = bisect.bisect_left(rows, JOINED_ROWS)
    return bisect.bisect_right(list(itertools.accumulate(rows[:small])), JOINED_IN_ALL)


class GroupSegments(NamedTuple):
    """What a scan of a group visits.

    Attributes
    ----------
    opened : list of OpenSegment
    lost : dict of str to VantageError
        Why segments are not among them, by key.
    """

    opened: list[OpenSegment]
    lost: dict[str, VantageError]


class _Source(NamedTuple):
    """Segments that are scanned as one, and the name of their content."""

    name: str
    records: tuple[SegmentRecord, ...]


def _sources(version: VersionRecord, group: int) -> list[_Source]:
    """Return what a scan of a group opens, smallest first."""
    records = sorted(version.group_segments(group), key=lambda record: record.descriptor_count)
    small = _count_small([record.descriptor_count for record in records])
    joined = [_source_of(records[:small])] if small > 1 else []
    return [*joined, *(_source_of([record]) for record in records[small if joined else 0 :])]


def _source_of(records: Sequence[SegmentRecord]) -> _Source:
    """Return segments, to be scanned as one; the name is that of their keys."""
    ordered = tuple(sorted(records, key=lambda record: record.key))
    if len(ordered) == 1:
        return _Source(ordered[0].key, ordered)
    return _Source(f"joined/{digest([record.key for record in ordered])}", ordered)


def _segment_key(record: SegmentRecord) -> str:
    """Return the cache key of a segment: a file that is made again may differ."""
    return f"{record.key}/{record.checksum}"


def _opened_key(version: VersionRecord, source: _Source) -> str:
    """Return the cache key of an opened segment: collections share files, but not ids."""
    content = digest([_segment_key(record) for record in source.records])
    return f"{version.collection_id}/{content}"
