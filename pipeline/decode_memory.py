"""How much memory decoding a picture takes, estimated from its header.

Bytes a pixel, as measured (`tests/unit/test_decode_memory.py` holds them to it): what Pillow's
image and its conversion to grey or colour take, by the image's mode, and what the decoder of a
format holds beside it.
"""

from __future__ import annotations

from PIL import Image, TiffImagePlugin

_BY_MODE = {
    "1": (4, 11),
    "L": (3, 11),
    "P": (6, 11),
    "RGB": (7, 10),
    "RGBA": (13, 14),
    "I;16": (12, 12),
    "I;16B": (12, 12),
    "I": (26, 26),
    "F": (26, 26),
}
"""Mode -> bytes a pixel for grey, for colour."""

_ANY_MODE = (14, 14)

_BY_FORMAT = {"WEBP": 12.0, "AVIF": 4.0}
"""Format -> bytes a pixel of its decoder's own buffers."""

_WEBP_CANVASES = 8
_OPENJPEG_SAMPLE = 4
_ROWS_PER_STRIP = 278

_COEFFICIENT = 2
"""Bytes of a coefficient: a progressive JPEG is held whole, at its full size, in these."""


def decoding_bytes(
    image: Image.Image, full_size: tuple[int, int], file_bytes: int, *, color: bool
) -> int:
    """Return about how many bytes decoding and converting a picture takes.

    Parameters
    ----------
    image : PIL.Image.Image
        Opened, not loaded; a JPEG is a draft already.
    full_size : (int, int)
        Width and height of the stored picture, pixels.
    file_bytes : int
        Length of the file, which decoders copy.
    color : bool
        Converted to colour, not to grey.
    """
    pixels = image.width * image.height
    stored = full_size[0] * full_size[1]
    # What has a transparent colour is converted like what has transparent pixels.
    mode = "RGBA" if image.has_transparency_data else image.mode
    conversion = _BY_MODE.get(mode, _ANY_MODE)[color] * pixels
    return int(conversion + _decoder_bytes(image) * stored) + 2 * file_bytes


def samples_bytes(pixels: int, channels: int, width: int, file_bytes: int) -> int:
    """Return about how many bytes it takes to read samples that Pillow does not.

    Parameters
    ----------
    pixels : int
    channels : int
        Samples of a pixel that are kept.
    width : int
        Bytes of a sample.
    file_bytes : int
    """
    kept = channels * width
    # The samples, a copy in another meaning, and 8 bits of them in two images.
    return pixels * (2 * kept + 4 * channels + 4) + 2 * file_bytes + (32 << 20)


def opening_bytes(data: bytes) -> int:
    """Return about how many bytes it takes to look at a file's header: much for a WebP only.

    Its decoder makes two canvases, whatever the rest of the file is.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return 0
    kind = data[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
    elif kind == b"VP8L":
        sides = int.from_bytes(data[21:25], "little")
        width, height = 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    else:
        width = int.from_bytes(data[26:28], "little") & 0x3FFF
        height = int.from_bytes(data[28:30], "little") & 0x3FFF
    return _WEBP_CANVASES * width * height + 2 * len(data)


def _decoder_bytes(image: Image.Image) -> float:
    """Return the bytes a pixel of the file that its decoder holds beside Pillow's image."""
    if image.format in ("JPEG", "MPO"):
        return _jpeg_coefficients(image) if image.info.get("progressive") else 0.0
    if image.format == "JPEG2000":
        return float(_OPENJPEG_SAMPLE * len(image.getbands()))
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # A strip is decoded as a whole.
        rows = int(image.tag_v2.get(_ROWS_PER_STRIP, image.height))
        return 4.0 * min(rows, image.height) / image.height
    return _BY_FORMAT.get(image.format or "", 0.0)


def _jpeg_coefficients(image: Image.Image) -> float:
    """Return the bytes of a progressive JPEG's coefficients, a pixel, by its subsampling."""
    layers: list[tuple[int, int, int, int]] = getattr(image, "layer", [])
    samples = [across * down for _, across, down, _ in layers]
    return _COEFFICIENT * sum(samples) / max(samples, default=1)
