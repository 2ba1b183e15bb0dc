"""The two roots: the store that all hosts share, and this host's local copies.

The store is a directory or any fsspec URL. A file is written once under a name made of its content
and configuration and never changes: of several writers of one name the first wins, and all get the
checksum of its file. In a directory a file appears whole or not at all; object stores promise the
same. Where an object store cannot refuse to overwrite (S3, Google and Azure can), a second writer
may win; so every writer returns the checksum of the file that is there after writing.

A local copy is a hard link if both roots are on one file system: then it cannot replace a stored
file that was damaged in place. A copy is compared with its SHA-256 when it is made, and again when
its inode, size or times have changed (`pipeline.verified`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from numpy.typing import NDArray

from pipeline.addresses import store_folder
from pipeline.arrays import ArrayFile, read_member, write_arrays
from pipeline.config import model_key
from pipeline.errors import (
    ConfigError,
    CorruptFileError,
    LostFileError,
    NewerFormatError,
    StorageUnavailableError,
    UnreadableFileError,
    VantageError,
)
from pipeline.private_files import make_folder, open_privately
from pipeline.redaction import redacted, secrets_of, without_secrets
from pipeline.verified import Look, VerifiedCopies, file_checksum, look_at

__all__ = ["Storage", "file_checksum", "model_key", "safe_key"]

_OTHER_CHECKSUM = "its SHA-256 is not the one recorded"

REFUSED_S = 30.0
"""Seconds for which a lost or damaged file of a URL is not fetched again: no search waits for it.
On a disk, a lost one is looked for each time, a damaged one read again when it changes."""

_ONE_FILE = {errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP, errno.EISDIR, errno.ENXIO}
"""Errors that concern one file, if the store itself answers."""

_OF_PROCESS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors of a process with too many files or mappings: nothing is wrong with the file."""


def safe_key(key: str) -> str:
    """Return a name in the store; refuse one that could lead out of it.

    Raises
    ------
    CorruptFileError
        It is empty or absolute, or has an empty part, ``..``, or a character that no name has.
    """
    parts = key.split("/")
    if not all(part not in ("", ".", "..") and part.isprintable() for part in parts) or "\\" in key:
        raise CorruptFileError(key, "this is no name in the store")
    return key


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

    `tempfile` does not do: only the owner can read its files, but a store may be shared.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def may_write_below(folder: Path) -> bool:
    """Tell whether this user may make files in a folder, or the folder; yes if none is there."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return not existing.is_dir() or os.access(existing, os.W_OK | os.X_OK)


Reader = Callable[[ArrayFile], object]


def _time_of(info: Mapping[str, Any]) -> float:
    """Return when a file of the store was last written; 0 if it is not known."""
    names = ("mtime", "LastModified", "last_modified", "updated", "created")
    value = next((info[name] for name in names if info.get(name)), 0.0)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return 0.0
    return value.timestamp() if isinstance(value, datetime) else float(value)


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
            reason = redacted(str(exc), secrets_of(store))
            allowed = f"must be a directory or a URL that fsspec can open here ({reason})"
            raise ConfigError("VANTAGE_STORE", without_secrets(store), allowed) from None
        self._secrets = secrets_of(store) if folder is None else set[str]()
        self._root = str(root)
        self._verified = VerifiedCopies(local)
        # Stored files that could not be had: what they looked like, or until when to believe it.
        self._refused: dict[tuple[str, str], tuple[Look | float, CorruptFileError]] = {}
        # Stored files that are read in place: what they looked like, and their SHA-256.
        self._compared: dict[str, tuple[Look | None, str]] = {}
        protocol = self._fs.protocol
        self._on_disk = "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    @property
    def on_disk(self) -> bool:
        """Whether the store is a folder."""
        return self._on_disk

    @property
    def scratch(self) -> Path:
        """Folder for large temporary files on this host; it may not exist."""
        return self.local / "scratch"

    def _address(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{safe_key(key)}"

    @contextlib.contextmanager
    def _driver(self, key: str) -> Iterator[None]:
        """Turn the file system's errors into ours; here and in `_reading` alone."""
        try:
            yield
        except OSError as exc:
            reason = redacted(f"{type(exc).__name__}: {exc}", self._secrets)
            raise StorageUnavailableError(key, reason) from exc
        except Exception as exc:
            # Clients of object stores have errors of their own.
            if self._on_disk or isinstance(exc, VantageError | MemoryError):
                raise
            reason = redacted(f"{type(exc).__name__}: {exc}", self._secrets)
            raise StorageUnavailableError(key, reason) from exc

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """As `_driver`; a file that is lost or unreadable differs from a store without answer."""
        with self._driver(key):
            try:
                yield
            except OSError as exc:
                gone = isinstance(exc, FileNotFoundError | NotADirectoryError)
                of_one = isinstance(exc, PermissionError | IsADirectoryError)
                one_file = gone or of_one or exc.errno in _ONE_FILE
                if self._is_local(exc.filename) or not one_file or not self._answers():
                    raise
                reason = exc.strerror or str(exc)
                kind = LostFileError if gone else UnreadableFileError
                raise kind(self._address(key), reason) from exc

    def _is_local(self, name: object) -> bool:
        """Tell whether a file lies in the folder of local copies; one root may be in the other."""
        path = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None
        if path is None or not path.is_relative_to(self.local):
            return False
        inside = self._on_disk and Path(self._root).is_relative_to(self.local)
        return not (inside and path.is_relative_to(self._root))

    def _answers(self) -> bool:
        """Tell whether the store can be listed and holds anything; an unmounted one is empty."""
        try:
            if self._on_disk:
                with os.scandir(self._root) as entries:
                    return next(entries, None) is not None
            return bool(self._fs.ls(self._root, detail=False))
        except Exception:
            return False

    def exists(self, key: str) -> bool:
        """Tell whether the store holds a file of this name."""
        with self._driver(key):
            return bool(self._fs.exists(self._address(key)))

    def size(self, key: str) -> int:
        """Return the size of a file in the store, bytes."""
        with self._reading(key):
            return int(self._fs.size(self._address(key)))

    def checksum(self, key: str) -> str:
        """Return the SHA-256 of a file in the store, hex."""
        with self._reading(key), self._fs.open(self._address(key), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def find(self, key: str, read: Reader | None = None) -> str | None:
        """Return the SHA-256 of an existing sound file of arrays, else None.

        A file that is shown to be damaged is deleted, so that the caller makes it again.

        Parameters
        ----------
        key : str
        read : callable, optional
            Makes what the file should hold of its arrays, and raises a `CorruptFileError` if they
            are not of that kind.

        Raises
        ------
        StorageUnavailableError
            It cannot be read now: it may be sound.
        """
        if not self.exists(key):
            return None
        try:
            return self._checked(key, read)
        except NewerFormatError:
            raise  # nothing is wrong with it
        except LostFileError:
            return None
        except UnreadableFileError as exc:
            raise StorageUnavailableError(*exc.args) from exc
        except CorruptFileError:
            self.delete(key)
            return None

    def sound_checksum(self, key: str, read: Reader | None = None) -> str | None:
        """Return the SHA-256 of a file that agrees with its own checksums, else None."""
        try:
            return self._checked(key, read)
        except NewerFormatError:
            raise  # nothing is wrong with it
        except CorruptFileError:
            return None

    def _checked(self, key: str, read: Reader | None) -> str:
        """Return the SHA-256 of a file; raise a `CorruptFileError` if it is not sound."""
        arrays = self.read_arrays(key)
        arrays.verify()
        if read is not None:
            read(arrays)
        return self.checksum(key)

    def read_arrays(self, key: str, checksum: str | None = None) -> ArrayFile:
        """Return a file of arrays without a local copy, to be read once.

        It is mapped from a store on disk, and read into memory from any other.

        Raises
        ------
        CorruptFileError
            The file is lost, damaged or unreadable, or its SHA-256 is not `checksum`.
        StorageUnavailableError
            The store does not answer.
        """
        with self._reading(key):
            address = self._address(key)
            source = Path(address) if self._on_disk else self._fs.cat_file(address)
            if checksum is not None and checksum != _sha256(source):
                raise CorruptFileError(address, _OTHER_CHECKSUM)
            return ArrayFile(source, address)

    def read_array(self, key: str, name: str) -> NDArray[Any]:
        """Return one array of a file in the store, without copying the rest.

        Raises
        ------
        CorruptFileError, StorageUnavailableError
            As `read_arrays`.
        """
        with self._reading(key), self._fs.open(self._address(key), "rb") as stream:
            return read_member(stream, name, self._address(key))

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
            self._forget_refused(key)
            return self.checksum(key)

    @staticmethod
    def _write_on_disk(path: Path, fill: Callable[[BinaryIO], None]) -> str:
        """Write under a temporary name beside `path`, flush to disk, rename."""
        with _temporary_beside(path) as temporary:
            with open(temporary, "x+b", opener=open_privately) as stream:
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

    def fetch(self, key: str, checksum: str | None = None, *, anew: bool = False) -> Path:
        """Return the path of a local copy, made and verified if it is not there yet.

        Parameters
        ----------
        key : str
        checksum : str, optional
            SHA-256 that the copy must have. Another copy is replaced: the store's file may have
            been lost and computed again, on a processor that rounds differently.
        anew : bool
            Replace the copy in any case.

        Raises
        ------
        CorruptFileError
            The store's file does not have that checksum.
        LostFileError
            The store has no such file.
        StorageUnavailableError
            The store does not answer.
        """
        path = self.local / safe_key(key)
        look = None if anew else look_at(path)
        if look is not None and self._is_sound_copy(key, look, checksum):
            return path
        self._raise_refused(key, checksum)
        if self._on_disk and not may_write_below(self.local):
            return self._stored_file(key, checksum)
        noting = self._noting_refusal(key, checksum)
        with noting, self._reading(key), _temporary_beside(path) as temporary:
            before = self._look_at_store(key)
            self._copy_to(key, temporary)
            found = file_checksum(temporary)
            if checksum is not None and found != checksum:
                error = CorruptFileError(self._address(key), _OTHER_CHECKSUM)
                self._refused[key, checksum] = (before, error)
                raise error
            temporary.replace(path)
            # A rename changes the time of the last status change.
            self._verified.note(key, found, look_at(path))
        return path

    def _stored_file(self, key: str, checksum: str | None) -> Path:
        """Return the path of a stored file itself, compared: this user may make no local copy."""
        path = Path(self._address(key))
        with self._reading(key):
            look, found = look_at(path), self._compared.get(key)
            if found is None or found[0] != look:
                found = self._compared[key] = look, file_checksum(path)
            if checksum not in (None, found[1]):
                raise CorruptFileError(self._address(key), _OTHER_CHECKSUM)
        return path

    def has_copy(self, key: str, checksum: str) -> bool:
        """Tell whether there is a sound local copy; does not ask the store."""
        look = look_at(self.local / safe_key(key))
        return look is not None and self._is_sound_copy(key, look, checksum)

    def _is_sound_copy(self, key: str, look: Look, checksum: str | None) -> bool:
        """Tell whether a local copy has this SHA-256; read it only if it looks different."""
        if checksum is None:
            return True
        known = self._verified.checksum(key, look)
        return checksum == (known or self.compare_copy(key, look))

    def compare_copy(self, key: str, look: Look | None = None) -> str | None:
        """Read a local copy whole and return its SHA-256; None if it is gone or unreadable."""
        path = self.local / safe_key(key)
        look = look or look_at(path)
        try:
            checksum = file_checksum(path)
        except OSError:
            return None
        self._verified.note(key, checksum, look)
        return checksum

    def copy_is_link(self, key: str) -> bool:
        """Tell whether the local copy is the stored file itself."""
        look = look_at(self.local / safe_key(key))
        return self._on_disk and look is not None and look == look_at(Path(self._address(key)))

    @contextlib.contextmanager
    def _noting_refusal(self, key: str, checksum: str | None) -> Iterator[None]:
        """Remember that a store at a URL has lost a file, or does not give it."""
        try:
            yield
        except (LostFileError, UnreadableFileError) as error:
            if checksum is not None and not self._on_disk:
                self._refused[key, checksum] = time.monotonic() + REFUSED_S, error
            raise

    def _look_at_store(self, key: str) -> Look | float:
        """Return what a stored file looks like; of a URL, until when to believe that it is bad."""
        look = look_at(Path(self._address(key))) if self._on_disk else None
        # A link that was made and removed changes the time of the last status change.
        return look._replace(changed_ns=0) if look else time.monotonic() + REFUSED_S

    def _raise_refused(self, key: str, checksum: str | None) -> None:
        """Raise again what was wrong with a stored file, unless it may have changed."""
        if checksum is None or (key, checksum) not in self._refused:
            return
        look, error = self._refused[key, checksum]
        if isinstance(look, float):
            same = time.monotonic() < look
        else:
            same = look == self._look_at_store(key)
        if same:
            raise error
        self._refused.pop((key, checksum), None)

    def _forget_refused(self, key: str) -> None:
        """Ask for a stored file again: it has changed."""
        for refused in [known for known in list(self._refused) if known[0] == key]:
            self._refused.pop(refused, None)

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
            with contextlib.suppress(CorruptFileError):
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
        """Return a local copy of a model, compared with its SHA-256.

        Raises
        ------
        CorruptFileError
            The store has lost the model, or has a damaged one.
        StorageUnavailableError
            The store does not answer.
        """
        return self.fetch(model_key(sha256), sha256)

    def _copy_to(self, key: str, target: Path) -> None:
        """Hard link, else copy, else download; copies are flushed to disk."""
        if self._on_disk:
            source = Path(self._address(key))
            with source.open("rb"):  # an error of the source must name it
                pass
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

        A copy that is damaged, was just removed by another process, or cannot be read is fetched
        again. One that cannot be read stays until there is another: it may be sound.

        Raises
        ------
        CorruptFileError, StorageUnavailableError
            As `fetch`.
        """
        anew = False
        try:
            return self._open_copy(key, checksum)
        except CorruptFileError as exc:
            if not isinstance(exc, UnreadableFileError):
                self.drop_local(key)
        except OSError as exc:
            anew = exc.errno not in _OF_PROCESS
        with self._reading(key):
            return self._open_copy(key, checksum, anew)

    def _open_copy(self, key: str, checksum: str | None, anew: bool = False) -> ArrayFile:
        arrays = ArrayFile(self.fetch(key, checksum, anew=anew))
        if checksum is None:
            arrays.verify()
        return arrays

    def drop_local(self, key: str) -> None:
        """Remove this host's copy, if it exists and this user may do so."""
        self._verified.forget(key)
        if not may_write_below(self.local):
            return
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._driver(key):
            (self.local / safe_key(key)).unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        """Remove a file and its local copy; a missing file is not an error."""
        self.drop_local(key)
        self._forget_refused(key)
        with self._driver(key), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._address(key))

    def written_before(self, prefix: str, moment: float) -> list[str]:
        """Return the names of the files below ``prefix/`` that were last written before a time.

        Parameters
        ----------
        prefix : str
        moment : float
            Unix seconds. Files of which the store does not tell the time are left out.
        """
        root = self._address(safe_key(prefix))
        with self._driver(prefix), contextlib.suppress(FileNotFoundError):
            found = self._fs.find(root, detail=True)
            return sorted(
                f"{prefix}{path[len(root) :]}"
                for path, info in found.items()
                if 0 < _time_of(info) < moment and path.startswith(f"{root}/")
            )
        return []

    def delete_folder(self, prefix: str) -> None:
        """Remove every file whose name begins with ``prefix/``, if there are any."""
        safe_key(prefix)
        with self._driver(prefix), contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._address(prefix), recursive=True)
