"""Stored rows in the layout of the kernels; the length of a row is a multiple of 64 bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import column, require, require_below
from pipeline.errors import InputError
from pipeline.index.paths import BLOCK, PREFIX

ROW_UNIT = 64
"""A row's length is a multiple of this: the widest register, a cache line."""

PIECE = 4096
"""Blocks arranged at a time, so that temporary copies stay small."""

MAX_DIMENSIONS = 4096
"""Longest row: sums of so many products of bytes are far from overflowing 32 bits."""

_LARGEST = 128
"""The largest component of a signed row, without its sign."""

Number = TypeVar("Number", bound=np.generic)


def read_only(array: NDArray[Number]) -> NDArray[Number]:
    """Return an aligned, C-ordered read-only view.

    Compiled loops take such arrays only (`pipeline.machine_code.CompiledLoop`).
    """
    if not (array.flags.c_contiguous and array.flags.aligned):
        array = np.require(array, requirements=("C", "A"))
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view


def aligned_empty(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """Return an array that begins at a cache line.

    The kernels load whole lines: if rows straddle two, the matrix unit takes twice as long.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    space = np.empty(size + ROW_UNIT, np.uint8)
    skipped = -space.ctypes.data % ROW_UNIT
    return space[skipped : skipped + size].view(dtype).reshape(shape)


class PackedRows(NamedTuple):
    """Stored rows, 16 to a block (see `pipeline.index.simd`).

    Attributes
    ----------
    codes : ndarray of shape (B, D / 4, 16, 4), uint8
        Blocks of 16 rows of D bytes; bytes are the signed components plus 128.
    norms : ndarray of shape (16 B,), int32
        Squared length of each signed row; of padding rows, zero.
    prefixes : ndarray of shape (16 B,), int32
        Half the squared length of each row's prefix, its first `PREFIX` components, rounded down.
    size : int
        Rows N; the last block may be padded.
    """

    codes: NDArray[np.uint8]
    norms: NDArray[np.int32]
    prefixes: NDArray[np.int32]
    size: int

    @property
    def dimensions(self) -> int:
        """Bytes D of a row."""
        return 4 * int(self.codes.shape[1])


def packed_rows(
    arrays: Mapping[str, NDArray[Any]],
    count: int,
    names: tuple[str, str, str] = ("codes", "norms", "heads"),
) -> PackedRows:
    """Return stored rows that were read from a file.

    Parameters
    ----------
    arrays : mapping of str to ndarray
    count : int
        Number of rows.
    names : tuple of str
        Of the arrays with codes, norms and prefixes.

    Raises
    ------
    CorruptFileError
        They are not `count` rows.
    """
    blocks = -(-count // BLOCK)
    require(count >= 0, arrays, f"it has {count} rows")
    codes = column(arrays, names[0], np.uint8, blocks, None, BLOCK, 4)
    norms, prefixes = (column(arrays, name, np.int32, blocks * BLOCK) for name in names[1:])
    dimensions = 4 * codes.shape[1]
    fits = dimensions % ROW_UNIT == 0 and ROW_UNIT <= dimensions <= MAX_DIMENSIONS
    require(fits, arrays, f"{names[0]} has rows of {dimensions} bytes")
    require_below(arrays, names[1], norms, dimensions * _LARGEST**2 + 1)
    require_below(arrays, names[2], prefixes, PREFIX * _LARGEST**2 // 2 + 1)
    return PackedRows(codes, norms, prefixes, count)


def pack_rows(unpacked: NDArray[np.uint8]) -> PackedRows:
    """Arrange rows in blocks.

    Parameters
    ----------
    unpacked : ndarray of shape (N, D), uint8
        D a multiple of 64.

    Raises
    ------
    InputError
        Rows of another length.
    """
    count, dimensions = unpacked.shape
    if dimensions % ROW_UNIT or not ROW_UNIT <= dimensions <= MAX_DIMENSIONS:
        raise InputError(
            f"rows of {dimensions} bytes cannot be stored: the length must be a multiple of "
            f"{ROW_UNIT}, at most {MAX_DIMENSIONS}"
        )
    blocks = -(-count // BLOCK)
    codes = aligned_empty((blocks, dimensions // 4, BLOCK, 4), np.uint8)
    norms, prefixes = (np.empty(blocks * BLOCK, np.int32) for _ in range(2))
    for first in range(0, blocks, PIECE):
        piece = slice(first, min(first + PIECE, blocks))
        rows = slice(first * BLOCK, piece.stop * BLOCK)
        padded = np.full(((piece.stop - first) * BLOCK, dimensions), 128, np.uint8)
        given = unpacked[rows]
        padded[: len(given)] = given
        signed = padded.astype(np.int32) - 128
        prefix = signed[:, :PREFIX]
        norms[rows] = np.einsum("nd,nd->n", signed, signed)
        prefixes[rows] = np.einsum("nd,nd->n", prefix, prefix) // 2
        codes[piece] = padded.reshape(-1, BLOCK, dimensions // 4, 4).transpose(0, 2, 1, 3)
    return PackedRows(codes, norms, prefixes, count)


def unpack_rows(rows: PackedRows) -> NDArray[np.uint8]:
    """Return the rows as an array of shape (N, D), uint8: the inverse of `pack_rows`."""
    flat = rows.codes.transpose(0, 2, 1, 3).reshape(-1, rows.dimensions)
    return np.ascontiguousarray(flat[: rows.size])


def to_unsigned(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return signed rows as stored, unsigned bytes: value plus 128."""
    return (codes.view(np.uint8) ^ 0x80).astype(np.uint8, copy=False)


def to_signed(stored: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Inverse of `to_unsigned`."""
    return (stored ^ 0x80).view(np.int8)


_EVERY = [np.ones(0, np.bool_)]


def every_row(count: int) -> NDArray[np.bool_]:
    """Return a mask that is true for `count` rows; all segments share one array."""
    every = _EVERY[0]
    if len(every) < count:
        every = _EVERY[0] = np.ones(count, np.bool_)
    return every[:count]
