from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import IndexConfig
from pipeline.index.sampling import BACKGROUND_PER_IMAGE, BACKGROUND_SHARE, draw_samples

Image = tuple[str, NDArray[Any]]


def make_images(counts: Sequence[int]) -> list[Image]:
    """Images whose descriptors say which image and row they are."""
    return [
        (
            hashlib.sha256(str(i).encode()).hexdigest(),
            np.stack([np.full(count, i), np.arange(count)], axis=1),
        )
        for i, count in enumerate(counts)
    ]


def draw(images: list[Image], **config: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    settings = IndexConfig(**config)  # type: ignore[arg-type]
    return draw_samples(images, len(images), settings)


@pytest.mark.parametrize("sizes", [(16, 16), (100, 50), (10_000, 10_000)])
def test_the_samples_do_not_depend_on_the_order_of_the_images(sizes: tuple[int, int]) -> None:
    images = make_images([0, 1, 5, 200, 33, 8, 120, 64])
    config = {"sample_size": sizes[0], "background_size": sizes[1]}
    expected = draw(images, **config)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(images))
        found = draw([images[i] for i in order], **config)
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[1], expected[1])


def test_a_large_sample_takes_every_descriptor_once() -> None:
    images = make_images([3, 50, 7])
    training, _ = draw(images, sample_size=10_000)
    assert len(np.unique(training, axis=0)) == len(training) == 60


def test_no_image_gives_more_than_its_share() -> None:
    images = make_images([1, 7, 8, 16, 100, 1000])
    training, background = draw(images, sample_size=60, background_size=10_000)
    assert len(training) <= 60
    assert np.bincount(training[:, 0].astype(int)).max() <= 10
    taken = np.bincount(background[:, 0].astype(int))
    assert taken.tolist() == [1, 1, 1, 2, 12, BACKGROUND_PER_IMAGE]
    assert BACKGROUND_SHARE == 8


def test_the_background_is_cut_to_its_size() -> None:
    _, background = draw(make_images([400] * 20), background_size=100)
    assert len(background) == 100
    assert len(np.unique(background, axis=0)) == 100


def test_another_seed_draws_another_sample() -> None:
    images = make_images([300] * 4)
    one, other = draw(images, sample_size=100, seed=1), draw(images, sample_size=100, seed=2)
    assert not np.array_equal(one[0], other[0])
