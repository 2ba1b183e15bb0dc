"""Synthetic views: what each does to pixels, that they repeat, and the ground truth they write."""

import io

import numpy as np
import pytest
from heavy import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipeline.errors import InputError, UnknownNameError
from pipeline.evaluation import read_dataset
from pipeline.evaluation.transforms import (
    MIRROR,
    STANDARD,
    blur,
    crop,
    get_transform,
    light,
    make_views,
    mirror,
    resize,
    rotate,
    tilt,
    view_bytes,
)

pictures = arrays(np.uint8, st.tuples(st.integers(8, 40), st.integers(8, 40), st.just(3)))


def scene(height=60, width=90):
    """A picture in which every place looks different."""
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 3 * y, (x * y) % 251], axis=-1).astype(np.uint8)


def png(pixels, **options):
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG", **options)
    return target.getvalue()


def test_a_quarter_turn_moves_every_pixel_to_its_place():
    pixels = scene(60, 60)
    turned = rotate(pixels, 90)
    assert turned.shape == pixels.shape
    # The rotation is about the centre of the canvas, half a pixel off the centre of the samples.
    np.testing.assert_array_equal(turned[1:, :], np.rot90(pixels)[:-1, :])


def test_a_turned_picture_is_not_cut_off():
    pixels = np.full((40, 80, 3), 128, np.uint8)
    corners = {(0, 0): 200, (0, 1): 220, (1, 0): 240, (1, 1): 250}
    for (down, right), value in corners.items():
        pixels[down * 34 : down * 34 + 6, right * 74 : right * 74 + 6] = value
    turned = rotate(pixels, 30)
    assert turned.shape[:2] == (round(40 * 0.8660254 + 80 * 0.5), round(80 * 0.8660254 + 40 * 0.5))
    for value in corners.values():
        assert np.count_nonzero(turned[:, :, 0] == value) > 15


def test_scale_crop_and_perspective_change_the_size_as_said():
    pixels = scene(60, 90)
    assert resize(pixels, 0.5).shape == (30, 45, 3)
    assert resize(pixels, 1.5).shape == (90, 135, 3)
    np.testing.assert_array_equal(crop(pixels, 0.6), pixels[6:42, 9:63])
    assert tilt(pixels, 0.2).shape == (60, 81, 3)


def test_a_tilted_picture_keeps_its_left_edge_and_shrinks_its_right():
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:, :, 1] = 200
    pixels[:50] //= 2
    seen = tilt(pixels, 0.2)[:, :, 1]
    assert set(np.unique(seen[2:48, 2])) == {100}
    surround = pixels[:, :, 1].mean()
    right = seen[:, -3]
    assert np.count_nonzero(np.abs(right - surround) < 1) == pytest.approx(40, abs=4)


def test_light_follows_its_curve():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    expected = np.rint(255 * (np.arange(256) / 255) ** 1.8)
    np.testing.assert_array_equal(light(ramp, 1.8)[0, :, 0], expected)
    assert light(ramp, 1.0, 2.0)[0, :, 0].tolist() == [min(255, 2 * v) for v in range(256)]


@given(pictures)
@settings(max_examples=examples(30))
def test_mirroring_twice_is_nothing_and_blur_keeps_a_flat_picture(pixels):
    np.testing.assert_array_equal(mirror(mirror(pixels)), pixels)
    flat = np.broadcast_to(pixels[:1, :1], pixels.shape).copy()
    np.testing.assert_array_equal(blur(flat, 2.0), flat)


@given(pictures, st.sampled_from([*STANDARD, MIRROR]))
@settings(max_examples=examples(60))
def test_every_transform_gives_a_picture_and_leaves_its_input_alone(pixels, transform):
    before = pixels.copy()
    view = transform.apply(pixels)
    np.testing.assert_array_equal(pixels, before)
    assert view.dtype == np.uint8
    assert view.ndim == 3
    assert view.shape[2] == 3
    assert min(view.shape[:2]) >= 1


@pytest.mark.parametrize("transform", STANDARD, ids=lambda t: t.name)
def test_a_view_repeats_byte_for_byte(transform):
    data = png(scene())
    view = view_bytes(data, transform)
    assert view == view_bytes(data, transform)
    with Image.open(io.BytesIO(view)) as image:
        assert image.format == "JPEG"


def test_a_view_starts_from_the_upright_picture():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    data = png(scene(60, 90), exif=exif)
    with Image.open(io.BytesIO(view_bytes(data, get_transform("dark")))) as image:
        assert image.size == (60, 90)


def test_low_jpeg_quality_makes_a_smaller_file():
    data = png(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert len(view_bytes(data, get_transform("jpeg-15"))) < 0.5 * len(
        view_bytes(data, get_transform("dark"))
    )


def test_transforms_are_found_by_name():
    assert [get_transform(t.name) for t in STANDARD] == list(STANDARD)
    with pytest.raises(UnknownNameError, match="did you mean 'mirror'"):
        get_transform("miror")


def test_views_and_their_ground_truth_make_a_data_set(tmp_path):
    sources = []
    for name in ("one.png", "two.png", "three.png"):
        (tmp_path / name).write_bytes(png(scene() + len(name)))
        sources.append(tmp_path / name)
    dataset = read_dataset(make_views(sources, tmp_path / "set", transforms=STANDARD[:3]))
    assert dataset.database == ("database/one.png", "database/three.png", "database/two.png")
    assert dataset.subsets == ("rotation-30", "rotation-90", "scale-50")
    assert len(dataset.queries) == 9
    query = dataset.queries[0]
    assert query.path == "queries/one__rotation-30.jpg"
    assert query.relevant == {"database/one.png"}
    view = dataset.file(query.path).read_bytes()
    assert view == view_bytes(sources[0].read_bytes(), STANDARD[0])


def test_transforms_take_turns_when_a_photograph_gets_only_some(tmp_path):
    sources = []
    for number in range(4):
        sources.append(tmp_path / f"{number}.png")
        sources[-1].write_bytes(png(scene() + number))
    folder = make_views(sources, tmp_path / "set", transforms=STANDARD[:4], per_photograph=3)
    dataset = read_dataset(folder)
    counts = [sum(q.subset == name for q in dataset.queries) for name in dataset.subsets]
    assert counts == [3, 3, 3, 3]


def test_what_cannot_be_a_photograph_is_refused(tmp_path):
    with pytest.raises(InputError, match="no photograph"):
        make_views([], tmp_path)
    with pytest.raises(InputError, match="share the name 'a'"):
        make_views([tmp_path / "a.png", tmp_path / "b" / "a.jpg"], tmp_path)
    with pytest.raises(InputError, match="a view needs an image"):
        view_bytes(b"nothing", STANDARD[0])
