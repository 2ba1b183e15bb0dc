"""Compaction: which collections need it, and publishing its version."""

from __future__ import annotations

import time
from dataclasses import replace

from sqlalchemy import ColumnElement, and_, exists, func, not_, select
from sqlalchemy.orm import Session

from pipeline.job_kinds import KINDS, REBUILD, kind_of
from pipeline.metadata import ledger
from pipeline.metadata.holdings import changes, has_rows
from pipeline.metadata.jobs import LOCAL_SILENCE_S, get_job, is_silent, unfinished_jobs
from pipeline.metadata.models import (
    Collection,
    Image,
    Job,
    Segment,
    Version,
    VersionSegment,
)
from pipeline.metadata.records import MergedSegments, VersionRecord
from pipeline.metadata.sql import lock_collection
from pipeline.metadata.versions import (
    insert_version,
    published_version,
    version_segment_ids,
)

DROPPED_AT_ONCE = 20_000
"""The most removed images whose rows one compaction drops: its parts list them."""


def collections_to_compact(
    session: Session, above: int, before: float | None = None, collection_id: int | None = None
) -> list[int]:
    """Return the collections with too many segments in a group and no compaction of them yet.

    A compaction or rebuild begun since the current version was published counts, even if it failed:
    it is tried again after the next publication. A job of a silent process
    (`pipeline.metadata.jobs.is_silent`) does not count.

    Parameters
    ----------
    session : Session
    above : int
        Segments that a group may have; 0: any number.
    before : float, optional
        Only if the current version was published before this time, unix seconds.
    collection_id : int, optional
        Only this one.
    """
    if above == 0:
        return []
    unfinished = Job.state.in_(["running", "paused"])
    silent = and_(
        unfinished,
        Job.process.is_not(None),
        Job.progress_at < time.time() - LOCAL_SILENCE_S,
    )
    begun = exists().where(
        Job.collection_id == Collection.id,
        Job.kind.in_([kind.name for kind in KINDS.values() if kind.merges_segments]),
        unfinished | (Job.created_at >= Version.created_at),
        not_(silent),
    )
    statement = (
        select(Collection.id)
        .join(Version, Version.id == Collection.current_version_id)
        .join(VersionSegment, VersionSegment.version_id == Version.id)
        .join(Segment, Segment.id == VersionSegment.segment_id)
        .where(~begun)
        .group_by(Collection.id, Segment.group_number)
        .having(func.count() > above)
    )
    if before is not None:
        statement = statement.where(Version.created_at < before)
    if collection_id is not None:
        statement = statement.where(Collection.id == collection_id)
    return sorted(set(session.scalars(statement)))


def last_rebuild_failed(session: Session, collection_id: int, since: float) -> bool:
    """Tell whether the newest rebuild of a collection begun since a time (unix seconds) failed."""
    mine = and_(Job.collection_id == collection_id, Job.kind == REBUILD.name)
    statement = (
        select(Job.state)
        .where(mine, Job.created_at >= since)
        .order_by(Job.created_at.desc())
        .limit(1)
    )
    return session.scalar(statement) == "failed"


def droppable_images(session: Session, collection_id: int) -> list[int]:
    """Return removed images whose rows a compaction of every segment may drop, by id.

    There are none during a rebuild, which has fixed its rows already.
    """
    if is_rebuilt(session, collection_id):
        return []
    gone = _removed_rows(collection_id)
    statement = select(Image.id).where(gone).order_by(Image.id).limit(DROPPED_AT_ONCE)
    return list(session.scalars(statement))


def count_removed(session: Session, collection_id: int) -> int:
    """Return the number of removed images whose rows are in the index."""
    gone = _removed_rows(collection_id)
    return session.scalar(select(func.count()).select_from(Image).where(gone)) or 0


def _removed_rows(collection_id: int) -> ColumnElement[bool]:
    """Condition for the removed images of a collection whose rows are in the index."""
    return and_(Image.collection_id == collection_id, Image.state == "removed", has_rows())


def is_rebuilt(session: Session, collection_id: int) -> bool:
    """Tell whether a rebuild is under way."""
    unfinished = unfinished_jobs(session, collection_id)
    return any(kind_of(job.kind).replaces and not is_silent(job) for job in unfinished)


def publish_compaction(
    session: Session, job_id: str, merged: MergedSegments
) -> VersionRecord | None:
    """Publish a version with the merged segments instead of the old ones.

    Segments published meanwhile stay. Images whose rows were dropped need no tombstone any more;
    one that comes back is extracted again.

    Returns
    -------
    VersionRecord or None
        The version; if the job has published already, that version. None if the index has changed
        meanwhile: it has another tree, a merged segment is no longer in it, a dropped image came
        back, or the job was ended or paused. The caller then plans the merges again.
    """
    job = get_job(session, job_id)
    collection = lock_collection(session, job.collection_id)
    done = published_version(session, job)
    if done is not None:
        return done
    if get_job(session, job_id).state != "running" or collection.tree_id != merged.tree_id:
        return None
    current = version_segment_ids(session, collection.current_version_id)
    replaced, dropped = set(merged.replaced), merged.dropped
    if not replaced <= set(current):
        return None
    if dropped and (is_rebuilt(session, collection.id) or not ledger.fit_to_drop(session, dropped)):
        return None
    kept = [segment_id for segment_id in current if segment_id not in replaced]
    segments = list(dict.fromkeys([*kept, *merged.segment_ids]))
    changed = changes(session, collection.id, [], dropped)
    made = replace(merged, segment_ids=segments)
    return insert_version(session, collection.id, made, changed, job_id)
