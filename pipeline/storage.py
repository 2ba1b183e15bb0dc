"""The two roots: the store that all hosts share, and this host's local copies.

The store is a directory or any fsspec URL. A file is written once under a name made of its content
and configuration and never changes: of several writers of one name the first wins, and all get the
checksum of its file. In a directory a file appears whole or not at all; object stores promise the
same. Where an object store cannot refuse to overwrite (S3, Google and Azure can), a second writer
may win; so every writer returns the checksum of the file that is there after writing. A local copy
is a hard link if both roots are on one file system.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.addresses import store_folder
from pipeline.arrays import ArrayFile, write_arrays
from pipeline.errors import ConfigError, CorruptFileError, StateError, StorageUnavailableError

_OTHER_CHECKSUM = "its SHA-256 is not the one recorded"


_MODEL_REMEDY = (
    "run `vantage index COLLECTION FOLDER --extractor NAME:FILE` with the same model file, or take "
    "it from a backup"
)


def model_key(sha256: str) -> str:
    """Return the store name of a model file, by its SHA-256 (hex)."""
    return f"models/{sha256}.onnx"


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256(source: Path | bytes) -> str:
    """Return the SHA-256 of a file or of bytes, hex."""
    return file_checksum(source) if isinstance(source, Path) else hashlib.sha256(source).hexdigest()


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    """Yield a free name in the folder of `path`, which is created; remove the file at the end.

    `tempfile` does not do: only the owner can read its files, but all hosts read the store.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


class Storage:
    """Named immutable files in the shared store, with local copies.

    Parameters
    ----------
    store : str
        Directory or fsspec URL shared by all hosts; an absolute path is taken as it is written.
    local : Path
        Directory of this host.

    Raises
    ------
    ConfigError
        The URL's protocol is not known, or its package is not installed.
    """

    def __init__(self, store: str, local: Path) -> None:
        self.local = local
        folder = store_folder(store)
        try:
            if folder is None:
                self._fs, root = fsspec.core.url_to_fs(store)
            else:  # not by its name: fsspec would read ``::`` in it
                self._fs, root = fsspec.filesystem("file"), folder
        except (ValueError, ImportError) as exc:
            allowed = f"must be a directory or a URL that fsspec can open here ({exc})"
            raise ConfigError("VANTAGE_STORE", store, allowed) from exc
        self._root = str(root)
        # SHA-256 of the local copies that this process has checked.
        self._checked: dict[str, str] = {}
        protocol = self._fs.protocol
        self._on_disk = "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    @property
    def scratch(self) -> Path:
        """Folder for large temporary files on this host; it may not exist."""
        return self.local / "scratch"

    def _address(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"

    @contextlib.contextmanager
    def _driver(self, key: str) -> Iterator[None]:
        """Turn the file system's errors into ours; the only place where that happens."""
        try:
            yield
        except OSError as exc:
            raise StorageUnavailableError(key, f"{type(exc).__name__}: {exc}") from exc

    def exists(self, key: str) -> bool:
        """Tell whether the store holds a file of this name."""
        with self._driver(key):
            return bool(self._fs.exists(self._address(key)))

    def size(self, key: str) -> int:
        """Return the size of a file in the store, bytes."""
        with self._driver(key):
            return int(self._fs.size(self._address(key)))

    def checksum(self, key: str) -> str:
        """Return the SHA-256 of a file in the store, hex."""
        with self._driver(key), self._fs.open(self._address(key), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def find(self, key: str) -> str | None:
        """Return the SHA-256 of an existing sound file of arrays, else None.

        A file that contradicts its own checksums is deleted, so that the caller makes it again.
        """
        if not self.exists(key):
            return None
        checksum = self.sound_checksum(key)
        if checksum is None:
            self.delete(key)
        return checksum

    def sound_checksum(self, key: str) -> str | None:
        """Return the SHA-256 of a file that agrees with its own checksums, else None."""
        try:
            self.read_arrays(key).verify()
            return self.checksum(key)
        except CorruptFileError:
            return None

    def read_arrays(self, key: str, checksum: str | None = None) -> ArrayFile:
        """Return a file of arrays without a local copy, to be read once.

        It is mapped from a store on disk, and read into memory from any other.

        Raises
        ------
        CorruptFileError
            The file is damaged, or its SHA-256 is not `checksum`.
        StorageUnavailableError
            The store does not answer or has no such file.
        """
        with self._driver(key):
            address = self._address(key)
            source = Path(address) if self._on_disk else self._fs.cat_file(address)
            if checksum is not None and checksum != _sha256(source):
                raise CorruptFileError(address, _OTHER_CHECKSUM)
            return ArrayFile(source, address)

    def read_array(self, key: str, name: str) -> NDArray[Any]:
        """Return one array of a file in the store, without copying the rest."""
        with self._driver(key), self._fs.open(self._address(key), "rb") as stream:
            try:
                with zipfile.ZipFile(stream) as archive, archive.open(f"{name}.npy") as member:
                    array: NDArray[Any] = npy.read_array(member, allow_pickle=False)
            except (zipfile.BadZipFile, KeyError, ValueError) as exc:
                raise CorruptFileError(self._address(key), str(exc)) from exc
            return array

    def write_arrays(
        self, key: str, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]
    ) -> str:
        """Store arrays under a name and return the SHA-256 of the file that then has this name."""
        return self.write(key, lambda stream: write_arrays(stream, arrays, meta))

    def write(self, key: str, fill: Callable[[BinaryIO], None]) -> str:
        """Store what `fill` writes to a seekable stream, unless the name is taken.

        Returns
        -------
        str
            SHA-256 of the file that then has this name. It may be another writer's: equal names
            mean equal work, but processors may round differently.
        """
        with self._driver(key):
            if self._on_disk:
                return self._write_on_disk(Path(self._address(key)), fill)
            with tempfile.TemporaryDirectory(prefix="vantage-") as folder:
                path = Path(folder) / "file"
                with path.open("w+b") as stream:
                    fill(stream)
                self._fs.makedirs(self._address(key).rsplit("/", 1)[0], exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    self._fs.put_file(str(path), self._address(key), mode="create")
            return self.checksum(key)

    @staticmethod
    def _write_on_disk(path: Path, fill: Callable[[BinaryIO], None]) -> str:
        """Write under a temporary name beside `path`, flush to disk, rename."""
        with _temporary_beside(path) as temporary:
            with temporary.open("x+b") as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                return file_checksum(path)
            except OSError:  # a file system without hard links
                if not path.exists():
                    temporary.replace(path)
        _flush_folder(path.parent)
        return file_checksum(path)

    def fetch(self, key: str, checksum: str | None = None) -> Path:
        """Return the path of a local copy, made and verified if it is not there yet.

        Parameters
        ----------
        key : str
        checksum : str, optional
            SHA-256 that the copy must have. Another copy is replaced: the store's file may have
            been lost and computed again, on a processor that rounds differently.

        Raises
        ------
        CorruptFileError
            The store's file does not have that checksum.
        StorageUnavailableError
            The store does not answer or has no such file.
        """
        path = self.local / key
        if path.exists() and (checksum is None or checksum == self._local_checksum(key)):
            return path
        with self._driver(key), _temporary_beside(path) as temporary:
            self._copy_to(key, temporary)
            found = file_checksum(temporary)
            if checksum is not None and found != checksum:
                raise CorruptFileError(self._address(key), _OTHER_CHECKSUM)
            temporary.replace(path)
            self._checked[key] = found
        return path

    def _local_checksum(self, key: str) -> str | None:
        """Return the SHA-256 of a local copy, computed once in a process; None if it is gone."""
        if key not in self._checked:
            with contextlib.suppress(FileNotFoundError):
                self._checked[key] = file_checksum(self.local / key)
        return self._checked.get(key)

    def put_model(self, path: Path, sha256: str) -> str:
        """Store a model file under a name made of its SHA-256, and return that name.

        A damaged file of that name is replaced; a good one stays.

        Raises
        ------
        ConfigError
            The file's SHA-256 is not `sha256`: it has changed meanwhile.
        """
        key = model_key(sha256)
        if self.exists(key):
            if self.checksum(key) == sha256:
                return key
            self.delete(key)
        if file_checksum(path) != sha256:
            raise ConfigError("model", str(path), "was changed while it was read; try again")

        def fill(stream: BinaryIO) -> None:
            with path.open("rb") as source:
                shutil.copyfileobj(source, stream)

        self.write(key, fill)
        return key

    def fetch_model(self, sha256: str) -> Path:
        """Return a local copy of a model, compared with its SHA-256 once in a process.

        Raises
        ------
        StateError
            The store has no such model, or a damaged one.
        StorageUnavailableError
            The store does not answer.
        """
        key = model_key(sha256)
        try:
            return self.fetch(key, sha256)
        except CorruptFileError as exc:
            raise StateError(f"the model {key!r} in the store is damaged; {_MODEL_REMEDY}") from exc
        except StorageUnavailableError as exc:
            if self._is_lost(key):
                message = f"the store holds no model {key!r} any more; {_MODEL_REMEDY}"
                raise StateError(message) from exc
            raise

    def _is_lost(self, key: str) -> bool:
        """Tell whether the store answers and has no such file."""
        try:
            return self.exists("") and not self.exists(key)
        except StorageUnavailableError:
            return False

    def _copy_to(self, key: str, target: Path) -> None:
        """Hard link, else copy, else download; copies are flushed to disk."""
        if self._on_disk:
            source = Path(self._address(key))
            with contextlib.suppress(OSError):
                target.hardlink_to(source)
                return
            shutil.copyfile(source, target)
        else:
            self._fs.get_file(self._address(key), str(target))
        with target.open("rb") as stream:
            os.fsync(stream.fileno())

    def open_arrays(self, key: str, checksum: str | None = None) -> ArrayFile:
        """Return a file of arrays, mapped from its local copy.

        A process verifies an existing copy once: the kernels follow its offsets without checks. A
        copy that is damaged, or was just removed by another process, is fetched again.
        """
        try:
            arrays = ArrayFile(self.fetch(key, checksum))
            if key not in self._checked:
                arrays.verify()
                self._checked[key] = file_checksum(self.local / key)
            return arrays
        except (CorruptFileError, FileNotFoundError):
            self.drop_local(key)
            return ArrayFile(self.fetch(key, checksum))

    def drop_local(self, key: str) -> None:
        """Remove this host's copy, if it exists."""
        self._checked.pop(key, None)
        (self.local / key).unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        """Remove a file and its local copy; a missing file is not an error."""
        self.drop_local(key)
        with self._driver(key), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._address(key))

    def delete_folder(self, prefix: str) -> None:
        """Remove every file whose name begins with ``prefix/``, if there are any."""
        with self._driver(prefix), contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._address(prefix), recursive=True)
