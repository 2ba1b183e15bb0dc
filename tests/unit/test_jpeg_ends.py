"""JPEG files without their end marker, of inks without Adobe's, and plain PPM of few bits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from picture_files import truth
from PIL import Image, ImageChops

from pipeline.config import ImageLimits
from pipeline.errors import ImageReadError
from pipeline.images import decode_image

KINDS: list[dict[str, Any]] = [
    {},
    {"progressive": True},
    {"restart_marker_rows": 1},
    {"restart_marker_blocks": 1},
    {"subsampling": 0, "quality": 95},
]


def picture() -> NDArray[np.uint8]:
    """A small picture in colours."""
    return np.round(truth(120, 88) * 255).astype(np.uint8)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def decoded(data: bytes, color: bool = True) -> NDArray[np.uint8]:
    return decode_image(data, name="p", limits=ImageLimits(), max_side=512, color=color).pixels


def code(data: bytes) -> str:
    with pytest.raises(ImageReadError) as caught:
        decoded(data)
    return caught.value.code


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("color", [True, False])
def test_a_picture_without_its_end_marker_is_complete(options: dict[str, Any], color: bool) -> None:
    data = jpeg(Image.fromarray(picture()), **options)
    assert data.endswith(b"\xff\xd9")
    for missing in (data[:-2], data[:-1], data[:-2] + bytes(30)):
        assert np.array_equal(decoded(missing, color), decoded(data, color))


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_picture_that_lacks_data_is_truncated(options: dict[str, Any]) -> None:
    data = jpeg(Image.fromarray(picture()), **options)
    begin = data.find(b"\xff\xda") + 14
    for end in [*range(begin, len(data) - 20, 61), len(data) - 12]:
        assert code(data[:end]) == "truncated"


def test_a_progressive_picture_cut_between_its_scans_is_truncated() -> None:
    data = jpeg(Image.fromarray(picture()), progressive=True)
    scans = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    assert len(scans) > 3
    for at in scans[1:]:
        table = data.rfind(b"\xff\xc4", 0, at)
        assert code(data[: min(at, table if table > 0 else at)]) == "truncated"


def test_inks_are_inverted_where_adobe_says_so_alone() -> None:
    """Without Adobe's marker, 0 is no ink."""
    pixels = picture()
    inks = Image.fromarray(pixels).convert("CMYK")
    adobe = jpeg(inks, quality=95)
    at = adobe.find(b"Adobe") - 4
    # Pillow writes inverted inks with the marker; so those of a file without it come out as given.
    plain = jpeg(ImageChops.invert(inks), quality=95)
    length = int.from_bytes(plain[at + 2 : at + 4], "big")
    plain = plain[:at] + plain[at + 2 + length :]
    assert b"Adobe" not in plain
    for data in (adobe, plain):
        difference = decoded(data)[:, :, ::-1].astype(int) - pixels
        assert np.abs(difference).mean() < 6
        assert decoded(data, color=False).ndim == 2


@pytest.mark.parametrize("comment", [b"", b"# 1 2 3\n"])
def test_a_plain_ppm_of_few_bits_in_sixteen_is_read_whole(comment: bytes) -> None:
    values = picture().astype(np.uint16) * 4
    height, width, _ = values.shape
    head = b"P3\n%d %d\n65535\n" % (width, height)
    rows = [b" ".join(b"%d" % value for value in row.ravel()) + b"\n" + comment for row in values]
    binary = b"P6\n%d %d\n65535\n" % (width, height) + values.astype(">u2").tobytes()
    assert decoded(binary).std() > 20
    assert np.array_equal(decoded(head + b"".join(rows)), decoded(binary))
