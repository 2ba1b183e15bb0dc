"""Listing and reading files: a complete, repeatable list, and no file stops a job."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.config import ImageLimits
from pipeline.errors import ImageReadError, MissingRootError
from pipeline.files import read_file, read_location
from pipeline.walk import FoundFile, walk

LIMITS = ImageLimits()


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))


def names(found: list[FoundFile], folder: Path) -> list[str]:
    return [os.path.relpath(f.path, folder) for f in found]


def codes(found: list[FoundFile], folder: Path) -> dict[str, str]:
    return {os.path.relpath(f.path, folder): f.error.code for f in found if f.error}


def read_code(path: str | Path) -> str:
    with pytest.raises(ImageReadError) as caught:
        read_file(path, limits=LIMITS)
    return caught.value.code


@contextmanager
def without_privileges() -> Iterator[None]:
    """Be an ordinary user for a while: root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError as error:
        pytest.skip(f"this root may not become another user: {error}")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder whose parents every user may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


class TestWalk:
    def test_files_come_folder_by_folder_sorted_by_name(self, tmp_path: Path) -> None:
        make(tmp_path, "b.jpg", "a/2.png", "a/10.png", "c/d/e.webp", "B.JPEG")
        wanted = ["B.JPEG", "a/10.png", "a/2.png", "b.jpg", "c/d/e.webp"]
        found = list(walk([tmp_path]))
        assert names(found, tmp_path) == wanted
        assert found == list(walk([tmp_path]))
        assert all(f.root == str(tmp_path) and f.error is None for f in found)

    def test_size_and_time_of_change_are_the_files(self, tmp_path: Path) -> None:
        make(tmp_path, "a.jpg")
        (found,) = walk([tmp_path])
        status = (tmp_path / "a.jpg").stat()
        assert (found.size, found.mtime_ns) == (5, status.st_mtime_ns)
        assert (found.ctime_ns, found.inode) == (status.st_ctime_ns, status.st_ino)

    def test_other_suffixes_and_hidden_names_are_left_out_and_counted(self, tmp_path: Path) -> None:
        make(tmp_path, "a.jpg", "notes.txt", "movie.mp4", "jpg", ".hidden.jpg", "._a.jpg")
        make(tmp_path, ".thumbnails/a.jpg", "@eaDir/a.jpg", "phone.HEIC")
        listing = walk([tmp_path])
        assert names(list(listing), tmp_path) == ["a.jpg", "phone.HEIC"]
        assert (listing.skipped, listing.hidden) == (3, 4)

    def test_a_given_file_is_taken_whatever_its_name(self, tmp_path: Path) -> None:
        make(tmp_path, "photo.dat", ".hidden.jpg", ".cache/a.jpg", "z.jpg")
        given = [tmp_path / "z.jpg", tmp_path / ".cache", tmp_path / "photo.dat"]
        found = list(walk(given))
        assert names(found, tmp_path) == ["z.jpg", "photo.dat", ".cache/a.jpg"]
        assert [f.root for f in found] == [str(given[0]), str(given[2]), str(given[1])]

    def test_nothing_is_listed_twice(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.jpg", "a/b/2.jpg", "3.jpg")
        given = [tmp_path / "3.jpg", tmp_path / "a" / "b", tmp_path, tmp_path / "a", tmp_path]
        assert names(list(walk(given)), tmp_path) == ["3.jpg", "a/b/2.jpg", "a/1.jpg"]

    def test_relative_paths_become_absolute(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make(tmp_path, "a/1.jpg")
        monkeypatch.chdir(tmp_path)
        assert [f.path for f in walk(["a/../a"])] == [str(tmp_path / "a" / "1.jpg")]

    def test_a_folder_without_images_is_an_empty_list(self, tmp_path: Path) -> None:
        make(tmp_path, "readme.txt", "sub/data.csv")
        listing = walk([tmp_path])
        assert list(listing) == []
        assert listing.skipped == 2

    def test_strange_names_come_back_exactly(self, tmp_path: Path) -> None:
        strange = ["naïve café.jpg", "日本.jpg", "two\nlines.jpg", " .jpg", "-rf.jpg", "a'\"b.jpg"]
        undecodable = os.fsdecode(b"latin-\xe9\xff.jpg")
        make(tmp_path, *strange, undecodable)
        found = list(walk([tmp_path]))
        assert names(found, tmp_path) == sorted([*strange, undecodable])
        for file in found:
            content = read_file(file.path, limits=LIMITS)
            assert content == os.fsencode(Path(file.path).name)

    def test_deep_folders_are_walked(self, tmp_path: Path) -> None:
        # Deeper than Python's own calls can be nested.
        folders = [tmp_path]
        for _ in range(1100):
            folders.append(folders[-1] / "d")
            folders[-1].mkdir()
        make(folders[-1], "a.jpg")
        try:
            assert [f.path for f in walk([tmp_path])] == [str(folders[-1] / "a.jpg")]
        finally:
            (folders[-1] / "a.jpg").unlink()
            for folder in reversed(folders):
                folder.rmdir()


class TestLinks:
    def test_links_to_files_and_folders_are_followed(self, tmp_path: Path) -> None:
        make(tmp_path / "elsewhere", "x.jpg", "sub/y.jpg")
        make(tmp_path / "photos", "a.jpg")
        (tmp_path / "photos" / "linked.jpg").symlink_to(tmp_path / "elsewhere" / "x.jpg")
        (tmp_path / "photos" / "more").symlink_to(tmp_path / "elsewhere" / "sub")
        found = list(walk([tmp_path / "photos"]))
        assert names(found, tmp_path / "photos") == ["a.jpg", "linked.jpg", "more/y.jpg"]

    def test_links_that_lead_back_do_not_loop(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.jpg", "b/2.jpg")
        (tmp_path / "a" / "up").symlink_to(tmp_path)
        (tmp_path / "a" / "across").symlink_to(tmp_path / "b")
        (tmp_path / "b" / "across").symlink_to(tmp_path / "a")
        assert names(list(walk([tmp_path])), tmp_path) == ["a/1.jpg", "b/2.jpg"]

    def test_the_real_path_of_a_folder_wins_over_a_link_to_it(self, tmp_path: Path) -> None:
        make(tmp_path, "real/1.jpg")
        (tmp_path / "a-link").symlink_to(tmp_path / "real")
        assert names(list(walk([tmp_path])), tmp_path) == ["real/1.jpg"]

    def test_a_link_in_a_circle_and_one_to_nothing_are_failures(self, tmp_path: Path) -> None:
        make(tmp_path, "good.jpg")
        (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
        (tmp_path / "ping.jpg").symlink_to(tmp_path / "pong.jpg")
        (tmp_path / "pong.jpg").symlink_to(tmp_path / "ping.jpg")
        (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
        found = list(walk([tmp_path]))
        assert codes(found, tmp_path) == {
            "circle.jpg": "symlink-loop",
            "ping.jpg": "symlink-loop",
            "pong.jpg": "symlink-loop",
            "dangling.jpg": "vanished",
        }
        assert names(found, tmp_path) == [
            "circle.jpg", "dangling.jpg", "good.jpg", "ping.jpg", "pong.jpg",
        ]  # fmt: skip
        assert read_code(tmp_path / "circle.jpg") == "symlink-loop"

    def test_links_out_of_the_allowed_folders_are_refused(self, tmp_path: Path) -> None:
        make(tmp_path, "in/a.jpg", "in-not/x.jpg", "out/x.jpg")
        (tmp_path / "in" / "file.jpg").symlink_to(tmp_path / "out" / "x.jpg")
        (tmp_path / "in" / "folder").symlink_to(tmp_path / "in-not")
        found = list(walk([tmp_path / "in"], roots=[str(tmp_path / "in")]))
        assert names(found, tmp_path) == ["in/a.jpg", "in/file.jpg", "in/folder"]
        assert codes(found, tmp_path) == {
            "in/file.jpg": "outside-roots",
            "in/folder": "outside-roots",
        }
        for given in ("out", "in/../in-not", "in/file.jpg"):
            (refused,) = walk([tmp_path / given], roots=[str(tmp_path / "in")])
            assert "VANTAGE_IMAGE_ROOTS" in str(refused.error)

    def test_a_link_laid_after_the_listing_does_not_lead_out(self, tmp_path: Path) -> None:
        make(tmp_path, "in/a.jpg", "out/a.jpg")
        roots = [str(tmp_path / "in")]
        (found,) = walk([tmp_path / "in"], roots=roots)
        assert read_location(found.path, found.root, limits=LIMITS, roots=roots) == b"in/a.jpg"
        (tmp_path / "in" / "a.jpg").unlink()
        (tmp_path / "in" / "a.jpg").symlink_to(tmp_path / "out" / "a.jpg")
        with pytest.raises(ImageReadError) as caught:
            read_location(found.path, found.root, limits=LIMITS, roots=roots)
        assert caught.value.code == "outside-roots"

    def test_the_opened_file_is_judged_however_its_name_changes(self, tmp_path: Path) -> None:
        """A link is laid and removed again and again: what is read always lies inside."""
        make(tmp_path, "in/sub/a.jpg", "out/sub/a.jpg")
        inside, link = tmp_path / "in" / "sub", tmp_path / "in" / "link"
        aside = tmp_path / "in" / "aside"
        link.symlink_to(tmp_path / "out" / "sub")
        done = threading.Event()

        def change() -> None:
            while not done.is_set():
                inside.rename(aside)
                link.rename(inside)
                inside.rename(link)
                aside.rename(inside)

        thread = threading.Thread(target=change)
        thread.start()
        seen: set[str] = set()
        try:
            for _ in range(2000):
                try:
                    data = read_file(inside / "a.jpg", limits=LIMITS, roots=[str(tmp_path / "in")])
                    seen.add(data.decode())
                except ImageReadError as error:
                    seen.add(error.code)
        finally:
            done.set()
            thread.join()
        assert seen <= {"in/sub/a.jpg", "outside-roots", "vanished"}

    def test_an_opened_file_outside_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make(tmp_path, "in/a.jpg", "out/a.jpg", "in-not/a.jpg")
        real = os.open
        for outside in ("out", "in-not"):
            # The name led inside when it was looked at, and outside when it was opened.
            def swapped(_path: str, flags: int, outside: str = outside) -> int:
                return real(tmp_path / outside / "a.jpg", flags)

            with monkeypatch.context() as patch:
                patch.setattr("pipeline.files.os.open", swapped)
                with pytest.raises(ImageReadError) as caught:
                    read_file(tmp_path / "in/a.jpg", limits=LIMITS, roots=[str(tmp_path / "in")])
            assert caught.value.code == "outside-roots"

    def test_allowed_folders_may_be_links_themselves(self, tmp_path: Path) -> None:
        make(tmp_path, "real/a.jpg")
        (tmp_path / "mount").symlink_to(tmp_path / "real")
        found = list(walk([tmp_path / "mount"], roots=[str(tmp_path / "mount")]))
        assert [f.path for f in found] == [str(tmp_path / "mount" / "a.jpg")]


class TestWhatCannotBeRead:
    def test_a_missing_folder_differs_from_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(MissingRootError, match="nothing here"):
            walk([tmp_path / "nothing here"])
        make(tmp_path, "good.jpg")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        given = [tmp_path / "gone.jpg", tmp_path / "null\0byte", tmp_path / "loop", tmp_path]
        listing = walk(given)
        found = list(listing)
        assert codes(found, tmp_path) == {
            "gone.jpg": "vanished", "null\0byte": "vanished", "loop": "symlink-loop"
        }  # fmt: skip
        assert names(found, tmp_path)[-1] == "good.jpg"
        assert listing.folders == [str(tmp_path)]

    def test_a_file_without_permission(self, public_folder: Path) -> None:
        make(public_folder, "a.jpg", "secret.jpg", "z.jpg")
        (public_folder / "secret.jpg").chmod(0)
        with without_privileges():
            found = list(walk([public_folder]))
            assert read_code(public_folder / "secret.jpg") == "permission-denied"
            assert read_file(public_folder / "z.jpg", limits=LIMITS) == b"z.jpg"
        assert names(found, public_folder) == ["a.jpg", "secret.jpg", "z.jpg"]

    def test_an_unreadable_folder_is_reported_and_the_walk_goes_on(
        self, public_folder: Path
    ) -> None:
        make(public_folder, "closed/a.jpg", "open/b.jpg")
        (public_folder / "closed").chmod(0)
        with without_privileges():
            found = list(walk([public_folder]))
        assert names(found, public_folder) == ["closed", "open/b.jpg"]
        assert codes(found, public_folder) == {"closed": "permission-denied"}

    def test_a_file_that_vanishes_after_it_was_listed(self, tmp_path: Path) -> None:
        make(tmp_path, "a.jpg", "b.jpg")
        found = list(walk([tmp_path]))
        (tmp_path / "a.jpg").unlink()
        assert read_code(found[0].path) == "vanished"
        with pytest.raises(ImageReadError, match="vanished"):
            read_location(found[0].path, found[0].root, limits=LIMITS)
        assert read_location(found[1].path, found[1].root, limits=LIMITS) == b"b.jpg"

    def test_a_file_that_vanishes_while_it_is_listed(self, tmp_path: Path) -> None:
        make(tmp_path, "a.jpg", "b.jpg")
        listing = walk([tmp_path])
        assert next(listing).path.endswith("a.jpg")
        (tmp_path / "b.jpg").unlink()
        (gone,) = listing
        assert gone.error is not None
        assert gone.error.code == "vanished"

    @pytest.mark.parametrize("emptied_only", [True, False])
    def test_a_folder_that_is_missing_as_a_whole_is_not_the_images_fault(
        self, tmp_path: Path, emptied_only: bool
    ) -> None:
        # An unmounted disk leaves an empty folder where it was.
        make(tmp_path, "disk/sub/a.jpg")
        (found,) = walk([tmp_path / "disk"])
        shutil.rmtree(tmp_path / "disk")
        if emptied_only:
            (tmp_path / "disk").mkdir()
        with pytest.raises(MissingRootError, match="disk"):
            read_location(found.path, found.root, limits=LIMITS)

    def test_a_vanished_file_that_was_given_itself_is_only_vanished(self, tmp_path: Path) -> None:
        path = str(tmp_path / "gone.jpg")
        with pytest.raises(ImageReadError, match="vanished"):
            read_location(path, path, limits=LIMITS)

    def test_pipes_sockets_devices_and_folders_do_not_block(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.jpg")
        (tmp_path / "folder.jpg").mkdir()
        (tmp_path / "device.jpg").symlink_to("/dev/zero")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket.jpg"))
            special = ["device.jpg", "pipe.jpg", "socket.jpg"]
            assert codes(list(walk([tmp_path])), tmp_path) == dict.fromkeys(special, "not-a-file")
            for name in [*special, "folder.jpg"]:
                assert read_code(tmp_path / name) == "not-a-file"

    def test_a_file_that_would_block_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As /proc/kmsg: it looks regular, and has nothing to read now."""
        make(tmp_path, "a.jpg")
        reader, writer = os.pipe2(os.O_NONBLOCK)
        regular = (tmp_path / "a.jpg").stat()
        with os.fdopen(writer, "wb"), monkeypatch.context() as patch:
            patch.setattr("pipeline.files.os.open", lambda *_: reader)
            patch.setattr("pipeline.files.os.fstat", lambda _: regular)
            assert read_code(tmp_path / "a.jpg") == "not-a-file"

    def test_a_pipe_put_in_the_place_of_a_file_does_not_block(self, tmp_path: Path) -> None:
        # Replaced again and again while it is read: whichever moment is hit, an answer comes.
        path, pipe, plain = (tmp_path / name for name in ("a.jpg", "pipe", "plain"))
        path.write_bytes(b"a.jpg")
        done = threading.Event()

        def replace() -> None:
            while not done.is_set():
                os.mkfifo(pipe)
                pipe.replace(path)
                plain.write_bytes(b"a.jpg")
                plain.replace(path)

        thread = threading.Thread(target=replace)
        thread.start()
        try:
            for _ in range(300):
                try:
                    assert read_file(path, limits=LIMITS) == b"a.jpg"
                except ImageReadError as error:
                    assert error.code == "not-a-file"  # noqa: PT017
        finally:
            done.set()
            thread.join()

    def test_a_file_above_the_byte_limit_is_refused_before_it_is_read(self, tmp_path: Path) -> None:
        with (tmp_path / "huge.jpg").open("wb") as file:
            file.truncate(2**40)
        with pytest.raises(ImageReadError, match="VANTAGE_MAX_BYTES") as caught:
            read_file(tmp_path / "huge.jpg", limits=LIMITS)
        assert caught.value.code == "too-large-bytes"

    def test_an_empty_file_is_read_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").touch()
        assert read_file(tmp_path / "a.jpg", limits=LIMITS) == b""

    @pytest.mark.parametrize("path", ["/nowhere/a.jpg", "/dev/null/a.jpg", "nul\0l"])
    def test_a_path_to_nothing_is_vanished(self, path: str) -> None:
        assert read_code(path) == "vanished"

    def test_a_path_that_is_too_long_says_so(self) -> None:
        with pytest.raises(ImageReadError, match="too long"):
            read_file("/" + "a" * 5000, limits=LIMITS)
