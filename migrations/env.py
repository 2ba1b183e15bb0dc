"""Alembic's entry: migrate the database of ``VANTAGE_DATABASE_URL``.

`pipeline.metadata.engine.upgrade` comes here with a locked connection; the ``alembic`` command,
which developers use to write a new migration, without one.
"""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlalchemy import Connection

from pipeline.config import Settings
from pipeline.metadata.engine import create_metadata_engine, migration_connection, parse_url
from pipeline.metadata.models import Base
from pipeline.metadata.sqlite import make_file

OPTIONS: dict[str, Any] = {
    "target_metadata": Base.metadata,
    # SQLite cannot change a table in place: copy it.
    "render_as_batch": True,
    # Alembic believes that SQLite cannot roll back DDL; with our own BEGIN it can.
    "transactional_ddl": True,
}


def run_online(connection: Connection) -> None:
    """Migrate on a connection whose transaction is begun already."""
    context.configure(connection=connection, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


def run_offline() -> None:
    """Print the SQL instead (``alembic upgrade head --sql``)."""
    url = context.config.get_main_option("sqlalchemy.url") or Settings.from_env().database_url
    context.configure(url=parse_url(url), literal_binds=True, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if context.is_offline_mode():
    run_offline()
elif given is not None:
    run_online(given)
else:
    engine = create_metadata_engine(Settings.from_env().database_url)
    try:
        make_file(engine)
        with migration_connection(engine) as own:
            run_online(own)
    finally:
        engine.dispose()
