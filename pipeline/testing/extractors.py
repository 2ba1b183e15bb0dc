"""A test suite for extractors of all kinds, to inherit from.

Examples
--------
In a test module of the package that registers the extractor::

    class TestThumbnail(ExtractorContract):
        @pytest.fixture
        def extractor(self):
            return Thumbnail()
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.containers import container_arrays, read_container
from pipeline.extraction.base import Extractor
from pipeline.images import DecodedImage, from_array
from pipeline.records import KEYPOINT_COLUMNS, Features

__all__ = ["ExtractorContract", "drawn_pictures"]

_ODD_SHAPES = [(1, 1), (1, 700), (3, 2), (40, 40), (1024, 1)]


class ExtractorContract:
    """Tests of everything that `pipeline.extraction.base.Extractor` promises.

    Override the fixture `extractor`; `pictures` too, if drawn ones do not suit it.

    Attributes
    ----------
    tolerance : float
        How far the rows of `extract_many` may be from those of `extract`, in the Euclidean distance
        of unit vectors. Default 1e-3: float32 sums in another order stay well below, another
        picture is hundreds of times as far.
    """

    tolerance: float = 1e-3

    @pytest.fixture
    def extractor(self) -> Extractor:
        """Return the extractor that is tested."""
        raise NotImplementedError("override the fixture `extractor`")

    @pytest.fixture
    def pictures(self, extractor: Extractor) -> list[DecodedImage]:
        """Return at least three different pictures with keypoints."""
        return drawn_pictures(extractor.color)

    def test_it_says_what_it_is(self, extractor: Extractor) -> None:
        """All attributes exist and have the right types."""
        assert isinstance(extractor, Extractor)
        assert isinstance(extractor.name, str)
        assert extractor.name
        assert ":" not in extractor.name
        assert extractor.dimensions >= 1
        assert extractor.row_bytes % 64 == 0
        assert 64 <= extractor.row_bytes <= 4096
        for flag in (extractor.color, extractor.one_vector, extractor.whiten):
            assert isinstance(flag, bool)
        assert isinstance(extractor.licence, str)
        assert isinstance(extractor.patents, str)

    def test_shapes_and_dtypes(self, extractor: Extractor, pictures: list[DecodedImage]) -> None:
        """Every picture gives as many descriptors as keypoints, in the documented form."""
        for image in pictures:
            features = extractor.extract(image, 300)
            count = len(features)
            assert count == 1 if extractor.one_vector else 1 <= count <= 300
            assert features.keypoints.shape == (count, len(KEYPOINT_COLUMNS))
            assert features.keypoints.dtype == np.float32
            assert features.descriptors.shape == (count, extractor.dimensions)
            assert features.descriptors.dtype in (np.uint8, np.float32)
            assert np.isfinite(features.descriptors).all()
            assert features.keypoints.flags.c_contiguous
            assert features.descriptors.flags.c_contiguous
            assert (features.width, features.height) == (image.width, image.height)

    def test_no_more_features_than_asked_for(
        self, extractor: Extractor, pictures: list[DecodedImage]
    ) -> None:
        """`max_features` is a limit."""
        for wanted in (1, 7):
            assert len(extractor.extract(pictures[0], wanted)) <= wanted

    def test_keypoints_lie_in_the_original_picture(
        self, extractor: Extractor, pictures: list[DecodedImage]
    ) -> None:
        """Coordinates are those of the picture before it was reduced."""
        features = extractor.extract(replace(pictures[0], width=6000, height=4000), 500)
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

    def test_normalized_rows_have_unit_length(
        self, extractor: Extractor, pictures: list[DecodedImage]
    ) -> None:
        """Rows are compared by Euclidean distance, from 0 to 2."""
        descriptors = extractor.extract(pictures[0], 200).descriptors
        before = descriptors.copy()
        rows = extractor.normalize(descriptors)
        assert rows.dtype == np.float32
        assert rows.shape == descriptors.shape
        assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
        assert np.array_equal(descriptors, before)
        assert extractor.normalize(descriptors[:0]).shape == (0, extractor.dimensions)

    def test_the_same_picture_gives_the_same_features(
        self, extractor: Extractor, pictures: list[DecodedImage]
    ) -> None:
        """Finished work is found by its name: it must not depend on when it was done."""
        first = extractor.extract(pictures[0], 400)
        extractor.extract(pictures[1], 400)
        assert same(first, extractor.extract(pictures[0], 400))

    def test_different_pictures_give_different_features(
        self, extractor: Extractor, pictures: list[DecodedImage]
    ) -> None:
        """Features of different pictures differ."""
        first, *others = (extractor.extract(image, 400).descriptors for image in pictures)
        assert not any(np.array_equal(first, other) for other in others)

    def test_threads_do_not_disturb_each_other(
        self, extractor: Extractor, pictures: list[DecodedImage]
    ) -> None:
        """Queries are extracted in the threads of one process."""
        alone = [extractor.extract(image, 300) for image in pictures]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda image: extractor.extract(image, 300), pictures * 2))
        assert all(map(same, alone * 2, together))

    def test_many_pictures_at_once_give_what_each_gives_alone(
        self, extractor: Extractor, pictures: list[DecodedImage]
    ) -> None:
        """`extract_many` keeps the order, and the features but for rounding."""
        assert extractor.extract_many([], 300) == []
        images = [*pictures, pictures[0]]
        together = extractor.extract_many(images, 300)
        assert len(together) == len(images)
        for image, found in zip(images, together, strict=True):
            alone = extractor.extract(image, 300)
            assert np.array_equal(found.keypoints, alone.keypoints)
            assert found.descriptors.dtype == alone.descriptors.dtype
            assert (found.width, found.height) == (alone.width, alone.height)
            far = extractor.normalize(found.descriptors) - extractor.normalize(alone.descriptors)
            assert (np.linalg.norm(far, axis=1) <= self.tolerance).all()

    def test_a_picture_is_not_written_to(
        self, extractor: Extractor, pictures: list[DecodedImage]
    ) -> None:
        """Pixels may be read-only, and stay as they are."""
        image = pictures[0]
        image.pixels.flags.writeable = False
        before = image.pixels.copy()
        extractor.extract(image, 300)
        extractor.extract_many([image], 300)
        assert np.array_equal(image.pixels, before)

    @pytest.mark.parametrize("shape", _ODD_SHAPES)
    def test_a_flat_picture_of_any_shape_is_no_error(
        self, extractor: Extractor, shape: tuple[int, int]
    ) -> None:
        """Without keypoints, the arrays are empty and have the right shapes."""
        image = from_array(np.full(shape, 90, np.uint8), max_side=1024, color=extractor.color)
        features = extractor.extract(image, 500)
        assert features.keypoints.shape == (len(features), len(KEYPOINT_COLUMNS))
        assert features.descriptors.shape == (len(features), extractor.dimensions)
        assert np.isfinite(extractor.normalize(features.descriptors)).all()

    def test_features_survive_the_store(
        self, extractor: Extractor, pictures: list[DecodedImage]
    ) -> None:
        """A container returns what was stored."""
        done = [(f"{i:064x}", extractor.extract(p, 50)) for i, p in enumerate(pictures)]
        arrays, meta = container_arrays(done, [], extractor.dimensions)
        kept = dict(read_container(arrays, meta).items())
        assert all(same(features, kept[sha256]) for sha256, features in done)

    def test_warming_up_changes_nothing(
        self, extractor: Extractor, pictures: list[DecodedImage]
    ) -> None:
        """`warm_up` can be called at any time."""
        before = extractor.extract(pictures[0], 100)
        extractor.warm_up()
        assert same(before, extractor.extract(pictures[0], 100))


def same(one: Features, other: Features) -> bool:
    """Tell whether two features are equal to the last bit."""
    return (
        np.array_equal(one.keypoints, other.keypoints)
        and np.array_equal(one.descriptors, other.descriptors)
        and one.descriptors.dtype == other.descriptors.dtype
        and (one.width, one.height) == (other.width, other.height)
    )


def drawn_pictures(color: bool, seeds: Sequence[int] = (1, 2, 3)) -> list[DecodedImage]:
    """Draw pictures of a few hundred blobs and rectangles of all sizes, one from each seed."""
    return [
        from_array(
            _drawn(seed, 480 + 40 * i, 640), max_side=1024, color=color, name=f"drawn {seed}"
        )
        for i, seed in enumerate(seeds)
    ]


def _drawn(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Draw one picture, RGB."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128, np.uint8)
    for size in np.geomspace(120, 4, 300):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        half = (int(size * rng.uniform(0.5, 1)), int(size * rng.uniform(0.5, 1)))
        colour = [int(value) for value in rng.integers(0, 256, 3)]
        if rng.random() < 0.5:
            cv2.ellipse(picture, (x, y), half, float(rng.uniform(0, 180)), 0, 360, colour, -1)
        else:
            corner = (x + half[0], y + half[1])
            cv2.rectangle(picture, (x - half[0], y - half[1]), corner, colour, -1)
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 1.0), np.uint8)
