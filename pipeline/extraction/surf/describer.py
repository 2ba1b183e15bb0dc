"""SURF of one picture: `detect`, `describe`, and both in one, `surf`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, UnknownNameError
from pipeline.extraction.surf.descriptor import LAYOUTS, compute_descriptors
from pipeline.extraction.surf.detector import check_parameters, find_keypoints, grey_pixels
from pipeline.extraction.surf.integral import integral_image
from pipeline.extraction.surf.orientation import assign_orientation
from pipeline.extraction.surf.variants import Variant
from pipeline.records import KEYPOINT_COLUMNS

HESSIAN_THRESHOLD = 500.0
"""OpenCV recommends 300 to 500; the CBIR papers that use SURF have 500."""

OCTAVES = 4
"""The paper's: a fifth has a handful of keypoints even in large photographs."""

LAYERS = 3
"""OpenCV's; the paper has 2. Each one more costs a fifth of the detector's time."""

_X, _Y, _SIZE, _ANGLE = range(4)


def surf(
    image: object,
    hessian_threshold: float = HESSIAN_THRESHOLD,
    octaves: int = OCTAVES,
    layers: int = LAYERS,
    extended: bool = False,
    upright: bool = False,
    max_features: int | None = None,
    variant: Variant = "faithful",
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Find keypoints and describe them.

    Keypoints, their order and their numbers are those of OpenCV's SURF. One thread, without the
    GIL; equal input gives equal output.

    Parameters
    ----------
    image : ndarray of shape (H, W)
        Grey levels: uint8; or bool, uint16 or floating (0 to 1), which are scaled to 8 bit.
    hessian_threshold : float
        Least determinant of the Hessian, grey levels squared. Default 500; lower: more keypoints.
    octaves : int
        Doublings of the sampling step, 1 to 7. Default 4.
    layers : int
        Layers of an octave in which maxima are looked for, 1 to 8. Default 3.
    extended : bool
        128 numbers instead of 64. Default False: they match little better for twice the memory.
    upright : bool
        Take every picture as upright: all angles are 270 degrees. Default False.
    max_features : int, optional
        Most keypoints, those of the strongest response. Default: all.
    variant : {"faithful", "interpolated"}
        OpenCV's directions and descriptors, the default, so that numbers can be compared with
        others' work; or those that match better (`pipeline.extraction.surf.orientation` and
        `descriptor`). They do not mix.

    Returns
    -------
    keypoints : ndarray of shape (N, 7), float32
        Rows of `pipeline.records.KEYPOINT_COLUMNS`, strongest first: x, y (pixels; 0 is the
        centre of the first one), size (side of the filter, pixels), angle (degrees, clockwise from
        the x axis), response (determinant), octave, Laplacian sign (1: dark on bright).
    descriptors : ndarray of shape (N, 64) or (N, 128), float32
        Rows of unit length.

    Raises
    ------
    InputError
        No grey picture, or a parameter out of range: what, and what to do.

    Examples
    --------
    >>> import numpy as np
    >>> keypoints, descriptors = surf(np.zeros((100, 100), np.uint8))
    >>> keypoints.shape, descriptors.shape
    ((0, 7), (0, 64))
    """
    check_parameters(hessian_threshold, octaves, layers, max_features)
    check_variant(variant)
    pixels = grey_pixels(image)
    sums = integral_image(pixels)
    keypoints = find_keypoints(sums, hessian_threshold, octaves, layers)[:max_features]
    keypoints = with_angles(sums, keypoints, upright, variant)
    return keypoints, compute_descriptors(sums, keypoints, extended, upright, variant)


def detect(
    image: object,
    hessian_threshold: float = HESSIAN_THRESHOLD,
    octaves: int = OCTAVES,
    layers: int = LAYERS,
    upright: bool = False,
    max_features: int | None = None,
    variant: Variant = "faithful",
) -> NDArray[np.float32]:
    """Find keypoints, with their angles, and describe none.

    Parameters, order and errors are those of `surf`.

    Returns
    -------
    ndarray of shape (N, 7), float32
    """
    check_parameters(hessian_threshold, octaves, layers, max_features)
    check_variant(variant)
    sums = integral_image(grey_pixels(image))
    keypoints = find_keypoints(sums, hessian_threshold, octaves, layers)[:max_features]
    return with_angles(sums, keypoints, upright, variant)


def describe(
    image: object,
    keypoints: object,
    extended: bool = False,
    upright: bool = False,
    variant: Variant = "faithful",
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Describe given keypoints, of any detector.

    Parameters
    ----------
    image : ndarray of shape (H, W)
        As for `surf`.
    keypoints : array of shape (N, 3), (N, 4) or (N, 7)
        x, y, size; angle; response, octave, sign. Where the angle is negative or not given, it is
        looked for; response, octave and sign are handed through, 0 where they are not given.
    extended : bool
        128 numbers instead of 64. Default False.
    upright : bool
        All angles are 270 degrees, whatever is given. Default False.
    variant : {"faithful", "interpolated"}
        As for `surf`.

    Returns
    -------
    keypoints : ndarray of shape (M, 7), float32
        Those that can be described, in their order: M is N unless the angle of a keypoint is
        looked for and its filters do not fit into the picture, or it lies far outside.
    descriptors : ndarray of shape (M, 64) or (M, 128), float32

    Raises
    ------
    InputError
        As for `surf`; a wrong shape, a number that is not finite, a size that is not positive.
    """
    check_variant(variant)
    pixels = grey_pixels(image)
    rows = _keypoint_rows(keypoints)
    sums = integral_image(pixels)
    unknown = np.full(len(rows), True) if upright else rows[:, _ANGLE] < 0
    kept = np.full(len(rows), True)
    if unknown.any():
        angles, fits = assign_orientation(sums, rows[unknown], upright, variant)
        rows[unknown, _ANGLE] = angles
        kept[unknown] = fits
    rows = np.ascontiguousarray(rows[kept])
    return rows, compute_descriptors(sums, rows, extended, upright, variant)


def with_angles(
    sums: NDArray[np.int32],
    keypoints: NDArray[np.float32],
    upright: bool,
    variant: Variant = "faithful",
) -> NDArray[np.float32]:
    """Return a copy of keypoints with their directions, without those that have none."""
    angles, fits = assign_orientation(sums, keypoints, upright, variant)
    directed = keypoints.copy()
    directed[:, _ANGLE] = angles
    return np.ascontiguousarray(directed[fits])


def check_variant(variant: str) -> None:
    """Raise unless there is such a descriptor.

    Raises
    ------
    UnknownNameError
    """
    if variant not in LAYOUTS:
        raise UnknownNameError("SURF descriptor", variant, sorted(LAYOUTS))


def _keypoint_rows(keypoints: object) -> NDArray[np.float32]:
    """Check a caller's keypoints and complete their columns."""
    try:
        given = np.asarray(keypoints, np.float32)
    except (TypeError, ValueError) as exc:
        raise InputError(
            "keypoints are numbers in rows of x, y, size (angle, response, octave, sign), not a "
            f"{type(keypoints).__name__} of other things"
        ) from exc
    full = len(KEYPOINT_COLUMNS)
    if given.ndim != 2 or given.shape[1] not in (3, 4, full):
        raise InputError(
            f"keypoints have the shape (N, 3), (N, 4) or (N, {full}), not {given.shape}"
        )
    if not np.isfinite(given).all():
        raise InputError("keypoints hold numbers that are not finite; leave those rows out")
    if len(given) and not given[:, _SIZE].min() > 0:
        raise InputError(
            f"a keypoint has size {given[:, _SIZE].min():g}; sizes are positive, pixels"
        )
    rows = np.zeros((len(given), full), np.float32)
    rows[:, _ANGLE] = -1
    rows[:, : given.shape[1]] = given
    return rows
