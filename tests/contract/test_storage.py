"""One suite over every kind of store: a directory on this file system, and an fsspec URL."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.arrays import ArrayFile, write_arrays
from pipeline.errors import (
    ConfigError,
    CorruptFileError,
    LostFileError,
    StorageUnavailableError,
)
from pipeline.storage import REFUSED_S, Storage, file_checksum, model_key, safe_key
from pipeline.verified import look_at

KEY = "groups/0/abc.npz"
ARRAYS = {"a": np.arange(1000, dtype=np.uint32), "b": np.ones((3, 4))}


@pytest.fixture(params=["directory", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "directory":
        yield str(tmp_path / "the store")
        return
    address = f"memory://vantage-{uuid.uuid4().hex}"
    yield address
    system, root = fsspec.core.url_to_fs(address)
    if system.exists(root):
        system.rm(root, recursive=True)


@pytest.fixture
def storage(url: str, tmp_path: Path) -> Storage:
    return Storage(url, tmp_path / "local")


def damage(storage: Storage, key: str, data: bytes | None = None) -> None:
    """Flip a byte of a stored array, or put other bytes in the file's place."""
    system, root = storage._fs, storage._address(key)
    if data is None:
        whole = bytearray(system.cat_file(root))
        whole[whole.index(ARRAYS["a"].tobytes()) + 400] ^= 1
        data = bytes(whole)
    system.rm_file(root)
    system.pipe_file(root, data)


def test_what_was_written_is_found_read_and_deleted(storage: Storage) -> None:
    assert not storage.exists(KEY)
    assert storage.find(KEY) is None
    checksum = storage.write_arrays(KEY, ARRAYS, {"x": 1})
    assert storage.exists(KEY)
    assert storage.find(KEY) == storage.checksum(KEY) == checksum
    for file in (storage.open_arrays(KEY, checksum), storage.read_arrays(KEY, checksum)):
        assert file.meta == {"x": 1}
        assert all(np.array_equal(file[name], array) for name, array in ARRAYS.items())
    assert np.array_equal(storage.read_array(KEY, "b"), ARRAYS["b"])
    assert storage.size(KEY) == (storage.local / KEY).stat().st_size
    storage.delete(KEY)
    assert not storage.exists(KEY)
    assert not (storage.local / KEY).exists()
    storage.delete(KEY)


def test_the_first_of_two_files_of_one_name_stays(storage: Storage) -> None:
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    assert storage.write_arrays(KEY, {"a": np.zeros(3)}, {}) == checksum
    assert np.array_equal(storage.read_arrays(KEY)["a"], ARRAYS["a"])


def test_writers_of_one_name_at_once_leave_one_whole_file(storage: Storage) -> None:
    start = threading.Barrier(8)

    def write(number: int) -> str:
        start.wait(10)
        return storage.write_arrays(KEY, {"a": np.full(100_000, number % 2)}, {})

    with ThreadPoolExecutor(8) as pool:
        checksums = list(pool.map(write, range(8)))
    file = storage.read_arrays(KEY)
    file.verify()
    assert len(np.unique(file["a"])) == 1
    assert storage.checksum(KEY) in checksums
    if storage._on_disk:
        assert set(checksums) == {storage.checksum(KEY)}
        assert [p.name for p in Path(storage._address(KEY)).parent.iterdir()] == ["abc.npz"]


def test_a_writer_that_fails_leaves_nothing(storage: Storage) -> None:
    def fill(stream: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.write(KEY, fill)
    assert not storage.exists(KEY)
    folder = Path(storage._address(KEY)).parent
    assert not storage._on_disk or list(folder.iterdir()) == []


def test_a_damaged_stored_file_is_not_found_and_made_again(storage: Storage) -> None:
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    damage(storage, KEY)
    assert storage.find(KEY) is None
    assert not storage.exists(KEY)
    assert storage.write_arrays(KEY, ARRAYS, {}) == checksum


def test_a_stored_file_with_another_checksum_is_refused(storage: Storage) -> None:
    storage.write_arrays(KEY, ARRAYS, {})
    for read in (storage.open_arrays, storage.fetch, storage.read_arrays):
        with pytest.raises(CorruptFileError, match="SHA-256 is not the one recorded"):
            read(KEY, "0" * 64)
    assert not (storage.local / KEY).exists()
    assert list((storage.local / KEY).parent.iterdir()) == []


@pytest.mark.parametrize("cut", [False, True], ids=["flipped byte", "cut off"])
def test_a_damaged_local_copy_is_fetched_again(
    storage: Storage, url: str, tmp_path: Path, cut: bool
) -> None:
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    copy = storage.fetch(KEY, checksum)
    whole = copy.read_bytes()
    copy.unlink()  # which may be a hard link to the stored file
    flipped = whole.replace(ARRAYS["a"].tobytes(), bytes(4000))
    copy.write_bytes(whole[:1000] if cut else flipped)
    another_life = Storage(url, tmp_path / "local")
    file = another_life.open_arrays(KEY, checksum)
    assert np.array_equal(file["a"], ARRAYS["a"])
    assert file_checksum(copy) == checksum


def test_damage_in_the_store_itself_is_reported(storage: Storage, url: str, tmp_path: Path) -> None:
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    damage(storage, KEY)
    with pytest.raises(CorruptFileError):
        storage.open_arrays(KEY, checksum)
    damage(storage, KEY, b"not a file of arrays")
    with pytest.raises(CorruptFileError):
        storage.read_array(KEY, "a")


def test_a_missing_file_can_come_later(storage: Storage) -> None:
    for read in (storage.fetch, storage.open_arrays, storage.read_arrays, storage.checksum):
        with pytest.raises(StorageUnavailableError, match=r"groups/0/abc\.npz"):
            read(KEY)
    with pytest.raises(StorageUnavailableError):
        storage.size(KEY)
    with pytest.raises(StorageUnavailableError):
        storage.read_array(KEY, "a")


def test_a_lost_file_differs_from_a_store_that_does_not_answer(storage: Storage) -> None:
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    storage.write_arrays("trees/a.npz", ARRAYS, {})
    storage.delete(KEY)
    for read in (storage.fetch, storage.open_arrays, storage.read_arrays, storage.checksum):
        with pytest.raises(LostFileError, match=r"lost the file '.*abc\.npz'.*vantage rebuild"):
            read(KEY)
    for read in (storage.fetch, storage.open_arrays, storage.read_arrays):
        with pytest.raises(LostFileError):
            read(KEY, checksum)
    assert storage.find(KEY) is None
    assert storage.write_arrays(KEY, ARRAYS, {}) == checksum
    assert np.array_equal(storage.open_arrays(KEY, checksum)["a"], ARRAYS["a"])


def test_a_damaged_file_is_read_once_until_it_changes(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    damage(storage, KEY)
    read = []
    copy_to = storage._copy_to
    monkeypatch.setattr(storage, "_copy_to", lambda *args: (read.append(args), copy_to(*args)))
    for _ in range(3):
        with pytest.raises(CorruptFileError):
            storage.fetch(KEY, checksum)
    assert len(read) == 1
    _other(storage)
    if storage._on_disk:
        Path(storage._address(KEY)).unlink()
    else:  # a URL is asked again after a while
        monkeypatch.setattr("pipeline.storage.time.monotonic", lambda: float("inf"))
        storage._fs.rm_file(storage._address(KEY))
    storage.write_arrays(KEY, ARRAYS, {})
    assert file_checksum(storage.fetch(KEY, checksum)) == checksum


class OddFileSystem(MemoryFileSystem):
    """An object store whose client has errors of its own."""

    protocol = "odd"
    down = False

    def _open(self, *args: Any, **options: Any) -> Any:
        if self.down:
            raise LookupError("EndpointConnectionError")
        return super()._open(*args, **options)

    def cat_file(self, *args: Any, **options: Any) -> Any:
        if self.down:
            raise LookupError("EndpointConnectionError")
        return super().cat_file(*args, **options)

    def ls(self, *args: Any, **options: Any) -> Any:
        if self.down:
            raise LookupError("EndpointConnectionError")
        return super().ls(*args, **options)


def test_an_object_store_that_is_away_is_unavailable_whatever_its_client_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("odd", OddFileSystem, clobber=True)
    storage = Storage(f"odd://vantage-{uuid.uuid4().hex}", tmp_path / "local")
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    monkeypatch.setattr(OddFileSystem, "down", True)
    for read in (storage.fetch, storage.open_arrays, storage.read_arrays):
        with pytest.raises(StorageUnavailableError, match="EndpointConnectionError"):
            read(KEY, checksum)
    monkeypatch.setattr(OddFileSystem, "down", False)
    storage.fetch(KEY, checksum)
    monkeypatch.setattr(OddFileSystem, "down", True)
    assert np.array_equal(storage.open_arrays(KEY, checksum)["a"], ARRAYS["a"])


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../a", "a/../../b", "a//b", "a/./b", "a/", "a\\b", "a\0b", "groups/\n"],
)
def test_a_name_cannot_lead_out_of_the_store(storage: Storage, key: str) -> None:
    for act in (
        *(storage.exists, storage.fetch, storage.read_arrays, storage.delete, storage.checksum),
        *(storage.delete_folder, storage.drop_local, storage.size, safe_key),
    ):
        with pytest.raises(CorruptFileError, match="this is no name in the store"):
            act(key)


def test_a_folder_is_deleted_with_all_that_is_in_it(storage: Storage) -> None:
    for key in ("assignments/one/a.npz", "assignments/one/b.npz", "assignments/two/a.npz"):
        storage.write_arrays(key, ARRAYS, {})
    storage.delete_folder("assignments/one")
    storage.delete_folder("assignments/one")
    assert not storage.exists("assignments/one/a.npz")
    assert not storage.exists("assignments/one/b.npz")
    assert storage.exists("assignments/two/a.npz")


def test_hosts_with_their_own_local_folders_share_the_store(
    storage: Storage, url: str, tmp_path: Path
) -> None:
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    other = Storage(url, tmp_path / "another local")
    assert np.array_equal(other.open_arrays(KEY, checksum)["a"], ARRAYS["a"])
    other.drop_local(KEY)
    assert storage.exists(KEY)


# --- what only a directory has -------------------------------------------------------------------


def _lost(path: Path) -> None:
    path.unlink()


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _unreadable(path: Path) -> None:
    path.chmod(0)


def _no_folder(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file in its place")


def _empty(path: Path) -> None:
    path.unlink()
    path.touch()


@pytest.mark.parametrize("harm", [_lost, _a_folder, _a_loop, _unreadable, _no_folder, _empty])
def test_what_is_wrong_with_one_file_is_said_of_that_file(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    if harm is _unreadable and os.geteuid() == 0:
        pytest.skip("root may read everything")
    storage = Storage(str(tmp_path / "store"), tmp_path / "local")
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    other = storage.write_arrays("trees/a.npz", ARRAYS, {})
    harm(tmp_path / "store" / KEY)
    for read in (storage.fetch, storage.open_arrays, storage.read_arrays):
        with pytest.raises(CorruptFileError) as caught:
            read(KEY, checksum)
        assert str(tmp_path / "store" / KEY) in str(caught.value)
        assert isinstance(caught.value, LostFileError) == (harm in (_lost, _no_folder))
        read("trees/a.npz", other)
    for path in ("store", "local"):
        assert not [p for p in (tmp_path / path).rglob("*") if p.name.endswith(".tmp")]


def test_an_unmounted_store_is_unavailable(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "store"), tmp_path / "local")
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageUnavailableError):
        storage.fetch(KEY, checksum)
    (tmp_path / "store").mkdir()  # a bare mount point
    with pytest.raises(StorageUnavailableError):
        storage.fetch(KEY, checksum)


def test_trouble_with_the_local_folder_is_not_the_files_fault(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "store"), tmp_path / "local")
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    (tmp_path / "local").write_text("a file where a folder should be")
    with pytest.raises(StorageUnavailableError):
        storage.fetch(KEY, checksum)


@pytest.mark.parametrize("store", ["local-store", "local/store", "store"])
@pytest.mark.parametrize("local", ["local", "store/local"])
def test_a_lost_file_is_lost_wherever_the_roots_lie(tmp_path: Path, store: str, local: str) -> None:
    storage = Storage(str(tmp_path / store), tmp_path / local)
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    storage.write_arrays("trees/a.npz", ARRAYS, {})
    (tmp_path / store / KEY).unlink()
    for read in (storage.fetch, storage.open_arrays, storage.read_arrays):
        with pytest.raises(LostFileError):
            read(KEY, checksum)


def test_a_process_with_too_many_open_files_removes_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path / "store"), tmp_path / "local")
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    copy = storage.fetch(KEY, checksum)
    (tmp_path / "store").rename(tmp_path / "elsewhere")

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files", str(copy))

    monkeypatch.setattr("pipeline.storage.ArrayFile", refuse)
    with pytest.raises(StorageUnavailableError, match="Too many open files"):
        storage.open_arrays(KEY, checksum)
    assert copy.exists()


def test_a_url_is_not_asked_for_a_lost_file_by_each_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"memory://vantage-{uuid.uuid4().hex}"
    storage, other = (Storage(address, tmp_path / name) for name in ("local", "other"))
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    storage.write_arrays("trees/a.npz", ARRAYS, {})
    get, asked, now = storage._fs.get_file, [], [0.0]

    def get_file(source: str, target: str) -> None:
        asked.append(source)
        get(source, target)

    monkeypatch.setattr(storage._fs, "get_file", get_file)
    monkeypatch.setattr("pipeline.storage.time.monotonic", lambda: now[0])
    storage._fs.rm_file(storage._address(KEY))
    for _ in range(3):
        with pytest.raises(LostFileError):
            storage.open_arrays(KEY, checksum)
    assert len(asked) == 1
    other.write_arrays(KEY, ARRAYS, {})  # by another process: found after a while
    with pytest.raises(LostFileError):
        storage.fetch(KEY, checksum)
    now[0] = REFUSED_S
    storage.open_arrays(KEY, checksum).verify()
    storage.delete(KEY)
    with pytest.raises(LostFileError):
        storage.fetch(KEY, checksum)
    storage.write_arrays(KEY, ARRAYS, {})  # by this one: at once
    storage.open_arrays(KEY, checksum).verify()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EPERM])
def test_a_stored_file_that_cannot_be_read_for_a_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    storage = Storage(str(tmp_path / "store"), tmp_path / "local")
    checksum = storage.write_arrays(KEY, ARRAYS, {})

    def refuse(path: object, *_: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.storage.ArrayFile", refuse)
        with pytest.raises(StorageUnavailableError, match=os.strerror(code)):
            storage.find(KEY)
        assert storage.sound_checksum(KEY) is None
    assert storage.find(KEY) == checksum


def test_a_local_copy_that_cannot_be_read_stays_until_there_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path / "store"), tmp_path / "local")
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    copy = storage.fetch(KEY, checksum)
    before = copy.stat().st_ctime_ns

    def refuse(path: Path, *_: object) -> ArrayFile:
        if path.stat().st_ctime_ns == before:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return ArrayFile(path)

    monkeypatch.setattr("pipeline.storage.ArrayFile", refuse)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageUnavailableError):
        storage.open_arrays(KEY, checksum)
    assert copy.exists()
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    copy.unlink()
    copy.write_bytes((tmp_path / "store" / KEY).read_bytes())
    before = copy.stat().st_ctime_ns
    assert np.array_equal(storage.open_arrays(KEY, checksum)["a"], ARRAYS["a"])


class TestVerifiedCopies:
    """A copy is read again when it looks different, and only then."""

    @pytest.fixture
    def copied(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
        """A host with a copy of its own, not a link; a new process each time it is asked for."""

        def refused(self: Path, target: Path) -> None:
            raise PermissionError("no hard links here")

        monkeypatch.setattr(Path, "hardlink_to", refused)
        return Storage(str(tmp_path / "store"), tmp_path / "local")

    @staticmethod
    def again(storage: Storage) -> tuple[Storage, list[str]]:
        """Return the storage of another process, and the copies that it reads."""
        other = Storage(storage._root, storage.local)
        read: list[str] = []
        compare = other.compare_copy

        def compare_copy(key: str, look: Any = None) -> str | None:
            read.append(key)
            return compare(key, look)

        other.compare_copy = compare_copy  # type: ignore[method-assign]
        return other, read

    def test_an_untouched_copy_is_trusted_by_later_processes(self, copied: Storage) -> None:
        checksum = copied.write_arrays(KEY, ARRAYS, {})
        copied.fetch(KEY, checksum)
        for _ in range(2):
            other, read = self.again(copied)
            assert np.array_equal(other.open_arrays(KEY, checksum)["a"], ARRAYS["a"])
            assert read == []

    def test_a_touched_copy_is_read_once_and_kept(self, copied: Storage) -> None:
        checksum = copied.write_arrays(KEY, ARRAYS, {})
        os.utime(copied.fetch(KEY, checksum), ns=(0, 0))
        other, read = self.again(copied)
        other.fetch(KEY, checksum)
        other.fetch(KEY, checksum)
        assert read == [KEY]
        assert self.again(copied)[0].fetch(KEY, checksum) == copied.local / KEY

    @pytest.mark.parametrize("times", [False, True], ids=["written to", "and its time put back"])
    def test_a_changed_copy_is_replaced(self, copied: Storage, times: bool) -> None:
        checksum = copied.write_arrays(KEY, ARRAYS, {})
        path = copied.fetch(KEY, checksum)
        before = path.stat()
        data = bytearray(path.read_bytes())
        data[-200] ^= 1
        path.write_bytes(data)
        if times:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        other, read = self.again(copied)
        assert file_checksum(other.fetch(KEY, checksum)) == checksum
        assert read == [KEY]

    def test_a_process_that_runs_notices_too(self, copied: Storage) -> None:
        checksum = copied.write_arrays(KEY, ARRAYS, {})
        copied.fetch(KEY, checksum).write_bytes(b"something else")
        assert file_checksum(copied.fetch(KEY, checksum)) == checksum

    def test_a_hard_link_cannot_replace_what_was_damaged_in_place(self, tmp_path: Path) -> None:
        storage = Storage(str(tmp_path / "store"), tmp_path / "local")
        checksum = storage.write_arrays(KEY, ARRAYS, {})
        storage.fetch(KEY, checksum)
        with (tmp_path / "store" / KEY).open("r+b") as stream:
            stream.seek(1000)
            stream.write(b"damaged in place")
        with pytest.raises(CorruptFileError, match="SHA-256 is not the one recorded"):
            storage.fetch(KEY, checksum)

    @pytest.mark.parametrize(
        "record", [b"", b"\xff\0garbage\n[1]\n{}\n[[],[],[]]\n", b'["a", "b", [1, 2]]\n' * 3000]
    )
    def test_a_damaged_record_only_means_reading_again(
        self, copied: Storage, record: bytes
    ) -> None:
        checksum = copied.write_arrays(KEY, ARRAYS, {})
        copied.fetch(KEY, checksum)
        (copied.local / "verified.jsonl").write_bytes(record)
        other, read = self.again(copied)
        other.fetch(KEY, checksum)
        assert read == [KEY]
        third, read = self.again(copied)
        third.fetch(KEY, checksum)
        assert read == []

    def test_the_record_does_not_grow_for_ever(self, copied: Storage) -> None:
        checksum = copied.write_arrays(KEY, ARRAYS, {})
        path = copied.fetch(KEY, checksum)
        record = copied.local / "verified.jsonl"
        record.write_bytes(record.read_bytes() * 5000)
        other, read = self.again(copied)
        other.fetch(KEY, checksum)
        assert read == []
        assert len(record.read_bytes().splitlines()) == 1
        assert look_at(path) is not None


def test_a_local_copy_on_the_same_file_system_is_a_hard_link(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "store"), tmp_path / "local")
    storage.write_arrays(KEY, ARRAYS, {})
    assert storage.fetch(KEY).samefile(tmp_path / "store" / KEY)


def test_a_copy_that_another_process_removes_is_fetched_again(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "store"), tmp_path / "local")
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    storage.fetch(KEY, checksum).unlink()
    assert np.array_equal(storage.open_arrays(KEY, checksum)["a"], ARRAYS["a"])


def test_in_a_shared_store_the_umask_decides_who_can_read_files(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o2770)
    storage = Storage(str(tmp_path / "store"), tmp_path / "local")
    before = os.umask(0o027)
    try:
        storage.write_arrays(KEY, ARRAYS, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "store" / KEY).stat().st_mode) == 0o640


def test_a_store_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    blocked = tmp_path / "store"
    blocked.write_text("a file where a folder should be")
    storage = Storage(str(blocked), tmp_path / "local")
    with pytest.raises(StorageUnavailableError, match="is VANTAGE_STORE reachable"):
        storage.write_arrays(KEY, ARRAYS, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_store_is_unavailable(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o500)
    storage = Storage(str(folder), tmp_path / "local")
    with pytest.raises(StorageUnavailableError, match="Permission"):
        storage.write_arrays(KEY, ARRAYS, {})


def test_a_store_of_an_unknown_kind_stops_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="VANTAGE_STORE is 'nosuch://place'"):
        Storage("nosuch://place", tmp_path)


def test_a_file_url_is_a_directory(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/store/", tmp_path / "local")
    storage.write_arrays(KEY, ARRAYS, {})
    assert same_file(ArrayFile(tmp_path / "store" / KEY))
    assert storage.fetch(KEY).samefile(tmp_path / "store" / KEY)


def same_file(file: ArrayFile) -> bool:
    return all(np.array_equal(file[name], array) for name, array in ARRAYS.items())


class TestModels:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        path = tmp_path / "network.onnx"
        path.write_bytes(bytes(range(256)) * 50)
        return path

    def test_a_model_is_named_by_its_content_and_fetched(
        self, storage: Storage, model: Path
    ) -> None:
        sha256 = file_checksum(model)
        key = storage.put_model(model, sha256)
        assert key == model_key(sha256) == f"models/{sha256}.onnx"
        copy = storage.fetch_model(sha256)
        assert copy == storage.local / key
        assert copy.read_bytes() == model.read_bytes()
        model.unlink()  # who has a good one in the store needs no other
        assert storage.fetch_model(sha256) == copy

    def test_a_good_model_in_the_store_is_left_as_it_is(
        self, storage: Storage, model: Path
    ) -> None:
        sha256 = file_checksum(model)
        storage.put_model(model, sha256)
        system, address = storage._fs, storage._address(model_key(sha256))
        before = system.info(address)
        storage.put_model(model, sha256)
        after = system.info(address)
        assert all(before.get(name) == after.get(name) for name in ("ino", "created"))

    def test_a_damaged_model_is_refused_and_replaced(self, storage: Storage, model: Path) -> None:
        sha256 = file_checksum(model)
        key = storage.put_model(model, sha256)
        damage(storage, key, b"something else")
        with pytest.raises(CorruptFileError, match=f"{key}' is damaged .* or run `vantage index"):
            storage.fetch_model(sha256)
        storage.put_model(model, sha256)
        assert storage.fetch_model(sha256).read_bytes() == model.read_bytes()

    def test_a_file_that_changed_since_it_was_hashed_is_not_stored(
        self, storage: Storage, model: Path
    ) -> None:
        sha256 = file_checksum(model)
        model.write_bytes(b"changed")
        with pytest.raises(ConfigError, match="changed while it was read"):
            storage.put_model(model, sha256)
        assert not storage.exists(model_key(sha256))

    def test_a_lost_model_differs_from_an_unreachable_store(
        self, storage: Storage, model: Path
    ) -> None:
        sha256 = file_checksum(model)
        with pytest.raises(StorageUnavailableError):  # not even a folder
            storage.fetch_model(sha256)
        storage.write_arrays(KEY, ARRAYS, {})
        with pytest.raises(LostFileError, match=r"lost the file .*\.onnx.* run `vantage index"):
            storage.fetch_model(sha256)


# --- several writers of one name -----------------------------------------------------------------


def _other(storage: Storage) -> str:
    """Put other bytes under the name, as a writer that rounds differently does; return their
    sum."""
    file = io.BytesIO()
    write_arrays(file, {"a": np.zeros(3)}, {})
    storage._fs.pipe_file(storage._address(KEY), file.getvalue())
    return hashlib.sha256(file.getvalue()).hexdigest()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "overwrites"])
def test_a_writer_returns_the_checksum_of_the_stored_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, refuses: bool
) -> None:
    """On an object store, which may overwrite: another writer writes at the moment of our put."""
    storage = Storage(f"memory://vantage-{uuid.uuid4().hex}", tmp_path / "local")
    put, others = storage._fs.put_file, []

    def put_file(source: str, address: str, mode: str = "overwrite") -> None:
        if when == "before":
            others.append(_other(storage))
        try:
            put(source, address, mode=mode if refuses else "overwrite")
        finally:
            if when == "after":
                others.append(_other(storage))

    monkeypatch.setattr(storage._fs, "put_file", put_file)
    checksum = storage.write_arrays(KEY, ARRAYS, {})
    assert checksum == storage.checksum(KEY)
    assert (checksum in others) == (refuses or when == "after")
    storage.open_arrays(KEY, checksum).verify()
    storage.delete(KEY)


def test_a_directory_without_hard_links_keeps_the_first_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, target: Path) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    storage = Storage(str(tmp_path / "store"), tmp_path / "local")
    first = storage.write_arrays(KEY, ARRAYS, {})
    assert storage.write_arrays(KEY, {"a": np.zeros(3)}, {}) == first == storage.checksum(KEY)
    storage.open_arrays(KEY, first).verify()
    folders = (tmp_path / "store", tmp_path / "local")
    assert [len(list(folder.rglob("*.npz"))) for folder in folders] == [1, 1]
    assert not [path for folder in folders for path in folder.rglob("*.tmp")]


def test_a_file_that_was_made_again_and_differs_takes_the_place_of_local_copies(
    storage: Storage, url: str, tmp_path: Path
) -> None:
    former = storage.write_arrays(KEY, ARRAYS, {})
    other = Storage(url, tmp_path / "another local")
    other.open_arrays(KEY, former)
    storage.delete(KEY)
    checksum = storage.write_arrays(KEY, {"a": np.zeros(3)}, {})
    for host in (other, Storage(url, tmp_path / "another local")):
        assert np.array_equal(host.open_arrays(KEY, checksum)["a"], np.zeros(3))
        with pytest.raises(CorruptFileError, match="SHA-256 is not the one recorded"):
            host.open_arrays(KEY, former)


def test_old_files_are_found_in_a_folder_and_behind_a_url(tmp_path: Path) -> None:
    for store in (str(tmp_path / "[a] store"), "memory://old-files"):
        storage = Storage(store, tmp_path / "local")
        assert storage.written_before("unfinished", time.time() + 60) == []
        for key in ("unfinished/a/b-0.npz", "unfinished/c.npz", "unfinished-not/d.npz", "e.npz"):
            storage.write_arrays(key, ARRAYS, {})
        assert storage.written_before("unfinished", time.time() - 60) == []
        assert storage.written_before("unfinished", time.time() + 60) == [
            "unfinished/a/b-0.npz",
            "unfinished/c.npz",
        ]
