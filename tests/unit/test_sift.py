"""SIFT: OpenCV's own keypoints and descriptors, in the pixels of the original picture."""

from __future__ import annotations

from importlib import resources

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from pipeline.config import ImageLimits
from pipeline.extraction.sift import SiftExtractor
from pipeline.images import DecodedImage, decode_image, from_array

ALL = 65535
X, Y, SIZE, ANGLE, RESPONSE, OCTAVE, LAPLACIAN = range(7)


def photo(name: str, max_side: int = 1024) -> DecodedImage:
    data = resources.files("skimage").joinpath("data", name).read_bytes()
    return decode_image(data, name=name, limits=ImageLimits(), max_side=max_side)


def blob(x: float, y: float, radius: float, size: int = 128) -> NDArray[np.uint8]:
    """A bright round spot on grey, its centre at a known place."""
    rows, columns = np.mgrid[:size, :size]
    distance = (columns - x) ** 2 + (rows - y) ** 2
    return (100 + 120 * np.exp(-distance / (2 * radius**2))).astype(np.uint8)


def test_a_blob_is_found_at_its_place_and_size() -> None:
    features = SiftExtractor().extract(from_array(blob(40, 70, 5), max_side=1024), ALL)
    nearest = features.keypoints[np.argmax(features.keypoints[:, RESPONSE])]
    assert nearest[[X, Y]] == pytest.approx((40, 70), abs=0.1)
    # A Gaussian spot of radius s answers most strongly at scale s; OpenCV's size is its diameter.
    assert nearest[SIZE] == pytest.approx(10, rel=0.25)


def test_coordinates_and_sizes_are_those_of_the_original() -> None:
    small = SiftExtractor().extract(from_array(blob(161.5, 283.5, 20, 512), max_side=128), ALL)
    strongest = small.keypoints[np.argmax(small.keypoints[:, RESPONSE])]
    assert (small.width, small.height) == (512, 512)
    assert strongest[[X, Y]] == pytest.approx((161.5, 283.5), abs=1.0)
    assert strongest[SIZE] == pytest.approx(40, rel=0.25)


def test_descriptors_are_opencvs_own() -> None:
    image = photo("coffee.png")
    features = SiftExtractor().extract(image, ALL)
    # The plain detector, whose floating descriptors are whole numbers.
    reference = cv2.SIFT.create(enable_precise_upscale=True)
    found, descriptors = reference.detectAndCompute(image.pixels, None)
    assert len(features) == len(found) > 500
    wanted = {
        (*k.pt, k.size, k.angle): row.astype(np.uint8).tobytes()
        for k, row in zip(found, descriptors, strict=True)
    }
    for keypoint, descriptor in zip(features.keypoints, features.descriptors, strict=True):
        assert wanted[tuple(keypoint[:4].tolist())] == descriptor.tobytes()


def test_octaves_are_numbers_and_there_is_no_laplacian() -> None:
    keypoints = SiftExtractor().extract(photo("astronaut.png"), ALL).keypoints
    octaves = np.unique(keypoints[:, OCTAVE])
    assert octaves.tolist() == list(range(-1, int(octaves[-1]) + 1))
    assert octaves[-1] >= 3
    assert not keypoints[:, LAPLACIAN].any()
    assert (keypoints[:, ANGLE] >= 0).all()
    assert (keypoints[:, ANGLE] <= 360).all()
    # A keypoint of octave o has a size between 1.6 and 3.2 times 2 to the o, in diameters.
    relative = keypoints[:, SIZE] / 2 ** (keypoints[:, OCTAVE] + 1)
    assert relative.min() > 1.5
    assert relative.max() < 4.0


def test_a_turned_picture_matches_itself() -> None:
    extractor = SiftExtractor()
    upright = photo("astronaut.png")
    turned = from_array(np.rot90(upright.pixels), max_side=1024)
    one, other = (extractor.extract(image, 500) for image in (upright, turned))
    near = extractor.normalize(one.descriptors) @ extractor.normalize(other.descriptors).T
    best = near.argmax(axis=1)
    # np.rot90 takes (x, y) to (y, width - 1 - x).
    moved = np.c_[one.keypoints[:, Y], upright.width - 1 - one.keypoints[:, X]]
    error = np.hypot(*(moved - other.keypoints[best][:, [X, Y]]).T)
    assert (error < 2).mean() > 0.85


def test_flat_and_tiny_pictures_have_no_features() -> None:
    for pixels in (np.full((200, 300), 128, np.uint8), np.zeros((1, 1), np.uint8)):
        features = SiftExtractor().extract(from_array(pixels, max_side=1024), 500)
        assert features.keypoints.shape == (0, 7)
        assert features.descriptors.shape == (0, 128)


@given(npst.arrays(np.uint8, (5, 128), elements=st.integers(0, 255)))
def test_root_sift_is_the_square_root_of_the_l1_normalised_row(rows: NDArray[np.uint8]) -> None:
    wanted = np.zeros((5, 128))
    for i, row in enumerate(rows.astype(float)):
        if row.any():
            wanted[i] = np.sqrt(row / np.abs(row).sum())
    normalized = SiftExtractor().normalize(rows)
    assert normalized.dtype == np.float32
    assert np.allclose(normalized, wanted, atol=1e-6)


def test_a_root_sift_row_by_hand() -> None:
    row = np.zeros((1, 128), np.uint8)
    row[0, :2] = (9, 16)
    assert SiftExtractor().normalize(row)[0, :3].tolist() == pytest.approx([0.6, 0.8, 0.0])
