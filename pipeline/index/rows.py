"""Rows of 64 bytes in the layout that the kernels read."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.index.simd import BLOCK, STEPS

ROW_BYTES = 64


Number = TypeVar("Number", bound=np.generic)


def read_only(array: NDArray[Number]) -> NDArray[Number]:
    """Return an aligned, C-ordered view that cannot be written to.

    A compiled function has a version for each type of its arguments, and numba tells arrays that
    can be written to from those that cannot (mapped files, messages). Handing over the inputs in
    one form means that one version is compiled, the one that `pipeline.index.warm` made ready.
    """
    view = np.require(array, requirements=("C", "A")).view(np.ndarray)
    view.flags.writeable = False
    return view


class PackedRows(NamedTuple):
    """Stored rows, 16 to a block (see `pipeline.index.simd`).

    Attributes
    ----------
    codes : ndarray of shape (B, 16, 16, 4), uint8
        Blocks of 16 rows; bytes are the signed components plus 128.
    norms : ndarray of shape (16 B,), int32
        Squared length of each signed row; of padding rows, zero.
    size : int
        Rows N; the last block may be padded.
    """

    codes: NDArray[np.uint8]
    norms: NDArray[np.int32]
    size: int


def pack_rows(unpacked: NDArray[np.uint8]) -> PackedRows:
    """Arrange rows in blocks.

    Parameters
    ----------
    unpacked : ndarray of shape (N, 64), uint8
    """
    count = len(unpacked)
    blocks = -(-count // BLOCK)
    padded = np.full((blocks * BLOCK, ROW_BYTES), 128, np.uint8)
    padded[:count] = unpacked
    signed = padded.astype(np.int32) - 128
    norms = np.einsum("nd,nd->n", signed, signed).astype(np.int32)
    codes = padded.reshape(blocks, BLOCK, STEPS, 4).transpose(0, 2, 1, 3)
    return PackedRows(np.ascontiguousarray(codes), norms, count)


def unpack_rows(rows: PackedRows) -> NDArray[np.uint8]:
    """Return the rows as an array of shape (N, 64), uint8: the inverse of `pack_rows`."""
    flat = rows.codes.transpose(0, 2, 1, 3).reshape(-1, ROW_BYTES)
    return np.ascontiguousarray(flat[: rows.size])
