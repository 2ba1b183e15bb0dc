"""The stage `register`: no file stops it, changes are noticed, and what is gone is marked."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from pipeline import existence
from pipeline.config import ExtractorConfig, IndexConfig, Settings
from pipeline.errors import DatabaseUnavailableError
from pipeline.indexing import gone, register
from pipeline.job_params import IndexParams
from pipeline.metadata import collections, images, jobs, parts
from pipeline.metadata.engine import prepare_schema, session_scope
from pipeline.resources import Resources


class Site:
    """A database with one collection, in which files are registered."""

    def __init__(self, home: Path) -> None:
        self.resources = Resources(Settings.from_env({"VANTAGE_HOME": str(home)}))
        prepare_schema(self.resources.engine)
        with session_scope(self.resources.engine) as session:
            self.collection = collections.get_or_create_collection(
                session, "c", ExtractorConfig(), IndexConfig()
            ).id

    def register(self, *paths: Path, **options: bool) -> dict[str, int]:
        """Do the stage of a new job; return its counters that are not 0."""
        params = IndexParams(paths=tuple(map(str, paths)), **options)
        engine = self.resources.engine
        with session_scope(engine) as session:
            job = jobs.create_job(session, self.collection, "index", params)
            (part,) = parts.append_parts(session, job.id, "register", [{}])
        while (found := register.register(self.resources, job, part)).get("more"):
            pass
        with session_scope(engine) as session:
            jobs.finish_job(session, job.id, "done", "")
        return {name: value for name, value in found.items() if value}

    def paths(self, condition: str) -> list[str]:
        statement = text(f"SELECT path FROM locations WHERE {condition} ORDER BY path")
        with session_scope(self.resources.engine, write=False) as session:
            return [Path(path).name for path in session.scalars(statement)]

    def failures(self) -> dict[str, str]:
        with session_scope(self.resources.engine, write=False) as session:
            rows = images.failures(session, self.collection)
        return {Path(row.path).name: row.code for row in rows}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "home")
    yield site
    site.resources.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three files, old enough to be believed."""
    path = tmp_path / "folder"
    path.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (path / name).write_text(name)
    monkeypatch.setattr(register, "YOUNG_NS", -(10**18))
    return path


def test_what_is_unchanged_is_not_read(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.register(folder) == {"files_seen": 3, "images_new": 3}
    monkeypatch.setattr(register, "read_file", None)
    assert site.register(folder) == {"files_seen": 3, "files_unchanged": 3}


def same_time(path: Path, other: Path) -> None:
    """Give a file the time of change of another."""
    status = other.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def overwrite(path: Path, data: str) -> None:
    """Change a file in place and set its time back."""
    status = path.stat()
    path.write_text(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def put_in_place(path: Path, data: str) -> None:
    """Replace a file by another of the same size and time, as rsync and backups do."""
    new = path.with_suffix(".new")
    new.write_text(data)
    same_time(new, path)
    new.replace(path)


def put_there_by_link(path: Path, data: str) -> None:
    """Let the name, a link, lead to another file of the same size and time."""
    new = path.with_suffix(".new")
    new.write_text(data)
    same_time(new, path)
    path.unlink()
    path.symlink_to(new)


@pytest.mark.parametrize("change", [overwrite, put_in_place, put_there_by_link])
def test_other_content_of_the_same_size_and_time_is_noticed(
    site: Site, folder: Path, change: Any
) -> None:
    site.register(folder)
    change(folder / "b.png", "B.PNG")
    assert site.register(folder) == {
        "files_seen": 3, "files_unchanged": 2, "images_new": 1, "images_removed": 1,
    }  # fmt: skip


def test_a_new_status_without_new_content_is_unchanged(site: Site, folder: Path) -> None:
    site.register(folder)
    (folder / "a.png").chmod(0o640)
    (folder / "link").hardlink_to(folder / "b.png")
    os.utime(folder / "c.png")
    counts = site.register(folder)
    assert (counts["files_unchanged"], "images_new" in counts) == (3, False)


def test_everything_is_read_again_on_request_once_a_job(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.register(folder)
    read: list[str] = []

    def note(path: str, **_: Any) -> bytes:
        read.append(Path(path).name)
        return b"rotten" if path.endswith("b.png") else Path(path).read_bytes()

    monkeypatch.setattr(register, "read_file", note)
    # A disk may lose bits, which changes nothing that the file system says of the file. A job in
    # many slices does not begin from the beginning.
    monkeypatch.setattr(register, "REGISTER_SLICE_S", -1)
    monkeypatch.setattr(register, "REGISTER_CHUNK", 1)
    assert site.register(folder) == {"files_seen": 3, "files_unchanged": 3}
    assert read == []
    site.register(folder, reread=True)
    assert sorted(read) == ["a.png", "b.png", "c.png"]
    assert site.paths("image_id = 4") == ["b.png"]


def test_a_file_that_changed_just_before_is_read_again(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register, "YOUNG_NS", 10**18)
    site.register(folder)
    assert site.paths("ctime_ns IS NULL") == ["a.png", "b.png", "c.png"]
    monkeypatch.setattr(register, "YOUNG_NS", -(10**18))
    monkeypatch.setattr(register, "REGISTER_SLICE_S", -1)
    assert site.register(folder) == {"files_seen": 3, "files_unchanged": 3}
    assert site.paths("ctime_ns IS NULL") == []


@pytest.mark.parametrize("when", [-(2**31), -1, 0, 10**8, 2**31, 10_428_393_600, 2**33])
def test_files_of_any_time_are_registered_and_unchanged(
    site: Site, folder: Path, when: int
) -> None:
    os.utime(folder / "b.png", (when, when))
    if (folder / "b.png").stat().st_mtime != when:
        pytest.skip("this file system has no such times")
    assert site.register(folder) == {"files_seen": 3, "images_new": 3}
    assert site.register(folder)["files_unchanged"] == 3


def test_a_file_that_the_database_refuses_is_a_failure_and_the_others_are_taken(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = images.register_files

    def refuse(session: Any, collection: int, job: str, files: Any, **more: Any) -> Any:
        if any(file.path.endswith("b.png") and file.sha256 for file in files):
            raise OverflowError("integer out of range")
        return real(session, collection, job, files, **more)

    monkeypatch.setattr(images, "register_files", refuse)
    assert site.register(folder) == {"files_seen": 3, "images_new": 2, "unreadable": 1}
    assert site.failures() == {"b.png": "read-error"}
    monkeypatch.setattr(images, "register_files", real)
    assert site.register(folder)["images_new"] == 1
    assert site.failures() == {}


def test_a_database_that_does_not_answer_is_nobodys_fault(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise DatabaseUnavailableError("locked")

    monkeypatch.setattr(images, "register_files", refuse)
    with pytest.raises(DatabaseUnavailableError):
        site.register(folder)


def test_given_paths_that_cannot_be_used_stop_no_others(
    site: Site, folder: Path, tmp_path: Path
) -> None:
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    os.mkfifo(tmp_path / "pipe.png")
    given = [loop, tmp_path / "pipe.png", tmp_path / "nowhere.png", folder / "a.png", folder]
    assert site.register(*given) == {"files_seen": 6, "images_new": 3, "unreadable": 3}
    assert site.failures() == {
        "loop.png": "symlink-loop", "pipe.png": "not-a-file", "nowhere.png": "vanished"
    }  # fmt: skip


def test_what_is_gone_is_marked_and_what_was_moved_is_found(site: Site, folder: Path) -> None:
    decomposed, composed = "e\u0301te\u0301.png", "\xe9t\xe9.png"
    (folder / decomposed).write_text("accents")
    site.register(folder)
    (folder / decomposed).rename(folder / composed)
    (folder / "a.png").rename(folder / "A.PNG")
    (folder / "sub").mkdir()
    (folder / "b.png").rename(folder / "sub" / "b.png")
    assert site.register(folder) == {"files_seen": 4, "files_unchanged": 1, "images_known": 3,
                                     "files_gone": 3}  # fmt: skip
    assert site.paths("gone_at IS NOT NULL") == ["a.png", "b.png", decomposed]
    assert site.register(folder) == {"files_seen": 4, "files_unchanged": 4}
    (folder / "A.PNG").rename(folder / "a.png")
    assert site.register(folder)["files_gone"] == 1
    assert site.paths("gone_at IS NOT NULL") == ["A.PNG", "b.png", decomposed]


def test_names_that_differ_in_case_only_are_told_apart_on_any_file_system(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems find a file by any case of its name, but list one."""
    site.register(folder)
    (folder / "a.png").rename(folder / "A.PNG")
    real = os.stat

    def ignoring_case(path: Any, *more: Any, **options: Any) -> Any:
        try:
            return real(path, *more, **options)
        except FileNotFoundError:
            return real(Path(path).with_name(Path(path).name.upper()), *more, **options)

    monkeypatch.setattr(gone.os, "stat", ignoring_case)
    assert (folder / "a.png").exists()
    assert site.register(folder)["files_gone"] == 1
    assert site.paths("gone_at IS NOT NULL") == ["a.png"]


def test_only_what_was_looked_for_is_gone(site: Site, folder: Path, tmp_path: Path) -> None:
    """Not what lies in other folders, in one that cannot be listed, or behind another name."""
    elsewhere, link = tmp_path / "folder-2", tmp_path / "link"
    elsewhere.mkdir()
    (elsewhere / "z.png").write_text("z")
    closed = folder / "closed"
    closed.mkdir()
    (closed / "d.png").write_text("d")
    link.symlink_to(folder)
    site.register(folder, elsewhere)
    site.register(link)
    for path in (elsewhere / "z.png", folder / "b.png"):
        path.unlink()

    def refuse(path: Any) -> Any:
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied")
        return real(path)

    real = os.scandir
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        (closed / "d.png").unlink()
        assert site.register(folder)["files_gone"] == 1
    assert site.paths("gone_at IS NOT NULL") == ["b.png"]
    # The names through the link are of the same files.
    assert site.register(folder, link, emptied=True)["files_gone"] == 3
    assert sorted(site.paths("gone_at IS NOT NULL")) == ["b.png", "b.png", "d.png", "d.png"]
    assert site.register(elsewhere, emptied=True)["files_gone"] == 1


def test_a_drive_that_is_not_mounted_makes_nothing_gone(
    site: Site, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place of a drive is an empty folder, a link that leads nowhere, or not there at all."""
    drive, roots = tmp_path / "drive", ("empty", "below", "made", "automatic/two", "ordinary")
    for name in (*roots, "drive"):
        (folder / name).mkdir(parents=True)
        (folder / name / "x.png").write_text(name)
    (folder / "drive").rename(drive)
    (folder / "link").symlink_to(drive)
    (folder / "below" / "deep" / "er").mkdir(parents=True)
    (folder / "below" / "deep" / "er" / "y.png").write_text("y")
    site.register(folder)
    for name in ("empty/x.png", "below/deep/er/y.png", "a.png"):
        (folder / name).unlink()
    (folder / "below" / "deep" / "er").rmdir()
    for name in ("made", "automatic/two", "ordinary"):
        shutil.rmtree(folder / name)
    shutil.rmtree(drive)
    mounts = frozenset(["/", str(folder / "automatic" / "one")])
    monkeypatch.setattr(existence, "_mounts", lambda: mounts)
    (folder / "automatic" / "one").mkdir()
    found = site.register(folder)
    assert (found["files_gone"], found["files_unknown"]) == (3, 4)
    assert site.paths("gone_at IS NOT NULL") == ["a.png", "x.png", "x.png"]  # made, ordinary
    # The drives are back, but one: what was on that one is gone if the user says so.
    (folder / "empty" / "x.png").write_text("empty")
    found = site.register(folder, emptied=True)
    assert (found["files_gone"], found.get("files_unknown", 0)) == (3, 0)


def test_an_indexed_folder_whose_drive_is_not_mounted_makes_nothing_gone(
    site: Site, folder: Path
) -> None:
    site.register(folder)
    for path in folder.iterdir():
        path.unlink()
    assert site.register(folder) == {"files_unknown": 3}
    assert site.register(folder, emptied=True) == {"files_gone": 3}
    assert site.register(folder) == {}


def test_progress_of_batches_that_never_came_back_is_removed(site: Site, folder: Path) -> None:
    storage = site.resources.storage
    for name, days in (("old", 8), ("young", 6)):
        storage.write_arrays(f"unfinished/x/{name}-0.npz", {"a": np.zeros(1)}, {})
        path = Path(site.resources.settings.store) / "unfinished" / "x" / f"{name}-0.npz"
        os.utime(path, (0, time.time() - days * 86400))
    site.register(folder)
    assert storage.exists("unfinished/x/young-0.npz")
    assert not storage.exists("unfinished/x/old-0.npz")
