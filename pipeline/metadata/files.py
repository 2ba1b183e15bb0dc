"""The files of the store that the database knows, of one collection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from pipeline.config import ExtractorConfig, model_key
from pipeline.metadata.collections import get_collection
from pipeline.metadata.models import Container, Image, Segment, Tree, Version, VersionSegment, table

FileKind = Literal["segment", "tree", "container", "model"]


@dataclass(frozen=True)
class KnownFile:
    """A file that the database names.

    Attributes
    ----------
    collection : str
    kind : {"segment", "tree", "container", "model"}
    key : str
        Its name in the store.
    checksum : str
        SHA-256 that it must have, hex.
    size : int or None
        Bytes, if they are recorded.
    current : bool
        Searches, or the next rebuild, need it; others belong to former versions.
    """

    collection: str
    kind: FileKind
    key: str
    checksum: str
    size: int | None
    current: bool


def known_files(session: Session, name: str, *, current: bool = False) -> list[KnownFile]:
    """Return a collection's files by key; all, or only those in use.

    Raises
    ------
    UnknownNameError
        There is no such collection.
    """
    collection = get_collection(session, name)
    found = [
        *_trees(session, name, collection.id, collection.current_version_id),
        *_segments(session, name, collection.id, collection.current_version_id),
        *_containers(session, name, collection.id),
        *_models(session, name, collection.extractor, collection.id, collection.current_version_id),
    ]
    return sorted((one for one in found if one.current or not current), key=lambda one: one.key)


def _trees(
    session: Session, name: str, collection_id: int, version_id: int | None
) -> Iterator[KnownFile]:
    trees = table(Tree)
    used = session.scalar(select(Version.tree_id).where(Version.id == version_id))
    rows = session.execute(
        select(trees.c.id, trees.c.key, trees.c.checksum).where(
            trees.c.collection_id == collection_id
        )
    )
    for row in rows:
        yield KnownFile(name, "tree", row.key, row.checksum, None, row.id == used)


def _segments(
    session: Session, name: str, collection_id: int, version_id: int | None
) -> Iterator[KnownFile]:
    segments = table(Segment)
    used = set(
        session.scalars(
            select(VersionSegment.segment_id).where(VersionSegment.version_id == version_id)
        )
    )
    rows = session.execute(
        select(segments.c.id, segments.c.key, segments.c.checksum, segments.c.byte_count).where(
            segments.c.collection_id == collection_id
        )
    )
    for row in rows:
        yield KnownFile(name, "segment", row.key, row.checksum, row.byte_count, row.id in used)


def _containers(session: Session, name: str, collection_id: int) -> Iterator[KnownFile]:
    containers = table(Container)
    needed = exists().where(Image.container_id == containers.c.id)
    rows = session.execute(
        select(containers.c.key, containers.c.checksum, needed.label("needed")).where(
            containers.c.collection_id == collection_id
        )
    )
    for row in rows:
        yield KnownFile(name, "container", row.key, row.checksum, None, bool(row.needed))


def _models(
    session: Session,
    name: str,
    extractor: ExtractorConfig,
    collection_id: int,
    version_id: int | None,
) -> Iterator[KnownFile]:
    """Yield the model files of the collection's extractor and of those of its versions."""
    versions = table(Version)
    rows = session.execute(
        select(versions.c.id, versions.c.extractor).where(versions.c.collection_id == collection_id)
    )
    found = {extractor.model: True}
    for row in rows:
        model = ExtractorConfig.from_dict(row.extractor).model
        found[model] = found.get(model, False) or row.id == version_id
    for model, current in found.items():
        if model:
            yield KnownFile(name, "model", model_key(model), model, None, current)
