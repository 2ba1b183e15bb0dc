"""Versions, which searches use: published in one transaction under the collection's row lock."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import and_, func, select, update
from sqlalchemy.orm import Session

from pipeline.config import ExtractorConfig, IndexConfig
from pipeline.errors import IndexNotBuiltError, UnknownNameError
from pipeline.job_kinds import kind_of
from pipeline.metadata import ledger, reextraction
from pipeline.metadata.assignment import assigned_images
from pipeline.metadata.collections import get_collection, get_collection_by_id
from pipeline.metadata.holdings import HoldingChanges, changes, hidden_images, images_with_rows
from pipeline.metadata.jobs import get_job
from pipeline.metadata.models import (
    Collection,
    Segment,
    Version,
    VersionSegment,
    table,
)
from pipeline.metadata.records import CollectionRecord, JobRecord, NewSegments, VersionRecord
from pipeline.metadata.sql import lock_collection
from pipeline.metadata.trees import get_tree, segment_record


def publish_version(session: Session, job_id: str, new: NewSegments) -> VersionRecord | None:
    """Publish the next version of a job's collection.

    It has the segments of the current version and the new ones. If the job's kind replaces the
    index, it has only the new ones, and their tree becomes the collection's. The images of the
    job's assignment become ``indexed``, and the version holds them. It does not hold removed
    images, and again holds those that came back.

    Returns
    -------
    VersionRecord or None
        The version; if the job has published already, that version; if there is nothing to change,
        the current one. None if the index has changed and the job's segments cannot be used: the
        collection has another tree, images of the job wait for their features again, replacing the
        index would lose images indexed meanwhile, or the job was ended or paused. The caller then
        extracts what is missing and assigns again.
    """
    job = get_job(session, job_id)
    collection = lock_collection(session, job.collection_id)
    done = published_version(session, job)
    if done is not None:
        return done
    if get_job(session, job_id).state != "running":
        return None
    replaces = kind_of(job.kind).replaces
    assigned = assigned_images(session, job_id)
    images = sorted({image_id for some in assigned.values() for image_id in some})
    kept: list[int] = []
    ended: set[int] = set()
    if replaces:
        if not _fit_to_replace(session, job, images):
            return None
        ended = images_with_rows(session, collection.id).difference(images)
        if reextraction.is_reextraction(job):
            reextraction.take_over(session, job, images)
    else:
        if collection.tree_id != new.tree_id or ledger.waits_for(session, collection.id, job_id):
            return None
        kept = version_segment_ids(session, collection.current_version_id)
    ledger.index_images(session, list(assigned), images)
    changed = changes(session, collection.id, images, ended)
    segments = list(dict.fromkeys([*kept, *new.segment_ids]))
    current = collection.current_version_id
    if not replaces and current is not None and segments == kept and not changed:
        return get_version(session, current)
    made = replace(new, segment_ids=segments)
    return insert_version(session, collection.id, made, changed, job_id)


def _fit_to_replace(session: Session, job: JobRecord, image_ids: Sequence[int]) -> bool:
    """Tell whether segments of these images alone can replace all that there are."""
    if reextraction.is_reextraction(job):
        return reextraction.fit_to_publish(session, job, image_ids)
    return ledger.fit_to_replace(session, job.collection_id, image_ids)


def published_version(session: Session, job: JobRecord) -> VersionRecord | None:
    """Return the version that a job has published; None if it has not."""
    mine = and_(Version.collection_id == job.collection_id, Version.job_id == job.id)
    version_id = session.scalar(select(Version.id).where(mine))
    return None if version_id is None else get_version(session, version_id)


def version_segment_ids(session: Session, version_id: int | None) -> list[int]:
    """Return the segments of a version, oldest first; none if there is no version."""
    return list(
        session.scalars(
            select(VersionSegment.segment_id)
            .where(VersionSegment.version_id == version_id)
            .order_by(VersionSegment.segment_id)
        )
    )


def insert_version(
    session: Session,
    collection_id: int,
    made: NewSegments,
    changed: HoldingChanges,
    job_id: str | None = None,
) -> VersionRecord:
    """Insert the next version, with only these segments, and make it the current one.

    It has the collection's settings.
    """
    collection = lock_collection(session, collection_id)
    last = select(func.max(Version.number)).where(Version.collection_id == collection.id)
    number = (session.scalar(last) or 0) + 1
    row = {
        "collection_id": collection.id,
        "number": number,
        "extractor": collection.extractor,
        "extractor_id": collection.extractor_id,
        "index_config": collection.index_config,
        "tree_id": made.tree_id,
        "job_id": job_id,
        "stats": dict(made.stats),
        "created_at": time.time(),
    }
    session.execute(table(Version).insert().values(row))
    version_id = session.scalars(
        select(Version.id).where(Version.collection_id == collection.id, Version.number == number)
    ).one()
    if made.segment_ids:
        session.execute(
            table(VersionSegment).insert(),
            [{"version_id": version_id, "segment_id": i} for i in made.segment_ids],
        )
    ledger.enter_version(session, collection.id, number, changed)
    session.execute(
        update(table(Collection))
        .where(Collection.id == collection.id)
        .values(current_version_id=version_id, tree_id=made.tree_id)
    )
    return get_version(session, version_id)


def current_version_id(session: Session, collection: int | str) -> int | None:
    """Return the id of a collection's current version, by one small query.

    Parameters
    ----------
    collection : int or str
        Id or name.

    Raises
    ------
    UnknownNameError
        There is no such collection.
    """
    return _collection(session, collection).current_version_id


def current_version(session: Session, collection: int | str) -> VersionRecord:
    """Return the version that a search of the collection uses now.

    Parameters
    ----------
    collection : int or str
        Id or name.

    Raises
    ------
    UnknownNameError
        There is no such collection.
    IndexNotBuiltError
        Nothing was published yet.
    """
    record = _collection(session, collection)
    if record.current_version_id is None:
        raise IndexNotBuiltError(record.name)
    return get_version(session, record.current_version_id)


def get_version(session: Session, version_id: int) -> VersionRecord:
    """Return a version; the same id always gives the same content.

    Raises
    ------
    UnknownNameError
        There is none (its collection was deleted).
    """
    versions, segments = table(Version), table(Segment)
    row = session.execute(select(versions).where(versions.c.id == version_id)).one_or_none()
    if row is None:
        raise UnknownNameError("version id", str(version_id), [])
    collection = get_collection_by_id(session, row.collection_id)
    segment_rows = session.execute(
        select(segments)
        .join(VersionSegment, VersionSegment.segment_id == segments.c.id)
        .where(VersionSegment.version_id == version_id)
        .order_by(segments.c.group_number, segments.c.id)
    )
    return VersionRecord(
        id=row.id,
        collection_id=row.collection_id,
        collection=collection.name,
        number=row.number,
        tree=get_tree(session, row.tree_id),
        segments=tuple(segment_record(segment) for segment in segment_rows),
        tombstones=hidden_images(session, row.collection_id, row.number),
        stats=row.stats,
        extractor=ExtractorConfig.from_dict(row.extractor),
        index=IndexConfig.from_dict(row.index_config),
        job_id=row.job_id,
        created_at=row.created_at,
    )


def _collection(session: Session, collection: int | str) -> CollectionRecord:
    """Return a collection by id or name."""
    if isinstance(collection, int):
        return get_collection_by_id(session, collection)
    return get_collection(session, collection)
