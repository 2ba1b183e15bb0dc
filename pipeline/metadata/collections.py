"""Collections: create, find, list, describe, delete."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, delete, func, select, update
from sqlalchemy.orm import Session

from pipeline.config import ExtractorConfig, IndexConfig
from pipeline.errors import InputError, UnknownNameError
from pipeline.metadata.jobs import unfinished_jobs
from pipeline.metadata.models import (
    Collection,
    Container,
    Holding,
    Image,
    Job,
    Location,
    Part,
    Segment,
    Tree,
    Version,
    VersionSegment,
    table,
)
from pipeline.metadata.records import (
    CollectionRecord,
    CollectionStatus,
    CollectionSummary,
    JobRecord,
)
from pipeline.metadata.sql import insert_into, lock_collection

OUTGROWN_FACTOR = 4.0
"""A collection needs a new tree when its median cell exceeds so many times its target."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def get_or_create_collection(
    session: Session, name: str, extractor: ExtractorConfig, index: IndexConfig
) -> CollectionRecord:
    """Return the collection of that name; create it with these settings if there is none.

    If two callers do so at once, one creates it and both get the same. An existing collection keeps
    its settings: compare ``record.extractor_id`` if that matters.

    Raises
    ------
    InputError
        The name is not 1 to 64 of the characters A-Z a-z 0-9 . _ - with a letter or digit first.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"a collection cannot be named {name!r}: use 1 to 64 of the characters "
            "A-Z a-z 0-9 . _ - with a letter or digit first"
        )
    statement = insert_into(session, Collection).on_conflict_do_nothing(index_elements=["name"])
    values = {
        "name": name,
        "extractor": extractor.to_dict(),
        "extractor_id": extractor.config_id(),
        "index_config": index.to_dict(),
        "created_at": time.time(),
    }
    session.execute(statement.values(values))
    return get_collection(session, name)


def get_collection(session: Session, name: str) -> CollectionRecord:
    """Return a collection by its name.

    Raises
    ------
    UnknownNameError
        There is none of that name.
    """
    collections = table(Collection)
    row = session.execute(select(collections).where(collections.c.name == name)).one_or_none()
    if row is None:
        known = session.scalars(select(collections.c.name).order_by(collections.c.name)).all()
        raise UnknownNameError("collection", name, list(known))
    return collection_record(row)


def get_collection_by_id(session: Session, collection_id: int) -> CollectionRecord:
    """Return a collection by its id.

    Raises
    ------
    UnknownNameError
        There is none (it was deleted).
    """
    collections = table(Collection)
    row = session.execute(
        select(collections).where(collections.c.id == collection_id)
    ).one_or_none()
    if row is None:
        raise UnknownNameError("collection id", str(collection_id), [])
    return collection_record(row)


def set_settings(
    session: Session, collection_id: int, extractor: ExtractorConfig, index: IndexConfig
) -> None:
    """Give a collection, whose lock the caller holds, other settings for new work."""
    values = {
        "extractor": extractor.to_dict(),
        "extractor_id": extractor.config_id(),
        "index_config": index.to_dict(),
    }
    mine = Collection.id == collection_id
    session.execute(update(table(Collection)).where(mine).values(values))


def job_settings(session: Session, job: JobRecord) -> tuple[ExtractorConfig, IndexConfig]:
    """Return the extractor and index settings that a job works with now."""
    collection = get_collection_by_id(session, job.collection_id)
    return job.params.settings(collection.extractor, collection.index)


def collection_record(row: Row[Any]) -> CollectionRecord:
    """Make the record of a row of table ``collections``."""
    return CollectionRecord(
        id=row.id,
        name=row.name,
        extractor=ExtractorConfig.from_dict(row.extractor),
        extractor_id=row.extractor_id,
        index=IndexConfig.from_dict(row.index_config),
        tree_id=row.tree_id,
        current_version_id=row.current_version_id,
        created_at=row.created_at,
    )


def list_collections(session: Session) -> list[CollectionSummary]:
    """Return all collections, by name."""
    collections, versions = table(Collection), table(Version)
    images = _counts(session, select(Image.collection_id, Image.state, func.count()), Image)
    located = session.execute(
        select(Location.collection_id, func.count()).group_by(Location.collection_id)
    )
    locations = dict(located.all())
    rows = session.execute(
        select(collections, versions.c.number)
        .outerjoin(versions, versions.c.id == collections.c.current_version_id)
        .order_by(collections.c.name)
    )
    return [
        CollectionSummary(
            id=row.id,
            name=row.name,
            extractor_id=row.extractor_id,
            images=sum(n for state, n in images.get(row.id, {}).items() if state != "removed"),
            indexed=images.get(row.id, {}).get("indexed", 0),
            locations=locations.get(row.id, 0),
            version=row.number,
            created_at=row.created_at,
        )
        for row in rows
    ]


def _counts(session: Session, statement: Any, model: type[Image]) -> dict[int, dict[str, int]]:
    """Return number of rows by collection and state."""
    counts: dict[int, dict[str, int]] = {}
    for collection_id, state, number in session.execute(
        statement.group_by(model.collection_id, model.state)
    ):
        counts.setdefault(collection_id, {})[state] = number
    return counts


def collection_status(session: Session, name: str) -> CollectionStatus:
    """Return what a collection holds now, by aggregate queries on indexes.

    Raises
    ------
    UnknownNameError
        There is no such collection.
    """
    collection = get_collection(session, name)
    images, descriptors = dict[str, int](), 0
    for state, number, total in session.execute(
        select(Image.state, func.count(), func.sum(Image.descriptor_count))
        .where(Image.collection_id == collection.id)
        .group_by(Image.state)
    ):
        images[state] = number
        if state == "indexed":
            descriptors = int(total)
    locations, unreadable = session.execute(
        select(func.count(), func.count(Location.error_code)).where(
            Location.collection_id == collection.id
        )
    ).one()
    version, median, target = _version_figures(session, collection)
    return CollectionStatus(
        id=collection.id,
        name=collection.name,
        extractor_id=collection.extractor_id,
        images=images,
        locations=locations,
        unreadable_locations=unreadable,
        descriptors=descriptors,
        version=version,
        segments=_segments_per_group(session, collection.current_version_id),
        jobs=tuple(unfinished_jobs(session, collection.id)),
        median_cell=median,
        target_cell=target,
        outgrown=median is not None and target is not None and median > OUTGROWN_FACTOR * target,
    )


def _version_figures(
    session: Session, collection: CollectionRecord
) -> tuple[int | None, float | None, float | None]:
    """Return number, median cell and target cell size of the current version."""
    row = session.execute(
        select(Version.number, Version.stats, Tree.target_cell_size)
        .join(Tree, Tree.id == Version.tree_id)
        .where(Version.id == collection.current_version_id)
    ).one_or_none()
    if row is None:
        return None, None, None
    stats: Mapping[str, Any] = row.stats
    median = stats.get("median_cell")
    return row.number, None if median is None else float(median), float(row.target_cell_size)


def _segments_per_group(session: Session, version_id: int | None) -> dict[int, int]:
    """Return how many segments of a version every group has."""
    rows = session.execute(
        select(Segment.group_number, func.count())
        .join(VersionSegment, VersionSegment.segment_id == Segment.id)
        .where(VersionSegment.version_id == version_id)
        .group_by(Segment.group_number)
        .order_by(Segment.group_number)
    )
    return dict(rows.all())


def delete_collection(session: Session, name: str) -> None:
    """Delete a collection with all its rows; the files in the store stay.

    Running tasks of its jobs end with an `UnknownNameError`.

    Raises
    ------
    UnknownNameError
        There is no such collection.
    """
    collection_id = get_collection(session, name).id
    lock_collection(session, collection_id)
    versions = select(Version.id).where(Version.collection_id == collection_id)
    jobs = select(Job.id).where(Job.collection_id == collection_id)
    # Children before their parents.
    session.execute(delete(table(Holding)).where(Holding.collection_id == collection_id))
    session.execute(delete(table(VersionSegment)).where(VersionSegment.version_id.in_(versions)))
    session.execute(delete(table(Part)).where(Part.job_id.in_(jobs)))
    session.execute(delete(table(Version)).where(Version.collection_id == collection_id))
    session.execute(delete(table(Segment)).where(Segment.collection_id == collection_id))
    session.execute(delete(table(Tree)).where(Tree.collection_id == collection_id))
    session.execute(delete(table(Location)).where(Location.collection_id == collection_id))
    session.execute(delete(table(Image)).where(Image.collection_id == collection_id))
    session.execute(delete(table(Container)).where(Container.collection_id == collection_id))
    session.execute(delete(table(Job)).where(Job.collection_id == collection_id))
    session.execute(delete(table(Collection)).where(Collection.id == collection_id))
