"""Converts the paths and query images that callers may give to one form each.

A single string is one path, never a sequence of letters; other values are refused with an error
that shows them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.config import ImageLimits
from pipeline.errors import InputError
from pipeline.files import read_file
from pipeline.pixels import pixels_of_array
from pipeline.searching import ImageSource

ImageLike = str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[Any] | Image.Image
"""A query image: a file, a file's bytes, pixels (grey or RGB), or a Pillow image."""

Query = ImageLike | BinaryIO
"""A query image, or a file that is open for reading bytes."""

_ONE_IMAGE = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Image.Image)
_PNG_MODES = {"1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"}


def as_paths(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return folders and files as absolute paths; a single path need not be in a list.

    Raises
    ------
    InputError
        Something is no path, or an empty one.
    """
    found = []
    alone = isinstance(paths, str | bytes | os.PathLike) or not isinstance(paths, Iterable)
    for path in cast("Iterable[str]", [paths] if alone else paths):
        if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
            raise InputError(f"{path!r} is no path; give a str or a Path, or several in a list")
        if not os.fspath(path):
            raise InputError("a path is empty; '.' is the current folder")
        found.append(os.path.abspath(path))  # noqa: PTH100 - keeps link names
    return found


def as_images(images: Query | Sequence[Query]) -> list[ImageSource]:
    """Return query images in the forms that a search reads; one image may stand alone.

    Raises
    ------
    InputError
        Something is no image.
    """
    alone = isinstance(images, _ONE_IMAGE) or hasattr(images, "read")
    alone = alone or not isinstance(images, Iterable)
    return [as_image(image) for image in cast("Sequence[Query]", [images] if alone else images)]


def as_image(image: Query) -> ImageSource:
    """Return a query image as a path, a file's bytes, or an array.

    A Pillow image becomes the bytes of a file, turned as its EXIF data say: the answer is that of
    the file it came from.

    Raises
    ------
    InputError
        It is no image.
    """
    if isinstance(image, bytes | np.ndarray):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image) if not isinstance(image, str) else image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        return _packed(ImageOps.exif_transpose(image))
    read = getattr(image, "read", None)
    data = read() if callable(read) else None
    if not isinstance(data, bytes):
        what = type(image).__name__
        raise InputError(
            f"cannot search with a {what}: give a path, a file's bytes, a file opened with 'rb', "
            "an array or a Pillow image"
        )
    return data


def image_bytes(image: ImageSource, limits: ImageLimits) -> bytes:
    """Return a query as the bytes of an image file; pixels are packed without loss.

    Raises
    ------
    ImageReadError, InputError
        The file cannot be read, or the array is no picture.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        # With its colours, for extractors that look at them.
        return _packed(Image.fromarray(pixels_of_array(image, color=image.ndim == 3)))
    return read_file(image, limits=limits)


def _packed(image: Image.Image) -> bytes:
    """Return the bytes of a PNG file."""
    stream = io.BytesIO()
    image = image if image.mode in _PNG_MODES else image.convert("RGB")
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
