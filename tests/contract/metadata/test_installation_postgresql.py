"""A PostgreSQL database is known by its cluster and its number there: a copy is another one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from heavy import LONG
from local_postgresql import find_programs, local_postgresql
from sqlalchemy import Engine, make_url, select, text

from pipeline.errors import OtherInstallationError
from pipeline.installation import check_store, find_installation, require_original, settle
from pipeline.metadata.engine import create_metadata_engine, session_scope, upgrade
from pipeline.metadata.models import Installation
from pipeline.store_root import StoreRoot

pytestmark = pytest.mark.skipif(not LONG, reason="make test-long starts a PostgreSQL")


@contextlib.contextmanager
def database(url: str) -> Iterator[Engine]:
    engine = create_metadata_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def named(url: str, name: str) -> str:
    """The address of another database of the server."""
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def run(url: str, *statements: str) -> None:
    """Do what must be outside of transactions."""
    with database(url) as engine:
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        with connection:
            for statement in statements:
                connection.execute(text(statement))


def copy_rows(engine: Engine, other: Engine) -> None:
    """Give another database the identity of this one, as a restored dump has it."""
    with (
        session_scope(engine, write=False) as session,
        session_scope(other) as writing,
    ):
        (row,) = session.scalars(select(Installation))
        (copied,) = writing.scalars(select(Installation))
        copied.identity, copied.place = row.identity, row.place


def test_places_of_postgresql(postgresql_url: str, tmp_path: Path) -> None:
    original, copy = named(postgresql_url, "place_original"), named(postgresql_url, "place_copy")
    with contextlib.ExitStack() as end:
        names = ("place_copy", "place_original", "place_moved")
        end.callback(run, postgresql_url, *(f"DROP DATABASE IF EXISTS {name}" for name in names))
        run(postgresql_url, "CREATE DATABASE place_original")
        root = StoreRoot(str(tmp_path / "store"))
        with database(original) as engine:
            upgrade(engine)
            own = settle(engine, root, print)
            assert require_original(engine).identity == own.identity
            check_store(engine, root)
        # Another address of the same database is the same place.
        other_address = make_url(original).set(host="localhost")
        with database(other_address.render_as_string(hide_password=False)) as engine:
            assert require_original(engine).identity == own.identity

        run(postgresql_url, "CREATE DATABASE place_copy TEMPLATE place_original")
        with database(copy) as engine:
            with pytest.raises(OtherInstallationError, match="vantage migrate"):
                require_original(engine)
            copied = settle(engine, StoreRoot(str(tmp_path / "another store")), print)
            assert copied.identity != own.identity
            assert copied.former == own.identity
            assert require_original(engine).identity == copied.identity
            with pytest.raises(OtherInstallationError):
                check_store(engine, root)
        with database(original) as engine:
            assert require_original(engine).identity == own.identity

        # Renamed, it is still the same database of the cluster.
        run(postgresql_url, "ALTER DATABASE place_original RENAME TO place_moved")
        with database(named(postgresql_url, "place_moved")) as engine:
            assert require_original(engine).identity == own.identity
        assert find_installation(named(postgresql_url, "place_moved")) is not None


def test_a_dump_restored_in_another_cluster_is_a_copy(postgresql_url: str, tmp_path: Path) -> None:
    programs = find_programs()
    if programs is None:
        pytest.skip("no programs of PostgreSQL are installed: there is no second server")
    with contextlib.ExitStack() as end:
        first, second = (end.enter_context(local_postgresql(programs)) for _ in range(2))
        engine, other = (end.enter_context(database(url)) for url in (first, second))
        upgrade(engine)
        upgrade(other)
        own = settle(engine, StoreRoot(str(tmp_path / "store")), print)
        copy_rows(engine, other)
        with pytest.raises(OtherInstallationError, match="vantage migrate"):
            require_original(other)
        assert settle(other, StoreRoot(str(tmp_path / "other")), print).former == own.identity
