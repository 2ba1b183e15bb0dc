"""Which cells of a segment have rows, as text: known without opening the segment.

The plan of a search needs it: a segment without rows in the cells of a plan is not scanned, and
what a scan found is named by the cells that it really opened.
"""

from __future__ import annotations

import base64
import binascii

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack_filled", "unpack_filled"]


def pack_filled(cell_offsets: NDArray[np.int64]) -> str:
    """Return one bit for each cell, as base64.

    Parameters
    ----------
    cell_offsets : ndarray of shape (C + 1,), int64
        Cell c has the rows ``cell_offsets[c]`` to ``cell_offsets[c + 1] - 1``.
    """
    return base64.b64encode(np.packbits(np.diff(cell_offsets) > 0).tobytes()).decode()


def unpack_filled(text: str | None, cells: int) -> NDArray[np.bool_] | None:
    """Return which cells have rows; None if the text does not say so for that many cells.

    Parameters
    ----------
    text : str or None
        Of `pack_filled`.
    cells : int
    """
    try:
        packed = np.frombuffer(base64.b64decode(text or "", validate=True), np.uint8)
    except (binascii.Error, ValueError):
        return None
    if not text or len(packed) != -(-cells // 8):
        return None
    return np.unpackbits(packed, count=cells).astype(bool)
