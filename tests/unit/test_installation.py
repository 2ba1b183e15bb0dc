"""Which database and store belong together, and how copies are told from originals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from pipeline.config import ExtractorConfig, IndexConfig
from pipeline.errors import (
    ConfigError,
    OtherInstallationError,
    StateError,
    StorageUnavailableError,
)
from pipeline.installation import (
    MARKER,
    check_store,
    find_installation,
    require_original,
    settle,
)
from pipeline.metadata import collections
from pipeline.metadata.engine import create_metadata_engine, session_scope, upgrade
from pipeline.metadata.installation import (
    live_address,
    read_installation,
    renew,
    require_identity,
    same_place,
)
from pipeline.store_root import StoreRoot


class Home:
    """A home: a database and, unless another is named, the store beside it."""

    def __init__(self, folder: Path, store: Path | str | None = None) -> None:
        self.folder = folder
        self.store = StoreRoot(str(store or folder / "store"))
        folder.mkdir(parents=True, exist_ok=True)
        self.engine: Engine = create_metadata_engine(f"sqlite:///{folder / 'vantage.sqlite'}")

    def made(self) -> Home:
        upgrade(self.engine)
        return self

    def settle(self) -> str:
        return settle(self.engine, self.store).identity

    def check(self) -> None:
        check_store(self.engine, self.store)

    @property
    def identity(self) -> str:
        with session_scope(self.engine, write=False) as session:
            return read_installation(session).identity

    @property
    def marker(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.store.read(MARKER) or b"null")
        return values

    def use(self) -> Home:
        """Let the database name a file of the store."""
        with session_scope(self.engine) as session:
            made = collections.get_or_create_collection(
                session, "c", ExtractorConfig(), IndexConfig()
            )
            session.execute(
                text(
                    "INSERT INTO trees (collection_id, key, checksum, levels, cells, groups, "
                    "strategy, trained_on, target_cell_size, created_at) "
                    "VALUES (:collection, 'k', 's', 1, 2, 1, 'principal', 1, 384, 0)"
                ),
                {"collection": made.id},
            )
        return self

    def copied_to(self, folder: Path, store: Path | None = None) -> Home:
        """Copy the home, as ``cp -r`` does."""
        self.engine.dispose()
        shutil.copytree(self.folder, folder)
        return Home(folder, store)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "home").made()
    made.settle()
    yield made
    made.engine.dispose()


def test_every_database_gets_its_own_identity_and_keeps_it(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other").made()
    assert len({home.identity, other.identity}) == 2
    assert home.settle() == home.identity == home.marker["identity"]
    upgrade(home.engine)
    found = find_installation(str(home.engine.url))
    assert found is not None
    assert (found.identity, found.copied) == (home.identity, False)


def test_no_database_is_made_by_looking_for_it(tmp_path: Path) -> None:
    path = tmp_path / "not there" / "vantage.sqlite"
    assert find_installation(f"sqlite:///{path}") is None
    assert not path.parent.exists()


def test_a_copied_home_is_refused_until_it_is_settled_and_its_store_follows(
    home: Home, tmp_path: Path
) -> None:
    copy = home.use().copied_to(tmp_path / "copy")
    with pytest.raises(OtherInstallationError, match=r"is a copy.*`vantage up`"):
        require_original(copy.engine)
    copy.check()  # reading it is allowed: its store was copied with it
    said: list[str] = []
    new = settle(copy.engine, copy.store, said.append)
    assert new.former == home.identity != new.identity
    assert [new.identity in sentence for sentence in said] == [True]
    assert copy.marker["identity"] == new.identity
    assert home.marker["identity"] == home.identity
    assert require_original(copy.engine).identity == copy.settle() == new.identity
    home.check()
    copy.check()
    # A copy of the copy, too.
    third = copy.copied_to(tmp_path / "third")
    assert len({third.settle(), new.identity, home.identity}) == 3


def test_a_copied_database_does_not_get_the_store_of_the_original(
    home: Home, tmp_path: Path
) -> None:
    copy = home.use().copied_to(tmp_path / "copy", store=home.folder / "store")
    with pytest.raises(OtherInstallationError, match="belongs to another installation"):
        copy.settle()
    with pytest.raises(OtherInstallationError, match="--take-store"):
        copy.check()
    home.check()
    settle(copy.engine, copy.store, take=True)
    copy.check()
    assert copy.settle() == copy.identity
    with pytest.raises(OtherInstallationError, match="belongs to another installation"):
        home.check()


def test_a_moved_home_keeps_its_identity(home: Home, tmp_path: Path) -> None:
    before = home.use().identity
    home.engine.dispose()
    home.folder.rename(tmp_path / "elsewhere")
    moved = Home(tmp_path / "elsewhere")
    assert require_original(moved.engine).identity == before
    moved.check()
    assert moved.settle() == before
    assert moved.marker["store"]["path"] == str(tmp_path / "elsewhere" / "store")


def test_a_restored_database_in_the_place_of_the_original_takes_its_store(
    home: Home, tmp_path: Path
) -> None:
    home.use().engine.dispose()
    path = home.folder / "vantage.sqlite"
    shutil.copy(path, tmp_path / "backup")
    path.rename(tmp_path / "former")
    shutil.copy(tmp_path / "backup", path)
    restored = Home(home.folder)
    new = restored.settle()
    assert new == restored.marker["identity"] != json.loads(b'"x"')
    restored.check()


def test_a_store_of_another_installation_is_refused(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other").made()
    other.settle()
    wrong = Home(home.folder, store=other.folder / "store")
    for look in (wrong.check, wrong.settle):
        with pytest.raises(OtherInstallationError) as caught:
            look()
        sentence = str(caught.value)
        for part in (home.identity, other.identity, str(other.folder), str(home.folder / "store")):
            assert part in sentence
    other.check()


def test_an_empty_store_instead_of_the_own_is_refused_once_there_are_files(
    home: Home, tmp_path: Path
) -> None:
    empty = Home(home.folder, store=tmp_path / "typo")
    empty.check()
    empty.settle()  # nothing was stored yet: the store may be anywhere
    assert empty.marker["identity"] == home.identity
    home.use().settle()
    other = Home(home.folder, store=tmp_path / "another typo")
    for look in (other.check, other.settle):
        with pytest.raises(OtherInstallationError, match="whose files are in"):
            look()
    assert not (tmp_path / "another typo").exists()


def test_a_store_that_is_not_mounted_is_not_judged_and_not_marked(home: Home) -> None:
    home.use()
    store = home.folder / "store"
    for change in (lambda: (store / MARKER).unlink(), store.rmdir):
        change()
        home.check()
        with pytest.raises(StorageUnavailableError, match="the store is empty"):
            home.settle()
        assert home.store.read(MARKER) is None


def test_a_lost_marker_is_written_again(home: Home) -> None:
    home.use()
    (home.folder / "store" / "containers").mkdir()
    (home.folder / "store" / MARKER).unlink()
    home.check()
    home.settle()
    assert home.marker["identity"] == home.identity


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"identity": 1, "database": 2}'])
def test_a_marker_that_cannot_be_read_is_named(home: Home, data: bytes) -> None:
    (home.folder / "store" / MARKER).write_bytes(data)
    for look in (home.check, home.settle):
        with pytest.raises(StateError, match=rf"{MARKER} cannot be read.*--take-store"):
            look()
    settle(home.engine, home.store, take=True)
    home.check()


@pytest.mark.parametrize("mounted_anew", [False, True])
def test_a_store_without_write_permission_can_be_read(
    home: Home, monkeypatch: pytest.MonkeyPatch, mounted_anew: bool
) -> None:
    if mounted_anew:
        place = {**home.store.place, "device": 4711}
        monkeypatch.setattr("pipeline.store_root.StoreRoot.place", place)

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    monkeypatch.setattr("pipeline.store_root.open_privately", refused)
    home.check()
    assert home.settle() == home.identity


def test_a_store_behind_a_url_has_a_marker_too(tmp_path: Path) -> None:
    url = "memory://store-of-test-installation"
    one, two = (Home(tmp_path / name, url).made() for name in ("one", "two"))
    assert one.settle() == one.marker["identity"]
    one.check()
    with pytest.raises(OtherInstallationError, match=r"memory:///?store-of-test"):
        two.check()
    with pytest.raises(OtherInstallationError, match=r"memory:///?store-of-test"):
        two.settle()


def test_a_store_behind_a_url_never_shows_its_password(tmp_path: Path) -> None:
    home = Home(tmp_path, "memory://user:s3cret@host").made()
    home.settle()
    assert "s3cret" not in json.dumps(home.marker)
    with pytest.raises(ConfigError) as caught:
        _ = StoreRoot("nobody-knows://user:s3cret@host").place
    assert "s3cret" not in str(caught.value)


def test_an_error_of_an_object_stores_client_is_one_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoCredentialsError(Exception):
        """As botocore's, which is no OSError."""

    def fail(*_: object, **__: object) -> None:
        raise NoCredentialsError("of user:s3cret@host")

    home = Home(tmp_path, "memory://user:s3cret@host").made()
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", fail)
    home.check()  # a store that does not answer is not judged
    with pytest.raises(StorageUnavailableError, match="NoCredentialsError") as caught:
        home.settle()
    assert "s3cret" not in str(caught.value)


def test_of_two_installations_that_begin_with_one_store_one_is_refused(tmp_path: Path) -> None:
    """As on a store whose second writer wins: each looks again after it has written."""
    store = tmp_path / "store"
    one, two = (Home(tmp_path / name, store).made() for name in ("one", "two"))
    write = one.store.replace

    def both(name: str, data: bytes) -> None:
        write(name, data)
        settle(two.engine, two.store, take=True)

    one.store.replace = both  # type: ignore[method-assign]
    with pytest.raises(OtherInstallationError, match="belongs to another installation"):
        one.settle()
    two.check()


def test_an_identity_can_be_made_anew_for_a_copy_that_cannot_be_told(home: Home) -> None:
    before = home.identity
    with session_scope(home.engine) as session:
        require_identity(session, before)
        assert renew(session).identity == before
        assert renew(session, force=True).former == before
        with pytest.raises(OtherInstallationError, match="start Vantage again"):
            require_identity(session, before)
    home.settle()
    assert home.marker["identity"] == home.identity != before


PLACE = {"path": "/a/vantage.sqlite", "inode": 7, "device": 1}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"path": "/mounted/vantage.sqlite"}, True),  # the same file in a container
        ({"device": 2}, True),  # devices have other numbers after a restart
        ({"inode": 8}, False),  # replaced, or another volume at the same path
        ({"path": "/b/vantage.sqlite", "device": 2}, False),  # a clone of the file system
    ],
)
def test_what_tells_a_copy_from_the_original(change: dict[str, Any], same: bool) -> None:
    assert same_place(PLACE, PLACE | change) is same


def test_a_dump_restored_into_another_database_is_a_copy() -> None:
    recorded = {"path": "db:5432/vantage", "server": "71/16384"}
    assert same_place(recorded, {"path": "10.0.0.5:5432/vantage", "server": "71/16384"})
    assert not same_place(recorded, {"path": "db:5432/vantage", "server": "71/16999"})
    assert not same_place(PLACE, recorded)
    assert live_address(recorded) == "71/16384"
    assert live_address(PLACE).endswith("/1/7")
