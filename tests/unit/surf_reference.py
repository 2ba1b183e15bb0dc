"""OpenCV's SURF of pictures that scikit-image has, and how two sets of keypoints are compared."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).parents[1] / "data" / "surf"
SHARED = Path(__file__).parents[3] / "shared" / "surf_reference"
X, Y, SIZE, ANGLE, RESPONSE, OCTAVE, SIGN = range(7)


@dataclass(frozen=True)
class Reference:
    """What OpenCV 4.11, built with its non-free modules, made of a picture.

    Attributes
    ----------
    image : ndarray of shape (H, W), uint8
    parameters : dict
        Keyword arguments of `surf`.
    total : int
        Keypoints that OpenCV found.
    keypoints, descriptors : ndarray
        Of the strongest (all, where the file is not limited), strongest first.
    """

    image: NDArray[np.uint8]
    parameters: dict[str, Any]
    total: int
    keypoints: NDArray[np.float32]
    descriptors: NDArray[np.float32]


def packaged_names() -> list[str]:
    """Return the pictures of scikit-image for which the repository has a reference."""
    return sorted(_json(DATA / "reference.json")["images"])


def packaged(name: str) -> Reference:
    """Load a picture of scikit-image and its reference: the 400 strongest keypoints."""
    meta = _json(DATA / "reference.json")
    known = meta["images"][name]
    with resources.as_file(resources.files("skimage").joinpath("data", name)) as path:
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        colour = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert grey is not None
    assert colour is not None
    readings = (grey.astype(np.uint8), _grey_in_linear_light(colour.astype(np.uint8)))
    digests = [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in readings]
    pixels = readings[digests.index(known["sha256_grey"])]
    arrays = np.load(DATA / f"{Path(name).stem}.npz")
    return Reference(
        pixels,
        _ours(meta["parameters"]),
        known["total"],
        arrays["keypoints"],
        arrays["descriptors"],
    )


def _grey_in_linear_light(colour: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mix RGB to grey as the PNG library of OpenCV 4.11 did for files with an sRGB profile.

    Tables of 8 bit take the levels to linear light and back; grey pixels keep theirs. Newer ones
    mix the levels themselves.
    """
    levels = np.arange(256) / 255
    to_light = np.floor(255 * levels**2.19998 + 0.5).astype(np.int64)
    to_level = np.floor(255 * levels**0.45455 + 0.5).astype(np.uint8)
    red, green, blue = np.moveaxis(to_light[colour], 2, 0)
    mixed = to_level[(9797 * red + 19234 * green + 3737 * blue + 16384) >> 15]
    is_grey = (colour == colour[:, :, :1]).all(axis=2)
    return np.where(is_grey, colour[:, :, 0], mixed)


def shared_names() -> list[str]:
    """Return the reference sets beside the checkout; none where there is no such folder."""
    path = SHARED / "reference.json"
    return sorted(_json(path)["sets"]) if path.is_file() else []


def shared(name: str) -> Reference:
    """Load a reference set from beside the checkout: all keypoints."""
    known = _json(SHARED / "reference.json")["sets"][name]
    image = cv2.imread(str(SHARED / known["image"]), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    arrays = np.load(SHARED / f"{name}.npz")
    return Reference(
        image.astype(np.uint8),
        _ours(known["parameters"]),
        known["keypoints"],
        arrays["keypoints"],
        arrays["descriptors"],
    )


def matched(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return, for each of OpenCV's keypoints, our row that is the same, or -1.

    The same: within 1 pixel, within 10 % of its size, of the same sign.
    """
    rows = np.full(len(theirs), -1)
    for number, point in enumerate(theirs):
        distance = np.hypot(ours[:, X] - point[X], ours[:, Y] - point[Y])
        same = (distance <= 1) & (np.abs(ours[:, SIZE] / point[SIZE] - 1) <= 0.1)
        same &= ours[:, SIGN] == point[SIGN]
        if same.any():
            rows[number] = np.argmin(np.where(same, distance, np.inf))
    return rows


def angle_difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the difference of two directions, degrees from 0 to 180."""
    return np.abs((one - other + 180) % 360 - 180)


def _ours(parameters: dict[str, Any]) -> dict[str, Any]:
    names = {"hessianThreshold": "hessian_threshold", "nOctaves": "octaves"}
    names["nOctaveLayers"] = "layers"
    return {names.get(key, key): value for key, value in parameters.items()}


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
