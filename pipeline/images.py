"""Images: decoding them within limits, and why one cannot be decoded.

Everything wrong with an image becomes an `ImageReadError` with a code of `FAILURE_CODES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.config import ImageLimits
from pipeline.errors import ImageReadError
from pipeline.files import hash_bytes, require_bytes
from pipeline.pictures.errors import PictureError
from pipeline.pictures.frames import Wanted, frame_with_content
from pipeline.pictures.memory_estimate import opening_bytes
from pipeline.pixels import pixels_of_array, reduced
from pipeline.signatures import foreign_format, is_cut_off, known_format, odd_flavour

__all__ = [
    "FAILURE_CODES",
    "DecodedImage",
    "decode_image",
    "from_array",
    "hash_bytes",
]

FAILURE_CODES: dict[str, str] = {
    "changed": "the file changed after it was listed",
    "corrupt": "the image data is damaged",
    "extractor-failed": "the extractor failed on the picture",
    "kills-worker": "the process that decoded it died more than once",
    "empty-file": "the file is empty",
    "no-features": "nothing in the picture can be described",
    "not-a-file": "it is not a regular file",
    "not-an-image": "the content is not an image",
    "outside-roots": "it is outside the allowed image folders",
    "permission-denied": "this user has no permission to read it",
    "read-error": "the disk or the network failed to deliver it",
    "symlink-loop": "its symbolic links form a loop",
    "too-large-bytes": "the file is larger than the limit",
    "too-many-pixels": "the picture has more pixels than the limit",
    "too-much-memory": "decoding it takes more memory than the limit",
    "too-slow": "decoding it takes more time than the limit",
    "truncated": "the file ends before the picture is complete",
    "unsupported-format": "this image format is not supported",
    "vanished": "the file no longer exists",
}
"""Machine-readable code -> its general meaning; the sentence of an error says more."""


_TRUNCATED = "the file ends before the picture is complete; copy it again"


@dataclass(frozen=True)
class DecodedImage:
    """A picture ready for an extractor.

    Attributes
    ----------
    pixels : ndarray of shape (h, w) or (h, w, 3), uint8
        Grey, or BGR (OpenCV's order) when asked for; upright, reduced.
    width, height : int
        Of the original, pixels, after its EXIF orientation was applied.
    name : str
        For messages: the path, or the caller's name for it.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    name: str = "image"

    @property
    def scale_x(self) -> float:
        """Original pixels per pixel of `pixels`, horizontally."""
        return self.width / int(self.pixels.shape[1])

    @property
    def scale_y(self) -> float:
        """Original pixels per pixel of `pixels`, vertically."""
        return self.height / int(self.pixels.shape[0])


def from_array(
    array: NDArray[Any], *, max_side: int, color: bool = False, name: str = "array"
) -> DecodedImage:
    """Take a picture from an array.

    Parameters
    ----------
    array : ndarray of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4)
        Grey, RGB or RGBA; bool, uint8, uint16 or floating (0..1).
    max_side : int
        Longer side of the result, pixels.
    color : bool
        BGR instead of grey.
    name : str
        For messages.

    Raises
    ------
    InputError
        Wrong shape, dtype or values.
    """
    pixels = pixels_of_array(array, color=color)
    height, width = pixels.shape[:2]
    return DecodedImage(_as_opencv(reduced(pixels, max_side)), width, height, name)


def decode_image(
    data: bytes,
    *,
    name: str,
    limits: ImageLimits,
    max_side: int,
    color: bool = False,
    admit: Callable[[int], None] | None = None,
) -> DecodedImage:
    """Decode an image file's bytes by their content, whatever the file is called.

    This happens in the calling process, which a malicious file can crash: use `pipeline.decoders`
    for bytes from outside. The header is checked before anything is decoded. Animations and
    documents give their first frame that is not flat, EXIF orientation is applied, transparent
    areas become white (or black or grey, if white would hide the artwork).

    Parameters
    ----------
    data : bytes
        The file.
    name : str
        For messages: its path.
    limits : ImageLimits
    max_side : int
        Longer side of the result, pixels; larger pictures are reduced with an area filter.
    color : bool
        BGR instead of grey.
    admit : callable, optional
        Called with the bytes of memory that decoding is about to take.

    Raises
    ------
    ImageReadError
    """
    if not data:
        raise ImageReadError(name, "empty-file", "the file is empty (0 bytes)")
    require_bytes(name, len(data), limits)
    wanted = Wanted(limits, max_side, color, admit)
    with _decoder_errors(name, data, limits):
        wanted.take(opening_bytes(data))
        frame = frame_with_content(data, wanted)
    return DecodedImage(_as_opencv(frame.pixels), frame.width, frame.height, name)


def _as_opencv(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return RGB pixels in OpenCV's order, BGR; grey ones as they are."""
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, ::-1])


@contextmanager
def _decoder_errors(name: str, data: bytes, limits: ImageLimits) -> Iterator[None]:
    """Turn whatever a decoder raises into an `ImageReadError`."""
    try:
        yield
    except PictureError as error:
        raise ImageReadError(name, error.code, error.sentence) from error
    except MemoryError:
        # Lack of memory is not the file's fault; the code that limits it handles it.
        raise
    except UnidentifiedImageError as error:
        code, sentence = _unidentified(data)
        raise ImageReadError(name, code, sentence) from error
    except Image.DecompressionBombError as error:
        limit = f"{limits.max_pixels:,}"
        sentence = f"its header announces more than twice the limit of {limit} pixels"
        raise ImageReadError(name, "too-many-pixels", sentence) from error
    except Exception as error:
        # Given damaged bytes, decoders raise all kinds of errors: OSError, SyntaxError,
        # struct.error, ValueError, KeyError, zlib.error, ... All are the file's fault.
        text = str(error).strip() or type(error).__name__
        flavour = odd_flavour(data)
        if flavour:
            raise ImageReadError(name, *_unsupported(flavour)) from error
        if "truncated" in text.lower() or isinstance(error, EOFError) or is_cut_off(data):
            raise ImageReadError(name, "truncated", _TRUNCATED) from error
        raise ImageReadError(name, "corrupt", f"the image data is damaged ({text})") from error


def _unsupported(flavour: str) -> tuple[str, str]:
    return "unsupported-format", f"{flavour}, is not supported; convert it to JPEG or PNG"


def _unidentified(data: bytes) -> tuple[str, str]:
    """Say why no decoder accepts these bytes: code and sentence."""
    foreign, known = foreign_format(data), known_format(data)
    if foreign:
        return "unsupported-format", f"{foreign} files are not supported; convert it to JPEG or PNG"
    if is_cut_off(data):
        return "truncated", _TRUNCATED
    flavour = odd_flavour(data)
    if flavour:
        return _unsupported(flavour)
    if known:
        return "corrupt", f"it starts as {known} files do, but its header is damaged or cut off"
    return "not-an-image", "its content is not an image of a format that Vantage knows"
