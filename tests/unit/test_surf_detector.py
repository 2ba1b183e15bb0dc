"""SURF keypoints: those of OpenCV, its order, and pictures of any shape."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import surf_reference as reference
from numpy.typing import NDArray
from surf_reference import OCTAVE, RESPONSE, SIGN, SIZE, Reference, X, Y

from pipeline.errors import InputError
from pipeline.extraction.surf import hessian
from pipeline.extraction.surf.detector import check_parameters, find_keypoints, grey_pixels
from pipeline.extraction.surf.integral import integral_image


def keypoints_of(image: NDArray[np.uint8], **changed: float) -> NDArray[np.float32]:
    parameters = {"hessian_threshold": 500.0, "octaves": 4, "layers": 3, **changed}
    return find_keypoints(
        integral_image(image),
        parameters["hessian_threshold"],
        int(parameters["octaves"]),
        int(parameters["layers"]),
    )


def assert_same_keypoints(expected: Reference) -> None:
    wanted = ("hessian_threshold", "octaves", "layers")
    ours = keypoints_of(expected.image, **{name: expected.parameters[name] for name in wanted})
    # 97 % would do; but the filters are the same, so nearly every number is.
    assert len(ours) == expected.total
    rows = reference.matched(ours, expected.keypoints)
    assert (rows >= 0).all()
    both = ours[rows], expected.keypoints
    for column in (SIZE, OCTAVE, SIGN):
        np.testing.assert_array_equal(both[0][:, column], both[1][:, column])
    np.testing.assert_allclose(both[0][:, RESPONSE], both[1][:, RESPONSE], rtol=1e-4)
    off = np.abs(both[0][:, [X, Y]] - both[1][:, [X, Y]]).max(axis=1)
    assert (off >= 0.002).sum() <= 1  # a top as flat as a table lies where the last digit says
    # The same order, but for responses that differ in their last digits only.
    strongest = ours[: len(rows), RESPONSE]
    np.testing.assert_allclose(strongest, expected.keypoints[:, RESPONSE], rtol=1e-4)


@pytest.mark.parametrize("name", reference.packaged_names())
def test_keypoints_are_those_of_opencv(name: str) -> None:
    assert_same_keypoints(reference.packaged(name))


@pytest.mark.shared
@pytest.mark.parametrize("name", reference.shared_names() or [""])
def test_keypoints_of_other_pictures_and_parameters_are_those_of_opencv(name: str) -> None:
    if not name:
        pytest.skip("needs ../shared/surf_reference")
    assert_same_keypoints(reference.shared(name))


def test_a_flat_picture_has_none() -> None:
    assert len(keypoints_of(np.full((240, 320), 90, np.uint8), hessian_threshold=0)) == 0


@pytest.mark.parametrize(("sign", "ground", "spot"), [(1, 200, -120), (-1, 60, 120)])
def test_a_blob_is_found_at_its_place_size_and_sign(sign: int, ground: int, spot: int) -> None:
    rows, columns = np.mgrid[:260, :300]
    found = {}
    for radius in (6.0, 12.0):
        bell = np.exp(-((columns - 141.3) ** 2 + (rows - 120.8) ** 2) / (2 * radius**2))
        found[radius] = keypoints_of(np.rint(ground + spot * bell).astype(np.uint8))[0]
        assert found[radius][[X, Y]] == pytest.approx((141.3, 120.8), abs=0.25)
        assert found[radius][SIGN] == sign  # of the trace: positive for a dark blob
    assert found[12.0][SIZE] == pytest.approx(2 * found[6.0][SIZE], rel=0.1)


def test_a_shifted_picture_has_shifted_keypoints() -> None:
    image = np.random.default_rng(5).integers(0, 256, (200, 200), np.uint8)
    smooth = np.asarray(cv2.GaussianBlur(image, (0, 0), 1.5), np.uint8)
    whole, part = keypoints_of(smooth, octaves=1), keypoints_of(smooth[16:, 8:], octaves=1)
    inside = part[(part[:, X] > 30) & (part[:, Y] > 30)]
    moved = inside + np.array([8, 16, 0, 0, 0, 0, 0], np.float32)
    assert len(inside) > 20
    known = {tuple(row) for row in np.round(whole, 3).tolist()}
    assert sum(tuple(row) in known for row in np.round(moved, 3).tolist()) == len(moved)


def test_more_keypoints_than_a_photograph_has_are_all_found() -> None:
    image = np.random.default_rng(6).integers(0, 256, (300, 310), np.uint8)
    sums = integral_image(image)
    found = hessian.find_maxima(sums, 0, 3, 1.0)
    assert len(found) > 256 + image.size // 64  # beyond what is set aside at first
    assert len(np.unique(found[:, :3], axis=0)) == len(found)
    assert (found[:, RESPONSE] > 1).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (9, 9), (20, 21), (23, 200), (67, 64)])
@pytest.mark.parametrize("layers", [1, 3, 8])
def test_pictures_of_any_shape_are_no_error(shape: tuple[int, int], layers: int) -> None:
    image = np.random.default_rng(7).integers(0, 256, shape, np.uint8)
    found = keypoints_of(image, hessian_threshold=0, octaves=7, layers=layers)
    assert np.isfinite(found).all()
    assert (found[:, X] >= 0).all()
    assert (found[:, X] <= shape[1] - 1).all()
    assert (found[:, Y] >= 0).all()
    assert (found[:, Y] <= shape[0] - 1).all()
    transposed = keypoints_of(image.T, hessian_threshold=0, octaves=7, layers=layers)
    assert len(transposed) == len(found)


class TestInput:
    def test_a_grey_picture_is_taken_as_it_is(self) -> None:
        image = np.zeros((5, 7), np.uint8)
        assert grey_pixels(image) is image
        assert np.shares_memory(grey_pixels(image[:, :, None]), image)

    def test_other_depths_are_scaled(self) -> None:
        levels = np.arange(250, dtype=np.uint8).reshape(10, 25)
        for same in (
            levels / 255,
            (levels / 255).astype(np.float32),
            levels.astype(np.uint16) * 257,
            np.asfortranarray(levels),
            levels[::-1][::-1],
        ):
            np.testing.assert_array_equal(grey_pixels(same), levels)
            assert grey_pixels(same).flags.c_contiguous

    @pytest.mark.parametrize(
        ("image", "said"),
        [
            ([[1, 2], [3, 4]], "numpy array of grey levels, not a list"),
            (None, "not a NoneType"),
            (np.zeros((4, 4, 3), np.uint8), "convert colour first"),
            (np.zeros(9, np.uint8), r"shape \(H, W\), not \(9,\)"),
            (np.zeros((0, 5), np.uint8), "at least one pixel"),
            (np.zeros((5, 0)), "at least one pixel"),
            (np.zeros((0, 0), np.uint8), "at least one pixel"),
            (np.zeros((4, 4), np.int32), "not int32"),
            (np.full((4, 4), np.nan), "from 0 to 1"),
            (np.full((4, 4), 200.0), "from 0 to 1"),
            (np.array([["a"]], object), "not object"),
            (np.broadcast_to(np.uint8(0), (1 << 16, 1 << 15)), "cut it into tiles"),
        ],
    )
    def test_what_cannot_be_used_is_said(self, image: object, said: str) -> None:
        with pytest.raises(InputError, match=said):
            grey_pixels(image)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"hessian_threshold": -1},
            {"hessian_threshold": float("nan")},
            {"octaves": 0},
            {"octaves": 8},
            {"layers": 0},
            {"layers": 9},
            {"max_features": -1},
        ],
    )
    def test_parameters_that_cannot_be_used_are_said(self, wrong: dict[str, float]) -> None:
        good = {"hessian_threshold": 500, "octaves": 4, "layers": 3, "max_features": None}
        check_parameters(**good)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=str(next(iter(wrong)))):
            check_parameters(**{**good, **wrong})  # type: ignore[arg-type]
