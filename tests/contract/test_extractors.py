"""What every extractor owes the pipeline, whatever it computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from pipeline.config import ExtractorConfig, ImageLimits
from pipeline.errors import (
    ImageReadError,
    MissingRootError,
    NoFeaturesError,
    UnknownNameError,
)
from pipeline.extraction.base import Extractor
from pipeline.extraction.features import extract_batch, extract_image
from pipeline.extraction.registry import get_extractor, register
from pipeline.extraction.sift import SiftExtractor
from pipeline.images import DecodedImage, decode_image, from_array, hash_bytes
from pipeline.records import KEYPOINT_COLUMNS, Features

LIMITS = ImageLimits()
PHOTOS = ("astronaut.png", "coffee.png", "chelsea.png")


@pytest.fixture(params=["sift"])
def config(request: pytest.FixtureRequest) -> ExtractorConfig:
    return ExtractorConfig(name=request.param)


@pytest.fixture
def extractor(config: ExtractorConfig) -> Extractor:
    return get_extractor(config)


def photo_bytes(name: str) -> bytes:
    return resources.files("skimage").joinpath("data", name).read_bytes()


def photo(name: str) -> DecodedImage:
    return decode_image(photo_bytes(name), name=name, limits=LIMITS, max_side=1024)


def same(one: Features, other: Features) -> bool:
    return (
        np.array_equal(one.keypoints, other.keypoints)
        and np.array_equal(one.descriptors, other.descriptors)
        and (one.width, one.height) == (other.width, other.height)
    )


def test_it_is_an_extractor_under_its_name(extractor: Extractor, config: ExtractorConfig) -> None:
    assert isinstance(extractor, Extractor)
    assert extractor.name == config.name
    assert get_extractor(config) is extractor


@pytest.mark.parametrize("name", PHOTOS)
def test_shapes_and_dtypes(extractor: Extractor, name: str) -> None:
    image = photo(name)
    features = extractor.extract(image, 300)
    count = len(features)
    assert 1 <= count <= 300
    assert features.keypoints.shape == (count, len(KEYPOINT_COLUMNS))
    assert features.keypoints.dtype == np.float32
    assert features.descriptors.shape == (count, extractor.dimensions)
    assert features.descriptors.dtype in (np.uint8, np.float32)
    assert features.keypoints.flags.c_contiguous
    assert features.descriptors.flags.c_contiguous
    assert (features.width, features.height) == (image.width, image.height)


def test_keypoints_lie_in_the_original_picture(extractor: Extractor) -> None:
    features = extractor.extract(replace(photo("coffee.png"), width=6000, height=4000), 500)
    x, y, size = features.keypoints[:, :3].T
    assert np.isfinite(features.keypoints).all()
    assert (x >= -0.5).all()
    assert (x <= 5999.5).all()
    assert (y >= -0.5).all()
    assert (y <= 3999.5).all()
    assert (size > 0).all()
    if len(features) > 1:
        assert x.max() > 3000
        assert y.max() > 2000


def test_normalized_rows_have_unit_length(extractor: Extractor) -> None:
    rows = extractor.normalize(extractor.extract(photo("chelsea.png"), 200).descriptors)
    assert rows.dtype == np.float32
    assert rows.shape[1] == extractor.dimensions
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)


def test_the_same_picture_gives_the_same_features(extractor: Extractor) -> None:
    image = photo("astronaut.png")
    assert same(extractor.extract(image, 400), extractor.extract(image, 400))


def test_threads_do_not_disturb_each_other(extractor: Extractor) -> None:
    images = [photo(name) for name in PHOTOS] * 4
    alone = [extractor.extract(image, 300) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: extractor.extract(image, 300), images))
    assert all(map(same, alone, together))


def test_a_picture_is_not_written_to(extractor: Extractor) -> None:
    image = photo("chelsea.png")
    image.pixels.flags.writeable = False
    before = image.pixels.copy()
    extractor.extract(image, 300)
    assert np.array_equal(image.pixels, before)


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (3, 2), (40, 40), (1024, 1)])
def test_a_flat_picture_of_any_shape_is_no_error(
    extractor: Extractor, shape: tuple[int, int]
) -> None:
    features = extractor.extract(from_array(np.full(shape, 90, np.uint8), max_side=1024), 500)
    assert features.keypoints.shape == (len(features), len(KEYPOINT_COLUMNS))
    assert features.descriptors.shape == (len(features), extractor.dimensions)


class TestImagesAndBatches:
    def test_an_image_gives_as_many_features_as_its_configuration_says(
        self, config: ExtractorConfig
    ) -> None:
        config = replace(config, max_features=50)
        data = photo_bytes("astronaut.png")
        assert 1 <= len(extract_image(data, "a", config, LIMITS)) <= 50
        more = extract_image(data, "a", config, LIMITS, max_features=200)
        assert len(more) <= 200

    def test_an_image_without_keypoints_is_an_error_that_names_it(self) -> None:
        with pytest.raises(NoFeaturesError, match=r"color\.png"):
            extract_image(photo_bytes("color.png"), "color.png", ExtractorConfig(), LIMITS)

    def test_a_batch_keeps_its_failures_as_data(self, extractor: Extractor) -> None:
        good = photo_bytes("chelsea.png")
        contents = [good, b"no image", good[: len(good) // 2], b""]
        items = [(hash_bytes(c), self.reader(c), f"file {i}") for i, c in enumerate(contents)]

        def vanished() -> bytes:
            raise ImageReadError("file 4", "vanished", "there is no such file")

        items.append(("0" * 64, vanished, "file 4"))
        config = ExtractorConfig(name=extractor.name)
        done, failures = extract_batch(items, extractor, config, LIMITS)
        assert [sha256 for sha256, _ in done] == [hash_bytes(good)]
        assert same(done[0][1], extract_image(good, "x", config, LIMITS))
        assert [(f.sha256, f.code) for f in failures] == [
            (hash_bytes(contents[1]), "not-an-image"),
            (hash_bytes(contents[2]), "truncated"),
            (hash_bytes(contents[3]), "empty-file"),
            ("0" * 64, "vanished"),
        ]
        assert all(failure.sentence for failure in failures)

    def test_a_picture_without_keypoints_is_a_failure_of_a_batch(self) -> None:
        data = photo_bytes("color.png")
        items = [(hash_bytes(data), self.reader(data), "color.png")]
        done, failures = extract_batch(items, SiftExtractor(), ExtractorConfig(), LIMITS)
        assert (done, [f.code for f in failures]) == ([], ["no-features"])

    def test_content_that_changed_since_it_was_hashed_is_not_stored_under_the_old_name(
        self, extractor: Extractor
    ) -> None:
        items = [("f" * 64, self.reader(photo_bytes("chelsea.png")), "chelsea.png")]
        config = ExtractorConfig(name=extractor.name)
        done, failures = extract_batch(items, extractor, config, LIMITS)
        assert (done, [f.code for f in failures]) == ([], ["changed"])

    def test_what_is_not_an_images_fault_stops_the_batch(self, extractor: Extractor) -> None:
        def unmounted() -> bytes:
            raise MissingRootError("/photos")

        config = ExtractorConfig(name=extractor.name)
        with pytest.raises(MissingRootError):
            extract_batch([("0" * 64, unmounted, "a.jpg")], extractor, config, LIMITS)

    @staticmethod
    def reader(content: bytes) -> Callable[[], bytes]:
        return lambda: content


class TestRegistry:
    def test_an_unknown_name_says_what_is_meant(self) -> None:
        with pytest.raises(UnknownNameError, match="did you mean 'sift'"):
            get_extractor(ExtractorConfig(name="shift"))

    def test_a_name_can_be_taken_once(self) -> None:
        with pytest.raises(ValueError, match="registered already"):
            register("sift", lambda _config, _open_model: SiftExtractor())
