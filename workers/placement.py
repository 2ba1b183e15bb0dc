"""Data of groups on this host: copied here before a worker takes messages of the group."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator

from pipeline.errors import CorruptFileError, IndexNotBuiltError, TransientError, UnknownNameError
from pipeline.metadata.collections import list_collections
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import SegmentRecord
from pipeline.metadata.versions import current_version
from workers.context import Context

__all__ = ["sync_groups"]

_log = logging.getLogger(__name__)
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0


def sync_groups(context: Context, groups: Collection[int]) -> int:
    """Make a local, verified copy of every current segment of some groups.

    If store or database do not answer yet, it waits for them. A segment that is damaged in the
    store is logged and skipped; searches then say so, and other segments are served.

    Parameters
    ----------
    context : Context
    groups : collection of int

    Returns
    -------
    int
        Number of local segments.
    """
    wait = _FIRST_WAIT_S
    while True:
        try:
            return sum(_fetch(context, segment) for segment in _segments(context, groups))
        except TransientError as error:
            _log.warning("cannot fetch groups yet, trying again in %.1f s: %s", wait, error)
            time.sleep(wait)
            wait = min(_LONGEST_WAIT_S, wait * 2)


def _segments(context: Context, groups: Collection[int]) -> Iterator[SegmentRecord]:
    """Yield the segments of the groups in the current version of every collection."""
    with session_scope(context.engine, write=False) as session:
        names = [collection.name for collection in list_collections(session)]
    for name in names:
        try:
            with session_scope(context.engine, write=False) as session:
                version = current_version(session, name)
        except (IndexNotBuiltError, UnknownNameError):  # nothing published yet; deleted meanwhile
            continue
        yield from (s for s in version.segments if s.group_number in groups)


def _fetch(context: Context, segment: SegmentRecord) -> bool:
    """Fetch one segment; False if the store's copy is damaged."""
    try:
        context.storage.fetch(segment.key, segment.checksum)
    except CorruptFileError as error:
        _log.error("segment not served: %s", error)
        return False
    return True
