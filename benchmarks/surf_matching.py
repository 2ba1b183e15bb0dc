"""SURF and SIFT on the sequences of Mikolajczyk: repeatability, precision, correct matches.

    python -m benchmarks.surf_matching --photos ../shared/photos/oxford_affine [--reference FILE]
        [--turned] [--sequences bark,graf] [--json]

A sequence is a folder with ``img1`` to ``img6`` and homographies ``H1to2p`` to ``H1to6p``
(Mikolajczyk and others, "A comparison of affine region detectors", IJCV 2005). The rule, for each
pair of image 1 with another one: the 1000 strongest keypoints of each image; *visible*: keypoints
of image 1 that the homography puts into the other image; *repeated*: visible ones whose nearest
keypoint there is within 3 pixels; *mutual*: pairs of descriptors, each the other's nearest;
*correct*: mutual pairs within 4 pixels of the homography. Repeatability is repeated over visible,
precision correct over mutual, both of the sums over all pairs.

``--reference`` adds a table of the same numbers by another program (JSON: a name, then ``pairs``).
``--turned`` turns images 2 to 6 by 37 degrees first, and keeps their inner part: most sequences are
upright, which hides how well directions are found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import parser, show
from pipeline.errors import InputError
from pipeline.extraction.sift import SiftExtractor
from pipeline.extraction.surf import surf

STRONGEST = 1000
REPEATED_PX, CORRECT_PX = 3.0, 4.0
PAIRS = range(2, 7)
TURN_DEG = 37.0

Places = NDArray[np.float64]
Rows = NDArray[np.float32]
Method = Callable[[NDArray[np.uint8]], tuple[Rows, Rows]]


class Counts(NamedTuple):
    """Of one pair of images, or of several together."""

    visible: int
    repeated: int
    mutual: int
    correct: int

    @property
    def repeatability(self) -> float:
        """Share of the visible keypoints that are found again."""
        return self.repeated / max(self.visible, 1)

    @property
    def precision(self) -> float:
        """Share of the mutual nearest neighbours that are right."""
        return self.correct / max(self.mutual, 1)


def count_pair(
    first: tuple[Rows, Rows],
    second: tuple[Rows, Rows],
    homography: Places,
    shape: tuple[int, int],
) -> Counts:
    """Apply the rule to one pair.

    Parameters
    ----------
    first, second : tuple of ndarrays
        Keypoints (x and y are read) and descriptors, strongest first.
    homography : ndarray of shape (3, 3)
        From pixels of the first image to pixels of the second.
    shape : (height, width)
        Of the second image.
    """
    (here, rows), (there, others) = ((k[:STRONGEST], d[:STRONGEST]) for k, d in (first, second))
    ones = np.ones((len(here), 1))
    mapped = np.hstack([here[:, :2].astype(np.float64), ones]) @ homography.T
    mapped = mapped[:, :2] / mapped[:, 2:]
    inside = ((mapped >= 0) & (mapped < shape[::-1])).all(axis=1)
    distance = np.hypot(*(mapped[:, None] - there[None, :, :2]).transpose(2, 0, 1))
    repeated = inside & (distance.min(axis=1) <= REPEATED_PX)
    # The nearest has the greatest product less half its own squared length.
    products = rows @ others.T
    nearest = (products - 0.5 * np.sum(others**2, axis=1)).argmax(axis=1)
    back = (products - 0.5 * np.sum(rows**2, axis=1)[:, None]).argmax(axis=0)
    every = np.arange(len(here))
    mutual = back[nearest] == every
    correct = mutual & (distance[every, nearest] <= CORRECT_PX)
    return Counts(*(int(np.sum(mask)) for mask in (inside, repeated, mutual, correct)))


def add_up(counts: Mapping[str, Counts]) -> Counts:
    """Add the counts of several pairs."""
    return Counts(*(sum(values) for values in zip(*counts.values(), strict=True)))


def surf_method(**options: Any) -> Method:
    """Return our SURF with some options, strongest response first."""
    return lambda image: surf(image, max_features=STRONGEST, **options)


def root_sift(image: NDArray[np.uint8]) -> tuple[Rows, Rows]:
    """Return OpenCV's SIFT with the strongest response first, as RootSIFT."""
    found, rows = cv2.SIFT.create().detectAndCompute(image, None)
    order = np.argsort([-keypoint.response for keypoint in found], kind="stable")
    places = np.array([found[i].pt for i in order], np.float32)
    return places, SiftExtractor().normalize(rows[order])


METHODS: dict[str, Method] = {
    "SURF faithful": surf_method(),
    "SURF faithful, 128": surf_method(extended=True),
    "SURF interpolated": surf_method(variant="interpolated"),
    "SURF interpolated, 128": surf_method(variant="interpolated", extended=True),
    "SURF interpolated, threshold 200": surf_method(
        variant="interpolated", hessian_threshold=200.0
    ),
    "RootSIFT (OpenCV)": root_sift,
}


def turned(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Places]:
    """Turn an image about its middle, cut off what has no picture, and say how it was turned."""
    height, width = image.shape
    sine, cosine = np.sin(np.radians(TURN_DEG)), np.cos(np.radians(TURN_DEG))
    long, short = max(width, height), min(width, height)
    # The largest upright box in a turned one: two of its corners touch the long sides, or all
    # four touch a side each.
    if short <= 2 * sine * cosine * long:
        box = np.array([short / sine, short / cosine]) / 2
        size = box if width >= height else box[::-1]
    else:
        both = np.array([width * cosine - height * sine, height * cosine - width * sine])
        size = both / (cosine**2 - sine**2)
    columns, rows = (int(side) - 2 for side in size)
    turn = np.eye(3)
    turn[:2] = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), TURN_DEG, 1.0)
    turn[:2, 2] += (columns - width) / 2, (rows - height) / 2
    return cv2.warpAffine(image, turn[:2], (columns, rows)).astype(np.uint8), turn


def measure(method: Method, folder: Path, turn: bool) -> dict[str, Counts]:
    """Count every pair of one sequence."""
    first = method(_read(folder, 1))
    counts = {}
    for number in PAIRS:
        image = _read(folder, number)
        homography = np.loadtxt(folder / f"H1to{number}p")
        if turn:
            image, rotation = turned(image)
            homography = rotation @ homography
        second = method(image)
        shape = image.shape[0], image.shape[1]
        counts[f"{folder.name}/1-{number}"] = count_pair(first, second, homography, shape)
    return counts


def _read(folder: Path, number: int) -> NDArray[np.uint8]:
    """Read one image of a sequence, grey as OpenCV makes it."""
    for path in sorted(folder.glob(f"img{number}.*")):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if image is not None:
            return image.astype(np.uint8)
    raise InputError(f"there is no image 'img{number}' that can be read in {str(folder)!r}")


def sequences(folder: Path | None, wanted: str) -> list[Path]:
    """Return the folders that have homographies."""
    if folder is None:
        raise InputError("say --photos FOLDER: where the sequences are")
    found = sorted(path.parent for path in folder.glob("*/H1to2p"))
    if wanted:
        found = [path for path in found if path.name in wanted.split(",")]
    if not found:
        raise InputError(f"there is no sequence with a file 'H1to2p' in {str(folder)!r}")
    return found


def read_reference(file: Path | None, names: set[str]) -> dict[str, dict[str, Counts]]:
    """Return the counts that other programs got, by program and pair."""
    if file is None:
        return {}
    programs = json.loads(file.read_text(encoding="utf-8"))
    return {
        program: {
            pair: Counts(n["visible"], n["repeated"], n["mutual_matches"], n["correct"])
            for pair, n in known["pairs"].items()
            if pair.split("/")[0] in names
        }
        for program, known in programs.items()
    }


def row(name: str, counts: Mapping[str, Counts], folders: list[Path]) -> dict[str, Any]:
    """Return a row of the table: totals, then precision and correct matches of each sequence."""
    total = add_up(counts)
    cells: dict[str, Any] = {
        "features": name,
        "repeatability": f"{total.repeatability:.4f}",
        "precision": f"{total.precision:.4f}",
        "correct": total.correct,
    }
    for folder in folders:
        own = add_up({k: v for k, v in counts.items() if k.startswith(f"{folder.name}/")})
        cells[folder.name] = f"{own.repeatability:.2f} {own.precision:.2f} {own.correct}"
    return cells


def main() -> None:
    """Print one row for each kind of features."""
    options = parser(str(__doc__).splitlines()[0])
    options.add_argument("--reference", type=Path, help="numbers of other programs (JSON)")
    options.add_argument("--turned", action="store_true", help="turn images 2 to 6 by 37 degrees")
    options.add_argument("--sequences", default="", help="names with commas; default: all")
    arguments = options.parse_args()
    cv2.setNumThreads(1)
    folders = sequences(arguments.photos, arguments.sequences)
    rows = []
    for name, method in METHODS.items():
        counts: dict[str, Counts] = {}
        for folder in folders:
            counts |= measure(method, folder, arguments.turned)
        rows.append(row(name, counts, folders))
    if not arguments.turned:
        known = read_reference(arguments.reference, {folder.name for folder in folders})
        rows += [row(f"reference {name}", counts, folders) for name, counts in known.items()]
    show("of a sequence: repeatability, precision, correct matches", rows, arguments.json)


if __name__ == "__main__":
    main()
