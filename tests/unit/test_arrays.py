from __future__ import annotations

import io
import itertools
import json
import re
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pipeline.arrays import (
    ALIGNMENT,
    FORMAT,
    MAPPED_BYTES,
    ArrayFile,
    ArrayWriter,
    arrays_to_bytes,
    read_member,
    write_arrays,
)
from pipeline.errors import CorruptFileError, NewerFormatError
from pipeline.index.engine import VantageIndex
from pipeline.storage import Storage

ARRAYS: dict[str, NDArray[Any]] = {
    "numbers": np.arange(100, dtype=np.int32).reshape(10, 10),
    "empty": np.empty((0, 3), np.float32),
    "a longer name": np.arange(200, dtype=np.uint8).reshape(2, 100),
    "scalar": np.array(2.5),
}
META = {"count": 3, "list": ["a", None, 1.5]}


def same(file: ArrayFile, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> bool:
    return (
        list(file) == list(arrays)
        and file.meta == meta
        and all(
            np.array_equal(file[name], array) and file[name].dtype == array.dtype
            for name, array in arrays.items()
        )
    )


def test_what_was_written_is_read_from_file_and_from_bytes(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    with path.open("w+b") as stream:
        write_arrays(stream, ARRAYS, META)
    assert same(ArrayFile(path), ARRAYS, META)
    assert same(ArrayFile(path.read_bytes()), ARRAYS, META)
    ArrayFile(path).verify()


def test_a_file_of_a_newer_format_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "newer.npz"
    path.write_bytes(arrays_to_bytes(ARRAYS, {"format": FORMAT + 1}))
    # What else is in it may have any form.
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("of the future", b"0" * 1000)
    for source in (path, path.read_bytes()):
        with pytest.raises(NewerFormatError, match="install a newer Vantage"):
            ArrayFile(source)
    with path.open("rb") as stream, pytest.raises(NewerFormatError, match=r"newer\.npz"):
        read_member(stream, "numbers", str(path))
    assert ArrayFile(arrays_to_bytes(ARRAYS, {"format": FORMAT})).meta == {"format": FORMAT}
    # The engine's own files, too.
    with pytest.raises(NewerFormatError, match="install a newer Vantage"):
        VantageIndex.open(path)


def test_a_newer_file_in_the_store_is_neither_replaced_nor_removed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "store"), tmp_path / "local")
    storage.write_arrays("groups/0/a.npz", ARRAYS, {"format": FORMAT + 1})
    for look in (storage.find, storage.sound_checksum, storage.open_arrays, storage.read_arrays):
        with pytest.raises(NewerFormatError, match="install a newer Vantage"):
            look("groups/0/a.npz")
    assert (tmp_path / "store" / "groups" / "0" / "a.npz").exists()


def test_equal_arrays_give_equal_bytes_whatever_their_layout() -> None:
    first = arrays_to_bytes({"a": np.arange(12).reshape(3, 4)}, {"x": 1, "y": 2})
    fortran = np.asfortranarray(np.arange(12).reshape(3, 4))
    assert arrays_to_bytes({"a": fortran}, {"y": 2, "x": 1}) == first
    strided = np.arange(24).reshape(3, 8)[:, ::2]
    assert arrays_to_bytes({"a": strided // 2}, {"x": 1, "y": 2}) == first


def test_the_bytes_are_those_that_zipfile_and_numpy_write() -> None:
    """Files of former versions have the same bytes, so that names still mean the same content."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        text = json.dumps(META, sort_keys=True, separators=(",", ":"))
        archive.writestr(zipfile.ZipInfo("meta.json"), text)
        for name, array in ARRAYS.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            before = stream.tell() + 30 + len(info.filename) + 20 + 4
            info.extra = struct.pack("<HH", 0xD935, -before % 64) + bytes(-before % 64)
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array)
    assert arrays_to_bytes(ARRAYS, META) == stream.getvalue()


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 50), max_size=6), turns=st.booleans())
def test_pieces_give_the_bytes_of_the_whole(cuts: list[int], turns: bool) -> None:
    whole = {"a": np.arange(150, dtype=np.int32).reshape(50, 3), "b": np.arange(50) % 7 > 2}
    bounds = [0, *sorted(cuts), 50]
    pieces = [(n, whole[n][a:b]) for a, b in itertools.pairwise(bounds) for n in whole]
    if turns:  # one array after the other, not side by side
        pieces.sort(key=lambda piece: piece[0])
    stream = io.BytesIO()
    shapes = {name: (array.shape, array.dtype) for name, array in whole.items()}
    with ArrayWriter(stream, shapes, META) as writer:
        for name, piece in pieces:
            writer.write(name, piece)
    assert stream.getvalue() == arrays_to_bytes(whole, META)


def test_pieces_must_fill_the_shape_and_not_more() -> None:
    shapes = {"a": ((4,), np.dtype(np.uint8))}
    with (
        pytest.raises(ValueError, match=r"1 bytes of a\.npy are missing"),
        ArrayWriter(io.BytesIO(), shapes, {}) as writer,
    ):
        writer.write("a", np.zeros(3, np.uint8))
    for piece in (np.zeros(5, np.uint8), np.zeros(1, np.int32)):
        with (
            pytest.raises(ValueError, match=r"a piece of a\.npy does not fit"),
            ArrayWriter(io.BytesIO(), shapes, {}) as writer,
        ):
            writer.write("a", piece)


def test_numpy_reads_the_file() -> None:
    with np.load(io.BytesIO(arrays_to_bytes(ARRAYS, META))) as loaded:
        for name, array in ARRAYS.items():
            assert np.array_equal(loaded[name], array)


def test_data_lie_at_multiples_of_64_bytes() -> None:
    data = arrays_to_bytes(ARRAYS, META)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist()[1:]:
            name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
            start = info.header_offset + 30 + name + extra
            (header,) = struct.unpack_from("<H", data, start + 8)
            assert info.compress_type == zipfile.ZIP_STORED
            assert (start + 10 + header) % ALIGNMENT == 0, info.filename


def test_arrays_of_a_file_are_mapped_and_read_only(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    large = np.arange(MAPPED_BYTES, dtype=np.int32)
    path.write_bytes(arrays_to_bytes({"large": large}, META))
    array = ArrayFile(path)["large"]
    base: Any = array
    while not isinstance(base, np.memmap):
        base = base.base
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    path.unlink()
    assert np.array_equal(array, large)


def test_small_files_hold_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    path.write_bytes(arrays_to_bytes(ARRAYS, META))
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [ArrayFile(path) for _ in range(20)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with pytest.raises(ValueError, match="read-only"):
        kept[0]["numbers"][0, 0] = 1


def test_a_file_cut_off_anywhere_is_refused() -> None:
    data = arrays_to_bytes(ARRAYS, META)
    for size in range(len(data)):
        with pytest.raises(CorruptFileError):
            ArrayFile(data[:size])


def test_every_flipped_bit_is_noticed_or_harmless() -> None:
    data = arrays_to_bytes(ARRAYS, META)
    noticed = 0
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        try:
            file = ArrayFile(bytes(damaged))
            file.verify()
        except CorruptFileError:
            noticed += 1
        else:
            assert same(file, ARRAYS, META), place
    payload = sum(array.nbytes for array in ARRAYS.values())
    assert noticed > payload


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n", b"PK\x05\x06" + bytes(18)])
def test_another_kind_of_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"some\.npz"):
        ArrayFile(path)


def test_damage_inside_an_array_names_the_array(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    data = bytearray(arrays_to_bytes({"good": np.ones(99), "bad": np.full(99, 7, np.uint8)}, {}))
    data[data.index(bytes([7] * 99)) + 50] = 8
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"bad\.npy"):
        ArrayFile(path).verify()


def test_objects_are_not_stored() -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        arrays_to_bytes({"a": np.array([object()])}, {})


@settings(deadline=None)
@given(
    array=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int64, np.float32, np.bool_]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
        elements={"allow_nan": False},
    ),
    meta=st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.booleans()),
)
def test_any_array_and_meta_data_come_back(array: NDArray[Any], meta: dict[str, Any]) -> None:
    file = ArrayFile(arrays_to_bytes({"a": array, "b": array}, meta))
    assert same(file, {"a": array, "b": array}, meta)
    file.verify()


def archive(
    members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED, comment: bytes = b""
) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", compression) as made:
        warnings.simplefilter("ignore")  # of names that are there twice
        made.comment = comment
        for name, data in members:
            made.writestr(name, data)
    return stream.getvalue()


def member(text: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    header = text.encode() + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header + data


def described(descr: str = "'<i4'", fortran: str = "False", shape: str = "(2,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


BEGIN = [("meta.json", b"{}")]
SOUND = member(described(), bytes(8))
HOSTILE = {
    "compressed": (archive([*BEGIN, ("a.npy", SOUND)], zipfile.ZIP_DEFLATED), "is compressed"),
    "another compression": (archive([*BEGIN, ("a.npy", SOUND)], zipfile.ZIP_LZMA), "is compressed"),
    "twice": (archive([*BEGIN, ("a.npy", SOUND), ("a.npy", SOUND)]), "is there twice"),
    "no meta": (archive([("a.npy", SOUND)]), "meta.json"),
    "meta is a list": (archive([("meta.json", b"[]"), ("a.npy", SOUND)]), "holds no object"),
    "meta is no JSON": (archive([("meta.json", b"{"), ("a.npy", SOUND)]), "Expecting property"),
    "meta is nested": (archive([("meta.json", b"[" * 10**6)]), "recursion"),
    "a comment": (archive([*BEGIN, ("a.npy", SOUND)], comment=b"x" * 30), "arrays found of"),
    "objects": (archive([*BEGIN, ("a.npy", member(described("'|O'"), bytes(16)))]), "no header"),
    "fields": (
        archive([*BEGIN, ("a.npy", member(described("[('a', '<i4')]"), bytes(8)))]),
        "no header of plain numbers",
    ),
    "text": (archive([*BEGIN, ("a.npy", member(described("'<U4'"), bytes(32)))]), "no header"),
    "dates": (archive([*BEGIN, ("a.npy", member(described("'<M8[s]'"), bytes(16)))]), "no header"),
    "big-endian": (archive([*BEGIN, ("a.npy", member(described("'>i4'"), bytes(8)))]), "no header"),
    "Fortran": (
        archive([*BEGIN, ("a.npy", member(described(fortran="True"), bytes(8)))]),
        "Fortran order",
    ),
    "code": (archive([*BEGIN, ("a.npy", member("__import__('os').abort()"))]), "no header"),
    "negative": (
        archive([*BEGIN, ("a.npy", member(described(shape="(-2,)"), bytes(8)))]),
        "no header",
    ),
    "too many rows": (
        archive([*BEGIN, ("a.npy", member(described(shape="(3,)"), bytes(8)))]),
        "cut off, or longer",
    ),
    "too few rows": (
        archive([*BEGIN, ("a.npy", member(described(shape="(1,)"), bytes(8)))]),
        "cut off, or longer",
    ),
    "product beyond 64 bits": (
        archive([*BEGIN, ("a.npy", member(described(shape=f"({2**40}, {2**40})"), bytes(8)))]),
        "cut off, or longer",
    ),
    "nothing times a lot": (
        archive([*BEGIN, ("a.npy", member(described(shape=f"(0, {10**17}, {10**17})")))]),
        "array",
    ),
    "many sides": (
        archive([*BEGIN, ("a.npy", member(described(shape=f"({'1, ' * 90})"), bytes(4)))]),
        "dimension",
    ),
    "a later version": (
        archive([*BEGIN, ("a.npy", member(described(), bytes(8), (9, 9)))]),
        "no header",
    ),
    "an endless header": (
        archive([*BEGIN, ("a.npy", b"\x93NUMPY\2\0\xff\xff\xff\xff")]),
        "no header",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_writer_of_ours_writes_is_refused(name: str, tmp_path: Path) -> None:
    data, sentence = HOSTILE[name]
    path = tmp_path / "some.npz"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(CorruptFileError, match=re.escape(sentence)):
            ArrayFile(source)
    if "a.npy" in str(data) and name not in ("no meta", "a comment") and "meta" not in name:
        with pytest.raises(CorruptFileError, match=re.escape(sentence)), path.open("rb") as stream:
            read_member(stream, "a", "some.npz")


def test_a_small_message_cannot_take_much_memory() -> None:
    """Three megabytes took 6.4 GB: zeros, compressed a thousand times."""
    zeros = archive([("meta.json", b"{}"), ("a.npy", bytes(200 * 2**20))], zipfile.ZIP_DEFLATED)
    meta = archive([("meta.json", b" " * (200 * 2**20) + b"{}")], zipfile.ZIP_DEFLATED)
    for bomb in (zeros, meta):
        assert len(bomb) < 2**18
        tracemalloc.start()
        with pytest.raises(CorruptFileError, match="is compressed"):
            ArrayFile(bomb)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**21
