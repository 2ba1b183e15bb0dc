"""Trees and segments: the files of an index."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row, and_, select, update
from sqlalchemy.orm import Session

from pipeline.errors import UnknownNameError
from pipeline.metadata.models import Base, Collection, Segment, Tree, VersionSegment, table
from pipeline.metadata.records import SegmentInfo, SegmentRecord, TreeInfo, TreeRecord
from pipeline.metadata.sql import chunks, insert_into, lock_collection


def add_tree(
    session: Session, collection_id: int, tree: TreeInfo, job_id: str | None = None
) -> TreeRecord:
    """Record a tree's file; a known key keeps its row, with the present file."""
    return tree_record(_insert_or_correct(session, Tree, collection_id, tree, job_id))


def get_tree(session: Session, tree_id: int) -> TreeRecord:
    """Return a tree.

    Raises
    ------
    UnknownNameError
        There is none.
    """
    trees = table(Tree)
    row = session.execute(select(trees).where(trees.c.id == tree_id)).one_or_none()
    if row is None:
        raise UnknownNameError("tree id", str(tree_id), [])
    return tree_record(row)


def adopt_tree(session: Session, collection_id: int, tree_id: int, extractor_id: str) -> TreeRecord:
    """Make a tree the collection's, unless it has one, and return the collection's tree.

    Two concurrent first jobs both get the same tree, the first. If the tree was trained for another
    extractor than the collection has now, it is returned itself: what is made with it will not be
    published.
    """
    row = lock_collection(session, collection_id)
    if row.extractor_id != extractor_id:
        return get_tree(session, tree_id)
    if row.tree_id is not None:
        return get_tree(session, row.tree_id)
    tree = get_tree(session, tree_id)
    session.execute(
        update(table(Collection)).where(Collection.id == collection_id).values(tree_id=tree_id)
    )
    return tree


def add_segment(
    session: Session, collection_id: int, segment: SegmentInfo, job_id: str | None = None
) -> SegmentRecord:
    """Record a segment's file; a known key keeps its row, with the present file.

    It becomes part of the index when a version with it is published.
    """
    return segment_record(_insert_or_correct(session, Segment, collection_id, segment, job_id))


def get_segments(session: Session, segment_ids: Sequence[int]) -> list[SegmentRecord]:
    """Return segments by their ids, in the order of the ids."""
    columns = table(Segment)
    found: dict[int, SegmentRecord] = {}
    for some in chunks(segment_ids):
        for row in session.execute(select(columns).where(columns.c.id.in_(some))):
            found[row.id] = segment_record(row)
    return [found[segment_id] for segment_id in segment_ids]


def current_segments(session: Session, collection_id: int) -> list[SegmentRecord]:
    """Return the segments of a collection's current version; none if there is no version."""
    columns = table(Segment)
    rows = session.execute(
        select(columns)
        .join(VersionSegment, VersionSegment.segment_id == columns.c.id)
        .join(Collection, Collection.current_version_id == VersionSegment.version_id)
        .where(Collection.id == collection_id)
        .order_by(columns.c.id)
    )
    return [segment_record(row) for row in rows]


def _insert_or_correct(
    session: Session,
    model: type[Base],
    collection_id: int,
    file: TreeInfo | SegmentInfo,
    job_id: str | None,
) -> Row[Any]:
    """Insert a row, or record the present file of its key; return the row.

    A lost or damaged file that was made again may differ in its last bits.
    """
    of_file = asdict(file)
    whose = {"collection_id": collection_id, "job_id": job_id, "created_at": time.time()}
    statement = insert_into(session, model).values({**of_file, **whose})
    changes = {name: statement.excluded[name] for name in of_file if name != "key"}
    unique = ["collection_id", "key"]
    session.execute(statement.on_conflict_do_update(index_elements=unique, set_=changes))
    columns = table(model).c
    mine = and_(columns.collection_id == collection_id, columns.key == file.key)
    return session.execute(select(table(model)).where(mine)).one()


def tree_record(row: Row[Any]) -> TreeRecord:
    """Make the record of a row of table ``trees``."""
    return TreeRecord(
        id=row.id,
        collection_id=row.collection_id,
        key=row.key,
        checksum=row.checksum,
        levels=row.levels,
        cells=row.cells,
        groups=row.groups,
        strategy=row.strategy,
        trained_on=row.trained_on,
        target_cell_size=row.target_cell_size,
        job_id=row.job_id,
        created_at=row.created_at,
    )


def segment_record(row: Row[Any]) -> SegmentRecord:
    """Make the record of a row of table ``segments``."""
    return SegmentRecord(
        id=row.id,
        collection_id=row.collection_id,
        tree_id=row.tree_id,
        group_number=row.group_number,
        key=row.key,
        checksum=row.checksum,
        descriptor_count=row.descriptor_count,
        image_count=row.image_count,
        byte_count=row.byte_count,
        filled_cells=row.filled_cells,
        job_id=row.job_id,
        created_at=row.created_at,
    )
