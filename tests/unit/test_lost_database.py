"""A database that is gone is neither made anew by readers nor beside the files that it named."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest
from cli_runs import vantage, vantage_json

from pipeline.config import Settings
from pipeline.errors import OtherInstallationError, StateError
from pipeline.installation import check_store, settle
from pipeline.local import LocalDriver
from pipeline.lost_database import database_of
from pipeline.metadata import heartbeats
from pipeline.metadata.engine import create_metadata_engine, session_scope, upgrade
from pipeline.metadata.records import WorkerRecord
from pipeline.status import read_status
from pipeline.store_root import StoreRoot
from workers.up import _migrate

READERS = (
    ("collections",),
    ("status",),
    ("status", "nobody"),
    ("failures", "nobody"),
    ("verify",),
    ("doctor",),
)
WRITERS = (
    ("search", "nobody", "a.png", "--local"),
    ("index", "nobody", ".", "--local"),
    ("migrate",),
    ("rebuild", "nobody", "--local"),
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def settings_of(home: Path) -> Settings:
    return Settings.from_env({"VANTAGE_HOME": str(home)})


def files(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


def fill(home: Path) -> None:
    """Leave a file of an index in the store."""
    path = home / "store" / "containers" / "sift" / "abc.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"features")


def test_readers_make_nothing(home: Path) -> None:
    for command in READERS:
        vantage(home, *command)
        assert not home.exists(), command
    assert vantage_json(home, "collections") == {"collections": []}
    assert "There is no collection yet" in vantage(home, "status").stdout
    assert "no collection is named 'nobody'" in vantage(home, "status", "nobody").stderr
    assert vantage_json(home, "verify")["files"] == 0


@pytest.mark.parametrize("empty", [False, True], ids=["missing", "empty file"])
def test_beside_a_full_store_everybody_says_restore_the_backup(home: Path, empty: bool) -> None:
    fill(home)
    if empty:
        (home / "vantage.sqlite").touch()
    before = files(home)
    for command in (*READERS, *WRITERS):
        if command == ("doctor",):
            continue
        result = vantage(home, *command)
        assert result.exit_code == 1, command
        assert "restore the backup of the database" in result.stderr, command
        assert str(home / "vantage.sqlite") in result.stderr
        assert files(home) == before, command
    for work in (
        lambda: LocalDriver(settings_of(home)),
        lambda: _migrate(settings_of(home), lambda _text: None),
        lambda: database_of(settings_of(home), make=True).__enter__(),
    ):
        with pytest.raises(StateError, match="restore the backup"):
            work()
    assert files(home) == before


def test_an_empty_store_does_not_keep_anybody_from_beginning(home: Path) -> None:
    (home / "store" / "groups").mkdir(parents=True)
    with database_of(settings_of(home), make=True) as engine:
        assert settle(engine, StoreRoot(str(home / "store"))).identity
    assert (home / "vantage.sqlite").exists()


def test_a_new_database_in_the_place_of_a_lost_one_is_told_too(home: Path) -> None:
    """A former release, or another program, has made an empty one."""
    settings, root = settings_of(home), StoreRoot(str(home / "store"))
    with database_of(settings, make=True) as engine:
        settle(engine, root)
    fill(home)
    for path in home.glob("vantage.sqlite*"):
        path.unlink()
    engine = create_metadata_engine(settings.database_url)
    upgrade(engine)
    for work in (lambda: check_store(engine, root), lambda: settle(engine, root)):
        with pytest.raises(OtherInstallationError, match=r"is empty.*restore the backup"):
            work()
    engine.dispose()


def test_a_lock_is_told_as_trouble_of_the_database_not_of_workers(home: Path) -> None:
    settings = settings_of(home)
    with database_of(settings, make=True) as engine:
        now = time.time()
        row = WorkerRecord("group@a", ("group",), "a", 1, (0,), "ready", now - 60, now, {})
        with session_scope(engine) as session:
            heartbeats.beat(session, row)
        assert not read_status(settings, engine, None).locked
        other = sqlite3.connect(home / "vantage.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            found = read_status(settings, engine, None)
            assert found.locked
            assert "holds the write lock" in found.troubles[0]
            shown = vantage(home, "status").stdout
            assert "holds the write lock" in shown
            assert "Workers: unknown" in shown
            checks = {one["name"]: one for one in vantage_json(home, "doctor", code=1)["checks"]}
            assert "holds the write lock" in checks["workers"]["detail"]
        finally:
            other.execute("ROLLBACK")
            other.close()
        assert not read_status(settings, engine, None).locked
    assert "Workers: none alive" in vantage(home, "status").stdout
