from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.index.quantizer import Quantizer, train_quantizer
from pipeline.index.rows import to_signed, to_unsigned


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


def whitened_float(rows: NDArray[np.float32], quantizer: Quantizer) -> NDArray[np.float64]:
    """Return the whitened unit rows of a quantizer, in plain numpy."""
    rotated = (rows.astype(np.float64) - quantizer.mean) @ quantizer.rotation
    return rotated / np.linalg.norm(rotated, axis=1, keepdims=True)


def test_a_large_sample_is_whitened_to_equal_variances() -> None:
    rows = sample(32, 20_000) @ np.linalg.qr(sample(32, 32))[0]
    rows = (rows + np.linspace(-3, 3, 32)).astype(np.float32)
    quantizer = train_quantizer(rows, whiten=True)
    rotated = (rows - quantizer.mean) @ quantizer.rotation[:, :32]
    assert np.allclose(np.cov(rotated.T), np.eye(32), atol=0.1)
    assert not quantizer.rotation[:, 32:].any()


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("width", [24, 64, 300])
@pytest.mark.parametrize("count", [3, 40, 2000])
def test_the_distance_of_unit_rows_is_their_cosine(width: int, count: int, whiten: bool) -> None:
    rows = sample(width, count)
    quantizer = train_quantizer(rows, 512, unit=True, whiten=whiten)
    codes = quantizer.encode(rows[:50]).astype(np.float64)
    unit = whitened_float(rows[:50], quantizer)
    squared = ((codes[:, None] - codes[None]) ** 2).sum(axis=2)
    cosine = 1 - squared / (2 * quantizer.scale**2)
    unclipped = (np.abs(codes) < 127).all(axis=1)
    assert unclipped.sum() >= min(count, 50) // 2
    error = np.abs(cosine - unit @ unit.T)[np.ix_(unclipped, unclipped)]
    # Half a byte a component: the difference of two rows is at most sqrt(width) bytes off.
    assert error.max() <= 2 * np.sqrt(width) / quantizer.scale + width / quantizer.scale**2


@pytest.mark.parametrize("kind", ["one row", "equal rows", "zero rows", "a line"])
def test_whitening_does_not_blow_up(kind: str) -> None:
    """Directions that the sample does not show count as much as the mean direction, not more."""
    made = sample(128, 1)
    rows = {
        "one row": made,
        "equal rows": np.repeat(made, 9, axis=0),
        "zero rows": np.zeros((4, 128), np.float32),
        "a line": made * np.linspace(-1, 1, 7, dtype=np.float32)[:, None],
    }[kind]
    quantizer = train_quantizer(rows, 128, whiten=True)
    assert np.isfinite(quantizer.rotation).all()
    assert 0 < quantizer.scale < 1e4
    asked = np.concatenate([rows, made + np.float32(0.01), sample(128, 5)])
    assert np.abs(quantizer.encode(asked)).max() <= 127


def test_what_all_pictures_share_does_not_count() -> None:
    """Unrelated pictures of a network have cosines near 1 as they are, near 0 once centred."""
    rows = np.random.default_rng(4).random((400, 128)).astype(np.float32) + 1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert (rows @ rows.T).mean() > 0.9
    quantizer = train_quantizer(rows, 128, unit=True)
    codes = quantizer.encode(rows).astype(np.float64)
    squared = ((codes[:, None] - codes[None]) ** 2).sum(axis=2)
    assert abs((1 - squared / (2 * quantizer.scale**2)).mean()) < 0.05


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("count", [2, 20, 100])
def test_a_picture_is_found_again_in_a_small_collection(count: int, whiten: bool) -> None:
    rng = np.random.default_rng(count)
    mean = rng.random(256) + 0.5  # as networks do: all components positive, one strong mean
    rows = mean + 0.2 * sample(256, count)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    quantizer = train_quantizer(rows, 256, unit=True, whiten=whiten)
    near = rows + rng.normal(0, 0.1 * rows.std(axis=0).mean(), rows.shape).astype(np.float32)
    stored, asked = quantizer.encode(rows).astype(np.int64), quantizer.encode(near).astype(np.int64)
    squared = ((stored[None] - asked[:, None]) ** 2).sum(axis=2)
    assert (squared.argmin(axis=1) == np.arange(count)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    rows = sample(16)
    quantizer = train_quantizer(rows)
    rows[3, 5] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        quantizer.encode(rows)


@pytest.mark.parametrize("unit", [False, True])
def test_a_row_has_the_same_bytes_alone_and_among_others(unit: bool) -> None:
    rows = sample(128, 300)
    quantizer = train_quantizer(rows, 128, unit)
    together = quantizer.encode(rows)
    for i in (0, 7, 299):
        assert np.array_equal(quantizer.encode(rows[i : i + 1])[0], together[i])


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
