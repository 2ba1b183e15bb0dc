"""How much memory decoding a picture takes, estimated from its header.

The estimate counts bytes a pixel, as measured (`tests/unit/test_memory_estimate.py` checks them):
Pillow's image, the grey or coloured pixels made of it, and what the decoder of the format holds
besides.
"""

from __future__ import annotations

from PIL import Image, TiffImagePlugin

_SMALL_MODES = frozenset({"1", "L", "P"})
"""Pillow's modes of a byte a pixel; others have four."""

_WIDE_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_WIDE = 14
"""Bytes a pixel of wide grey, including all conversions."""

_STRIPS = 32 << 20
"""Bytes that converting takes, strip by strip, however large the picture is."""

_WEBP = 13.0
_WEBP_CANVASES = 8
_AVIF, _AVIF_ALPHA = 6.0, 10.0
_JPEG2000_SAMPLE = 5
_TIFF_STRIP = 4.0
_ROWS_PER_STRIP = 278
"""The tag that says so."""

_COEFFICIENT = 2
"""Bytes of a coefficient: a progressive JPEG is held in memory as coefficients at its full size."""


def decoding_bytes(
    image: Image.Image, full_size: tuple[int, int], file_bytes: int, *, color: bool
) -> int:
    """Return the approximate memory for decoding and converting a picture, bytes.

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
    made = 3 if color else 1
    of_image = _WIDE if image.mode in _WIDE_MODES else 1 if image.mode in _SMALL_MODES else 4
    decoder = int(_decoder_bytes(image) * stored)
    return pixels * (of_image + made) + decoder + 2 * file_bytes + _STRIPS


def samples_bytes(pixels: int, channels: int, width: int, file_bytes: int) -> int:
    """Return the approximate memory for samples that Pillow does not read, bytes.

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
    # The samples, a converted copy, and 8 bits of them in two images.
    return pixels * (2 * kept + 4 * channels + 4) + 2 * file_bytes + (32 << 20)


def opening_bytes(data: bytes) -> int:
    """Return the approximate memory for reading a file's header, bytes.

    Only WebP needs much: its decoder makes two canvases.
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
        return float(_JPEG2000_SAMPLE * len(image.getbands()))
    if image.format == "AVIF":
        return _AVIF_ALPHA if image.has_transparency_data else _AVIF
    if image.format == "WEBP":
        return _WEBP
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if image.info.get("compression", "raw") == "raw":
            return 0.0
        # A strip is decoded as a whole.
        rows = int(image.tag_v2.get(_ROWS_PER_STRIP, image.height))
        return _TIFF_STRIP * min(rows, image.height) / image.height
    return 0.0


def _jpeg_coefficients(image: Image.Image) -> float:
    """Return the bytes of a progressive JPEG's coefficients, a pixel, by its subsampling."""
    layers: list[tuple[int, int, int, int]] = getattr(image, "layer", [])
    samples = [across * down for _, across, down, _ in layers]
    return _COEFFICIENT * sum(samples) / max(samples, default=1)
