"""Versions: what a search uses, published in one transaction under the collection's row lock."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, and_, exists, func, not_, or_, select, update
from sqlalchemy.orm import Session

from pipeline.errors import IndexNotBuiltError, UnknownNameError
from pipeline.metadata.collections import get_collection, get_collection_by_id
from pipeline.metadata.extraction import job_containers
from pipeline.metadata.jobs import get_job
from pipeline.metadata.models import (
    Collection,
    Container,
    Image,
    Segment,
    Tombstone,
    Version,
    VersionSegment,
    table,
)
from pipeline.metadata.records import CollectionRecord, PublishMode, VersionRecord
from pipeline.metadata.sql import chunks, lock_collection
from pipeline.metadata.trees import get_tree, segment_record


def publish_version(
    session: Session,
    collection_id: int,
    job_id: str,
    tree_id: int,
    segment_ids: Sequence[int],
    mode: PublishMode,
    stats: Mapping[str, Any],
    *,
    container_ids: Sequence[int] | None = None,
) -> VersionRecord | None:
    """Publish the next version of a collection.

    The containers' images become ``indexed``, removed images whose rows are in the segments get a
    tombstone, and images that came back lose theirs.

    Parameters
    ----------
    tree_id : int
        The tree that the segments were made with.
    segment_ids : sequence of int
        Segments that the job made.
    mode : {"append", "replace"}
        ``append``: the current version's segments and these. ``replace``: these alone, and
        `tree_id` becomes the collection's tree.
    stats : mapping
        JSON-serialisable figures of the index; ``median_cell`` is shown by the status.
    container_ids : sequence of int, optional
        The containers that the segments were made from. Default: the job's own.

    Returns
    -------
    VersionRecord or None
        The version; that of the first call when the job has published already; the current one
        when there is nothing to change. None when the index changed under the job and its segments
        cannot be used: the tree is another one (append), images were indexed that the job does not
        know (replace), or the job has been ended or paused. The caller then assigns anew.
    """
    collection = lock_collection(session, collection_id)
    done = session.scalar(
        select(Version.id).where(Version.collection_id == collection_id, Version.job_id == job_id)
    )
    if done is not None:
        return get_version(session, done)
    if get_job(session, job_id).state != "running":
        return None
    if container_ids is None:
        container_ids = [container.id for container in job_containers(session, job_id)]
    if mode == "append":
        if collection.tree_id != tree_id:
            return None
    elif _has_unknown_images(session, collection_id, container_ids):
        return None
    _mark_indexed(session, collection_id, container_ids, mode)
    current = collection.current_version_id
    kept = version_segment_ids(session, current) if mode == "append" and current is not None else []
    segments = list(dict.fromkeys([*kept, *segment_ids]))
    tombstones = tombstone_changes(session, collection_id)
    if mode == "append" and current is not None and segments == kept and not any(tombstones):
        return get_version(session, current)
    values = {"tree_id": tree_id, "job_id": job_id, "stats": dict(stats)}
    return insert_version(session, collection, values, segments, tombstones)


def _has_unknown_images(session: Session, collection_id: int, container_ids: Sequence[int]) -> bool:
    """Say whether the index has images that segments made from these containers lack."""
    indexed = and_(Image.collection_id == collection_id, Image.state == "indexed")
    came_back = session.scalar(select(exists().where(indexed, Image.left_out)))
    containers = session.scalars(
        select(Container.id).where(
            Container.collection_id == collection_id,
            Container.state == "indexed",
            exists().where(Image.container_id == Container.id, Image.state == "indexed"),
        )
    )
    return bool(came_back) or not set(containers) <= set(container_ids)


def _mark_indexed(
    session: Session, collection_id: int, container_ids: Sequence[int], mode: PublishMode
) -> None:
    """Note which images have their rows in the index now."""
    images, containers = table(Image), table(Container)
    if mode == "replace":
        session.execute(
            update(images)
            .where(images.c.collection_id == collection_id, images.c.in_index)
            .values(in_index=False)
        )
    for some in chunks(sorted(container_ids)):
        inside = and_(images.c.container_id.in_(some), not_(images.c.left_out))
        session.execute(update(images).where(inside).values(in_index=True))
        session.execute(
            update(images).where(inside, images.c.state == "extracted").values(state="indexed")
        )
        session.execute(update(containers).where(containers.c.id.in_(some)).values(state="indexed"))


def version_segment_ids(session: Session, version_id: int) -> list[int]:
    """Return the segments of a version in the order of their making."""
    return list(
        session.scalars(
            select(VersionSegment.segment_id)
            .where(VersionSegment.version_id == version_id)
            .order_by(VersionSegment.segment_id)
        )
    )


def tombstone_changes(session: Session, collection_id: int) -> tuple[list[int], list[int]]:
    """Return the images that need a tombstone and those whose tombstone must be lifted."""
    wanted = set(
        session.scalars(
            select(Image.id).where(
                Image.collection_id == collection_id, Image.state == "removed", Image.in_index
            )
        )
    )
    standing = set(
        session.scalars(
            select(Tombstone.image_id).where(
                Tombstone.collection_id == collection_id, Tombstone.until_version.is_(None)
            )
        )
    )
    return sorted(wanted - standing), sorted(standing - wanted)


def insert_version(
    session: Session,
    collection: Row[Any],
    values: Mapping[str, Any],
    segment_ids: Sequence[int],
    tombstones: tuple[Sequence[int], Sequence[int]],
) -> VersionRecord:
    """Insert the next version and make it the current one."""
    last = select(func.max(Version.number)).where(Version.collection_id == collection.id)
    number = (session.scalar(last) or 0) + 1
    row = {"collection_id": collection.id, "number": number, "created_at": time.time(), **values}
    session.execute(table(Version).insert().values(row))
    version_id = session.scalars(
        select(Version.id).where(Version.collection_id == collection.id, Version.number == number)
    ).one()
    if segment_ids:
        session.execute(
            table(VersionSegment).insert(),
            [{"version_id": version_id, "segment_id": i} for i in segment_ids],
        )
    buried, lifted = tombstones
    if buried:
        session.execute(
            table(Tombstone).insert(),
            [
                {"collection_id": collection.id, "since_version": number, "image_id": image_id}
                for image_id in buried
            ],
        )
    for some in chunks(lifted):
        session.execute(
            update(table(Tombstone))
            .where(
                Tombstone.collection_id == collection.id,
                Tombstone.until_version.is_(None),
                Tombstone.image_id.in_(some),
            )
            .values(until_version=number)
        )
    session.execute(
        update(table(Collection))
        .where(Collection.id == collection.id)
        .values(current_version_id=version_id, tree_id=values["tree_id"])
    )
    return get_version(session, version_id)


def current_version_id(session: Session, collection: int | str) -> int | None:
    """Return the id of a collection's current version: one small query, to see what is new.

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
        tombstones=_tombstones(session, row.collection_id, row.number),
        stats=row.stats,
        extractor=collection.extractor,
        index=collection.index,
        job_id=row.job_id,
        created_at=row.created_at,
    )


def _tombstones(session: Session, collection_id: int, number: int) -> frozenset[int]:
    """Return the images that a version hides."""
    return frozenset(
        session.scalars(
            select(Tombstone.image_id).where(
                Tombstone.collection_id == collection_id,
                Tombstone.since_version <= number,
                or_(Tombstone.until_version.is_(None), Tombstone.until_version > number),
            )
        )
    )


def _collection(session: Session, collection: int | str) -> CollectionRecord:
    """Return a collection by id or name."""
    if isinstance(collection, int):
        return get_collection_by_id(session, collection)
    return get_collection(session, collection)
