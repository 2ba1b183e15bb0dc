"""The matching benchmark counts as the one that the reference numbers come from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import surf_reference as reference

from benchmarks.surf_matching import Counts, add_up, count_pair, turned

SEQUENCES = reference.SHARED.parent / "photos" / "oxford_affine"


def test_counts_of_a_pair_that_is_known() -> None:
    here = np.array([[10, 10], [20, 10], [90, 10], [40, 40], [60, 10]], np.float32)
    there = np.array([[15, 13], [25, 10], [47, 40], [70, 70]], np.float32)
    rows = np.eye(5, dtype=np.float32)
    # The first two are found again and matched, one of them to the other's place; the third maps
    # to a place outside; the fourth is 2 pixels off and matched; the fifth is matched wrongly.
    others = rows[[1, 0, 3, 4]]
    shift = np.array([[1, 0, 5], [0, 1, 0], [0, 0, 1]], np.float64)
    counts = count_pair((here, rows), (there, others), shift, (80, 90))
    assert counts == Counts(visible=4, repeated=3, mutual=4, correct=1)
    assert (counts.repeatability, counts.precision) == (0.75, 0.25)
    assert add_up({"a": counts, "b": counts}) == Counts(8, 6, 8, 2)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (40, 200), (80, 80)])
def test_a_turned_image_is_where_its_matrix_says(shape: tuple[int, int]) -> None:
    image = np.full(shape, 50, np.uint8)
    middle = shape[0] // 2, shape[1] // 2
    image[middle[0] - 1 : middle[0] + 2, middle[1] + 5 : middle[1] + 8] = 200
    part, turn = turned(image)
    row, column = np.unravel_index(part.argmax(), part.shape)
    place = turn @ (middle[1] + 6, middle[0], 1)
    assert np.hypot(column - place[0], row - place[1]) < 1.5
    assert part.min() == 50  # nothing of what lies beyond the picture, which is black
    assert part.size > 0.05 * image.size


@pytest.mark.shared
def test_opencvs_own_features_give_the_reference_counts() -> None:
    if not reference.SHARED.is_dir() or not SEQUENCES.is_dir():
        pytest.skip("needs ../shared/surf_reference and ../shared/photos")
    known = json.loads((reference.SHARED / "matching_reference.json").read_text(encoding="utf-8"))
    one, other = (reference.shared(f"graf{number}.default") for number in (1, 3))
    counts = count_pair(
        (one.keypoints, one.descriptors),
        (other.keypoints, other.descriptors),
        np.loadtxt(SEQUENCES / "graf" / "H1to3p"),
        (other.image.shape[0], other.image.shape[1]),
    )
    pair = known["opencv_surf_500"]["pairs"]["graf/1-3"]
    assert counts == Counts(
        *(pair[n] for n in ("visible", "repeated", "mutual_matches", "correct"))
    )
