"""`surf`, `detect` and `describe` as they are called: OpenCV's results, odd input, threads."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
import surf_reference as reference
from numpy.typing import NDArray
from surf_reference import ANGLE, RESPONSE, SIZE, Reference, X, Y

from pipeline.config import ExtractorConfig
from pipeline.errors import ConfigError, InputError, UnknownNameError
from pipeline.extraction.registry import get_extractor
from pipeline.extraction.surf import SurfExtractor, describe, detect, surf
from pipeline.images import from_array


@pytest.fixture(scope="module")
def camera() -> NDArray[np.uint8]:
    return reference.packaged("camera.png").image


def assert_agrees(expected: Reference, directed: bool = True) -> None:
    keypoints, descriptors = surf(expected.image, **expected.parameters)
    assert abs(len(keypoints) - expected.total) <= 0.03 * expected.total
    assert descriptors.shape == (len(keypoints), expected.descriptors.shape[1])
    if not expected.total:
        return
    rows = reference.matched(keypoints, expected.keypoints)
    found = rows >= 0
    assert found.mean() >= 0.97
    ours, theirs = keypoints[rows[found]], expected.keypoints[found]
    turned = reference.angle_difference(ours[:, ANGLE], theirs[:, ANGLE])
    assert not directed or (turned <= 10).mean() >= 0.95
    if expected.parameters["upright"]:
        assert (turned == 0).all()
    cosines = np.einsum("nd,nd->n", descriptors[rows[found]], expected.descriptors[found])
    assert np.median(cosines) >= 0.97


@pytest.mark.parametrize("name", reference.packaged_names())
def test_keypoints_angles_and_descriptors_agree_with_opencv(name: str) -> None:
    assert_agrees(reference.packaged(name))


@pytest.mark.shared
@pytest.mark.parametrize("name", reference.shared_names() or [""])
def test_other_pictures_and_parameters_agree_alike(name: str) -> None:
    if not name:
        pytest.skip("needs ../shared/surf_reference")
    # Round blobs on flat ground have no direction: rounding decides.
    assert_agrees(reference.shared(name), directed=not name.startswith("blobs"))


@pytest.mark.parametrize("variant", ["faithful", "interpolated"])
@pytest.mark.parametrize("extended", [False, True])
def test_shapes_dtypes_and_unit_length(
    camera: NDArray[np.uint8], extended: bool, variant: Any
) -> None:
    keypoints, descriptors = surf(camera, extended=extended, variant=variant)
    assert keypoints.dtype == descriptors.dtype == np.float32
    assert descriptors.shape == (len(keypoints), 128 if extended else 64)
    assert keypoints.flags.c_contiguous
    assert descriptors.flags.c_contiguous
    assert np.linalg.norm(descriptors, axis=1) == pytest.approx(1, abs=1e-5)


def test_fewer_features_are_the_first_ones(camera: NDArray[np.uint8]) -> None:
    keypoints, descriptors = surf(camera)
    assert (np.diff(keypoints[:, RESPONSE]) <= 0).all()
    some, described = surf(camera, max_features=100)
    np.testing.assert_array_equal(some, keypoints[:100])
    np.testing.assert_array_equal(described, descriptors[:100])
    assert len(surf(camera, max_features=0)[0]) == 0
    assert len(surf(camera, max_features=10**6)[0]) == len(keypoints)


def test_detecting_and_describing_apart_is_the_same(camera: NDArray[np.uint8]) -> None:
    keypoints, descriptors = surf(camera, hessian_threshold=800, extended=True)
    alone = detect(camera, hessian_threshold=800)
    np.testing.assert_array_equal(alone, keypoints)
    again, described = describe(camera, alone, extended=True)
    np.testing.assert_array_equal(again, keypoints)
    np.testing.assert_array_equal(described, descriptors)


class TestDescribe:
    def test_angles_that_are_not_given_are_looked_for(self, camera: NDArray[np.uint8]) -> None:
        keypoints, descriptors = surf(camera, max_features=200)
        for given in (keypoints[:, :3], np.hstack([keypoints[:, :3], np.full((200, 1), -1)])):
            rows, described = describe(camera, given)
            np.testing.assert_array_equal(rows[:, :4], keypoints[:, :4])
            np.testing.assert_array_equal(rows[:, 4:], 0)
            np.testing.assert_array_equal(described, descriptors)

    def test_angles_that_are_given_are_taken(self, camera: NDArray[np.uint8]) -> None:
        given = np.array([[200.0, 180.0, 20.0, 45.0], [200.0, 180.0, 20.0, 225.0]])
        rows, described = describe(camera, given)
        np.testing.assert_array_equal(rows[:, ANGLE], [45, 225])
        assert described[0] @ described[1] < 0.9
        upright, same = describe(camera, given, upright=True)
        np.testing.assert_array_equal(upright[:, ANGLE], 270)
        np.testing.assert_array_equal(same[0], same[1])

    def test_keypoints_of_another_detector(self, camera: NDArray[np.uint8]) -> None:
        found = cv2.FastFeatureDetector_create(40).detect(camera)
        given = np.array([(k.pt[0], k.pt[1], 12.0) for k in found])
        rows, described = describe(camera, given)
        np.testing.assert_allclose(rows[:, [X, Y]], given[:, :2])  # also those at the edge
        assert np.isfinite(described).all()

    def test_keypoints_outside_or_too_large_do_no_harm(self) -> None:
        image = np.random.default_rng(8).integers(0, 256, (60, 50), np.uint8)
        given = np.array(
            [[25, 30, 15], [-400, 30, 15], [1e6, 1e6, 3], [25, 30, 4000], [25, 30, 1e9], [0, 0, 9]]
        )
        rows, described = describe(image, given)
        assert rows[0, SIZE] == 15
        assert len(rows) < len(given)
        assert len(described) == len(rows)
        assert np.isfinite(described).all()
        rows, described = describe(image, np.hstack([given, np.full((6, 1), 10.0)]))
        assert len(rows) == len(given)
        assert np.isfinite(described).all()

    def test_no_keypoint_gives_no_descriptor(self, camera: NDArray[np.uint8]) -> None:
        rows, described = describe(camera, np.zeros((0, 7)), extended=True)
        assert rows.shape == (0, 7)
        assert described.shape == (0, 128)

    @pytest.mark.parametrize(
        ("keypoints", "said"),
        [
            (np.zeros((3, 5)), r"not \(3, 5\)"),
            (np.zeros(7), r"not \(7,\)"),
            ([[1, 2, np.nan]], "not finite"),
            ([[1, 2, 0]], "has size 0"),
            ([[1, 2, -4]], "has size -4"),
            ("none", "not a str"),
            ([cv2.KeyPoint(1, 2, 3)], "not a list of other things"),
        ],
    )
    def test_keypoints_that_cannot_be_used_are_said(self, keypoints: object, said: str) -> None:
        with pytest.raises(InputError, match=said):
            describe(np.zeros((40, 40), np.uint8), keypoints)


def test_colour_and_unknown_descriptors_are_refused(camera: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match="convert colour first"):
        surf(np.dstack([camera] * 3))
    with pytest.raises(UnknownNameError, match="did you mean 'faithful'"):
        surf(camera, variant="faithfull")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="octaves is 0"):
        detect(camera, octaves=0)


def test_views_and_other_depths_give_the_same(camera: NDArray[np.uint8]) -> None:
    expected = surf(camera)
    views = (
        np.asfortranarray(camera),
        camera.astype(np.uint16) * 257,
        camera / 255,
        camera[..., None],
    )
    for view in views:
        for one, other in zip(surf(view), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_threads_and_repetition_give_the_same(camera: NDArray[np.uint8]) -> None:
    images = [np.ascontiguousarray(np.rot90(camera, turns)) for turns in range(4)] * 3
    alone = [surf(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(surf, images))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_a_turned_picture_has_the_same_keypoints_turned(camera: NDArray[np.uint8]) -> None:
    """Boxes are symmetric; the last row may fall between samples, so only the first octave."""
    keypoints, descriptors = surf(camera, octaves=1)
    turned, described = surf(np.ascontiguousarray(np.rot90(camera, 2)), octaves=1)
    moved = turned.copy()
    moved[:, X] = camera.shape[1] - 1 - turned[:, X]
    moved[:, Y] = camera.shape[0] - 1 - turned[:, Y]
    rows = reference.matched(moved, keypoints)
    assert (rows >= 0).mean() > 0.99
    found = rows >= 0
    angles = reference.angle_difference(
        turned[rows[found], ANGLE], (keypoints[found, ANGLE] + 180) % 360
    )
    assert (angles < 10).mean() > 0.9
    cosines = np.einsum("nd,nd->n", described[rows[found]], descriptors[found])
    assert np.median(cosines) > 0.98


class TestExtractor:
    def test_it_keeps_the_strongest_large_ones(self, camera: NDArray[np.uint8]) -> None:
        image = from_array(camera, max_side=1024)
        every = SurfExtractor().extract(image, 10**6).keypoints
        some = SurfExtractor().extract(image, 50).keypoints
        weight = every[:, RESPONSE] * every[:, SIZE]
        assert (some[:, RESPONSE] * some[:, SIZE]).min() >= np.sort(weight)[-50]
        assert len(some) == 50

    def test_options_come_from_the_configuration(self, camera: NDArray[np.uint8]) -> None:
        image = from_array(camera, max_side=1024)
        options = {"hessian_threshold": 2000, "extended": True, "upright": True}
        features = get_extractor(ExtractorConfig(name="surf", options=options)).extract(image, 999)
        expected, descriptors = surf(
            camera, 2000, extended=True, upright=True, variant="interpolated"
        )
        order = np.lexsort(features.keypoints.T)
        np.testing.assert_array_equal(features.keypoints[order], expected[np.lexsort(expected.T)])
        np.testing.assert_array_equal(
            features.descriptors[order], descriptors[np.lexsort(expected.T)]
        )

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"octaves": 0}, "octaves is 0"),
            ({"hessian_threshold": -3}, "hessian_threshold is -3"),
            ({"variant": "best"}, "'best'"),
            (
                {"treshold": 3},
                "option treshold is 3: there are extended, hessian_threshold",
            ),
            ({"layers": "3"}, "layers is '3': it takes a whole number"),
            ({"upright": 1}, "upright is 1: it takes true or false"),
            ({"octaves": True}, "octaves is True"),
        ],
    )
    def test_options_that_cannot_be_used_are_said(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(said)):
            get_extractor(ExtractorConfig(name="surf", options=options))

    def test_normalized_rows_of_no_contrast_stay_zero(self) -> None:
        rows = SurfExtractor().normalize(np.array([[0.0] * 64, [3.0] + [0.0] * 63]))
        np.testing.assert_array_equal(rows[:, 0], [0, 1])
        assert rows.dtype == np.float32
