"""Wide colours of PNG, PPM and JPEG 2000, of which Pillow gives only the high bytes.

They are read completely if the high bytes have too little of the picture: ten bits in sixteen.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from pipeline.pictures.contrast import SMALL_RANGE, levels, scaled
from pipeline.pictures.errors import PictureError
from pipeline.pictures.pillow import pillow_state
from pipeline.pictures.samples import Samples

__all__ = ["wide_samples"]

_BYTES = 40
"""Bytes a pixel for reading it completely: Pillow's image, two more, two wide arrays."""
_CHANNELS = {2: 3, 4: 2, 6: 4}


def wide_samples(data: bytes, image: Image.Image, admit: Callable[[int], bool]) -> Samples | None:
    """Return the 16-bit samples of a loaded picture; None if its own pixels are good enough.

    Parameters
    ----------
    data : bytes
        The file, which Pillow has decoded.
    image : PIL.Image.Image
        Loaded, at its first frame.
    admit : callable
        Takes so many bytes of memory if it may; returns whether it did.
    """
    needed = _BYTES * image.width * image.height + 2 * len(data)
    if image.format == "PNG" and data[24] == 16:
        if data[25] == 0:
            return _keyed_grey(image)
        key = image.info.get("transparency")
        if data[25] in _CHANNELS and (isinstance(key, tuple) or _is_small(image)) and admit(needed):
            return _png(data, _CHANNELS[data[25]], key)
    if image.format == "JPEG2000" and image.mode in ("LA", "RGB", "RGBA"):
        return _jpeg_2000(data, admit, needed)
    if (
        image.format == "PPM"
        and image.mode == "RGB"
        and data[:2] in (b"P3", b"P6")
        and _is_small(image)
        and admit(needed)
    ):
        return _ppm(data, image.size)
    return None


def _is_small(image: Image.Image) -> bool:
    """Say whether the high bytes use a small part of their range."""
    colours = np.asarray(image)
    if image.mode in ("LA", "RGBA"):
        shown = colours[colours[:, :, -1] > 0][:, :-1]
        colours = shown if shown.size else colours[:, :, :-1]
    # A few pixels outside (a dead one) do not decide here either.
    low, high = np.percentile(colours.reshape(-1)[:: max(1, colours.size >> 20)], (0.05, 99.95))
    return levels(colours) < 255 * SMALL_RANGE or bool(high - low < 255 * SMALL_RANGE)


def _keyed_grey(image: Image.Image) -> Samples | None:
    """Return grey in which one value is transparent."""
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return None
    values = np.asarray(image).astype(np.uint16)
    return Samples(values, (values != key) * np.uint8(255), (0.0, 65535.0))


def _png(data: bytes, channels: int, key: object) -> Samples:
    """Decode it again as bytes: the low ones, or grey and alpha as four channels."""
    if channels == 2:
        four = _raw(data, "RGBA", "RGBA")
        alpha: NDArray[np.uint8] | None
        values, alpha = _joined(four[:, :, 0], four[:, :, 1]), four[:, :, 2]
    else:
        mode = "RGB" if channels == 3 else "RGBA"
        wide = _joined(_raw(data, mode, f"{mode};16B"), _raw(data, mode, f"{mode};16L"))
        values = wide[:, :, :3]
        alpha = (wide[:, :, 3] >> 8).astype(np.uint8) if channels == 4 else None
    if channels == 3 and isinstance(key, tuple):
        alpha = (values != np.array(key, np.uint16)).any(axis=2) * np.uint8(255)
    return Samples(values, alpha, (0.0, 65535.0))


def _raw(data: bytes, mode: str, raw_mode: str) -> NDArray[np.uint8]:
    """Decode a PNG with its bytes interpreted differently than its header says."""
    with _open(data) as image:
        image._mode = mode
        image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
        image.load()
        return np.asarray(image)


def _open(data: bytes) -> ImageFile.ImageFile:
    with pillow_state(2**31):
        return Image.open(io.BytesIO(data), formats=("PNG", "PPM"))


def _joined(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Return numbers of two bytes."""
    joined: NDArray[np.uint16] = high.astype(np.uint16) << np.uint16(8) | low
    return joined


def _jpeg_2000(data: bytes, admit: Callable[[int], bool], needed: int) -> Samples | None:
    """Read wide colours, whose lightest values Pillow rounds up to black."""
    at = data.find(b"\xff\x4f\xff\x51") + 2
    channels, depth = int.from_bytes(data[at + 38 : at + 40], "big"), data[at + 40]
    bits = 1 + (depth & 0x7F)
    if at < 2 or (bits <= 8 and depth < 128):
        return None
    flavour = f"JPEG 2000, {bits}-bit{' signed' * (depth >= 128)}, {channels} samples"
    refusal = PictureError("unsupported-format", f"{flavour}, is not supported; save it as PNG")
    if depth >= 128 or bits > 16 or channels not in (3, 4):
        raise refusal
    if not admit(needed):
        raise PictureError("too-much-memory", f"{flavour}, takes more memory than the limit")
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.shape[2:] != (channels,):
        raise refusal
    most = float(2**bits - 1)
    alpha = scaled(values[:, :, 3], 0.0, most) if channels == 4 else None
    return Samples(values[:, :, 2::-1], alpha, (0.0, most))


def _ppm(data: bytes, size: tuple[int, int]) -> Samples | None:
    """Read a PPM of 16 bits, binary or plain."""
    with _open(data) as image:
        _, _, offset, arguments = image.tile[0]
    most = arguments[-1] if isinstance(arguments, tuple) else 255
    if not isinstance(most, int) or most < 256:
        return None
    count = size[0] * size[1] * 3
    if data[:2] == b"P3":
        text = re.sub(rb"#[^\r\n]*", b"", data[offset:])
        values = np.fromstring(text.decode("ascii"), np.uint16, count, sep=" ")
    else:
        values = np.frombuffer(data, ">u2", count, offset).astype(np.uint16)
    return Samples(values.reshape(size[1], size[0], 3), None, (0.0, float(most)))
