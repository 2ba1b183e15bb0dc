"""Pixels of every kind to 8-bit grey or RGB: depth, transparency, orientation, size.

A picture becomes what it would look like on paper: transparent areas are white, or a grey that
shows the artwork; wide values are scaled to 8 bit, by their own range if it is small; CMYK and
palettes become RGB; grey is the ITU-R 601 luma.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError
from pipeline.pictures.contrast import divide_by_257, to_8_bits
from pipeline.pictures.paper import on_paper, paper_of
from pipeline.pictures.samples import Samples

# EXIF orientation -> (transpose, flip vertically, flip horizontally), applied in this order.
_ORIENTATIONS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
SWAPPED_ORIENTATIONS = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""

_STRIP = 1 << 20
"""Pixels that are converted at once."""

_WIDE_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})


def pixels_of(image: Image.Image, *, color: bool) -> NDArray[np.uint8]:
    """Return the pixels of a loaded Pillow image.

    Parameters
    ----------
    image : PIL.Image.Image
        Of any mode; animations give their current frame.
    color : bool
        RGB instead of grey.

    Returns
    -------
    ndarray of shape (h, w) or (h, w, 3), uint8
    """
    if image.mode in _WIDE_MODES:
        # I;16 of either byte order becomes native here.
        values = np.asarray(image)
        full = (0.0, 65535.0) if values.dtype == np.uint16 else None
        image = image_of(Samples(values, None, full))
    paper = paper_of(image) if image.has_transparency_data else None
    pixels = np.empty((image.height, image.width, 3)[: 3 if color else 2], np.uint8)
    # In strips, so that a large picture is in memory only twice: decoded and converted.
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image
        if rows < image.height:
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = _converted(strip, "RGB" if color else "L", paper)
    return pixels


def _converted(image: Image.Image, mode: str, paper: int | None) -> NDArray[np.uint8]:
    """Return pixels in a mode; transparent pictures are laid on grey paper."""
    if image.mode == "LAB":
        # Pillow has no plain conversion from LAB; its lightness is the grey picture.
        image = image.getchannel("L")
    if paper is not None:
        image = on_paper(image, paper)
    if image.mode not in (mode, "L", "RGB", "1"):
        # CMYK, YCbCr, HSV and palettes convert to grey by way of RGB, as Pillow's luma needs.
        image = image.convert("RGB")
    if image.mode != mode:
        image = image.convert(mode)
    return np.asarray(image)


def image_of(samples: Samples) -> Image.Image:
    """Return samples as a Pillow image of 8 bits: L, RGB, LA or RGBA."""
    alpha = samples.alpha
    visible = None if alpha is None else alpha > 0
    image = Image.fromarray(to_8_bits(samples.values, samples.full, visible))
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    return image


def pixels_of_array(array: NDArray[Any], *, color: bool) -> NDArray[np.uint8]:
    """Return the pixels of a caller's array.

    Parameters
    ----------
    array : ndarray of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4)
        Grey, RGB or RGBA; bool, uint8, uint16 (0..65535) or floating (0..1).
    color : bool
        RGB instead of grey.

    Raises
    ------
    InputError
        Shape, dtype or values do not fit.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise InputError(
            f"an image array has the shape (h, w), (h, w, 3) or (h, w, 4), not {array.shape}; "
            "pass one image at a time, channels last, RGB order"
        )
    if 0 in array.shape:
        raise InputError(f"an image array needs at least one pixel; its shape is {array.shape}")
    values = np.ascontiguousarray(_array_to_uint8(array))
    return pixels_of(Image.fromarray(values), color=color)


def _array_to_uint8(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale the dtypes that image libraries use to 8 bit."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return divide_by_257(array)
    if np.issubdtype(array.dtype, np.floating):
        # Written so that NaN fails too.
        if not (array.min() >= 0 and array.max() <= 1):
            raise InputError(
                f"a {array.dtype} image has values from 0 to 1, these go from {array.min()} to "
                f"{array.max()}; scale it, or convert it to uint8"
            )
        return np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    raise InputError(
        f"an image array is uint8, uint16, bool or floating (0 to 1), not {array.dtype}; "
        "convert it to uint8"
    )


def oriented(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn stored pixels upright.

    Parameters
    ----------
    pixels : ndarray of shape (h, w) or (h, w, 3), uint8
    orientation : int
        EXIF orientation, 1 to 8; any other value leaves the picture as it is.
    """
    transpose, flip_rows, flip_columns = _ORIENTATIONS.get(orientation, _ORIENTATIONS[1])
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    if flip_rows:
        pixels = pixels[::-1]
    if flip_columns:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def reduced_size(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Return (width, height) with the longer side at most `max_side`; never enlarged."""
    longest = max(width, height)
    if longest <= max_side:
        return width, height
    # Integer rounding: the same on every platform.
    return (
        max(1, (2 * width * max_side + longest) // (2 * longest)),
        max(1, (2 * height * max_side + longest) // (2 * longest)),
    )


def reduced(pixels: NDArray[np.uint8], max_side: int) -> NDArray[np.uint8]:
    """Reduce to a longer side of at most `max_side` pixels with an area filter."""
    height, width = pixels.shape[:2]
    size = reduced_size(width, height, max_side)
    if size == (width, height):
        return pixels
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
