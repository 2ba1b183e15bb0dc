"""How far our SURF agrees with OpenCV's, on recorded results.

    python -m benchmarks.surf_agreement FOLDER [--json]

FOLDER holds a ``reference.json`` with ``sets``: for each, its picture, OpenCV's parameters and the
number of keypoints, and beside it ``<set>.npz`` with ``keypoints`` (N, 7) and ``descriptors``.

``found``        share of OpenCV's keypoints that we have within 1 pixel, 10 % of the size and with
                 the same sign
``exact``        of these, within 0.01 pixel, of the same size and octave
``angle``        share of the found ones whose directions differ by at most 10 degrees
``cosine``       median of the found ones' descriptors; of each at OpenCV's own keypoint and angle:
``at theirs``    so that only the descriptor is compared
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import show
from pipeline.extraction.surf import describe, surf

Floats = NDArray[np.float32]
X, Y, SIZE, ANGLE, RESPONSE, OCTAVE, SIGN = range(7)


def nearest(ours: Floats, theirs: Floats) -> NDArray[np.intp]:
    """Return, for each of their keypoints, our row that is the same, or -1."""
    rows = np.full(len(theirs), -1)
    for number, point in enumerate(theirs):
        distance = np.hypot(ours[:, X] - point[X], ours[:, Y] - point[Y])
        same = (distance <= 1) & (np.abs(ours[:, SIZE] / point[SIZE] - 1) <= 0.1)
        same &= ours[:, SIGN] == point[SIGN]
        if same.any():
            rows[number] = np.argmin(np.where(same, distance, np.inf))
    return rows


def compare(image: NDArray[np.uint8], given: dict[str, Any], theirs: Any) -> dict[str, Any]:
    """Run our SURF with OpenCV's parameters and compare."""
    extended, upright = given["extended"], given["upright"]
    keypoints, descriptors = surf(
        image,
        given["hessianThreshold"],
        given["nOctaves"],
        given["nOctaveLayers"],
        extended,
        upright,
    )
    reference, described = theirs["keypoints"], theirs["descriptors"]
    row = {"keypoints": len(keypoints), "OpenCV's": len(reference)}
    if not len(reference) or not len(keypoints):
        return row
    rows = nearest(keypoints, reference)
    found = rows >= 0
    ours, expected = keypoints[rows[found]], reference[found]
    exact = np.abs(ours[:, :2] - expected[:, :2]).max(axis=1) < 0.01
    exact &= (ours[:, [SIZE, OCTAVE]] == expected[:, [SIZE, OCTAVE]]).all(axis=1)
    turned = np.abs((ours[:, ANGLE] - expected[:, ANGLE] + 180) % 360 - 180)
    cosines = np.einsum("nd,nd->n", descriptors[rows[found]], described[found])
    _, at_theirs = describe(image, reference, extended, upright)
    same_place = np.einsum("nd,nd->n", at_theirs, described)
    figures = {
        "found": found.mean(),
        "exact": exact.mean(),
        "angle": (turned <= 10).mean(),
        "cosine": np.median(cosines),
        "at theirs": np.median(same_place),
    }
    return row | {name: f"{value:.4f}" for name, value in figures.items()}


def main() -> None:
    """Print a row for each recorded set."""
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--json", action="store_true", help="print JSON")
    arguments = options.parse_args()
    path = arguments.folder / "reference.json"
    rows = []
    for name, known in sorted(json.loads(path.read_text(encoding="utf-8"))["sets"].items()):
        image = cv2.imread(str(arguments.folder / known["image"]), cv2.IMREAD_GRAYSCALE)
        theirs = np.load(arguments.folder / f"{name}.npz")
        row = compare(np.asarray(image, np.uint8), known["parameters"], theirs)
        rows.append({"set": name, **row})
    rows.sort(key=len, reverse=True)  # the first row names the columns
    show("agreement with OpenCV", rows, arguments.json)


if __name__ == "__main__":
    main()
