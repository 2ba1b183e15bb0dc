"""Decoding: every kind of picture gives the right pixels, every kind of damage its own code."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from heavy import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.config import ImageLimits
from pipeline.decoders import decode_query, read_query
from pipeline.errors import ImageReadError, InputError
from pipeline.images import (
    FAILURE_CODES,
    DecodedImage,
    decode_image,
    from_array,
    hash_bytes,
)
from pipeline.pixels import reduced_size

LIMITS = ImageLimits()
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")

Bytes = NDArray[np.uint8]


def checker(width: int = 120, height: int = 80, tile: int = 10) -> Bytes:
    """A grey picture of random tiles, unlike itself under every turn and flip."""
    rng = np.random.default_rng(7)
    tiles = rng.integers(0, 256, (height // tile, width // tile))
    return np.kron(tiles, np.ones((tile, tile))).astype(np.uint8)


def coloured(width: int = 120, height: int = 80) -> Image.Image:
    grey = checker(width, height)
    return Image.fromarray(np.stack([grey, grey[::-1], grey[:, ::-1]], axis=2))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decode(data: bytes, max_side: int = 1024, color: bool = False) -> DecodedImage:
    return decode_image(data, name="picture", limits=LIMITS, max_side=max_side, color=color)


def failure(data: bytes, **options: object) -> ImageReadError:
    arguments = {"name": "picture", "limits": LIMITS, "max_side": 1024} | options
    with pytest.raises(ImageReadError) as caught:
        decode_image(data, **arguments)  # type: ignore[arg-type]
    assert caught.value.code in FAILURE_CODES
    assert caught.value.sentence
    return caught.value


def png(header: tuple[int, int, int, int], rows: bytes) -> bytes:
    """A PNG by hand: width, height, bits, colour type; for what Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    start = struct.pack(">IIBBBBB", *header, 0, 0, 0)
    body = chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


class TestFormats:
    @pytest.mark.parametrize("kind", FORMATS)
    def test_every_format_gives_its_picture(self, kind: str) -> None:
        image = decode(encode(coloured(), kind))
        assert (image.width, image.height) == (120, 80)
        assert image.pixels.dtype == np.uint8
        wanted = np.asarray(coloured().convert("L")).astype(int)
        assert np.abs(image.pixels - wanted).mean() < 3

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    def test_colour_is_bgr_as_opencv_has_it(self, kind: str) -> None:
        red = Image.new("RGB", (64, 48), (250, 10, 20))
        pixels = decode(encode(red, kind), color=True).pixels
        assert pixels.shape == (48, 64, 3)
        assert pixels.flags.c_contiguous
        assert np.abs(pixels.astype(int) - (20, 10, 250)).max() <= 6

    def test_a_colour_picture_keeps_every_rule_of_a_grey_one(self) -> None:
        picture = coloured().resize((600, 400))
        exif = Image.Exif()
        exif[0x0112] = 6
        stream = io.BytesIO()
        picture.save(stream, "PNG", exif=exif)
        data = stream.getvalue()
        grey, colour = decode(data, 300), decode(data, 300, color=True)
        assert grey.pixels.shape == (300, 200)
        assert colour.pixels.shape == (300, 200, 3)
        assert (colour.width, colour.height) == (grey.width, grey.height) == (400, 600)
        blue, green, red = np.moveaxis(colour.pixels.astype(float), 2, 0)
        assert np.abs(0.299 * red + 0.587 * green + 0.114 * blue - grey.pixels).max() <= 2
        for broken, code in ((data[: len(data) // 2], "truncated"), (b"text", "not-an-image")):
            with pytest.raises(ImageReadError) as caught:
                decode(broken, color=True)
            assert caught.value.code == code
        with pytest.raises(ImageReadError, match="too-many-pixels"):
            decode_image(data, name="p", limits=ImageLimits(max_pixels=9), max_side=99, color=True)

    def test_the_colour_of_a_query_is_the_same_from_pixels_bytes_and_file(
        self, tmp_path: Path
    ) -> None:
        data = encode(coloured(), "PNG")
        (tmp_path / "a.png").write_bytes(data)
        sources = [np.asarray(coloured()), data, tmp_path / "a.png"]
        pixels = [
            decode_query(read_query(source, LIMITS), limits=LIMITS, max_side=60, color=True).pixels
            for source in sources
        ]
        assert pixels[0].shape == (40, 60, 3)
        assert all(np.array_equal(pixels[0], other) for other in pixels[1:])

    def test_the_name_of_a_file_does_not_matter(self) -> None:
        data = encode(Image.fromarray(checker()), "PNG")
        image = decode_image(data, name="photo.jpg", limits=LIMITS, max_side=1024)
        assert np.array_equal(image.pixels, checker())
        assert image.name == "photo.jpg"

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_an_animation_gives_its_first_frame(self, kind: str) -> None:
        first = Image.fromarray(checker())
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(
            first, kind, save_all=True, append_images=[Image.new("L", first.size)], **options
        )
        assert Image.open(io.BytesIO(data)).n_frames == 2
        assert np.array_equal(decode(data).pixels, checker())

    def test_one_pixel_is_a_picture(self) -> None:
        image = decode(encode(Image.new("L", (1, 1), 77), "PNG"))
        assert image.pixels.tolist() == [[77]]
        assert (image.scale_x, image.scale_y) == (1.0, 1.0)

    @pytest.mark.parametrize("width", [1, 100_000])
    def test_a_thin_strip_keeps_at_least_one_pixel(self, width: int) -> None:
        image = decode(encode(Image.new("L", (width, 100_001 - width), 9), "PNG"))
        assert sorted(image.pixels.shape) == [1, 1024]
        assert (image.pixels == 9).all()


class TestDepthAndColour:
    def test_16_bit_grey_is_scaled_not_clipped(self) -> None:
        wide = Image.fromarray(checker().astype(np.uint16) * 257)
        for kind in ("PNG", "TIFF"):
            assert np.array_equal(decode(encode(wide, kind)).pixels, checker())

    def test_16_bit_netpbm_is_scaled_by_its_own_greatest_value(self) -> None:
        values = (checker().astype(np.uint16) * 16).astype(">u2").tobytes()
        pixels = decode(b"P5 120 80 4080\n" + values).pixels
        assert np.abs(pixels.astype(int) - checker()).max() <= 1

    @pytest.mark.parametrize(("channels", "colour_type"), [(3, 2), (4, 6)])
    def test_16_bit_rgb_is_scaled_not_clipped(self, channels: int, colour_type: int) -> None:
        wide = np.repeat(checker()[:, :, None].astype(np.uint16) * 257, channels, axis=2)
        wide[:, :, 3:] = 65535
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
        assert np.array_equal(decode(png((120, 80, 16, colour_type), rows)).pixels, checker())

    def test_32_bit_integers_within_16_bit_are_taken_as_16_bit(self) -> None:
        wide = Image.fromarray(checker().astype(np.int32) * 257)
        assert np.array_equal(decode(encode(wide, "TIFF")).pixels, checker())

    def test_32_bit_integers_beyond_are_stretched(self) -> None:
        values = np.array([[-1_000_000, 0, 1_000_000]], np.int32)
        assert decode(encode(Image.fromarray(values), "TIFF")).pixels.tolist() == [[0, 128, 255]]

    def test_floats_from_0_to_1_are_scaled(self) -> None:
        image = Image.fromarray((checker() / 255).astype(np.float32))
        assert np.array_equal(decode(encode(image, "TIFF")).pixels, checker())

    def test_floats_beyond_are_stretched_and_nan_is_the_darkest(self) -> None:
        values = np.array([[np.nan, 10.0, 20.0, 30.0]], np.float32)
        assert decode(encode(Image.fromarray(values), "TIFF")).pixels.tolist() == [[0, 0, 128, 255]]

    def test_a_wide_picture_of_one_value_is_flat(self) -> None:
        image = Image.fromarray(np.full((4, 4), 7e9, np.float32))
        assert not decode(encode(image, "TIFF")).pixels.any()

    @pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
    def test_cmyk_gives_the_same_grey_as_rgb(self, kind: str) -> None:
        pixels = decode(encode(coloured().convert("CMYK"), kind)).pixels
        wanted = np.asarray(coloured().convert("L")).astype(int)
        assert np.abs(pixels - wanted).mean() < 3

    def test_lab_gives_its_lightness(self) -> None:
        lab = Image.merge("LAB", [Image.fromarray(checker())] * 3)
        assert np.array_equal(decode(encode(lab, "TIFF")).pixels, checker())

    @pytest.mark.parametrize("mode", ["LA", "RGBA"])
    def test_transparent_parts_are_white(self, mode: str) -> None:
        image = Image.fromarray(checker()).convert(mode)
        alpha = np.full((80, 120), 255, np.uint8)
        alpha[:, 60:] = 0
        image.putalpha(Image.fromarray(alpha))
        for kind in ("PNG", "TIFF"):
            pixels = decode(encode(image, kind)).pixels
            assert np.array_equal(pixels[:, :60], checker()[:, :60])
            assert (pixels[:, 60:] == 255).all()

    def test_a_transparent_palette_colour_is_white(self) -> None:
        image = Image.new("P", (20, 10), 0)
        image.putpalette([0, 0, 0, 100, 100, 100])
        image.paste(1, (10, 0, 20, 10))
        for kind in ("PNG", "GIF"):
            pixels = decode(encode(image, kind, transparency=0)).pixels
            assert (pixels[:, :10] == 255).all()
            assert (pixels[:, 10:] == 100).all()

    def test_a_palette_and_black_and_white_become_grey(self) -> None:
        dots = Image.fromarray(checker() > 128)
        assert np.array_equal(decode(encode(dots, "PNG")).pixels, (checker() > 128) * 255)
        palette = Image.fromarray(checker()).convert("P")
        assert np.array_equal(decode(encode(palette, "PNG")).pixels, checker())


class TestOrientationAndSize:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
    def test_exif_orientation_is_applied(self, kind: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = encode(Image.fromarray(checker()), kind, exif=exif, quality=95)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(stored)).convert("L"))
        image = decode(stored)
        assert (image.width, image.height) == upright.size
        assert (image.width < image.height) == (orientation >= 5)
        assert np.abs(image.pixels - np.asarray(upright).astype(int)).max() <= 3

    def test_an_unknown_orientation_and_damaged_exif_leave_the_picture_as_it_is(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 77
        plain = Image.fromarray(checker())
        assert np.array_equal(decode(encode(plain, "PNG", exif=exif)).pixels, checker())
        damaged = encode(plain, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f garbage")
        assert np.array_equal(decode(damaged).pixels, checker())

    @pytest.mark.parametrize(
        ("kind", "factor", "tolerance"),
        # JPEG leaves out detail while it decodes, by powers of two up to 8.
        [("PNG", 2, 0.51), ("PNG", 10, 0.51), ("JPEG", 2, 4), ("JPEG", 4, 4), ("JPEG", 8, 4)],
    )
    def test_a_reduced_picture_has_the_mean_of_every_block(
        self, kind: str, factor: int, tolerance: float
    ) -> None:
        original = checker(2400, 1600, tile=50)
        image = decode(encode(Image.fromarray(original), kind, quality=95), 2400 // factor)
        assert image.pixels.shape == (1600 // factor, 2400 // factor)
        assert (image.width, image.height) == (2400, 1600)
        assert (image.scale_x, image.scale_y) == (factor, factor)
        blocks = original.reshape(1600 // factor, factor, 2400 // factor, factor)
        assert np.abs(image.pixels - blocks.mean(axis=(1, 3))).max() <= tolerance

    def test_small_pictures_are_not_enlarged(self) -> None:
        assert decode(encode(Image.fromarray(checker()), "PNG")).pixels.shape == (80, 120)

    @given(st.integers(1, 100_000), st.integers(1, 100_000), st.integers(32, 2048))
    def test_the_reduced_size_keeps_the_shape(self, width: int, height: int, side: int) -> None:
        w, h = reduced_size(width, height, side)
        longest = max(width, height)
        assert max(w, h) == min(longest, side)
        scale = max(w, h) / longest
        assert abs(w - max(1, width * scale)) <= 0.5
        assert abs(h - max(1, height * scale)) <= 0.5


class TestFailures:
    def test_an_empty_file(self) -> None:
        assert failure(b"").code == "empty-file"

    @pytest.mark.parametrize(
        "data", [b"hello, I am a text", bytes(1000), b"<html><body></body></html>"]
    )
    def test_something_that_is_no_image(self, data: bytes) -> None:
        assert failure(data).code == "not-an-image"

    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "HEIC"),
            (b"8BPS\0\x01" + bytes(50), "Photoshop"),
            (b"%PDF-1.7 ...", "PDF"),
            (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "JPEG XL"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "SVG"),
        ],
    )
    def test_a_format_that_is_not_supported_is_named(self, data: bytes, kind: str) -> None:
        error = failure(data)
        assert error.code == "unsupported-format"
        assert kind in error.sentence

    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    @pytest.mark.parametrize("kind", FORMATS)
    def test_a_file_that_ends_early_is_truncated(self, kind: str, share: float) -> None:
        data = encode(coloured(), kind)
        assert failure(data[: int(len(data) * share)]).code == "truncated"

    def test_a_compressed_tiff_that_ends_early_is_truncated(self) -> None:
        data = encode(coloured(), "TIFF", compression="tiff_lzw")
        assert failure(data[: len(data) // 2]).code == "truncated"

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "AVIF"])
    def test_overwritten_data_is_corrupt(self, kind: str) -> None:
        data = encode(coloured(), kind)
        third = len(data) // 3
        assert failure(data[:third] + b"\xff" * 100 + data[third + 100 :]).code == "corrupt"

    @pytest.mark.parametrize("start", [b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0\x08\0\0\0"])
    def test_a_signature_with_rubbish_behind_it_is_corrupt(self, start: bytes) -> None:
        assert failure(start + b"rubbish " * 20).code == "corrupt"

    def test_a_picture_of_400_million_pixels_is_refused_before_it_is_decoded(self) -> None:
        # The rows are missing: only a refusal by the header can give this code.
        started = time.process_time()
        error = failure(png((20_000, 20_000, 8, 2), b""))
        assert error.code == "too-many-pixels"
        assert "20,000 x 20,000" in error.sentence
        assert time.process_time() - started < 1

    def test_pixels_are_limited_exactly(self) -> None:
        data = encode(Image.fromarray(checker()), "PNG")
        assert failure(data, limits=ImageLimits(max_pixels=9_599)).code == "too-many-pixels"
        decode_image(data, name="x", limits=ImageLimits(max_pixels=9_600), max_side=1024)

    def test_more_than_twice_the_limit_is_refused_too(self) -> None:
        data = encode(Image.fromarray(checker()), "WEBP")
        assert failure(data, limits=ImageLimits(max_pixels=100)).code == "too-many-pixels"

    def test_pillows_own_limit_does_not_bind_and_is_put_back(self) -> None:
        before = Image.MAX_IMAGE_PIXELS
        width, height = 19_000, 10_000
        image = decode(png((width, height, 1, 0), bytes((width // 8 + 1) * height)))
        assert (image.width, image.height) == (width, height)
        assert before == Image.MAX_IMAGE_PIXELS

    def test_bytes_are_limited(self) -> None:
        data = encode(Image.fromarray(checker()), "PNG")
        limits = ImageLimits(max_bytes=len(data) - 1)
        assert failure(data, limits=limits).code == "too-large-bytes"

    @settings(max_examples=examples(300), deadline=None)
    @given(st.sampled_from(FORMATS), st.data())
    def test_every_damage_is_an_image_read_error(self, kind: str, data: st.DataObject) -> None:
        content = bytearray(encode(coloured(40, 20), kind))
        for _ in range(data.draw(st.integers(1, 8))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        del content[data.draw(st.integers(0, len(content))) :]
        limits = ImageLimits(max_pixels=1_000_000)
        try:
            image = decode_image(bytes(content), name="x", limits=limits, max_side=64)
        except ImageReadError as error:
            assert error.code in FAILURE_CODES  # noqa: PT017
        else:
            assert max(image.pixels.shape) <= 64


class TestArraysAndQueries:
    @pytest.mark.parametrize(
        "array",
        [
            checker(),
            checker()[:, :, None],
            np.repeat(checker()[:, :, None], 3, axis=2),
            checker().astype(np.uint16) * 257,
            (checker() / 255).astype(np.float32),
            checker() / 255,
            np.asfortranarray(checker()),
            np.dstack([checker()] * 3 + [np.full((80, 120), 255, np.uint8)]),
        ],
        ids=["grey", "one-channel", "rgb", "uint16", "float32", "float64", "fortran", "rgba"],
    )
    def test_every_common_array_is_the_same_picture(self, array: NDArray[np.generic]) -> None:
        image = from_array(array, max_side=1024)
        assert np.array_equal(image.pixels, checker())
        assert (image.width, image.height) == (120, 80)

    def test_a_mask_is_black_and_white(self) -> None:
        assert np.array_equal(from_array(checker() > 9, max_side=999).pixels, (checker() > 9) * 255)

    def test_an_array_is_reduced(self) -> None:
        image = from_array(checker(), max_side=60)
        assert image.pixels.shape == (40, 60)
        assert (image.width, image.height, image.scale_x) == (120, 80, 2.0)

    @pytest.mark.parametrize(
        ("array", "part"),
        [
            (np.zeros(5, np.uint8), r"\(5,\)"),
            (np.zeros((2, 5, 5, 3), np.uint8), r"\(2, 5, 5, 3\)"),
            (np.zeros((5, 5, 2), np.uint8), r"\(5, 5, 2\)"),
            (np.zeros((0, 5), np.uint8), "at least one pixel"),
            (np.zeros((5, 5), np.int64), "int64"),
            (np.zeros((5, 5), np.complex64), "complex64"),
            (np.full((5, 5), 255.0), "from 0 to 1"),
            (np.full((5, 5), np.nan), "from 0 to 1"),
        ],
    )
    def test_the_error_of_a_wrong_array_says_what_is_allowed(
        self, array: NDArray[np.generic], part: str
    ) -> None:
        with pytest.raises(InputError, match=part):
            from_array(array, max_side=1024)

    def test_path_text_and_bytes_are_the_same_query(self, tmp_path: Path) -> None:
        data = encode(coloured(), "PNG")
        path = tmp_path / "query é\n.png"
        path.write_bytes(data)
        queries = [read_query(source, LIMITS) for source in (path, str(path), data)]
        assert {query.sha256 for query in queries} == {hash_bytes(data)}
        images = [decode_query(query, limits=LIMITS, max_side=64) for query in queries]
        assert all(np.array_equal(image.pixels, images[0].pixels) for image in images)

    def test_the_digest_of_an_array_covers_shape_dtype_and_values(self) -> None:
        grey = np.zeros((4, 6), np.uint8)
        others = [grey.reshape(6, 4), grey + np.uint8(1), grey.astype(np.float32)]
        digests = {read_query(array, LIMITS).sha256 for array in [grey, *others]}
        assert len(digests) == 4
        strided = np.zeros((4, 12), np.uint8)[:, ::2]
        assert read_query(strided, LIMITS).sha256 in digests

    def test_an_identity_is_the_sha256_of_the_bytes(self) -> None:
        assert hash_bytes(b"abc").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")
