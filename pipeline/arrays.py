"""Files of named arrays: NumPy's ``.npz`` with three more guarantees.

* **Deterministic**: equal arrays give equal bytes (no time stamps), so a task that runs twice
  writes the same file.
* **Aligned**: members are stored uncompressed with their data at multiples of 64 bytes, so that a
  reader maps them into memory instead of copying.
* **Checked**: the zip format's CRC-32 of every member is compared by `ArrayFile.verify`.

Readers take nothing on trust: a member is stored, not compressed, lies within the file, and holds
plain numbers. What the numbers mean is checked by those who take them (`pipeline.columns`).

Any program that reads ``.npz`` can read them (``numpy.load``). A member ``meta.json`` holds a JSON
object of plain values. See docs/formats.md.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.errors import CorruptFileError, NewerFormatError

ALIGNMENT = 64
MAPPED_BYTES = 1 << 17
"""Smaller files are read, not mapped: each mapping keeps a file open, and the number of open files
is limited. Additions of single images leave hundreds of such files."""

FORMAT = 1
"""The newest form of files of arrays that is read here. A file of a later form has its number as
``format`` in its meta data; without it, a file has the first form."""

META = "meta.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PADDING_ID = 0xD935
_LOCAL_HEADER = 30
_ZIP64_EXTRA = 20
_END_RECORD = 22
# What zipfile raises for damaged bytes; RuntimeError: an "encrypted" member, JSON nested too deep.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    KeyError,
    ValueError,
    OverflowError,
    EOFError,
    RuntimeError,
)
_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 4096
# As NumPy writes it. NumPy itself parses a header as Python, which takes longer and may fail in
# many ways.
_HEADER = re.compile(
    rb"\{'descr': '([<|][biuf][1248])', 'fortran_order': (False|True), "
    rb"'shape': \(((?:\d{1,18}, ?)*(?:\d{1,18})?)\), \} *\n"
)


class ArrayWriter:
    """Writes a file of arrays piece by piece; several arrays may grow side by side.

    The shapes fix the place of everything, so that the bytes do not depend on the pieces. Use it as
    a context manager: the file is complete when the block ends without an error.

    Parameters
    ----------
    stream : seekable binary file, at position 0
    arrays : mapping of str to (shape, dtype)
        No object dtypes. The file has them in the order of the mapping.
    meta : mapping of str to JSON-serialisable values
    """

    def __init__(
        self,
        stream: BinaryIO,
        arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
        meta: Mapping[str, Any],
    ) -> None:
        for name, (_, dtype) in arrays.items():
            if dtype.hasobject:
                raise ValueError(f"array {name!r} holds objects, and allow_pickle is off")
        self._stream = stream
        self._archive = zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True)
        text = json.dumps(dict(meta), sort_keys=True, separators=(",", ":")).encode()
        self._archive.writestr(zipfile.ZipInfo(META, _EPOCH), text)
        self._end = stream.tell()
        self._members: dict[str, _Member] = {}
        for name, (shape, dtype) in arrays.items():
            self._members[name] = _Member(name, shape, dtype, self._end)
            self._end = self._members[name].end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._close()
        else:
            # An unclosed member would be written later, when it is garbage collected.
            with contextlib.suppress(OSError):
                self._archive.close()

    def write(self, name: str, piece: NDArray[Any]) -> None:
        """Append rows to an array.

        Parameters
        ----------
        name : str
        piece : ndarray
            The next rows, of the array's dtype; all pieces together must have its shape.
        """
        self._members[name].append(self._stream, piece)

    def _close(self) -> None:
        """Write the headers, whose checksums are known now, and the directory."""
        for member in self._members.values():
            self._archive.filelist.append(member.finish(self._stream))
        self._archive.start_dir = self._end
        self._archive.close()


class _Member:
    """One array of a file: an aligned ``.npy`` member of the archive.

    `zipfile` writes members one after the other, so only its headers and directory are used.
    """

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], at: int) -> None:
        self._info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
        self._info.external_attr = 0o600 << 16
        self._info.header_offset = at
        head = io.BytesIO()
        described = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(head, described)
        self._head = head.getvalue()
        # The .npy header is itself a multiple of 64 bytes: aligning the member aligns its data.
        before = at + _LOCAL_HEADER + len(self._info.filename.encode()) + _ZIP64_EXTRA + 4
        padding = -before % ALIGNMENT
        self._info.extra = struct.pack("<HH", _PADDING_ID, padding) + bytes(padding)
        self._dtype = dtype
        self._next = before + padding + len(self._head)
        self.end = self._next + math.prod(shape) * dtype.itemsize
        self._info.file_size = self._info.compress_size = self.end - before - padding
        self._info.CRC = zlib.crc32(self._head)

    def append(self, stream: BinaryIO, piece: NDArray[Any]) -> None:
        """Write the next rows."""
        if piece.dtype != self._dtype or self._next + piece.nbytes > self.end:
            raise ValueError(f"a piece of {self._info.filename} does not fit the array's shape")
        data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        stream.seek(self._next)
        stream.write(data)
        self._info.CRC = zlib.crc32(data, self._info.CRC)
        self._next += piece.nbytes

    def finish(self, stream: BinaryIO) -> zipfile.ZipInfo:
        """Write the header; return the member's entry in the archive's directory."""
        if self._next != self.end:
            raise ValueError(f"{self.end - self._next} bytes of {self._info.filename} are missing")
        stream.seek(self._info.header_offset)
        stream.write(self._info.FileHeader(zip64=True) + self._head)
        return self._info


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
    given = {name: np.asanyarray(array) for name, array in arrays.items()}
    shapes = {name: (array.shape, array.dtype) for name, array in given.items()}
    with ArrayWriter(stream, shapes, meta) as writer:
        for name, array in given.items():
            writer.write(name, array)


def arrays_to_bytes(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> bytes:
    """Return what `write_arrays` writes."""
    stream = io.BytesIO()
    write_arrays(stream, arrays, meta)
    return stream.getvalue()


def _bytes_of(source: Path | bytes) -> NDArray[np.uint8]:
    """Return a file's bytes: mapped, or read if the file is small."""
    if isinstance(source, Path):
        if source.stat().st_size >= MAPPED_BYTES:
            return np.memmap(source, np.uint8, "r").view(np.ndarray)
        source = source.read_bytes()
    return np.frombuffer(source, np.uint8)


def _object(text: bytes, file: str) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises
    ------
    NewerFormatError
        It says that a newer release has written the file.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"{META} holds no object")
    number = found.get("format", FORMAT)
    if type(number) is int and number > FORMAT:
        reason = f"format {number}, and this Vantage reads formats up to {FORMAT}"
        raise NewerFormatError(file, reason)
    return found


def _members(archive: zipfile.ZipFile, size: int) -> list[zipfile.ZipInfo]:
    """Return the arrays of an archive of `size` bytes; all members are stored within it."""
    names = set()
    for info in archive.infolist():
        _require_stored(info, size)
        if info.filename in names:
            raise ValueError(f"{info.filename} is there twice")
        names.add(info.filename)
    return [info for info in archive.infolist() if info.filename.endswith(".npy")]


def _require_stored(info: zipfile.ZipInfo, size: int) -> None:
    """Raise unless a member is stored within an archive of `size` bytes."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"{info.filename} is compressed")
    if not 0 <= info.header_offset <= size - info.file_size:
        raise ValueError(f"{info.filename} is cut off")


def _array_of(member: NDArray[np.uint8], info: zipfile.ZipInfo) -> NDArray[Any]:
    """Return the array that a member's bytes hold, without copying it."""
    head = member[:_LONGEST_HEADER].tobytes()
    begins = {b"\x01\x00": 10, b"\x02\x00": 12}.get(head[6:8], len(head))
    length = int.from_bytes(head[8:begins], "little")
    found = _HEADER.fullmatch(head[begins : begins + length])
    if head[:6] != _MAGIC or found is None:
        raise ValueError(f"array {info.filename} has no header of plain numbers")
    kind, fortran, sides = found.groups()
    if fortran == b"True":
        raise ValueError(f"array {info.filename} is in Fortran order")
    shape = tuple(int(side) for side in sides.split(b",") if side.strip())
    dtype = np.dtype(kind.decode())
    data = member[begins + length :]
    if math.prod(shape) * dtype.itemsize != data.size:
        raise ValueError(f"array {info.filename} is cut off, or longer than its shape")
    return data.view(dtype).reshape(shape)


def read_member(stream: BinaryIO, name: str, file: str) -> NDArray[Any]:
    """Return one array of a file, without reading the others.

    Parameters
    ----------
    stream : seekable binary file
    name : str
        Of the array.
    file : str
        Its name, for messages.

    Raises
    ------
    CorruptFileError
    """
    try:
        size = stream.seek(0, io.SEEK_END)
        with zipfile.ZipFile(stream) as archive:
            _require_stored(archive.getinfo(META), size)
            _object(archive.read(META), file)
            _members(archive, size)
            info = archive.getinfo(f"{name}.npy")
            return _array_of(np.frombuffer(archive.read(info), np.uint8), info)
    except _DAMAGE as exc:
        raise CorruptFileError(file, str(exc) or type(exc).__name__) from exc


class ArrayFile(Mapping[str, NDArray[Any]]):
    """A read-only file of named arrays, mapped into memory.

    Parameters
    ----------
    source : Path or bytes
        A file, mapped; or the file's bytes, viewed.
    name : str, optional
        For messages, if the source is bytes.

    Raises
    ------
    CorruptFileError
        The file is truncated or not a file of arrays. `verify` finds damage inside an array.
    """

    def __init__(self, source: Path | bytes, name: str = "<bytes>") -> None:
        self.name = str(source) if isinstance(source, Path) else name
        self._source = source
        self._buffer = _bytes_of(source)
        self._arrays: dict[str, NDArray[Any]] = {}
        try:
            with self._archive() as archive:
                # First: what else is in a newer file may have another form.
                _require_stored(archive.getinfo(META), self._buffer.size)
                self.meta: dict[str, Any] = _object(archive.read(META), self.name)
                members = _members(archive, self._buffer.size)
            for info in members:
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
        return _array_of(self._buffer[start : start + info.file_size], info)

    def _require_every_member(self) -> None:
        """Compare the members with the archive's own count, which zipfile does not do."""
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
