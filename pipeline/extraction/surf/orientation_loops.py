"""The compiled loops that find the directions of keypoints.

All code that they are compiled from is in this file, their constants are in
`pipeline.extraction.surf.orientation` (see `pipeline.machine_code`).
"""

from __future__ import annotations

import numba
import numpy as np

from pipeline.extraction.surf.orientation import (
    ATAN_DEG,
    BIN_OF_DEGREE,
    BINS,
    COLUMNS,
    FAITHFUL_HALF,
    RADIUS,
    ROWS,
    SCALE,
    WINDOWS,
)


@numba.njit(nogil=True)
def assign(integral, keypoints, upright, half_side, half_window, weights, angles, fits):  # type: ignore[no-untyped-def]
    """Fill `angles` and `fits`; scratch arrays are made once a call."""
    across = np.zeros(weights.shape[0], np.float32)
    down = np.zeros(weights.shape[0], np.float32)
    degrees = np.zeros(weights.shape[0], np.int32)
    lefts = np.zeros(2 * RADIUS + 1, np.int64)
    tops = np.zeros(2 * RADIUS + 1, np.int64)
    bins = np.zeros((BINS, 2), np.float64)
    running = np.zeros((BINS + 2 * half_window + 2, 2), np.float64)
    height, width = integral.shape
    for k in range(keypoints.shape[0]):
        scale = keypoints[k, 2] * SCALE
        half, count = int(np.rint(half_side * scale)), 0
        fits[k] = _fits(int(np.rint(FAITHFUL_HALF * scale)), height, width)
        if upright or not fits[k]:
            continue
        # The narrow filter if no wide one fits into the picture: the same keypoints for both.
        for attempt in range(2):
            if attempt == 1:
                half = int(np.rint(FAITHFUL_HALF * scale))
            if count == 0 and _fits(half, height, width):
                _edges(keypoints[k, 0], scale, 2 * half, width - 2 * half, lefts)
                _edges(keypoints[k, 1], scale, 2 * half, height - 2 * half, tops)
                count = _haar(integral, lefts, tops, half, weights, across, down)
        fits[k] = count > 0
        if count == 0:
            continue
        _whole_degrees(across, down, count, degrees)
        x, y = _longest(across, down, degrees, count, half_window, bins, running)
        angles[k] = _degrees_of(np.float32(x), np.float32(y))
        if angles[k] >= np.float32(360):
            angles[k] = np.float32(0)


@numba.njit(nogil=True)
def _fits(half, height, width):  # type: ignore[no-untyped-def]
    """Whether a filter lies in an integral image of this shape."""
    return half >= 1 and 2 * half <= height and 2 * half <= width


@numba.njit(nogil=True)
def _edges(centre, scale, side, limit, edges):  # type: ignore[no-untyped-def]
    """First pixel of the filter along one axis at each step of the grid; -1: not in the picture."""
    offset = np.float32((side - 1) * 0.5)
    for i in range(2 * RADIUS + 1):
        edge = int(np.rint(centre + np.float32(i - RADIUS) * scale - offset))
        edges[i] = edge if 0 <= edge < limit else -1


@numba.njit(nogil=True)
def _haar(integral, lefts, tops, half, weights, across, down):  # type: ignore[no-untyped-def]
    """Weighted responses at the points whose filter lies in the picture; returns how many do.

    Right half less left half, and lower half less upper half, in exact integers.
    """
    count = 0
    for point in range(weights.shape[0]):
        left, top = lefts[COLUMNS[point]], tops[ROWS[point]]
        if left < 0 or top < 0:
            continue
        middle, right = left + half, left + 2 * half
        upper, centre, lower = integral[top], integral[top + half], integral[top + 2 * half]
        whole = np.int32(lower[right] - lower[left] - upper[right] + upper[left])
        left_half = np.int32(lower[middle] - lower[left] - upper[middle] + upper[left])
        upper_half = np.int32(centre[right] - centre[left] - upper[right] + upper[left])
        across[count] = np.float32(whole - 2 * left_half) * weights[point]
        down[count] = np.float32(whole - 2 * upper_half) * weights[point]
        count += 1
    return count


@numba.njit(nogil=True)
def _degrees_of(x, y):  # type: ignore[no-untyped-def]
    """Angle of a vector, degrees in [0, 360]; written without branches, for vectors."""
    wide, tall = abs(x), abs(y)
    ratio = min(wide, tall) / (max(wide, tall) + np.float32(1e-30))
    square = ratio * ratio
    angle = ATAN_DEG[5]
    angle = angle * square + ATAN_DEG[4]
    angle = angle * square + ATAN_DEG[3]
    angle = angle * square + ATAN_DEG[2]
    angle = angle * square + ATAN_DEG[1]
    angle = (angle * square + ATAN_DEG[0]) * ratio
    angle = np.float32(90) - angle if tall > wide else angle
    angle = np.float32(180) - angle if x < 0 else angle
    return np.float32(360) - angle if y < 0 else angle


@numba.njit(nogil=True)
def _whole_degrees(across, down, count, degrees):  # type: ignore[no-untyped-def]
    """Angles of the responses, to the nearest degree."""
    for i in range(count):
        degrees[i] = np.int32(_degrees_of(across[i], down[i]) + np.float32(0.5))


@numba.njit(nogil=True)
def _longest(across, down, degrees, count, half_window, bins, running):  # type: ignore[no-untyped-def]
    """The longest sum of the responses within a window; the first one of equals."""
    for place in range(BINS):
        bins[place, 0] = 0.0
        bins[place, 1] = 0.0
    for i in range(count):
        place = BIN_OF_DEGREE[degrees[i]]
        bins[place, 0] += across[i]
        bins[place, 1] += down[i]
    x, y = 0.0, 0.0
    for i in range(running.shape[0] - 1):
        place = (i - half_window + BINS) % BINS
        x += bins[place, 0]
        y += bins[place, 1]
        running[i + 1, 0] = x
        running[i + 1, 1] = y
    best, best_x, best_y = -1.0, 0.0, 0.0
    for window in range(WINDOWS):
        first, last = 2 * window, 2 * window + 2 * half_window + 1
        x = running[last, 0] - running[first, 0]
        y = running[last, 1] - running[first, 1]
        length = x * x + y * y
        if length > best:
            best, best_x, best_y = length, x, y
    return best_x, best_y
