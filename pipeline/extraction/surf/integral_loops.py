"""The compiled loop that adds up an integral image (see `pipeline.machine_code`)."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True)
def fill(image, sums):  # type: ignore[no-untyped-def]
    """Add up along the row, then the row above: two loops, as the second one runs in vectors."""
    height, width = image.shape
    sums[0] = 0
    for y in range(height):
        above, row, pixels = sums[y], sums[y + 1], image[y]
        row[0] = 0
        total = np.int32(0)
        for x in range(width):
            total = np.int32(total + pixels[x])
            row[x + 1] = total
        for x in range(width):
            row[x + 1] = np.int32(row[x + 1] + above[x + 1])
