"""One suite for every database: always SQLite, PostgreSQL if a server is given."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_postgresql import find_programs, local_postgresql
from metadata_database import DATABASES, POSTGRESQL_URL, Database
from sqlalchemy import text

from pipeline.metadata.engine import (
    create_metadata_engine,
    upgrade,
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database_kind" in metafunc.fixturenames:
        metafunc.parametrize("database_kind", DATABASES)


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The given server, or our own."""
    if POSTGRESQL_URL:
        yield POSTGRESQL_URL
        return
    pytest.importorskip("psycopg", reason="no PostgreSQL: psycopg is not installed")
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL: VANTAGE_TEST_POSTGRESQL_URL names none, none is installed")
    with local_postgresql(programs) as url:
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("metadata") / "template.sqlite"
    engine = create_metadata_engine(f"sqlite:///{path}")
    upgrade(engine)
    engine.dispose()
    return path


@pytest.fixture
def db(
    database_kind: str,
    sqlite_template: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Database]:
    if database_kind == "sqlite":
        path = tmp_path / "vantage.sqlite"
        shutil.copy(sqlite_template, path)
        engine = create_metadata_engine(f"sqlite:///{path}")
    else:
        engine = create_metadata_engine(request.getfixturevalue("postgresql_url"))
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        upgrade(engine)
    yield Database(engine)
    engine.dispose()
