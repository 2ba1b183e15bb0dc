"""SURF descriptors: OpenCV's numbers, what must not change them, and which match better."""

from __future__ import annotations

from typing import get_args

import cv2
import numpy as np
import pytest
import surf_reference as reference
from numpy.typing import NDArray
from surf_reference import ANGLE, SIZE, Reference, X, Y

from pipeline.extraction.surf import describe, descriptor_loops, surf
from pipeline.extraction.surf.descriptor import LAYOUTS, compute_descriptors
from pipeline.extraction.surf.integral import integral_image
from pipeline.extraction.surf.variants import Variant

VARIANTS: tuple[Variant, ...] = get_args(Variant)
KINDS = [(variant, extended) for variant in VARIANTS for extended in (False, True)]


def keypoint(x: float, y: float, size: float, angle: float = 0.0) -> NDArray[np.float32]:
    return np.array([[x, y, size, angle, 1, 0, 1]], np.float32)


def cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    products: NDArray[np.float32] = np.einsum("nd,nd->n", one, other)
    return products


def inner(picture: Reference, margin: float = 14.0) -> NDArray[np.float32]:
    """Keypoints whose square, and whatever is turned with it, lies in the picture."""
    rows = picture.keypoints
    height, width = picture.image.shape
    reach = margin * np.sqrt(2) * rows[:, SIZE] * 1.2 / 9
    kept = (rows[:, X] > reach) & (rows[:, X] < width - reach)
    kept &= (rows[:, Y] > reach) & (rows[:, Y] < height - reach)
    return rows[kept]


def assert_same_descriptors(expected: Reference) -> None:
    extended, upright = expected.parameters["extended"], expected.parameters["upright"]
    ours = compute_descriptors(
        integral_image(expected.image), expected.keypoints, bool(extended), bool(upright)
    )
    assert ours.shape == expected.descriptors.shape
    agreement = cosines(ours, expected.descriptors)
    # 0.97 in the median would do. OpenCV rounds samples to whole grey levels, which decides on
    # the sign of small derivatives (the 128 numbers), and upright squares to whole pixels.
    assert np.median(agreement) > (0.997 if extended else 0.999)
    assert np.mean(agreement > 0.95) > 0.98


@pytest.mark.parametrize("name", reference.packaged_names())
def test_descriptors_are_those_of_opencv(name: str) -> None:
    assert_same_descriptors(reference.packaged(name))


@pytest.mark.shared
@pytest.mark.parametrize("name", reference.shared_names() or [""])
def test_descriptors_of_other_kinds_are_those_of_opencv(name: str) -> None:
    if not name:
        pytest.skip("needs ../shared/surf_reference")
    expected = reference.shared(name)
    if len(expected.keypoints):
        assert_same_descriptors(expected)


@pytest.mark.parametrize(("variant", "extended"), KINDS)
def test_rows_have_unit_length(variant: Variant, extended: bool) -> None:
    picture = reference.packaged("chelsea.png")
    rows = compute_descriptors(
        integral_image(picture.image), picture.keypoints, extended, variant=variant
    )
    assert rows.shape == (len(picture.keypoints), 128 if extended else 64)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert (variant == "interpolated") == bool((rows >= 0).all())


def test_a_ramp_has_one_derivative() -> None:
    rows, columns = np.mgrid[:200, :200]
    sums = integral_image((columns + 0 * rows).astype(np.uint8))
    for angle, place in ((0.0, 0), (90.0, 1)):
        # Turned by a quarter, the picture falls towards the top of the square.
        row = compute_descriptors(sums, keypoint(100, 100, 30, angle)).reshape(16, 4)
        sign = 1 if place == 0 else -1
        np.testing.assert_allclose(row[:, place], sign * row[:, place + 2], atol=1e-5)
        np.testing.assert_allclose(row[:, 1 - place], 0, atol=1e-5)
        assert row[5, place + 2] > 2 * row[0, place + 2]  # the Gaussian: inner cells weigh more
        interpolated = compute_descriptors(
            sums, keypoint(100, 100, 30, angle), variant="interpolated"
        )
        columns_used = np.flatnonzero(interpolated.reshape(16, 4).max(axis=0) > 1e-3)
        assert columns_used.tolist() == [0 if place == 0 else 3]


@pytest.mark.parametrize(("variant", "extended"), KINDS)
def test_a_quarter_turn_with_its_direction_changes_nothing(
    variant: Variant, extended: bool
) -> None:
    picture = reference.packaged("camera.png")
    there = inner(picture)
    after = there.copy()
    after[:, X], after[:, Y] = there[:, Y], picture.image.shape[1] - 1 - there[:, X]
    after[:, ANGLE] = there[:, ANGLE] - 90
    turned = np.ascontiguousarray(np.rot90(picture.image))
    one = compute_descriptors(integral_image(picture.image), there, extended, variant=variant)
    other = compute_descriptors(integral_image(turned), after, extended, variant=variant)
    assert len(there) > 100
    # In the 128 faithful numbers the sign of a derivative of nothing decides.
    assert np.median(cosines(one, other)) > 0.9999
    assert cosines(one, other).min() > 0.99


@pytest.mark.parametrize(("variant", "extended"), KINDS)
def test_light_and_contrast_change_little(variant: Variant, extended: bool) -> None:
    picture = reference.packaged("camera.png")
    dim = np.rint(picture.image * 0.6 + 40).astype(np.uint8)
    one = compute_descriptors(
        integral_image(picture.image), picture.keypoints, extended, variant=variant
    )
    other = compute_descriptors(integral_image(dim), picture.keypoints, extended, variant=variant)
    assert np.median(cosines(one, other)) > 0.99


@pytest.mark.parametrize("variant", VARIANTS)
def test_beyond_the_edge_lies_the_edge(variant: Variant) -> None:
    picture = reference.packaged("camera.png")
    margin = 200
    padded = cv2.copyMakeBorder(picture.image, *[margin] * 4, cv2.BORDER_REPLICATE)
    rows = picture.keypoints[~np.isin(picture.keypoints[:, X], inner(picture)[:, X])]
    moved = rows.copy()
    moved[:, [X, Y]] += margin
    one = compute_descriptors(integral_image(picture.image), rows, variant=variant)
    other = compute_descriptors(integral_image(padded.astype(np.uint8)), moved, variant=variant)
    assert len(rows) > 10
    assert np.median(cosines(one, other)) > 0.999
    # A box that is cut takes the mean of its inner part, not of the repeated edge.
    assert cosines(one, other).min() > 0.95


def test_a_sample_is_the_mean_of_its_box() -> None:
    picture = reference.packaged("camera.png").image
    sums = integral_image(picture)
    place = np.float32(200.3), np.float32(180.7)
    along, aside, box = np.float32(1.7), np.float32(-0.9), np.float32(2.6)
    side = 21
    inside, edge = np.zeros((2, side, side), np.float32)
    scratch = np.zeros((2, side), np.int32), np.zeros((2, side), np.int32)
    fractions = np.zeros((4, side), np.float32)
    descriptor_loops._sample_inside(
        sums.reshape(-1), sums.shape[1], *place, along, aside, box, *scratch, fractions, inside
    )
    descriptor_loops._sample_edge(sums, *place, along, aside, box, edge)
    np.testing.assert_allclose(inside, edge, rtol=2e-4)
    # The long way: each pixel's part of the box, at three points of the grid.
    middle = (side - 1) / 2
    for i, j in ((0, 0), (10, 10), (4, 17)):
        x = place[0] + (j - middle) * along - (i - middle) * aside
        y = place[1] + (j - middle) * aside + (i - middle) * along
        covered = [
            np.clip(
                np.minimum(np.arange(size) + 0.5, centre + box / 2)
                - np.maximum(np.arange(size) - 0.5, centre - box / 2),
                0,
                1,
            )
            for size, centre in ((picture.shape[0], y), (picture.shape[1], x))
        ]
        assert inside[i, j] == pytest.approx(covered[0] @ picture @ covered[1], rel=1e-3)


def test_cells_of_the_interpolated_square_share_every_gradient() -> None:
    faithful, interpolated = LAYOUTS["faithful"].weights, LAYOUTS["interpolated"].weights
    assert (np.count_nonzero(faithful, axis=0) == 1).all()
    assert (np.count_nonzero(interpolated, axis=0)[4:-4] == 2).all()
    for weights in (faithful, interpolated):
        np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-6)


def test_interpolated_descriptors_change_less_when_a_keypoint_lies_elsewhere() -> None:
    picture = reference.packaged("camera.png")
    sums = integral_image(picture.image)
    there = inner(picture, margin=16)
    moved = there.copy()
    moved[:, X] += 0.15 * there[:, SIZE]
    ranks = {}
    for variant in VARIANTS:
        one = compute_descriptors(sums, there, variant=variant)
        other = compute_descriptors(sums, moved, variant=variant)
        ranks[variant] = np.mean((one @ other.T).argmax(axis=1) == np.arange(len(there)))
    assert ranks["interpolated"] > ranks["faithful"] > 0.3


def test_interpolated_descriptors_match_better() -> None:
    correct = dict.fromkeys(VARIANTS, 0)
    mutual = dict.fromkeys(VARIANTS, 0)
    for name in reference.packaged_names():
        picture = reference.packaged(name).image
        turn = cv2.getRotationMatrix2D((200.0, 150.0), 25.0, 0.85)
        other = cv2.warpAffine(picture, turn, (picture.shape[1], picture.shape[0]))
        other = other.astype(np.uint8)
        for variant in VARIANTS:
            one, rows = surf(picture, max_features=300, variant=variant)
            two, others = surf(other, max_features=300, variant=variant)
            products = rows @ others.T
            best = products.argmax(axis=1)
            both = products.argmax(axis=0)[best] == np.arange(len(one))
            there = one[:, [X, Y]] @ turn[:, :2].T + turn[:, 2]
            right = both & (np.hypot(*(there - two[best][:, [X, Y]]).T) <= 4)
            correct[variant] += right.sum()
            mutual[variant] += both.sum()
    assert correct["interpolated"] > correct["faithful"] > 500
    precision = {variant: correct[variant] / mutual[variant] for variant in VARIANTS}
    assert precision["interpolated"] > precision["faithful"]


@pytest.mark.parametrize(("variant", "extended"), KINDS)
def test_what_cannot_be_described_is_zero(variant: Variant, extended: bool) -> None:
    flat = integral_image(np.full((60, 80), 90, np.uint8))
    assert not compute_descriptors(flat, keypoint(40, 30, 20), extended, variant=variant).any()
    sums = integral_image(reference.packaged("camera.png").image)
    places = [(np.nan, 1, 9), (1, np.inf, 9), (1, 1, np.nan), (1, 1, 9, np.nan)]
    rows = np.concatenate([keypoint(*place) for place in places])
    assert not compute_descriptors(sums, rows, extended, variant=variant).any()


@pytest.mark.parametrize(("variant", "extended"), KINDS)
def test_tiny_pictures_and_huge_or_tiny_keypoints(variant: Variant, extended: bool) -> None:
    sizes = np.random.default_rng(3)
    for shape in ((1, 1), (1, 50), (50, 1), (2, 3), (30, 40)):
        sums = integral_image(sizes.integers(0, 256, shape, dtype=np.uint8))
        rows = np.concatenate(
            [
                keypoint(x, y, size, 33)
                for x in (-5, 0, 60)
                for y in (0, 20)
                for size in (0.1, 9, 999)
            ]
        )
        described = compute_descriptors(sums, rows, extended, variant=variant)
        lengths = np.linalg.norm(described, axis=1)
        assert (np.isclose(lengths, 1, atol=1e-5) | (lengths == 0)).all()


def test_sums_that_wrapped_round_give_the_same() -> None:
    picture = reference.packaged("camera.png")
    sums = integral_image(picture.image)
    with np.errstate(over="ignore"):
        wrapped = sums + np.int32(2**31 - 1)
    for variant, extended in KINDS:
        one = compute_descriptors(sums, picture.keypoints, extended, variant=variant)
        other = compute_descriptors(wrapped, picture.keypoints, extended, variant=variant)
        np.testing.assert_array_equal(one, other)


def test_upright_takes_every_angle_as_upright() -> None:
    picture = reference.packaged("chelsea.png")
    turned = picture.keypoints.copy()
    turned[:, ANGLE] = 270
    _, one = describe(picture.image, picture.keypoints, upright=True)
    _, other = describe(picture.image, turned)
    np.testing.assert_array_equal(one, other)
