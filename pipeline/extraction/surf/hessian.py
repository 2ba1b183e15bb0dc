"""Maxima of the box-filtered Hessian determinant, one octave at a time.

Bay et al., CVIU 2008, sections 3.2 to 3.4, with the filters of `pipeline.extraction.surf.filters`:
responses of all layers, samples that are strictly above their 26 neighbours, one Newton step.

How it is made fast. A layer's three responses share their rows: the second derivative across a
row needs two rows of the integral image, the one down a column four, the mixed one four. So a
sample row costs ten row look-ups, taken in vectors, and then ten look-ups along the row in the
three rows of differences, instead of 32 scattered ones. Only three rows of each layer are kept
(the maximum test needs no more), so that the working set stays in the second-level cache and
nothing grows with the height of the image. Beyond the first octave, neighbouring samples lie
``2**o`` columns apart; there, the integral image passes through a ring of rows whose columns are
sorted by their remainder, which makes them neighbours in memory again.

The loops themselves are in `pipeline.extraction.surf.hessian_loops`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.extraction.surf.filters import Octave, make_octave
from pipeline.index.rows import read_only
from pipeline.machine_code import CompiledLoop

_scan_octave = CompiledLoop("pipeline.extraction.surf.hessian_loops", "scan_octave")


def find_maxima(
    sums: NDArray[np.int32], octave: int, layers: int, threshold: float
) -> NDArray[np.float32]:
    """Find the keypoints of one octave.

    Parameters
    ----------
    sums : ndarray of shape (H + 1, W + 1), int32
        Integral image.
    octave : int
    layers : int
    threshold : float
        Least determinant, grey levels squared.

    Returns
    -------
    ndarray of shape (N, 7), float32
        Rows of `KEYPOINT_COLUMNS`, by rows of the picture; angle -1.
    """
    filters = make_octave(octave, layers)
    height, width = sums.shape[0] - 1, sums.shape[1] - 1
    if filters.sides[2] > min(height, width):
        return np.zeros((0, 7), np.float32)
    # Far more than photographs have; when there are more still, the pass is made once again.
    capacity = 256 + height * width // (64 * filters.step**2)
    store, ring = _make_ring(sums, filters)
    while True:
        found = np.empty((capacity, 7), np.float32)
        count = _scan_octave(
            read_only(sums),
            store,
            read_only(ring),
            filters.step,
            read_only(filters.sides),
            read_only(filters.edges),
            read_only(filters.weights),
            read_only(filters.phases),
            np.float32(threshold),
            octave,
            found,
        )
        if count <= capacity:
            return found[:count]
        capacity = count


def _make_ring(
    sums: NDArray[np.int32], filters: Octave
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the rows to fill and the rows to read: in the first octave, the integral image."""
    if filters.step == 1:
        return np.empty((0, 0), np.int32), sums
    plane = (sums.shape[1] - 1) // filters.step + 1
    ring = np.empty((filters.sides[-1] + 2 * filters.step, plane * filters.step), np.int32)
    return ring, ring


def warm_up() -> None:
    """Compile the loops, or load them from the cache on disk."""
    find_maxima(np.zeros((65, 65), np.int32), octave=0, layers=1, threshold=1.0)
