"""Which images each version holds: intervals of version numbers.

A holding is an interval of versions whose segments have rows of an image: from ``from_version`` to
before ``rows_until``. Versions before ``until_version`` hold the image. The later ones skip its
rows: for them it has a tombstone. An image that comes back while its rows are there gets another
holding with the same rows.

Only `pipeline.metadata.ledger` writes here, in the transaction that publishes a version.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from sqlalchemy import (
    ColumnElement,
    Exists,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session

from pipeline.metadata.models import Holding, Image, table
from pipeline.metadata.sql import chunks


@dataclass(frozen=True)
class HoldingChanges:
    """What the next version changes; all are ids of images.

    Attributes
    ----------
    begun : sequence of int
        Images whose rows are new in the segments.
    hidden : sequence of int
        Images that the version no longer holds, although their rows stay.
    returned : sequence of int
        Images that the version holds again; their rows were skipped before.
    ended : sequence of int
        Images whose rows leave the segments.
    """

    begun: Sequence[int] = ()
    hidden: Sequence[int] = ()
    returned: Sequence[int] = ()
    ended: Sequence[int] = ()

    def __bool__(self) -> bool:
        return any((self.begun, self.hidden, self.returned, self.ended))


def has_rows() -> Exists:
    """Condition: the segments of the current version have rows of the image."""
    return exists().where(Holding.image_id == Image.id, Holding.rows_until.is_(None))


def changes(
    session: Session, collection_id: int, begun: Sequence[int], ended: Collection[int]
) -> HoldingChanges:
    """Return what the next version must change to match the states of the images.

    Parameters
    ----------
    session : Session
    collection_id : int
    begun : sequence of int
        Images with rows in the segments that come; those that have rows already are passed over.
    ended : collection of int
        Images whose rows leave the segments.
    """
    have_rows = {
        image_id
        for some in chunks(sorted(begun))
        for image_id in session.scalars(
            select(Holding.image_id).where(Holding.rows_until.is_(None), Holding.image_id.in_(some))
        )
    }
    gone = set(ended)
    # By the index on states: most images are held, few are removed.
    removed = select(Image.id).where(
        Image.collection_id == collection_id,
        Image.state == "removed",
        has_rows().where(Holding.until_version.is_(None)),
    )
    back = (
        select(Holding.image_id)
        .join(Image, Image.id == Holding.image_id)
        .where(_open(collection_id), Holding.until_version.is_not(None), Image.state == "indexed")
    )
    return HoldingChanges(
        begun=sorted(set(begun) - have_rows),
        hidden=sorted(set(session.scalars(removed)) - gone),
        returned=sorted(set(session.scalars(back)) - gone),
        ended=sorted(gone),
    )


def apply_changes(
    session: Session, collection_id: int, number: int, changed: HoldingChanges
) -> None:
    """Write what version `number` changes."""
    _end(session, changed.ended, number)
    _end(session, changed.returned, number)
    _set(session, changed.hidden, until_version=number)
    _begin(session, collection_id, changed.returned, number)
    _begin(session, collection_id, changed.begun, number)


def _begin(session: Session, collection_id: int, image_ids: Sequence[int], number: int) -> None:
    """Begin holdings; of an image removed before its publication, one that no version holds."""
    for some in chunks(image_ids):
        states = session.execute(select(Image.id, Image.state).where(Image.id.in_(some)))
        session.execute(
            table(Holding).insert(),
            [
                {
                    "collection_id": collection_id,
                    "image_id": image_id,
                    "from_version": number,
                    "until_version": number if state == "removed" else None,
                }
                for image_id, state in states
            ],
        )


def _end(session: Session, image_ids: Sequence[int], number: int) -> None:
    """End holdings: no rows from this version on."""
    held = func.coalesce(Holding.until_version, number)
    _set(session, image_ids, until_version=held, rows_until=number)


def _set(session: Session, image_ids: Sequence[int], **values: object) -> None:
    """Set columns of the holdings of images whose rows are in the segments."""
    holdings = table(Holding)
    for some in chunks(image_ids):
        mine = and_(holdings.c.rows_until.is_(None), holdings.c.image_id.in_(some))
        session.execute(update(holdings).where(mine).values(**values))


def held_images(session: Session, collection_id: int, number: int) -> set[int]:
    """Return the images that a version holds."""
    holds = and_(Holding.collection_id == collection_id, _holds(number))
    return set(session.scalars(select(Holding.image_id).where(holds)))


def images_with_rows(session: Session, collection_id: int, number: int | None = None) -> set[int]:
    """Return the images with rows in the segments of a version; default: of the current one."""
    there = _open(collection_id) if number is None else _has_rows_at(collection_id, number)
    return set(session.scalars(select(Holding.image_id).where(there)))


def hidden_images(session: Session, collection_id: int, number: int) -> frozenset[int]:
    """Return the images whose rows a version must skip: its tombstones."""
    hidden = and_(_has_rows_at(collection_id, number), Holding.until_version <= number)
    return frozenset(session.scalars(select(Holding.image_id).where(hidden)))


def changed_images(
    session: Session, collection_id: int, before: int, after: int
) -> dict[int, Literal["added", "removed"]]:
    """Return the images that one of two versions holds and the other does not.

    Parameters
    ----------
    session : Session
    collection_id : int
    before, after : int
        Numbers of versions.

    Returns
    -------
    dict
        By image id: ``added`` if only `after` holds it, ``removed`` if only `before` does.
    """
    held_before = func.max(case((_holds(before), 1), else_=0))
    held_after = func.max(case((_holds(after), 1), else_=0))
    rows = session.execute(
        select(Holding.image_id, held_after)
        .where(Holding.collection_id == collection_id)
        .group_by(Holding.image_id)
        .having(held_before != held_after)
    )
    return {image_id: "added" if held else "removed" for image_id, held in rows}


def held_contents(
    session: Session, collection_id: int, number: int, sha256s: Collection[str]
) -> set[str]:
    """Return which of several contents a version holds."""
    found: set[str] = set()
    for some in chunks(sorted(set(sha256s))):
        found.update(
            session.scalars(
                select(Image.sha256)
                .join(Holding, Holding.image_id == Image.id)
                .where(Image.collection_id == collection_id, Image.sha256.in_(some), _holds(number))
            )
        )
    return found


def same_content(
    session: Session, collection_id: int, number: int | None, sha256: str
) -> list[int]:
    """Return the images of one content that a version holds, or that it lacks without features.

    Parameters
    ----------
    session : Session
    collection_id : int
    number : int or None
        Of the version; None: there is none yet.
    sha256 : str

    Returns
    -------
    list of int
        Ids, by frame. An image that was registered but failed, or waits for its features or its
        publication, is among them; one that was removed is not, unless the version still holds it.
    """
    asked = {"collection_id": collection_id, "number": number or 0, "sha256": sha256}
    return list(session.scalars(_same_content(), asked))


@cache
def _same_content() -> Select[int]:
    """Return the statement of `same_content`: every search asks it, and to build it takes long."""
    number = bindparam("number", type_=Integer)
    until = or_(Holding.until_version.is_(None), Holding.until_version > number)
    held = exists().where(Holding.image_id == Image.id, Holding.from_version <= number, until)
    featureless = [Image.state == state for state in ("pending", "extracted", "failed")]
    return (
        select(Image.id)
        .where(
            Image.collection_id == bindparam("collection_id"),
            Image.sha256 == bindparam("sha256"),
            or_(held, *featureless),
        )
        .order_by(Image.frame)
    )


def _open(collection_id: int) -> ColumnElement[bool]:
    """Condition for the holdings of a collection whose rows are in its segments now."""
    return and_(Holding.collection_id == collection_id, Holding.rows_until.is_(None))


def _holds(number: int) -> ColumnElement[bool]:
    """Condition for the holdings in which a version holds the image."""
    until = or_(Holding.until_version.is_(None), Holding.until_version > number)
    return and_(Holding.from_version <= number, until)


def _has_rows_at(collection_id: int, number: int) -> ColumnElement[bool]:
    """Condition for the holdings whose rows are in the segments of a version."""
    until = or_(Holding.rows_until.is_(None), Holding.rows_until > number)
    return and_(Holding.collection_id == collection_id, Holding.from_version <= number, until)
