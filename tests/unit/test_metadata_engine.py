from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from pipeline.errors import (
    ConfigError,
    DatabaseUnavailableError,
    SchemaVersionError,
    StateError,
)
from pipeline.metadata import engine as engine_module
from pipeline.metadata.collections import list_collections
from pipeline.metadata.engine import (
    create_metadata_engine,
    open_database,
    parse_url,
    prepare_schema,
    require_schema,
    schema_revision,
    session_scope,
    upgrade,
)
from pipeline.metadata.sqlite import is_locked, make_file


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_metadata_engine(f"sqlite:///{tmp_path / 'vantage.sqlite'}")
    make_file(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE numbers (n INTEGER)"))
    yield engine
    engine.dispose()


def _count(engine: Engine) -> int:
    with session_scope(engine, write=False) as session:
        return int(session.scalar(text("SELECT count(*) FROM numbers")) or 0)


@pytest.mark.parametrize(
    ("url", "drivername"),
    [
        ("sqlite:////data/vantage.sqlite", "sqlite+pysqlite"),
        ("postgresql://me:word@host/vantage", "postgresql+psycopg"),
        ("postgres://me:word@host/vantage", "postgresql+psycopg"),
        ("postgresql+psycopg://me@host/vantage", "postgresql+psycopg"),
    ],
)
def test_the_addresses_of_both_databases_are_taken(url: str, drivername: str) -> None:
    assert parse_url(url).drivername == drivername


@pytest.mark.parametrize(
    "url",
    ["", "vantage.sqlite", "mysql://me:word@host/x", "sqlite://", "sqlite:///:memory:", "//:x:y"],
)
def test_other_addresses_are_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(ConfigError, match="VANTAGE_DATABASE_URL") as caught:
        create_metadata_engine(url)
    assert "word" not in str(caught.value)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "abc"])
def test_a_port_that_cannot_be_is_refused(port: str) -> None:
    with pytest.raises(ConfigError, match="VANTAGE_DATABASE_URL"):
        create_metadata_engine(f"postgresql://me:word@host:{port}/vantage")


def test_an_option_that_cannot_be_is_refused() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ConfigError, match="is not known") as caught:
        create_metadata_engine("postgresql://me:word@host/vantage?bogus=1")
    assert "word" not in str(caught.value)


def test_a_missing_postgresql_driver_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'vantage-cbir\[postgresql\]'") as caught:
        create_metadata_engine("postgresql://me:word@host/vantage")
    assert "word" not in str(caught.value)


def test_the_folder_of_the_file_is_made(tmp_path: Path) -> None:
    engine = create_metadata_engine(f"sqlite:///{tmp_path / 'a' / 'b' / 'x.sqlite'}")
    upgrade(engine)
    engine.dispose()
    assert (tmp_path / "a" / "b" / "x.sqlite").is_file()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    engine = create_metadata_engine(f"sqlite:///{tmp_path / 'file' / 'x.sqlite'}")
    with pytest.raises(ConfigError, match=r"its file cannot be made \(.+\)"):
        upgrade(engine)


def test_a_connection_is_set_up_for_several_processes(engine: Engine) -> None:
    with session_scope(engine, write=False) as session:
        found = {
            name: session.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {
        "journal_mode": "wal",
        "synchronous": 1,
        "foreign_keys": 1,
        "busy_timeout": 10_000,
    }


def test_an_error_in_the_block_undoes_it(engine: Engine) -> None:
    def insert_and_fail() -> None:
        with session_scope(engine) as session:
            session.execute(text("INSERT INTO numbers VALUES (1)"))
            raise KeyError

    with pytest.raises(KeyError):
        insert_and_fail()
    assert _count(engine) == 0


def test_a_reading_session_cannot_write_and_the_next_one_can(engine: Engine) -> None:
    insert = text("INSERT INTO numbers VALUES (1)")
    with pytest.raises(DatabaseUnavailableError, match="readonly"):  # noqa: SIM117
        with session_scope(engine, write=False) as session:
            session.execute(insert)
    with session_scope(engine) as session:
        session.execute(insert)
    assert _count(engine) == 1


def test_readers_see_one_state_and_do_not_wait_for_a_writer(engine: Engine) -> None:
    with session_scope(engine, write=False) as reader:
        before = reader.scalar(text("SELECT count(*) FROM numbers"))
        with session_scope(engine) as writer:
            writer.execute(text("INSERT INTO numbers VALUES (1)"))
        assert reader.scalar(text("SELECT count(*) FROM numbers")) == before == 0
    assert _count(engine) == 1


def test_writers_in_many_threads_lose_nothing(engine: Engine) -> None:
    def add() -> None:
        for _ in range(20):
            with session_scope(engine) as session:
                last = session.scalar(text("SELECT coalesce(max(n), 0) FROM numbers"))
                session.execute(text("INSERT INTO numbers VALUES (:n)"), {"n": int(last or 0) + 1})

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    with session_scope(engine, write=False) as session:
        assert session.scalar(text("SELECT max(n) FROM numbers")) == 160


def test_a_database_that_stays_locked_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "vantage.sqlite"
    engine = create_metadata_engine(f"sqlite:///{path}")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("CREATE TABLE numbers (n INTEGER)")
    assert not is_locked(engine)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailableError, match=r"locked.*held its write lock"):  # noqa: SIM117
        with session_scope(engine):
            pass
    assert is_locked(engine)
    assert _count(engine) == 0  # readers go on
    other.execute("ROLLBACK")
    other.close()
    with session_scope(engine) as session:
        assert session.scalar(text("SELECT 1")) == 1
    assert not is_locked(engine)
    engine.dispose()


def test_readers_make_no_file_and_find_none_missing(tmp_path: Path) -> None:
    path = tmp_path / "home" / "vantage.sqlite"
    engine = create_metadata_engine(f"sqlite:///{path}")
    assert schema_revision(engine) is None
    for read in (
        lambda: _count(engine),
        lambda: session_scope(engine).__enter__(),
    ):
        with pytest.raises(DatabaseUnavailableError, match="no such file; restore it from the"):
            read()
    with pytest.raises(SchemaVersionError, match="at schema none"):
        require_schema(engine)
    assert not is_locked(engine)
    with (
        open_database(f"sqlite:///{path}", make=False) as empty,
        session_scope(empty, write=False) as session,
    ):
        assert list_collections(session) == []
    assert not path.parent.exists()
    upgrade(engine)
    require_schema(engine)
    engine.dispose()


@pytest.mark.parametrize("name", ["100 %41.sqlite", "a?mode=memory", "a#b", "a&cache=shared", "ü"])
def test_a_path_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    engine = create_metadata_engine(f"sqlite:///{tmp_path / name}")
    upgrade(engine)
    engine.dispose()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_that_is_deleted_while_it_is_open_is_noticed(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "vantage.sqlite"
    with session_scope(engine) as session:
        session.execute(text("INSERT INTO numbers VALUES (1)"))
    copy = tmp_path / "backup"
    source, target = sqlite3.connect(path), sqlite3.connect(copy)
    source.backup(target)
    source.close()
    target.close()
    for victim in tmp_path.glob("vantage.sqlite*"):
        victim.unlink()
    for write in (True, False):
        with pytest.raises(DatabaseUnavailableError, match="restore it from the backup"):  # noqa: SIM117
            with session_scope(engine, write=write) as session:
                session.execute(text("SELECT * FROM numbers"))
    assert not path.exists()
    copy.rename(path)  # the backup is restored, while everything runs
    assert _count(engine) == 1


def test_a_newer_schema_needs_a_newer_program(engine: Engine) -> None:
    upgrade(engine)
    with session_scope(engine) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for use in (require_schema, prepare_schema, upgrade):
        with pytest.raises(SchemaVersionError, match=r"9999.*install a newer Vantage"):
            use(engine)


def test_a_file_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    engine = create_metadata_engine(f"sqlite:///{tmp_path}")
    with pytest.raises(DatabaseUnavailableError, match="unable to open"), session_scope(engine):
        pass


def test_a_file_that_is_no_database_needs_an_operator(tmp_path: Path) -> None:
    path = tmp_path / "vantage.sqlite"
    path.write_bytes(b"this is a text, not a database at all. " * 100)
    engine = create_metadata_engine(f"sqlite:///{path}")
    with pytest.raises(StateError, match="damaged or no database"):
        require_schema(engine)
    engine.dispose()


def test_missing_tables_are_a_matter_of_the_schema(engine: Engine) -> None:
    with pytest.raises(SchemaVersionError, match="vantage migrate"):  # noqa: SIM117
        with session_scope(engine, write=False) as session:
            list_collections(session)


def test_a_mistake_in_a_statement_is_not_hidden(engine: Engine) -> None:
    upgrade(engine)
    with pytest.raises(Exception, match="no such table: nowhere") as caught:  # noqa: SIM117
        with session_scope(engine) as session:
            session.execute(text("SELECT * FROM nowhere"))
    assert not isinstance(caught.value, (DatabaseUnavailableError, StateError))
