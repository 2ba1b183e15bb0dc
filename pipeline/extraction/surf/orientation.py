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

The loops themselves are in `pipeline.extraction.surf.orientation_loops`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.extraction.surf.variants import Variant
from pipeline.index.rows import read_only
from pipeline.machine_code import CompiledLoop

_assign = CompiledLoop(
    "pipeline.extraction.surf.orientation_loops", "assign", ["pipeline.extraction.surf.orientation"]
)

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
