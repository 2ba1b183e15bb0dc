"""Identities of images: the names that segments use, and their ids in this database."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from pipeline.metadata.models import Image
from pipeline.metadata.sql import chunks


def identities_of(session: Session, image_ids: Sequence[int]) -> list[tuple[str, int]]:
    """Return SHA-256 and frame of images, in the order of their ids; all of them must exist."""
    known: dict[int, tuple[str, int]] = {}
    for some in chunks(image_ids):
        statement = select(Image.id, Image.sha256, Image.frame).where(Image.id.in_(some))
        known.update({row.id: (row.sha256, row.frame) for row in session.execute(statement)})
    return [known[image_id] for image_id in image_ids]


def ids_of(
    session: Session, collection_id: int, identities: Sequence[tuple[str, int]]
) -> list[int | None]:
    """Return the ids of images of a collection, in their order; None for unknown ones."""
    known: dict[tuple[str, int], int] = {}
    for some in chunks(identities):
        statement = select(Image.id, Image.sha256, Image.frame).where(
            Image.collection_id == collection_id,
            Image.sha256.in_({sha256 for sha256, _ in some}),
        )
        known.update({(row.sha256, row.frame): row.id for row in session.execute(statement)})
    return [known.get(identity) for identity in identities]
