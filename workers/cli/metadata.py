"""The command's way into the database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

_SQLITE = "sqlite:///"


@contextmanager
def metadata_engine(settings: Settings) -> Iterator[Engine]:
    """Give an engine on a database of this program's schema; an empty database is set up.

    Raises
    ------
    SchemaVersionError
        It has another schema: `vantage migrate` is a decision of the operator.
    DatabaseUnavailableError
        It does not answer.
    """
    from pipeline.metadata.engine import (
        create_metadata_engine,
        require_schema,
        schema_revision,
        upgrade,
    )

    engine = create_metadata_engine(settings.database_url)
    try:
        if schema_revision(engine) is None:
            upgrade(engine)
        require_schema(engine)
        yield engine
    finally:
        engine.dispose()


def has_database(settings: Settings) -> bool:
    """Whether there is a database to read; of a server that is taken for granted."""
    url = settings.database_url
    return not url.startswith(_SQLITE) or Path(url.removeprefix(_SQLITE)).exists()


def collection_names(settings: Settings) -> list[str]:
    """Return the names of all collections; makes no database."""
    from pipeline.metadata.collections import list_collections
    from pipeline.metadata.engine import create_metadata_engine, session_scope

    if not has_database(settings):
        return []
    engine = create_metadata_engine(settings.database_url)
    try:
        with session_scope(engine, write=False) as session:
            return [summary.name for summary in list_collections(session)]
    finally:
        engine.dispose()
