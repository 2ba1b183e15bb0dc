"""The frames of a picture file: choose the one with the picture and read its pixels.

Pillow decodes; `pipeline.pictures.samples` and `pipeline.pictures.wide` read what it gets wrong.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, UnidentifiedImageError

from pipeline.config import ImageLimits
from pipeline.pictures.errors import PictureError
from pipeline.pictures.jpeg import ENDINGS, lacks_end_only
from pipeline.pictures.memory_estimate import decoding_bytes, samples_bytes
from pipeline.pictures.paper import without_empty_alpha
from pipeline.pictures.pillow import pillow_state
from pipeline.pictures.samples import read_page, sample_size
from pipeline.pictures.sidedata import without_side_data
from pipeline.pictures.tiff import TiffPage, alone, pages
from pipeline.pictures.wide import wide_samples
from pipeline.pixels import (
    SWAPPED_ORIENTATIONS,
    image_of,
    oriented,
    pixels_of,
    reduced,
    reduced_size,
)
from pipeline.signatures import known_format

__all__ = ["Frame", "Wanted", "frame_with_content"]

# Formats with maintained, safe decoders. Others that Pillow knows run external programs (EPS), have
# no signature (TGA) or contain no photographs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")

_FLAT = 8.0
"""Standard deviation, in levels, below which the next frame is tried: a page with a few words has
more, the first frame of a slow fade less."""

_BY_LIBTIFF = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000})
"""TIFF compressions that Pillow's library has: if it cannot decode one, the file is damaged."""

_MOST_FRAMES = 256
"""The most frames that are tried."""


@dataclass(frozen=True)
class Frame:
    """A picture: grey or RGB pixels, upright and reduced, and the original's size."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


class Wanted:
    """Options and limits of decoding frames.

    Parameters
    ----------
    limits : ImageLimits
    max_side : int
        Longer side of the result, pixels.
    color : bool
        RGB instead of grey.
    admit : callable, optional
        Called with the bytes of memory that decoding is about to take.
    """

    def __init__(
        self,
        limits: ImageLimits,
        max_side: int,
        color: bool,
        admit: Callable[[int], None] | None = None,
    ) -> None:
        self.limits = limits
        self.max_side = max_side
        self.color = color
        self._admit = admit

    def take(self, needed: int) -> None:
        """Ask for memory; refuse a picture that needs more than the limit."""
        if needed > self.limits.decode_memory:
            raise PictureError(
                "too-much-memory",
                f"decoding it takes about {needed / 2**20:,.0f} MiB of memory, more than the "
                f"limit of {self.limits.decode_memory / 2**20:,.0f} MiB "
                "(VANTAGE_DECODE_MEMORY raises it)",
            )
        if self._admit is not None:
            self._admit(needed)

    def take_if_possible(self, needed: int) -> bool:
        """Ask for memory if it is within the limit; return whether it is."""
        if needed > self.limits.decode_memory:
            return False
        self.take(needed)
        return True

    def check_size(self, width: int, height: int) -> None:
        """Refuse a picture of too many pixels."""
        if width * height > self.limits.max_pixels:
            raise PictureError(
                "too-many-pixels",
                f"it has {width:,} x {height:,} pixels, more than the limit of "
                f"{self.limits.max_pixels:,} (VANTAGE_MAX_PIXELS raises it)",
            )

    def frame(self, image: Image.Image, size: tuple[int, int], orientation: int) -> Frame:
        """Return a loaded image as a frame; `size` is that of the file, not of a draft."""
        pixels = oriented(reduced(pixels_of(image, color=self.color), self.max_side), orientation)
        width, height = size[::-1] if orientation in SWAPPED_ORIENTATIONS else size
        return Frame(pixels, width, height)


def frame_with_content(data: bytes, wanted: Wanted) -> Frame:
    """Return the first frame that is not flat; if all are, the one with the most contrast.

    Raises
    ------
    PictureError
    Exception
        Any error that a decoder raises for damaged bytes.
    """
    found = _tiff_frames(data, wanted) if known_format(data) == "TIFF" else _frames(data, wanted)
    best, most = next(found, None), 0.0
    if best is None:
        raise PictureError("corrupt", "the image data is damaged (it has no picture)")
    try:
        most = float(best.pixels.std())
        while most < _FLAT and (frame := next(found, None)) is not None:
            contrast = float(frame.pixels.std())
            if contrast > most:
                best, most = frame, contrast
    except MemoryError:
        raise
    except Exception:
        # Damage after a picture does not matter; after a blank page it hides the picture.
        if not most:
            raise
    return best


def _frames(data: bytes, wanted: Wanted) -> Iterator[Frame]:
    """Decode one frame after the other of all formats but TIFF."""
    data = without_side_data(data)
    with _open(data, wanted) as image:
        size = image.size
        wanted.check_size(*size)
        if image.format in ("JPEG", "MPO"):
            yield _jpeg(data, image, wanted)
            # The other pictures of a JPEG are other views of it.
            return
        wanted.take(decoding_bytes(image, size, len(data), color=wanted.color))
        image.load()
        orientation = _orientation(image)
        wide = wide_samples(data, image, wanted.take_if_possible)
        if wide is not None:
            yield wanted.frame(image_of(wide), size, orientation)
        else:
            shown = without_empty_alpha(image) if image.format == "BMP" else image
            yield wanted.frame(shown, size, orientation)
        for number in range(1, _MOST_FRAMES):
            try:
                image.seek(number)
            except EOFError:
                return
            wanted.check_size(*image.size)
            image.load()
            yield wanted.frame(image, image.size, orientation)


def _jpeg(data: bytes, image: Image.Image, wanted: Wanted) -> Frame:
    """Decode a JPEG that was opened, also one without its end marker."""
    size = image.size
    _draft(image, wanted)
    needed = decoding_bytes(image, size, len(data), color=wanted.color)
    wanted.take(needed)
    orientation = _orientation(image)
    try:
        image.load()
        found = image
    except OSError:
        if not lacks_end_only(data):
            raise
        wanted.take(3 * needed)
        found, *others = [_ended(data.rstrip(b"\xff") + ending, wanted) for ending in ENDINGS]
        if any(found.tobytes() != other.tobytes() for other in others):
            raise
    if found.mode == "CMYK" and "adobe" not in image.info:
        # Pillow takes every such file for one of Adobe's, whose inks are stored inverted.
        found = ImageChops.invert(found)
    return wanted.frame(found, size, orientation)


def _draft(image: Image.Image, wanted: Wanted) -> None:
    """Let the decoder itself skip detail (and colour) that would be discarded."""
    image.draft(None if wanted.color else "L", reduced_size(*image.size, wanted.max_side))


def _ended(data: bytes, wanted: Wanted) -> Image.Image:
    """Decode a JPEG whose end was added."""
    with _open(data, wanted) as image:
        _draft(image, wanted)
        image.load()
        return image.copy()


def _tiff_frames(data: bytes, wanted: Wanted) -> Iterator[Frame]:
    """Decode one page after the other, by Pillow if it reads them correctly."""
    number = -1
    for number, page in enumerate(pages(data)):
        wanted.check_size(page.width, page.height)
        yield _tiff_page(data, page, wanted)
        if number + 1 == _MOST_FRAMES:
            return
    if number < 0:
        # No directory can be read: Pillow says what is wrong.
        yield from _frames(data, wanted)


def _tiff_page(data: bytes, page: TiffPage, wanted: Wanted) -> Frame:
    size = (page.width, page.height)
    if page.is_common:
        try:
            with _open(alone(data, page), wanted) as image:
                wanted.take(decoding_bytes(image, size, len(data), color=wanted.color))
                image.load()
                return wanted.frame(without_empty_alpha(image), size, page.first(274, 1))
        except (MemoryError, PictureError):
            raise
        except Exception as error:
            return _tiff_samples(data, page, wanted, error)
    return _tiff_samples(data, page, wanted, None)


def _tiff_samples(data: bytes, page: TiffPage, wanted: Wanted, error: Exception | None) -> Frame:
    """Read a page that Pillow reads wrongly, or not at all (`error`)."""
    size = (page.width, page.height)
    try:
        channels, width = sample_size(page)
    except PictureError:
        refused = isinstance(error, UnidentifiedImageError | ValueError | KeyError)
        if error is None or refused or page.first(259, 1) not in _BY_LIBTIFF:
            raise
        # Pillow knows the variant, so the page is damaged.
        raise error from None
    wanted.take(samples_bytes(page.width * page.height, channels, width, len(data)))
    return wanted.frame(image_of(read_page(data, page)), size, page.first(274, 1))


def _open(data: bytes, wanted: Wanted) -> Image.Image:
    """Read the header."""
    with pillow_state(wanted.limits.max_pixels):
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.format == "TIFF":
            # Loading a TIFF reads its EXIF, which may warn: read it here.
            image.getexif()
    return image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded image; 1 if it is missing or damaged."""
    try:
        with pillow_state(max_pixels=1):
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # Damaged metadata is no reason to refuse a sound picture.
        return 1
    return orientation if isinstance(orientation, int) else 1
