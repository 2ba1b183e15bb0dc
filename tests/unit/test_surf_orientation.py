"""Directions of SURF keypoints: OpenCV's, known ones, and those that are found again."""

from __future__ import annotations

from typing import get_args

import cv2
import numpy as np
import pytest
import surf_reference as reference
from numpy.typing import NDArray
from surf_reference import ANGLE, Reference, X, Y, angle_difference

from pipeline.extraction.surf.integral import integral_image
from pipeline.extraction.surf.orientation import UPRIGHT_DEG, assign_orientation
from pipeline.extraction.surf.variants import Variant

VARIANTS: tuple[Variant, ...] = get_args(Variant)


def keypoint(x: float, y: float, size: float) -> NDArray[np.float32]:
    return np.array([[x, y, size, -1, 1, 0, 1]], np.float32)


def ramp(degrees: float, side: int = 200, steepness: float = 0.5) -> NDArray[np.uint8]:
    """A picture that grows brighter in one direction."""
    rows, columns = np.mgrid[:side, :side] - side / 2
    along = columns * np.cos(np.radians(degrees)) + rows * np.sin(np.radians(degrees))
    return np.rint(127 + steepness * along).astype(np.uint8)


def assert_same_directions(expected: Reference) -> None:
    upright = bool(expected.parameters["upright"])
    angles, fits = assign_orientation(
        integral_image(expected.image), expected.keypoints, upright, "faithful"
    )
    assert fits.all()
    off = angle_difference(angles, expected.keypoints[:, ANGLE])
    # 95 % within 10 degrees would do. A response on the border of two degrees, which rounding
    # moves from one to the other, changes a few keypoints in a thousand.
    assert (off < 0.1).mean() >= 0.99
    assert (off < 10).mean() >= 0.995


@pytest.mark.parametrize("name", reference.packaged_names())
def test_directions_are_those_of_opencv(name: str) -> None:
    assert_same_directions(reference.packaged(name))


@pytest.mark.shared
@pytest.mark.parametrize("name", reference.shared_names() or [""])
def test_directions_in_other_pictures_are_those_of_opencv(name: str) -> None:
    if not name:
        pytest.skip("needs ../shared/surf_reference")
    expected = reference.shared(name)
    if name.split(".")[0] in ("flat", "blobs"):
        pytest.skip("has no keypoints, or round ones, whose directions are rounding errors")
    assert_same_directions(expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("degrees", [0, 17, 45, 90, 133, 180, 200, 270, 359])
def test_a_ramp_points_where_it_rises(variant: Variant, degrees: float) -> None:
    sums = integral_image(ramp(degrees))
    angles, fits = assign_orientation(sums, keypoint(99.5, 99.5, 40), variant=variant)
    assert fits.all()
    assert 0 <= angles[0] < 360
    # Grey levels are whole numbers; filters of 20 pixels average most of that out.
    assert angle_difference(angles, np.float32([degrees]))[0] < 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_quarter_turn_turns_the_directions(variant: Variant) -> None:
    expected = reference.packaged("camera.png")
    there = expected.keypoints.copy()
    back = there.copy()
    # Counter-clockwise: what was on the right is on top.
    back[:, X], back[:, Y] = there[:, Y], expected.image.shape[1] - 1 - there[:, X]
    angles, _ = assign_orientation(integral_image(expected.image), there, variant=variant)
    turned = integral_image(np.ascontiguousarray(np.rot90(expected.image)))
    after, _ = assign_orientation(turned, back, variant=variant)
    assert np.mean(angle_difference(after, angles - 90) < 5) > 0.95


def test_steady_directions_are_found_again_after_a_turn_more_often() -> None:
    found: dict[str, list[NDArray[np.float32]]] = {variant: [] for variant in VARIANTS}
    for name in reference.packaged_names():
        picture = reference.packaged(name)
        middle = (np.array(picture.image.shape[::-1]) - 1) / 2
        turn = cv2.getRotationMatrix2D((middle[0], middle[1]), -33.0, 1.0)
        turned = cv2.warpAffine(picture.image, turn, picture.image.shape[::-1])
        noise = np.random.default_rng(1).normal(0, 8, turned.shape)
        turned = np.clip(cv2.GaussianBlur(turned, (0, 0), 1.5) + noise, 0, 255)
        there = picture.keypoints[
            np.hypot(*(picture.keypoints[:, [X, Y]] - middle).T) < middle.min() * 0.7
        ]
        after = there.copy()
        after[:, [X, Y]] = there[:, [X, Y]] @ turn[:, :2].T + turn[:, 2]
        sums = integral_image(picture.image), integral_image(turned.astype(np.uint8))
        for variant in VARIANTS:
            one, _ = assign_orientation(sums[0], there, variant=variant)
            other, _ = assign_orientation(sums[1], after, variant=variant)
            found[variant].append(angle_difference(other, one + 33))
    share = {variant: np.mean(np.concatenate(off) < 10) for variant, off in found.items()}
    assert share["faithful"] > 0.7
    assert share["interpolated"] > share["faithful"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_keypoints_whose_filter_does_not_fit_have_no_direction(variant: Variant) -> None:
    sums = integral_image(np.zeros((40, 200), np.uint8))
    # Sides of 2 round(2 s), s = 0.133 size: 40 and 43 pixels of 40.
    rows = np.concatenate([keypoint(100, 20, size) for size in (60.0, 75.0, 82.0, 400.0)])
    _, fits = assign_orientation(sums, rows, variant=variant)
    assert fits.tolist() == [True, True, False, False]
    _, upright = assign_orientation(sums, rows, upright=True, variant=variant)
    assert upright.tolist() == [True, True, False, False]


@pytest.mark.parametrize("variant", VARIANTS)
def test_keypoints_without_size_or_place_do_no_harm(variant: Variant) -> None:
    sums = integral_image(ramp(30))
    places = [(np.nan, 9, 9), (9, np.inf, 9), (-1e30, 9, 9), (500, 100, 9), (9, 9, 0), (9, 9, -5)]
    rows = np.concatenate([keypoint(*place) for place in places])
    _, fits = assign_orientation(sums, rows, variant=variant)
    assert not fits.any()


def test_upright_is_opencvs_angle() -> None:
    angles, fits = assign_orientation(integral_image(ramp(30)), keypoint(99, 99, 20), upright=True)
    assert fits.all()
    assert angles.tolist() == [UPRIGHT_DEG]


def test_sums_that_wrapped_round_give_the_same() -> None:
    expected = reference.packaged("camera.png")
    sums = integral_image(expected.image)
    with np.errstate(over="ignore"):
        wrapped = sums + np.int32(2**31 - 1)
    for variant in VARIANTS:
        one, _ = assign_orientation(sums, expected.keypoints, variant=variant)
        other, _ = assign_orientation(wrapped, expected.keypoints, variant=variant)
        np.testing.assert_array_equal(one, other)


def test_no_keypoints() -> None:
    angles, fits = assign_orientation(integral_image(ramp(0)), np.zeros((0, 7), np.float32))
    assert angles.shape == fits.shape == (0,)
