"""Small helpers of the functions in this package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import CursorResult, Executable, Row, select
from sqlalchemy.orm import Session

from pipeline.errors import UnknownNameError
from pipeline.metadata.models import Base, Collection, table

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

T = TypeVar("T")

CHUNK = 5000
"""Values in one ``IN (...)``: well below SQLite's 32,766 bound variables."""


def chunks(items: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """Cut a sequence into pieces of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def insert_into(session: Session, model: type[Base]) -> sqlite.Insert | postgresql.Insert:
    """Return the dialect's ``INSERT``, which knows ``ON CONFLICT``."""
    # Loaded when used: the drivers of PostgreSQL take long to import.
    if session.get_bind().dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert

        return insert(table(model))
    from sqlalchemy.dialects.sqlite import insert as insert_sqlite

    return insert_sqlite(table(model))


def changed_rows(session: Session, statement: Executable) -> int:
    """Execute a writing statement and return how many rows it touched."""
    # Without the option SQLAlchemy counts the rows of UPDATE and DELETE only.
    result = session.execute(statement, execution_options={"preserve_rowcount": True})
    return cast("CursorResult[Any]", result).rowcount


def lock_collection(session: Session, collection_id: int) -> Row[Any]:
    """Take the collection's row lock until the transaction ends and return the row.

    Every change of images, locations, containers or versions of a collection does this first, so
    that changes neither interleave nor deadlock. On SQLite the transaction has the lock already.
    PostgreSQL uses ``FOR NO KEY UPDATE``, which allows new foreign keys to the row.
    """
    collections = table(Collection)
    row = session.execute(
        select(collections).where(collections.c.id == collection_id).with_for_update(key_share=True)
    ).one_or_none()
    if row is None:
        raise UnknownNameError("collection id", str(collection_id), [])
    return row
