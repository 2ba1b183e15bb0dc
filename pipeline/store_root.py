"""Small files at the root of the store, read and replaced; and where the store is.

A directory needs no library here, so that a process which only looks at the marker stays small.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.addresses import store_folder
from pipeline.errors import ConfigError, StorageUnavailableError, VantageError
from pipeline.private_files import make_folder, open_privately
from pipeline.redaction import redacted, secrets_of, without_secrets

__all__ = ["StoreRoot"]


class StoreRoot:
    """The root of a store.

    Parameters
    ----------
    store : str
        Directory or fsspec URL.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        folder = store_folder(store)
        self.on_disk = folder is not None
        """Whether the store is a directory."""
        self._folder = (folder or Path()).absolute()
        self._secrets = set[str]() if self.on_disk else secrets_of(store)

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        """The file system of a URL, and the root in it."""
        import fsspec

        try:
            system, root = fsspec.core.url_to_fs(self._store)
        except (ValueError, ImportError) as error:
            reason = redacted(str(error), self._secrets)
            allowed = f"must be a directory or a URL that fsspec can open here ({reason})"
            raise ConfigError("VANTAGE_STORE", without_secrets(self._store), allowed) from None
        return system, str(root).rstrip("/")

    @contextlib.contextmanager
    def _driver(self, name: str) -> Iterator[None]:
        """Turn the file system's errors into ours."""
        try:
            yield
        except Exception as error:
            # Clients of object stores have errors of their own.
            ours = isinstance(error, VantageError | MemoryError)
            if ours or (self.on_disk and not isinstance(error, OSError)):
                raise
            reason = redacted(f"{type(error).__name__}: {error}", self._secrets)
            raise StorageUnavailableError(name, reason) from error

    @property
    def place(self) -> dict[str, Any]:
        """Where the store is: its address and, of a directory, what copies do not share.

        Raises
        ------
        StorageUnavailableError
            It cannot be looked at.
        """
        if not self.on_disk:
            with self._driver(""):
                system, root = self._remote
                return {"path": redacted(str(system.unstrip_protocol(root)), self._secrets)}
        with self._driver(""):
            path = self._folder.resolve()
            try:
                found = path.stat()
            except FileNotFoundError:
                return {"path": str(path)}
        return {"path": str(path), "inode": found.st_ino, "device": found.st_dev}

    def is_empty(self) -> bool:
        """Tell whether the store has no file at all, as where a drive is not mounted."""
        with self._driver(""):
            if self.on_disk:
                return not self._folder.exists() or not any(self._folder.iterdir())
            system, root = self._remote
            return not system.exists(root) or not system.ls(root, detail=False)

    def read(self, name: str) -> bytes | None:
        """Return a small file, or None if there is none of this name."""
        with self._driver(name), contextlib.suppress(FileNotFoundError):
            if self.on_disk:
                return (self._folder / name).read_bytes()
            system, root = self._remote
            data: bytes = system.cat_file(f"{root}/{name}")
            return data
        return None

    def make(self) -> None:
        """Make the directory if it does not exist."""
        if self.on_disk:
            with self._driver(""):
                make_folder(self._folder)

    def replace(self, name: str, data: bytes) -> None:
        """Write a small file in place of the one of this name, if there is one."""
        with self._driver(name):
            if not self.on_disk:
                system, root = self._remote
                system.makedirs(root, exist_ok=True)
                system.pipe_file(f"{root}/{name}", data)
                return
            temporary = self._folder / f".{uuid.uuid4().hex}.tmp"
            try:
                with open(temporary, "xb", opener=open_privately) as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                temporary.replace(self._folder / name)
            finally:
                temporary.unlink(missing_ok=True)
