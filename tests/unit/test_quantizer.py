from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.index.model import to_signed, to_unsigned
from pipeline.index.quantizer import train_quantizer


def sample(width: int, count: int = 400) -> NDArray[np.float32]:
    rng = np.random.default_rng(width)
    return (rng.normal(0, 1, (count, width)) * np.linspace(2, 0.2, width)).astype(np.float32)


@pytest.mark.parametrize("width", [3, 40, 64])
def test_distances_of_narrow_descriptors_are_kept_up_to_rounding(width: int) -> None:
    rows = sample(width)
    quantizer = train_quantizer(rows)
    codes = quantizer.encode(rows)
    unclipped = (np.abs(codes) < 127).all(axis=1)
    assert unclipped.sum() > 350
    rows, codes = rows[unclipped], codes[unclipped].astype(np.float64)
    true = np.linalg.norm(rows[:100, None] - rows[None, :100], axis=2)
    kept = np.linalg.norm(codes[:100, None] - codes[None, :100], axis=2) / quantizer.scale
    # Each component of each row is rounded by at most half a byte.
    assert np.abs(true - kept).max() <= np.sqrt(width) / quantizer.scale
    assert codes.shape[1] == 64


def test_wide_descriptors_keep_the_leading_axes_first() -> None:
    rows = sample(128)
    quantizer = train_quantizer(rows)
    codes = quantizer.encode(rows).astype(np.float64)
    variances = codes.var(axis=0)
    assert (variances[:-1] >= variances[1:] - 2).all()
    assert np.allclose(quantizer.rotation.T @ quantizer.rotation, np.eye(64), atol=1e-5)
    assert np.abs(codes).max() == 127


@pytest.mark.parametrize("count", [1, 2, 10])
def test_a_sample_smaller_than_its_width_is_enough(count: int) -> None:
    rows = sample(128, count)
    quantizer = train_quantizer(rows)
    assert np.isfinite(quantizer.rotation).all()
    assert quantizer.encode(rows).shape == (count, 64)
    assert np.allclose(quantizer.rotation.T @ quantizer.rotation, np.eye(64), atol=1e-5)


def test_equal_samples_train_equal_bytes() -> None:
    one, other = train_quantizer(sample(128)), train_quantizer(sample(128))
    assert one.rotation.tobytes() == other.rotation.tobytes()
    assert (one.scale, one.mean.tobytes()) == (other.scale, other.mean.tobytes())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    rows = sample(16)
    quantizer = train_quantizer(rows)
    rows[3, 5] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        quantizer.encode(rows)


@pytest.mark.parametrize("shape", [(3, 17), (16,), (1, 3, 16)])
def test_descriptors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    quantizer = train_quantizer(sample(16))
    with pytest.raises(InputError, match="rows of 16 numbers"):
        quantizer.encode(np.zeros(shape, np.float32))


def test_no_rows_encode_to_no_rows() -> None:
    assert train_quantizer(sample(16)).encode(np.empty((0, 16), np.float32)).shape == (0, 64)


def test_stored_bytes_are_the_signed_ones_plus_128() -> None:
    signed = np.arange(-128, 128, dtype=np.int8).reshape(4, 64)
    stored = to_unsigned(signed)
    assert stored.dtype == np.uint8
    assert np.array_equal(stored.astype(int), signed.astype(int) + 128)
    assert np.array_equal(to_signed(stored), signed)
