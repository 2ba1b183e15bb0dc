"""A path is not a URL: everything of a home lies in it, whatever characters its path has."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from cli_runs import vantage_json

from pipeline.addresses import store_folder
from pipeline.config import Settings
from pipeline.metadata.engine import open_database, parse_url
from pipeline.storage import Storage
from workers.embedded import EmbeddedRedis
from workers.environment import environment
from workers.manager import LogPrinter
from workers.processes import HomeLock

NAMES = (
    "h x",
    "h%20x",
    "h%2Fy",
    "h%",
    "h?a=b",
    "h#f",
    "h:1",
    "h::zip",
    "s3:",
    "file:",
    "memory:",
    "~",
    "$HOME",
    "h*[a]?",
    "{}",
    "h'\"x",
    "h\\x",
    "two\nlines",
    "h;x&y",
    "-rf",
    " ",
    "é",
    "e\u0301",
    "日本",
    os.fsdecode(b"h\xff\xfe"),
    "x" * 200,
)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_everything_of_a_home_lies_in_it(tmp_path: Path, name: str) -> None:
    homes = [tmp_path / "homes" / name / "data", tmp_path / "homes" / name]
    for home in homes:
        settings = Settings.from_env({"VANTAGE_HOME": str(home)})
        assert Settings.from_env(environment(settings)) == settings
        storage = Storage(settings.store, settings.local)
        checksum = storage.write_arrays("a/b", {"x": np.arange(3)}, {})
        assert storage.fetch("a/b", checksum) == home / "local" / "a" / "b"
        with open_database(settings.database_url) as engine:
            assert engine.url.database == str(home / "vantage.sqlite")
        with HomeLock(home):
            printer = LogPrinter(home / "logs" / "log", print)
            printer.close()
        assert vantage_json(home, "collections") == {"collections": []}
        found = {entry.name for entry in home.iterdir()} - {"data"}
        assert found >= {"vantage.sqlite", "store", "local", "run", "logs"}
        assert found <= {"vantage.sqlite", "store", "local", "run", "logs"} | {
            "vantage.sqlite-wal",
            "vantage.sqlite-shm",
        }
    assert list(tmp_path.iterdir()) == [tmp_path / "homes"]
    assert list((tmp_path / "homes").iterdir()) == [homes[1]]


def test_a_socket_is_used_where_its_path_can_be_written_into_an_address(tmp_path: Path) -> None:
    for name, wanted in (("h%20?#", True), (os.fsdecode(b"\xff"), False), ("x" * 100, False)):
        place = next(iter(EmbeddedRedis(tmp_path)._places(tmp_path / name)))
        assert (place.socket is not None) == (wanted and len(str(tmp_path)) < 80)


def test_two_homes_never_share_a_database() -> None:
    urls = [Settings.from_env({"VANTAGE_HOME": f"/data/{name}"}).database_url for name in NAMES]
    assert len({parse_url(url).database for url in urls}) == len(NAMES)


@pytest.mark.parametrize(
    ("store", "folder"),
    [
        ("/data/store", "/data/store"),
        ("/data/a::b", "/data/a::b"),
        ("/s3://bucket", "/s3://bucket"),
        ("relative", "relative"),
        ("zip::x", "zip::x"),
        ("file:///data/h%20x", "/data/h%20x"),
        ("s3://bucket/path", None),
        ("memory://x", None),
        ("simplecache::s3://bucket/path", None),
    ],
)
def test_a_store_is_a_folder_or_a_url(store: str, folder: str | None) -> None:
    assert store_folder(store) == (None if folder is None else Path(folder))


def test_relative_places_do_not_depend_on_the_folder_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"HOME": "h", "STORE": "st%20ore", "LOCAL": "local", "DATABASE_URL": "sqlite:///d?b"}
    settings = Settings.from_env({f"VANTAGE_{name}": value for name, value in names.items()})
    monkeypatch.chdir("/")
    assert Settings.from_env(environment(settings)) == settings
    assert settings.home == tmp_path / "h"
    assert settings.store == str(tmp_path / "st%20ore")
    assert settings.local == tmp_path / "local"
    assert parse_url(settings.database_url).database == str(tmp_path / "d?b")
