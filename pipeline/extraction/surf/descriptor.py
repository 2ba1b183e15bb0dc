"""What a keypoint looks like: sums of gradients in 4 x 4 cells of a turned square around it.

Bay et al., CVIU 2008, section 4.2. The square is sampled as 21 x 21 means of boxes about ``s``
wide, one ``s`` apart; neighbours give the Haar responses of side ``2 s``. OpenCV does the same by
turning the window's pixels into an 8-bit picture and shrinking it, which takes a time that grows
with the square of the keypoint's size. Here a mean comes from the integral image: an upright box
of the same second moments, with its edges between pixels (16 look-ups, any size). A turned square
and an upright one of equal side spread equally far in every direction, so the two ways agree to a
cosine of 0.9999.

``faithful``
    OpenCV's: Gaussian of 3.3 samples, hard cells, sums of dx, dy, |dx|, |dy| (128 numbers: split by
    the sign of the other derivative), unit length.
``interpolated``
    A sample is shared among the nearest cells (Abeles, arXiv 1202.0492, found this to matter
    most). The cells have the same size, but the square reaches half a cell further, and the
    Gaussian is wide. The sums are of the positive and of the negative parts of the derivatives,
    which are the faithful numbers in another basis: ``(|dx| + dx) / 2``. Of these the square roots
    are taken after division by their total (Hellinger distance: Arandjelovic and Zisserman, CVPR
    2012). 128 numbers: eight directions instead of four.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.extraction.surf.descriptor_layout import CELLS, FEATURES
from pipeline.extraction.surf.variants import Variant
from pipeline.index.rows import read_only
from pipeline.machine_code import CompiledLoop

_describe_all = CompiledLoop(
    "pipeline.extraction.surf.descriptor_loops",
    "describe_all",
    ["pipeline.extraction.surf.descriptor_layout"],
)


class Layout(NamedTuple):
    """How the square of a variant is sampled and pooled.

    Attributes
    ----------
    weights : ndarray of shape (4, n), float32
        Share that each cell (along one side) has in each of n gradients; n + 1 samples a side.
    spacing : float32
        Distance of samples, units of s.
    smooth : float32
        Width of a sample's box, distances of samples.
    whole_window : bool
        Round the window to whole pixels, as OpenCV does.
    """

    weights: NDArray[np.float32]
    spacing: np.float32
    smooth: np.float32
    whole_window: bool


def _gaussian(places: NDArray[np.floating[Any]], sigma: float) -> NDArray[np.float64]:
    """Return weights by the distance from the middle, gradients."""
    weights: NDArray[np.float64] = np.exp(-(places**2) / (2 * sigma**2))
    return weights


def _faithful() -> Layout:
    """Five gradients to a cell; Gaussian of 3.3 s."""
    places = np.arange(20) - 9.5
    share = np.arange(20) // 5 == np.arange(CELLS)[:, None]
    weights = share * _gaussian(places, 3.3)
    return Layout(weights.astype(np.float32), np.float32(1.0), np.float32(1.0), True)


def _interpolated() -> Layout:
    """Cells four gradients (5 s) apart, a share that falls linearly to the next; Gaussian of 8 s.

    Samples 1.25 s apart, so that the larger square has no more of them.
    """
    places = np.arange(20) - 9.5
    middles = 4 * (np.arange(CELLS)[:, None] - (CELLS - 1) / 2)
    share = np.maximum(0, 1 - np.abs(places - middles) / 4)
    weights = share * _gaussian(places, 8 / 1.25)
    return Layout(weights.astype(np.float32), np.float32(1.25), np.float32(1.0), False)


LAYOUTS: dict[Variant, Layout] = {"faithful": _faithful(), "interpolated": _interpolated()}


def compute_descriptors(
    integral: NDArray[np.int32],
    keypoints: NDArray[np.float32],
    extended: bool = False,
    upright: bool = False,
    variant: Variant = "faithful",
) -> NDArray[np.float32]:
    """Describe keypoints, each in the direction of its angle.

    Parameters
    ----------
    integral : ndarray of shape (H + 1, W + 1), int32
        Integral image (see `pipeline.extraction.surf.integral`).
    keypoints : ndarray of shape (N, 7), float32
        Rows of `KEYPOINT_COLUMNS`; x, y, size (pixels) and angle (degrees) are read. Samples
        beyond the picture's edge take the edge.
    extended : bool
        128 numbers instead of 64. Off by default: twice the memory for little, as measured in
        docs/decisions/0006-surf.md.
    upright : bool
        Take every angle as 270 degrees.
    variant : {"faithful", "interpolated"}
        See the module.

    Returns
    -------
    ndarray of shape (N, 64) or (N, 128), float32
        Rows of unit length, cells by rows of the square, as in OpenCV; zeros where the picture is
        flat, or a keypoint is not finite.
    """
    layout = LAYOUTS[variant]
    kind = 2 * (variant == "interpolated") + int(extended)
    rows = np.empty((len(keypoints), CELLS * CELLS * int(FEATURES[kind])), np.float32)
    _describe_all(
        read_only(integral),
        read_only(np.asarray(keypoints, np.float32)),
        upright,
        read_only(layout.weights),
        layout.spacing,
        layout.smooth,
        layout.whole_window,
        kind,
        rows,
    )
    return rows


def warm_up() -> None:
    """Compile the loops, or load them from the cache on disk."""
    keypoint = np.array([[16, 16, 9, 0, 1, 0, 1]], np.float32)
    compute_descriptors(np.zeros((33, 33), np.int32), keypoint)
