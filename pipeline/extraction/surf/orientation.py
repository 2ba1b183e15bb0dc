"""The direction of a keypoint: where most of the Haar responses around it point.

Bay et al., CVIU 2008, section 4.1: Haar filters at the 113 points of a disc of radius ``6 s``,
weighted by a Gaussian; a window slides round by 5 degrees; the direction of the longest sum of the
responses in it. `FAITHFUL` has OpenCV's constants. `STEADY` has larger filters, a window of half a
turn and nearly equal weights: its directions are found again more often in another picture
(docs/decisions/0006-surf.md).

How it is made fast. The disc is cut out of a 13 x 13 grid, so 13 rounded rows and 13 rounded
columns stand for all 113 points. Both responses of a point share eight look-ups. Angles come from
a polynomial, which runs in vectors. They are rounded to whole degrees as OpenCV does, and a window
holds what is less than half its width from a multiple of 5; so only two kinds of degree matter,
multiples of 5 and the four between two of them. That makes 144 bins, of which a window is an odd
number in a row: a difference of two running sums.

Everything that is compiled is in this one file (see `pipeline.extraction.surf.hessian`).
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.extraction.surf.variants import Variant
from pipeline.index.rows import read_only

UPRIGHT_DEG = np.float32(270.0)
"""OpenCV's angle of a keypoint whose direction is not computed."""

RADIUS = 6
"""Radius of the disc, in units of the keypoint's scale s."""

SCALE = np.float32(1.2 / 9)
"""Scale s per pixel of size: the 9 x 9 filter stands for a Gaussian of 1.2 pixels."""

WINDOWS = 72
BINS = 2 * WINDOWS
ATAN_DEG = np.array(
    [57.2944993, -19.0581888, 11.0902298, -6.67273671, 3.01798272, -0.671880994], np.float32
)
"""Degrees of atan(t) for t in [0, 1]: t times a polynomial in t^2, off by at most 1e-4 degrees.

A minimax fit by weighted least squares. A polynomial and no `atan2` of the C library: the same
numbers on every system, and vectors.
"""


class Method(NamedTuple):
    """Constants of a way to find directions.

    Attributes
    ----------
    half_side : float32
        Half the side of the Haar filters, units of s; rounded to pixels after scaling.
    half_window : int
        Bins to each side of a window's middle.
    weights : ndarray of shape (113,), float32
        Of the points of the disc.
    """

    half_side: np.float32
    half_window: int
    weights: NDArray[np.float32]


def _disc() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return column and row of each point of the disc in its grid."""
    row, column = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    inside = row**2 + column**2 <= RADIUS**2
    return column[inside] + RADIUS, row[inside] + RADIUS


COLUMNS, ROWS = _disc()


def _gaussian(sigma: float) -> NDArray[np.float32]:
    """Return the weights of the disc's points for a Gaussian of `sigma` s."""
    squares = (COLUMNS - RADIUS) ** 2 + (ROWS - RADIUS) ** 2
    return np.exp(-squares / (2 * sigma**2)).astype(np.float32)


FAITHFUL_HALF = np.float32(2.0)
FAITHFUL = Method(FAITHFUL_HALF, 11, _gaussian(2.5))
"""OpenCV's: sides of ``2 round(2 s)``, windows of 60 degrees (the 30th is outside: 11 bins), and
the Gaussian of the 2006 paper (CVIU 2008 has 2)."""

STEADY = Method(np.float32(4.0), 35, _gaussian(4.0))
"""Sides of 8 s, windows of 180 degrees."""

METHODS: dict[Variant, Method] = {"faithful": FAITHFUL, "interpolated": STEADY}

BIN_OF_DEGREE = np.array([2 * (d % 360 // 5) + (d % 5 != 0) for d in range(362)], np.int64)


def assign_orientation(
    integral: NDArray[np.int32],
    keypoints: NDArray[np.float32],
    upright: bool = False,
    variant: Variant = "faithful",
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the directions of keypoints, and which of them have one.

    Parameters
    ----------
    integral : ndarray of shape (H + 1, W + 1), int32
        Integral image (see `pipeline.extraction.surf.integral`).
    keypoints : ndarray of shape (N, 7), float32
        Rows of `KEYPOINT_COLUMNS`; x, y and size in pixels are read.
    upright : bool
        Do not compute directions: every angle is 270 degrees, as in OpenCV. Off by default, as
        pictures may be turned.
    variant : {"faithful", "interpolated"}
        `FAITHFUL`, the default, or `STEADY`.

    Returns
    -------
    angles : ndarray of shape (N,), float32
        Degrees in [0, 360), clockwise from the x axis as y points down.
    fits : ndarray of shape (N,), bool
        False where the faithful filter is larger than the picture, or lies in it at no point of
        the disc: OpenCV drops such keypoints.
    """
    method = METHODS[variant]
    angles = np.full(len(keypoints), UPRIGHT_DEG, np.float32)
    fits = np.zeros(len(keypoints), np.bool_)
    places = read_only(np.asarray(keypoints, np.float32))
    _assign(
        read_only(integral),
        places,
        upright,
        method.half_side,
        method.half_window,
        read_only(method.weights),
        angles,
        fits,
    )
    return angles, fits


def warm_up() -> None:
    """Compile the loop, or load it from the cache on disk."""
    keypoint = np.array([[16, 16, 9, 0, 1, 0, 1]], np.float32)
    assign_orientation(np.zeros((33, 33), np.int32), keypoint)


@numba.njit(nogil=True, cache=True)
def _assign(integral, keypoints, upright, half_side, half_window, weights, angles, fits):  # type: ignore[no-untyped-def]
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
    bins[:] = 0.0
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
