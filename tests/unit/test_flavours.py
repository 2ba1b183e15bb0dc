"""Every depth, sign, layout and polarity gives the true pixels, or is refused with a reason."""

from __future__ import annotations

import io
import itertools
import struct
from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from picture_files import COMPRESSIONS, Tiff, coded, grey_of, png, png_chunk, truth
from PIL import Image

from pipeline.config import ImageLimits
from pipeline.errors import ImageReadError
from pipeline.images import DecodedImage, decode_image

RGB = truth()
GREY = grey_of(RGB)[:, :, None]
GREY = (GREY - GREY.min()) / np.ptp(GREY)
WHOLE = [1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32]
DEPTHS = [
    *((bits, "u") for bits in (*WHOLE, 64)),
    *((bits, "i") for bits in (8, 16, 32)),
    *((bits, "f") for bits in (16, 32, 64)),
]


def decode(data: bytes, color: bool = False) -> DecodedImage:
    return decode_image(data, name="x", limits=ImageLimits(), max_side=1024, color=color)


def refusal(data: bytes) -> ImageReadError:
    with pytest.raises(ImageReadError) as caught:
        decode(data)
    return caught.value


def check(data: bytes, wanted: NDArray[np.float64], tolerance: float = 1.6) -> None:
    """Compare decoded grey with numbers from 0 to 1."""
    pixels = decode(data).pixels
    assert pixels.shape == wanted.shape[:2]
    assert np.abs(pixels - wanted.reshape(pixels.shape) * 255).max() <= tolerance


def rounded(values: NDArray[np.float64], bits: int, kind: str) -> NDArray[np.float64]:
    """What few bits leave of a picture."""
    if kind != "u" or bits > 8:
        return values
    return np.rint(values * (2**bits - 1)) / (2**bits - 1)


@pytest.mark.parametrize(("bits", "kind"), DEPTHS)
class TestTiff:
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_grey_of_both_polarities(self, bits: int, kind: str, order: str) -> None:
        wanted = rounded(GREY, bits, kind)
        check(Tiff(bits, kind, 1, order).file(coded(GREY, bits, kind)), wanted)
        turned = coded(1 - wanted, bits, kind)
        check(Tiff(bits, kind, 0, order).file(turned), wanted)

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("planes", [False, True])
    def test_colours_together_and_in_planes(
        self, bits: int, kind: str, order: str, planes: bool
    ) -> None:
        data = Tiff(bits, kind, 2, order, planes).file(coded(RGB, bits, kind))
        check(data, grey_of(rounded(RGB, bits, kind)))
        pixels = decode(data, color=True).pixels[:, :, ::-1]
        assert np.abs(pixels - rounded(RGB, bits, kind) * 255).max() <= 1.6

    @pytest.mark.parametrize("planes", [False, True])
    def test_alpha_lies_on_paper(self, bits: int, kind: str, planes: bool) -> None:
        if kind == "i":
            pytest.skip("transparency with a sign has no agreed meaning")
        alpha = np.ones(GREY.shape)
        alpha[:, 24:] = 0
        picture = GREY.copy()
        picture[:, 16:24] = 0  # an outline that white paper shows
        wanted = rounded(np.where(alpha > 0, picture, 1), bits, kind)
        four = np.concatenate([np.repeat(picture, 3, axis=2), alpha], axis=2)
        for photometric, samples in ((1, four[:, :, 2:]), (2, four)):
            writer = Tiff(bits, kind, photometric, planes=planes, extra=2)
            check(writer.file(coded(samples, bits, kind)), wanted)

    def test_inks(self, bits: int, kind: str) -> None:
        if kind == "i" or bits == 1:
            pytest.skip("nobody writes such inks")
        inks = np.concatenate([1 - RGB, np.zeros_like(GREY)], axis=2)
        wanted = grey_of(1 - rounded(1 - RGB, bits, kind))
        check(Tiff(bits, kind, 5).file(coded(inks, bits, kind)), wanted, 2.5)

    def test_strips_tiles_and_large_files(self, bits: int, kind: str) -> None:
        samples = coded(RGB, bits, kind)
        wanted = grey_of(rounded(RGB, bits, kind))
        for writer in (
            Tiff(bits, kind, 2, rows_per_strip=7),
            Tiff(bits, kind, 2, planes=True, rows_per_strip=7),
            Tiff(bits, kind, 2, tile=16),
            Tiff(bits, kind, 2, ">", big=True),
        ):
            check(writer.file(samples), wanted)


class TestTiffCoding:
    @pytest.mark.parametrize("compression", sorted(COMPRESSIONS))
    @pytest.mark.parametrize(("bits", "kind"), [(8, "u"), (12, "u"), (16, "u"), (32, "f")])
    def test_compressions(self, bits: int, kind: str, compression: str) -> None:
        writer = Tiff(bits, kind, 2, compression=compression, rows_per_strip=11)
        check(writer.file(coded(RGB, bits, kind)), grey_of(RGB))

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize(
        ("bits", "kind", "predictor"),
        [(8, "u", 2), (16, "u", 2), (32, "u", 2), (16, "f", 3), (32, "f", 3), (64, "f", 3)],
    )
    def test_differences(self, bits: int, kind: str, predictor: int, order: str) -> None:
        for compression, planes in itertools.product(("deflate", "lzw"), (False, True)):
            writer = Tiff(bits, kind, 2, order, planes, None, compression, predictor)
            check(writer.file(coded(RGB, bits, kind)), grey_of(RGB))

    @pytest.mark.parametrize("compression", ["jpeg", "tiff_adobe_deflate", "group4"])
    @pytest.mark.parametrize("rows", [None, 16])
    def test_what_pillow_writes(self, compression: str, rows: int | None) -> None:
        picture = RGB if compression != "group4" else np.repeat(GREY > 0.5, 3, axis=2)
        image = Image.fromarray(np.rint(picture * 255).astype(np.uint8))
        stream = io.BytesIO()
        options: dict[str, object] = {"tiffinfo": {278: rows} if rows else {}}
        if compression == "jpeg":
            options["quality"] = 100
        image = image.convert("1") if compression == "group4" else image
        image.save(stream, "TIFF", compression=compression, **options)
        check(stream.getvalue(), grey_of(picture), 9)

    def test_a_jpeg_in_a_tiff_that_is_damaged_is_corrupt(self) -> None:
        stream = io.BytesIO()
        image = Image.fromarray(np.rint(RGB * 255).astype(np.uint8))
        image.save(stream, "TIFF", compression="jpeg")
        data = bytearray(stream.getvalue())
        at = data.index(b"\xff\xd8")
        data[at : at + 200] = b"\0" * 200
        assert refusal(bytes(data)).code == "corrupt"

    @pytest.mark.parametrize("bits", [4, 8, 16])
    def test_palettes(self, bits: int) -> None:
        numbers = coded(GREY, bits, "u")
        table = np.arange(2**bits)[::-1] * (65535 // (2**bits - 1))
        tags = {320: (3, [int(value) for value in table] * 3)}
        data = Tiff(bits, "u", 3, tags=tags).file(numbers)
        check(data, 1 - rounded(GREY, bits, "u"))

    def test_associated_alpha_is_divided_out(self) -> None:
        alpha = np.full(GREY.shape, 0.5)
        samples = np.concatenate([GREY * alpha, alpha], axis=2)
        check(Tiff(16, extra=1).file(coded(samples, 16, "u")), GREY / 2 + 0.5)

    def test_an_extra_sample_that_is_not_alpha_hides_nothing(self) -> None:
        samples = np.concatenate([RGB, np.zeros_like(GREY)], axis=2)
        for bits in (8, 16):
            for extra in (None, 0, 2):
                # None and 0 are no alpha; one that hides everything is passed over.
                check(
                    Tiff(bits, photometric=2, extra=extra).file(coded(samples, bits, "u")),
                    grey_of(RGB),
                )

    def test_lab_gives_its_lightness(self) -> None:
        for bits in (8, 16):
            lab = coded(np.concatenate([GREY, GREY * 0, GREY * 0], axis=2), bits, "u")
            check(Tiff(bits, photometric=8).file(lab), GREY)

    @pytest.mark.parametrize(
        ("writer", "words"),
        [
            (Tiff(16, photometric=32803), "camera"),
            (Tiff(16, photometric=34892), "camera"),
            (Tiff(16, photometric=32845), "TIFF, 16-bit, 1 sample (LogLuv)"),
            (Tiff(16, tags={259: (3, [34887])}), "LERC"),
            (Tiff(12, tags={259: (3, [7])}), "TIFF, 12-bit, 1 sample (grey), JPEG"),
            (Tiff(8, tags={259: (3, [50001])}), "WebP"),
            (Tiff(8, tags={259: (3, [50002])}), "JPEG XL"),
            (Tiff(16, tags={339: (3, [5])}), "16-bit complex integer"),
            (Tiff(20), "20-bit"),
        ],
    )
    def test_unsupported_variants_are_named(self, writer: Tiff, words: str) -> None:
        error = refusal(writer.file(coded(GREY, 16 if writer.bits > 16 else writer.bits, "u")))
        assert error.code == "unsupported-format"
        assert words in error.sentence

    def test_missing_pixels_are_truncated_and_damaged_ones_corrupt(self) -> None:
        samples = coded(RGB, 16, "u")
        whole = Tiff(16, photometric=2).file(samples)
        beyond = Tiff(16, photometric=2, tags={273: (4, [len(whole)])}).file(samples)
        assert refusal(beyond).code == "truncated"
        packed = bytearray(Tiff(16, photometric=2, compression="deflate").file(samples))
        packed[100:140] = b"\xff" * 40
        assert refusal(bytes(packed)).code == "corrupt"

    def test_a_thumbnail_is_never_the_picture(self) -> None:
        samples = coded(RGB, 8, "u")
        make = {271: (2, list(b"Maker\0")), 254: (4, [1])}
        error = refusal(Tiff(photometric=2, tags=make).file(samples))
        assert (error.code, "raw file of a camera (Maker)" in error.sentence) == (
            "unsupported-format",
            True,
        )
        assert "thumbnail only" in refusal(Tiff(tags={254: (4, [1])}).file(samples)).sentence


class TestPng:
    @pytest.mark.parametrize("interlaced", [False, True])
    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    @pytest.mark.parametrize("share", [1.0, 1 / 64])
    def test_16_bits_and_10_bits_in_16(self, channels: int, share: float, interlaced: bool) -> None:
        samples = np.ones((*GREY.shape[:2], channels))
        colours = 1 if channels < 3 else 3
        samples[:, :, :colours] = GREY * share
        check(png(coded(samples, 16, "u"), 16, interlaced=interlaced), GREY, 6)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_transparent_colour_of_16_bits_is_that_colour_only(self, channels: int) -> None:
        samples = coded(np.repeat(GREY, channels, axis=2), 16, "u").astype(np.uint16)
        samples[:10, :10] = 0x1234
        samples[20:30, :10] = 0x1299
        key = png_chunk(b"tRNS", struct.pack(">H", 0x1234) * channels)
        pixels = decode(png(samples, 16, key)).pixels
        assert (pixels[:10, :10] == 255).all()
        assert (np.abs(pixels[20:30, :10].astype(int) - 0x12) <= 1).all()


class TestNetpbm:
    @pytest.mark.parametrize("most", [255, 1023, 4095, 65535])
    def test_binary(self, most: int) -> None:
        form = ">u2" if most > 255 else "u1"
        for mark, samples in ((b"P5", GREY), (b"P6", RGB)):
            values = np.rint(samples * most).astype(form).tobytes()
            check(
                mark + b"\n48 40\n%d\n" % most + values,
                grey_of(np.broadcast_to(samples, RGB.shape)),
            )

    @pytest.mark.parametrize("mark", [b"P5", b"P6"])
    def test_10_bits_of_16(self, mark: bytes) -> None:
        samples = np.repeat(GREY, 3, axis=2) if mark == b"P6" else GREY
        values = np.rint(samples * 1023).astype(">u2").tobytes()
        check(mark + b" 48 40 65535\n" + values, GREY, 6)


class TestBmp:
    @pytest.mark.parametrize(
        ("bits", "compression", "masks", "words"),
        [
            (32, 3, (1023 << 20, 1023 << 10, 1023), "BMP, 32-bit, bit fields 3ff00000/ffc00/3ff"),
            (16, 3, (0xF00, 0xF0, 0xF), "bit fields f00/f0/f"),
            (0, 5, (0, 0, 0), "BMP, 0-bit, PNG"),
            (64, 0, (0, 0, 0), "BMP, 64-bit, plain"),
            (32, 11, (0, 0, 0), "compression 11"),
        ],
    )
    def test_an_unsupported_variant_is_named(
        self, bits: int, compression: int, masks: tuple[int, int, int], words: str
    ) -> None:
        pixels = bytes(48 * 40 * 8)
        head = struct.pack(
            "<IiiHHIIiiII", 40, 48, 40, 1, bits, compression, len(pixels), 0, 0, 0, 0
        )
        head += struct.pack("<3I", *masks)
        start = 14 + len(head)
        data = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + head + pixels
        error = refusal(data)
        assert (error.code, words in error.sentence) == ("unsupported-format", True), error

    @pytest.mark.parametrize("bits", [24, 32])
    def test_common_ones(self, bits: int) -> None:
        image = Image.fromarray(np.rint(RGB * 255).astype(np.uint8))
        stream = io.BytesIO()
        (image if bits == 24 else image.convert("RGBA")).save(stream, "BMP")
        check(stream.getvalue(), grey_of(RGB))
        assert refusal(stream.getvalue()[:900]).code == "truncated"


class TestJpeg2000:
    @pytest.mark.parametrize("most", [255, 1023, 65535])
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_depths(self, most: int, channels: int) -> None:
        samples = {1: GREY, 3: RGB[:, :, ::-1], 4: np.dstack([RGB[:, :, ::-1], GREY * 0 + 1])}
        values = np.rint(samples[channels] * most).astype(np.uint8 if most == 255 else np.uint16)
        if channels == 4:
            values[:, :, 3] = np.iinfo(values.dtype).max
        options = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
        written, data = cv2.imencode(".jp2", values, options)
        assert written
        wanted = GREY if channels == 1 else grey_of(RGB)
        if most == 1023:
            pixels = decode(data.tobytes()).pixels.astype(float)
            assert np.corrcoef(pixels.ravel(), wanted.ravel())[0, 1] > 0.99
        else:
            check(data.tobytes(), wanted, 2)


class TestJpeg:
    @pytest.mark.parametrize(
        ("marker", "bits", "words"),
        [
            (0xC1, 12, "JPEG, 12-bit extended, 1 sample"),
            (0xC3, 8, "lossless"),
            (0xF7, 8, "JPEG, 8-bit LS"),
        ],
    )
    def test_an_unsupported_variant_is_named(self, marker: int, bits: int, words: str) -> None:
        frame = struct.pack(">BBHBHHBBBB", 0xFF, marker, 11, bits, 40, 48, 1, 1, 0x11, 0)
        data = (
            b"\xff\xd8" + frame + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + b"\x55" * 99 + b"\xff\xd9"
        )
        error = refusal(data)
        assert (error.code, words in error.sentence) == ("unsupported-format", True), error


@pytest.mark.parametrize("compression", ["none", "deflate", "lzw", "packbits", "lzma"])
@pytest.mark.parametrize(("bits", "big"), [(8, False), (16, True)])
@pytest.mark.parametrize("form", [{"rows_per_strip": 7}, {"tile": 16}, {}])
@pytest.mark.parametrize("planes", [False, True])
def test_byte_counts_of_zero_and_none_at_all_are_found_out(
    compression: str, bits: int, big: bool, form: dict[str, int], planes: bool
) -> None:
    """As some programs write them: a strip ends where the next one begins."""
    samples = coded(RGB, bits, "u")
    layout = Tiff(bits, photometric=2, planes=planes, compression=compression, big=big, **form)
    wanted = decode(layout.file(samples)).pixels
    tag = 325 if "tile" in form else 279
    for counts in ([0] * 200, [0], []):
        odd = replace(layout, tags={tag: (4, counts)}) if counts else layout
        data = odd.file(samples)
        if not counts:  # the tag itself is missing: another number stands in its place
            mark = struct.pack("<H", tag)
            entry = data.rfind(mark + struct.pack("<H", 4))
            data = data[:entry] + struct.pack("<H", 65000) + data[entry + 2 :]
        assert np.array_equal(decode(data).pixels, wanted)
