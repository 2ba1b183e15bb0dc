"""Integral images: exact sums, also after the 32 bits have wrapped round."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.extraction.surf.integral import integral_image


def _box(sums: NDArray[np.int32], top: int, left: int, bottom: int, right: int) -> np.int32:
    with np.errstate(over="ignore"):
        total: np.int32 = (
            sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        )
    return total


@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (23, 1), (31, 47)])
def test_every_sum_is_exact(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(3).integers(0, 256, shape, np.uint8)
    sums = integral_image(image)
    assert sums.shape == (shape[0] + 1, shape[1] + 1)
    assert sums.dtype == np.int32
    assert not sums[0].any()
    assert not sums[:, 0].any()
    np.testing.assert_array_equal(sums[1:, 1:], image.astype(np.int64).cumsum(0).cumsum(1))


def test_views_give_the_same_sums_as_copies() -> None:
    image = np.random.default_rng(4).integers(0, 256, (40, 60), np.uint8)
    for view in (image[::2, 5:41:3], image[::-1], image.T):
        np.testing.assert_array_equal(integral_image(view), integral_image(view.copy()))


def test_boxes_stay_exact_in_an_image_whose_sums_pass_32_bits() -> None:
    image = np.full((3000, 6000), 255, np.uint8)  # 4.6e9 in all: wraps round twice
    image[2990, 5990] = 7
    sums = integral_image(image)
    assert sums.min() < 0
    for top, left, bottom, right in ((2900, 5900, 3000, 6000), (0, 5000, 3000, 6000)):
        exact = (bottom - top) * (right - left) * 255 - 248
        assert _box(sums, top, left, bottom, right) == exact
    assert _box(sums, 2990, 5990, 2991, 5991) == 7
