"""Data without pixels has no influence, whatever its size or damage."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from picture_files import Tiff, coded, png_chunk, truth
from PIL import Image

from pipeline.config import ImageLimits
from pipeline.images import decode_image
from pipeline.pictures.sidedata import without_side_data

PICTURE = Image.fromarray(coded(truth(), 8, "u").astype(np.uint8))
BOMB = zlib.compress(bytes(200 << 20), 9)


def encoded(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    PICTURE.save(stream, kind, **options)
    return stream.getvalue()


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def pixels(data: bytes) -> list[list[int]]:
    image = decode_image(data, name="x", limits=ImageLimits(), max_side=1024)
    return [list(image.pixels.shape), image.pixels.ravel().tolist()]


PNG_DAMAGE = {
    "text-bomb": png_chunk(b"zTXt", b"a\0\0" + BOMB),
    "international-text-bomb": png_chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB),
    "profile-bomb": png_chunk(b"iCCP", b"a\0\0" + BOMB),
    "old-exif-bomb": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
    "old-exif-rubbish": png_chunk(b"zTXt", b"Raw profile type exif\0\0rubbish"),
    "many-texts": png_chunk(b"tEXt", b"a\0" + b"b" * 1_000_000) * 100,
    "exif-rubbish": png_chunk(b"eXIf", b"\xff" * 40),
    "animation-of-no-frames": png_chunk(b"acTL", bytes(8)),
    "short-animation": png_chunk(b"acTL", b""),
    "short-frame": png_chunk(b"fcTL", b""),
    **{
        f"empty-{kind.decode()}": png_chunk(kind, b"")
        for kind in (
            b"gAMA",
            b"pHYs",
            b"cHRM",
            b"sRGB",
            b"iCCP",
            b"tIME",
            b"eXIf",
            b"tEXt",
            b"iTXt",
        )
    },
    **{
        f"checksum-of-{kind.decode()}": png_chunk(kind, content, b"abcd")
        for kind, content in {
            b"gAMA": b"\0\0\xb1\x8f",
            b"tEXt": b"a\0b",
            b"eXIf": b"II*\0",
            b"prVt": b"x",
            b"tRNS": bytes(6),
            b"acTL": b"\0\0\0\1\0\0\0\0",
        }.items()
    },
}


@pytest.mark.parametrize("chunk", PNG_DAMAGE.values(), ids=PNG_DAMAGE.keys())
def test_chunks_of_a_png(chunk: bytes) -> None:
    data = encoded("PNG")
    wanted = pixels(data)
    tracemalloc.start()
    try:
        for at in (33, len(data) - 12):
            assert pixels(data[:at] + chunk + data[at:]) == wanted
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20 + 3 * len(chunk)
    finally:
        tracemalloc.stop()


def test_a_png_without_a_sound_end_has_all_its_pixels() -> None:
    data = encoded("PNG")
    cut = png_chunk(b"tEXt", b"a\0" + b"b" * 99)[:50]
    for ending in (b"", data[-12:-4] + b"abcd", data[-12:-5], cut, data[-12:] + b"rubbish"):
        assert pixels(data[:-12] + ending) == pixels(data)


def segment(marker: int, content: bytes, length: int | None = None) -> bytes:
    size = len(content) + 2 if length is None else length
    return struct.pack(">BBH", 0xFF, marker, size) + content


JPEG_DAMAGE = {
    "short-jfif": segment(0xE0, b"JFIF\0"),
    "exif-rubbish": segment(0xE1, b"Exif\0\0" + b"\xff" * 50),
    "xmp-rubbish": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<" + b"\xff" * 50),
    "other-pictures-rubbish": segment(0xE2, b"MPF\0II*\0" + b"\xff" * 50),
    "profile-parts-missing": segment(0xE2, b"ICC_PROFILE\0\x02\x09" + b"x" * 50),
    "photoshop-rubbish": segment(0xED, b"Photoshop 3.0\x008BIM" + b"\xff" * 50),
    "short-adobe": segment(0xEE, b"Ado"),
    "length-of-nothing": segment(0xE5, b"", 0),
    "length-of-one": segment(0xE5, b"", 1),
    "wrong-length": segment(0xE5, b"abcdefgh", 6),
    "rubbish-between": b"\0\0rubbish",
    "many-profiles": segment(0xE2, b"ICC_PROFILE\0\x01\x01" + b"x" * 65_000) * 300,
    "many-comments": segment(0xFE, b"x" * 65_000) * 300,
}


@pytest.mark.parametrize("part", JPEG_DAMAGE.values(), ids=JPEG_DAMAGE.keys())
def test_segments_of_a_jpeg(part: bytes) -> None:
    data = encoded("JPEG", quality=92)
    assert pixels(data[:2] + part + data[2:]) == pixels(data)


def webp_parts(data: bytes) -> list[tuple[bytes, bytes]]:
    parts, at = [], 12
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append((data[at : at + 4], data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return parts


def webp(parts: list[tuple[bytes, bytes]], wrong: bytes = b"", size: int | None = None) -> bytes:
    body = b"WEBP"
    for kind, content in parts:
        length = 0x7FFFFFF0 if kind == wrong else len(content)
        body += kind + struct.pack("<I", length) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


@pytest.mark.parametrize("lossless", [False, True])
def test_chunks_of_a_webp(lossless: bool) -> None:
    options = {"lossless": lossless, "icc_profile": b"x" * 500, "xmp": b"<x/>" * 50}
    data = encoded("WEBP", exif=orientation(1), **options)
    parts, wanted = webp_parts(data), pixels(data)
    assert {b"ICCP", b"EXIF", b"XMP "} <= {kind for kind, _ in parts}
    for name in (b"ICCP", b"EXIF", b"XMP "):
        rubbish = [(kind, b"\xff" * 999 if kind == name else content) for kind, content in parts]
        without = [part for part in parts if part[0] != name]
        for changed in (webp(rubbish), webp(without), webp(parts, name), webp(parts)[:-30]):
            assert pixels(changed) == wanted, name
    for size in (4, len(data) + 1000):
        assert pixels(webp(parts, size=size)) == wanted
    assert pixels(data + b"rubbish") == wanted


def box(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    return struct.pack(">I", 8 + len(content) if size is None else size) + kind + content


def test_boxes_of_a_jpeg_2000() -> None:
    data = encoded("JPEG2000")
    wanted, at = pixels(data), data.index(b"jp2c") - 4
    for extra in (box(b"xml ", b"\xff" * 99), box(b"uuid", bytes(20_000_000)), box(b"jp2i", b"")):
        assert pixels(data[:at] + extra + data[at:]) == wanted
    assert pixels(data + box(b"xml ", b"x" * 50, 1000)) == wanted


GIF_DAMAGE = {
    "comment": b"\x21\xfe" + (b"\xff" + b"c" * 255) * 20_000 + b"\0",
    "application": b"\x21\xff\x0bXMP DataXMP" + (b"\xff" + b"c" * 255) * 20_000 + b"\0",
    "short-loop": b"\x21\xff\x0bNETSCAPE2.0\x01\x01\0",
    "text": b"\x21\x01\x0c" + bytes(12) + b"\x03abc\0",
}


@pytest.mark.parametrize("block", GIF_DAMAGE.values(), ids=GIF_DAMAGE.keys())
def test_blocks_of_a_gif(block: bytes) -> None:
    data = encoded("GIF")
    at = 13 + 3 * (2 << (data[10] & 7))
    assert pixels(data[:at] + block + data[at:]) == pixels(data)
    assert pixels(data[:-1]) == pixels(data)


BEYOND = 1 << 30
TIFF_DAMAGE = {
    "description-beyond": {270: (2, BEYOND, 99)},
    "description-endless": {270: (2, 8, BEYOND)},
    "resolution-beyond": {282: (5, BEYOND, 1), 283: (5, BEYOND, 1)},
    "resolution-of-no-type": {282: (99, 8, 1)},
    "exif-beyond": {34665: (4, BEYOND, 1)},
    "exif-in-a-circle": {34665: (4, 8, 1)},
    "profile-beyond": {34675: (7, BEYOND, 1 << 20)},
    "xmp-endless": {700: (1, 8, BEYOND)},
    "other-tags": {65000: (13, 8, 7), 65001: (0, 0, 0)},
    "directories-in-a-circle": {330: (4, 8, 1)},
}


@pytest.mark.parametrize("entries", TIFF_DAMAGE.values(), ids=TIFF_DAMAGE.keys())
@pytest.mark.parametrize("compression", ["none", "lzw"])
@pytest.mark.parametrize("bits", [8, 16])
def test_tags_of_a_tiff(
    entries: dict[int, tuple[int, int, int]], compression: str, bits: int
) -> None:
    samples = coded(truth(), bits, "u")
    writer = Tiff(bits, photometric=2, compression=compression)
    wanted = pixels(writer.file(samples))
    # Entries are made first, then overwritten with what no writer makes.
    writer.tags = {tag: (4, [0]) for tag in entries}
    data = bytearray(writer.file(samples))
    for tag, (kind, value, count) in entries.items():
        at = data.rindex(struct.pack("<HHI", tag, 4, 1))
        data[at : at + 12] = struct.pack("<HHII", tag, kind, count, value)
    assert pixels(bytes(data)) == wanted


@pytest.mark.parametrize("make", [lambda: encoded("BMP"), lambda: encoded("PPM")])
def test_headers_of_bmp_and_ppm(make: Callable[[], bytes]) -> None:
    data = make()
    if data[:2] == b"BM":
        changed = data[:2] + b"\xff" * 4 + data[6:38] + b"\xff" * 8 + data[46:] + b"rubbish"
    else:
        changed = data[:3] + b"#" + b"c" * 100_000 + b"\n" + data[3:] + b"rubbish"
    assert pixels(changed) == pixels(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_side_that_is_up_is_still_known(kind: str) -> None:
    data = encoded(kind, exif=orientation(6))
    assert pixels(data)[0] == [48, 40]
    assert decode_image(data, name="x", limits=ImageLimits(), max_side=99).width == 40


def test_a_file_of_unclear_structure_stays_the_same() -> None:
    for data in (
        b"",
        b"\xff\xd8",
        b"\x89PNG\r\n\x1a\n\0\0\xff\xffIDAT",
        b"RIFF....WEBPVP8 \xff\xff\xff\xff",
    ):
        assert without_side_data(data) == data or data.startswith(b"\x89PNG")
