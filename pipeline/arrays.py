"""Files of named arrays: NumPy's ``.npz`` with three promises more.

* **Deterministic**: equal arrays give equal bytes (no time stamps), so a task that runs twice
  writes the same file.
* **Aligned**: members are stored uncompressed with their data at multiples of 64 bytes, so that a
  reader maps them into memory instead of copying.
* **Checked**: the zip format's CRC-32 of every member is compared by `ArrayFile.verify`.

Any program that reads ``.npz`` reads them (``numpy.load``). A member ``meta.json`` holds a JSON
object of plain values. See docs/formats.md.
"""

from __future__ import annotations

import io
import json
import struct
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.errors import CorruptFileError

ALIGNMENT = 64
META = "meta.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PADDING_ID = 0xD935
_LOCAL_HEADER = 30
_ZIP64_EXTRA = 20
_END_RECORD = 22
# NumPy parses a header as Python; CPython before 3.11.8 may raise a SystemError when two threads
# do that at once ("AST constructor recursion depth mismatch").
_PARSING = threading.Lock()
# What zipfile and NumPy raise for damaged bytes; RuntimeError: an "encrypted" member.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    struct.error,
    KeyError,
    ValueError,
    EOFError,
    RuntimeError,
)


def write_arrays(
    stream: BinaryIO, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]
) -> None:
    """Write arrays and meta data to a seekable stream.

    Parameters
    ----------
    stream : binary file, at position 0
    arrays : mapping of str to ndarray
        No object dtypes. Written in the order of the mapping.
    meta : mapping of str to JSON-serialisable values
    """
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        text = json.dumps(dict(meta), sort_keys=True, separators=(",", ":")).encode()
        archive.writestr(zipfile.ZipInfo(META, _EPOCH), text)
        for name, array in arrays.items():
            _write_member(archive, stream, name, array)


def _write_member(
    archive: zipfile.ZipFile, stream: BinaryIO, name: str, array: NDArray[Any]
) -> None:
    """Write one array as an aligned ``.npy`` member."""
    info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
    # The .npy header is itself a multiple of 64 bytes: aligning the member aligns its data.
    before = stream.tell() + _LOCAL_HEADER + len(info.filename.encode()) + _ZIP64_EXTRA + 4
    padding = -before % ALIGNMENT
    info.extra = struct.pack("<HH", _PADDING_ID, padding) + bytes(padding)
    with archive.open(info, "w", force_zip64=True) as member:
        npy.write_array(member, np.asanyarray(array, order="C"), allow_pickle=False)


def arrays_to_bytes(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> bytes:
    """Return what `write_arrays` writes."""
    stream = io.BytesIO()
    write_arrays(stream, arrays, meta)
    return stream.getvalue()


class ArrayFile(Mapping[str, NDArray[Any]]):
    """A read-only file of named arrays, mapped into memory.

    Parameters
    ----------
    source : Path or bytes
        A file, mapped; or the file's bytes, viewed.
    name : str, optional
        For messages, where the source is bytes.

    Raises
    ------
    CorruptFileError
        The file is truncated or is not such a file. Damage inside an array is found by `verify`.
    """

    def __init__(self, source: Path | bytes, name: str = "<bytes>") -> None:
        self.name = str(source) if isinstance(source, Path) else name
        self._source = source
        self._buffer: NDArray[np.uint8] = (
            np.memmap(source, np.uint8, "r")
            if isinstance(source, Path) and source.stat().st_size
            else np.frombuffer(source if isinstance(source, bytes) else b"", np.uint8)
        )
        self._arrays: dict[str, NDArray[Any]] = {}
        try:
            with self._archive() as archive:
                self.meta: dict[str, Any] = json.loads(archive.read(META))
                for info in archive.infolist():
                    if info.filename.endswith(".npy"):
                        self._arrays[info.filename[:-4]] = self._view(info)
            self._require_every_member()
        except _DAMAGE as exc:
            raise CorruptFileError(self.name, str(exc) or type(exc).__name__) from exc

    def _archive(self) -> zipfile.ZipFile:
        if isinstance(self._source, Path):
            return zipfile.ZipFile(self._source)
        return zipfile.ZipFile(io.BytesIO(self._source))

    def _view(self, info: zipfile.ZipInfo) -> NDArray[Any]:
        """Return a member's array without copying it."""
        header = self._buffer[info.header_offset : info.header_offset + _LOCAL_HEADER].tobytes()
        name_size, extra_size = struct.unpack("<HH", header[26:30])
        start = info.header_offset + _LOCAL_HEADER + name_size + extra_size
        head = io.BytesIO(self._buffer[start : start + 4096].tobytes())
        version = npy.read_magic(head)
        with _PARSING:
            shape, fortran, dtype = (
                npy.read_array_header_1_0(head)
                if version == (1, 0)
                else npy.read_array_header_2_0(head)
            )
        if fortran:
            raise ValueError(f"array {info.filename} is in Fortran order")
        start += head.tell()
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        data = self._buffer[start : start + size]
        if data.size != size:
            raise ValueError(f"array {info.filename} is cut off")
        return data.view(dtype).reshape(shape)

    def _require_every_member(self) -> None:
        """Compare the members with the archive's own count of them, as zipfile does not."""
        end = self._buffer[-_END_RECORD:].tobytes()
        (count,) = struct.unpack("<H", end[10:12])
        if count != len(self._arrays) + 1:
            raise ValueError(f"{len(self._arrays)} arrays found of {count - 1}")

    def verify(self) -> None:
        """Compare every member with its checksum.

        Raises
        ------
        CorruptFileError
            Names the first damaged member.
        """
        try:
            with self._archive() as archive:
                bad = archive.testzip()
        except (*_DAMAGE, OSError) as exc:
            raise CorruptFileError(self.name, str(exc)) from exc
        if bad is not None:
            raise CorruptFileError(self.name, f"checksum of {bad} differs")

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)
