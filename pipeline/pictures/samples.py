"""The samples of a TIFF page, of any depth, sign, polarity and layout.

Pillow reads the common variants; it refuses some others, and reads some wrongly. Those are read
here: integers of 1 to 64 bits, floats of 16 to 64, interleaved or in planes, in strips or tiles,
with every lossless compression.
"""

from __future__ import annotations

import io
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.pictures.contrast import scaled
from pipeline.pictures.errors import PictureError
from pipeline.pictures.pillow import pillow_state
from pipeline.pictures.tiff import TiffPage

__all__ = ["Samples", "read_page", "sample_size"]

# Photometric -> channels of colour that are kept; of Lab its lightness.
_CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 8: 1, 9: 1, 10: 1}
_LAB = (8, 9, 10)
_DEFLATE = (8, 32946)
_LZMA = 34925
_BY_PILLOW = (5, 32773, 50000)
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Samples:
    """A page's samples as numbers.

    Attributes
    ----------
    values : ndarray of shape (h, w) or (h, w, 3), unsigned or float32
        Black is low, even if white is low in the file.
    alpha : ndarray of shape (h, w), uint8, or None
    full : (float, float) or None
        Black and white, see `pipeline.pictures.contrast.to_8_bits`.
    """

    values: NDArray[Any]
    alpha: NDArray[np.uint8] | None
    full: tuple[float, float] | None


def read_page(data: bytes, page: TiffPage) -> Samples:
    """Read a page.

    Raises
    ------
    PictureError
        The flavour is not read here, or the samples are damaged or missing.
    """
    layout = _Layout(page)
    planes = _Canvas(layout)
    for strip in layout.strips():
        planes.put(strip, _strip_samples(data, layout, strip))
    return _meaning(layout, planes.array)


def sample_size(page: TiffPage) -> tuple[int, int]:
    """Return how many samples of a pixel are kept, and the bytes of one.

    Raises
    ------
    PictureError
        The flavour is not read here.
    """
    layout = _Layout(page)
    return len(layout.keeps), layout.dtype.itemsize


@dataclass(frozen=True)
class _Strip:
    """A strip or tile: its place in the file and in the picture, and its sample."""

    at: int
    size: int
    top: int
    left: int
    rows: int
    columns: int
    sample: int


class _Layout:
    """The layout of a page's samples in the file."""

    def __init__(self, page: TiffPage) -> None:
        self.page = page
        self.bits = page.bits[0]
        self.kind = page.first(339, 1)
        self.compression = page.first(259, 1)
        self.predictor = page.first(317, 1)
        self.apart = page.first(284, 1) == 2 and page.samples > 1
        self.together = 1 if self.apart else page.samples
        self.colours = _CHANNELS.get(page.photometric, 0)
        extra = page.tags.get(338, ())
        known = page.photometric in _LAB and page.samples >= 3
        first_extra = 3 if known else self.colours
        # An extra sample counts as alpha only if the file says so.
        self.alpha = extra[0] if extra and extra[0] in (1, 2) and page.samples > first_extra else 0
        self.alpha_at = first_extra
        self._check()

    def unsupported(self) -> PictureError:
        """Return the error for an unsupported variant."""
        flavour = self.page.flavour
        text = f"{flavour}, is not supported; save it with 8 or 16 bits a sample, or as PNG"
        return PictureError("unsupported-format", text)

    @property
    def keeps(self) -> list[int]:
        """Samples of a pixel that are kept."""
        return [*range(self.colours), *([self.alpha_at] if self.alpha else [])]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the samples in memory."""
        if self.kind in (1, 4) and self.bits <= 16:
            return np.dtype(np.uint8 if self.bits <= 8 else np.uint16)
        return np.dtype(np.float32)

    def _check(self) -> None:
        page, bits = self.page, self.bits
        whole = self.kind in (1, 2, 4) and (bits in (8, 16, 24, 32, 64) or bits <= 16)
        sound = whole and not (self.kind == 2 and bits not in (8, 16, 32, 64))
        floating = self.kind == 3 and bits in (16, 32, 64)
        codecs = (1, *_DEFLATE, _LZMA, *_BY_PILLOW)
        differences = self.predictor == 1 or (
            self.predictor == 2 and bits in (8, 16, 32, 64) and self.kind != 3
        )
        differences |= self.predictor == 3 and floating
        if (
            not (sound or floating)
            or not differences
            or not self.colours
            or page.samples < self.colours
            or len(set(page.bits[: page.samples])) != 1
            or self.compression not in codecs
            or page.first(266, 1) != 1
            or (page.photometric == 3 and (bits > 16 or 320 not in page.tags))
            or (page.photometric == 5 and page.first(332, 1) != 1)
        ):
            raise self.unsupported()

    def strips(self) -> Iterator[_Strip]:
        """Yield the strips or tiles."""
        page = self.page
        tiled = 322 in page.tags and 324 in page.tags
        columns = page.first(322) if tiled else page.width
        rows = page.first(323) if tiled else min(page.first(278, page.height), page.height)
        starts = page.tags.get(324 if tiled else 273, ())
        counts = page.tags.get(325 if tiled else 279, ())
        if not columns or not rows or not starts:
            raise PictureError("corrupt", "the image data is damaged (no place of the pixels)")
        across, down = -(-page.width // columns), -(-page.height // rows)
        planes = page.samples if self.apart else 1
        if len(starts) < across * down * planes:
            raise PictureError("corrupt", "the image data is damaged (strips are missing)")
        for number in range(across * down * planes):
            plane, place = divmod(number, across * down)
            top, left = place // across * rows, place % across * columns
            high = rows if tiled else min(rows, page.height - top)
            size = counts[number] if number < len(counts) else self.row_bytes(columns) * high
            yield _Strip(starts[number], size, top, left, high, columns, plane)

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of a strip or tile."""
        return (columns * self.together * self.bits + 7) // 8


class _Canvas:
    """The kept samples, assembled from strips and tiles."""

    def __init__(self, layout: _Layout) -> None:
        page = layout.page
        self._layout = layout
        self.array = np.zeros((page.height, page.width, len(layout.keeps)), layout.dtype)

    def put(self, strip: _Strip, samples: Iterator[NDArray[Any]] | None) -> None:
        """Put a strip's rows, of shape (rows, columns, together), in their place."""
        if samples is None:
            return
        top, keeps = strip.top, self._layout.keeps
        for rows in samples:
            place = self.array[top : top + len(rows), strip.left : strip.left + strip.columns]
            fitting = rows[: place.shape[0], : place.shape[1]]
            if self._layout.apart:
                place[:, :, keeps.index(strip.sample)] = fitting[:, :, 0]
            else:
                place[...] = fitting[:, :, keeps]
            top += len(rows)


def _strip_samples(data: bytes, layout: _Layout, strip: _Strip) -> Iterator[NDArray[Any]] | None:
    """Return a strip's samples in blocks of rows; None for an unneeded plane."""
    if layout.apart and strip.sample not in layout.keeps:
        return None
    if strip.at + strip.size > len(data):
        raise PictureError("truncated", "the file ends before the picture is complete")
    width = layout.row_bytes(strip.columns)
    content = _inflated(
        data[strip.at : strip.at + strip.size], layout.compression, width, strip.rows
    )
    if len(content) < width * strip.rows:
        raise PictureError("corrupt", "the image data is damaged (a strip is too short)")
    return _blocks(layout, strip, np.frombuffer(content, np.uint8, width * strip.rows))


def _blocks(layout: _Layout, strip: _Strip, content: NDArray[np.uint8]) -> Iterator[NDArray[Any]]:
    """Yield samples of a few rows at a time: odd depths need much memory while unpacked."""
    rows = content.reshape(strip.rows, -1)
    step = max(1, _BLOCK // max(1, strip.columns * layout.together))
    for at in range(0, strip.rows, step):
        yield _numbers(layout, strip.columns, rows[at : at + step])


def _inflated(content: bytes, compression: int, width: int, rows: int) -> bytes:
    """Return a strip's uncompressed bytes, at most as many as needed."""
    try:
        if compression == 1:
            return content
        if compression in _DEFLATE:
            return zlib.decompressobj().decompress(content, width * rows)
        if compression == _LZMA:
            return lzma.LZMADecompressor().decompress(content, width * rows)
        return _by_pillow(content, compression, width, rows)
    except (zlib.error, lzma.LZMAError, OSError, SyntaxError) as error:
        raise PictureError("corrupt", f"the image data is damaged ({error})") from error


def _by_pillow(content: bytes, compression: int, width: int, rows: int) -> bytes:
    """Let Pillow's libtiff decode the bytes as those of a grey picture."""
    values = {256: width, 257: rows, 258: 8, 259: compression, 262: 1, 273: 122, 277: 1}
    values |= {278: rows, 279: len(content)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items())]
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    with pillow_state(2**31):
        image = Image.open(io.BytesIO(head + content), formats=("TIFF",))
        image.load()
    return image.tobytes()


def _numbers(layout: _Layout, columns: int, rows: NDArray[np.uint8]) -> NDArray[Any]:
    """Turn rows of bytes into samples of shape (rows, columns, together)."""
    bits, count = layout.bits, columns * layout.together
    if layout.predictor == 3:
        samples = _undo_float_differences(rows, layout.together, bits // 8)
    elif bits in (8, 16, 32, 64):
        letter = {1: "u", 2: "i", 3: "f", 4: "u"}[layout.kind]
        samples = rows.view(np.dtype(f"{layout.page.order}{letter}{bits // 8}"))
    else:
        samples = _unpacked(rows, bits, count, layout.page.order)
    shaped = samples.reshape(len(rows), columns, layout.together)
    if layout.predictor == 2:
        shaped = np.cumsum(shaped, axis=1, dtype=shaped.dtype.newbyteorder("="))
    with np.errstate(over="ignore"):
        return shaped.astype(layout.dtype)


def _unpacked(rows: NDArray[np.uint8], bits: int, count: int, order: str) -> NDArray[Any]:
    """Take numbers of any bits from rows of bytes, the highest bit first."""
    if bits == 24:
        octets = rows[:, : 3 * count].reshape(len(rows), count, 3).astype(np.uint32)
        high, low = (2, 0) if order == "<" else (0, 2)
        return octets[:, :, high] << 16 | octets[:, :, 1] << 8 | octets[:, :, low]
    loose = np.unpackbits(rows, axis=1)[:, : count * bits].reshape(len(rows), count, bits)
    weights = (1 << np.arange(bits - 1, -1, -1)).astype(np.uint32)
    return loose.astype(np.uint32) @ weights


def _undo_float_differences(rows: NDArray[np.uint8], stride: int, size: int) -> NDArray[Any]:
    """Undo predictor 3 of Adobe's technical note 3: separated bytes of floats, as differences."""
    length = rows.shape[1]
    sums = np.cumsum(rows.reshape(len(rows), length // stride, stride), axis=1, dtype=np.uint8)
    apart = sums.reshape(len(rows), size, length // size)
    return np.ascontiguousarray(apart.swapaxes(1, 2)).view(f">f{size}")[:, :, 0]


def _meaning(layout: _Layout, array: NDArray[Any]) -> Samples:
    """Turn stored samples into grey or RGB of which black is low, with alpha."""
    page = layout.page
    values: NDArray[Any] = array[:, :, : layout.colours]
    full = _black_and_white(layout, values)
    alpha = _alpha(layout, array)
    if page.photometric == 3:
        values, full = _coloured(page, values), (0.0, 65535.0)
    elif page.photometric == 5:
        values, full = _from_cmyk(values, full), (0.0, 1.0)
    elif page.photometric == 0:
        low, high = full or (float(values.min()), float(values.max()))
        values = (
            (low + high - values).astype(values.dtype) if full is None else _turned(values, full)
        )
    if layout.alpha == 1 and alpha is not None:
        values = _undo_premultiplied(values, array[:, :, -1], full)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    return Samples(values, alpha, full)


def _black_and_white(layout: _Layout, values: NDArray[Any]) -> tuple[float, float] | None:
    """Return the values of black and white; None if the format has no agreed ones."""
    bits = layout.bits
    if layout.kind in (1, 4) and bits <= 24:
        return 0.0, 2.0**bits - 1
    if layout.kind == 3:
        return None
    negative = bool(values.min() < 0)
    if layout.kind == 2 and bits <= 16:
        # Signed numbers: if none is negative, their upper half.
        return -(2.0 ** (bits - 1)) if negative else 0.0, 2.0 ** (bits - 1) - 1
    if negative:
        return None
    most = 2.0 ** (bits - 1 if layout.kind == 2 else bits)
    return 0.0, 65535.0 if values.max() <= 65535 else most


def _turned(values: NDArray[Any], full: tuple[float, float]) -> NDArray[Any]:
    """Swap black and white."""
    if np.issubdtype(values.dtype, np.unsignedinteger):
        turned: NDArray[Any] = np.subtract(int(full[1]), values, dtype=values.dtype)
    else:
        turned = np.subtract(full[0] + full[1], values, dtype=np.float32)
    return turned


def _alpha(layout: _Layout, array: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Return the alpha in 8 bits; None if there is none, or if it would hide everything."""
    if not layout.alpha:
        return None
    plane = array[:, :, -1]
    if not plane.any():
        # Some programs leave it empty, and viewers of TIFF ignore it.
        return None
    most = 2.0**layout.bits - 1 if layout.kind in (1, 4) else 1.0
    if layout.kind == 2:
        most = 2.0 ** (layout.bits - 1) - 1
    return scaled(plane, 0.0, most)


def _undo_premultiplied(
    values: NDArray[Any], alpha: NDArray[Any], full: tuple[float, float] | None
) -> NDArray[Any]:
    """Divide colours by the alpha that they are multiplied with."""
    most = full[1] if full else 1.0
    share = np.maximum(alpha.astype(np.float32), 1e-9)[:, :, None] / most
    undone = np.minimum(values / share, most)
    undone[alpha == 0] = most
    return undone.astype(values.dtype) if full else undone.astype(np.float32)


def _coloured(page: TiffPage, values: NDArray[Any]) -> NDArray[np.uint16]:
    """Look up a palette's colours."""
    table = np.array(page.tags[320], dtype=np.uint16)
    if len(table) < 3 << page.bits[0]:
        raise PictureError("corrupt", "the image data is damaged (colours are missing)")
    if table.max() < 256:
        # Some writers keep 8 bits in the 16.
        table = table * np.uint16(257)
    return np.ascontiguousarray(table.reshape(3, -1)[:, values[:, :, 0]].transpose(1, 2, 0))


def _from_cmyk(values: NDArray[Any], full: tuple[float, float] | None) -> NDArray[np.float32]:
    """Convert inks to light."""
    most = np.float32(full[1] if full else 1.0)
    paper = 1 - values.astype(np.float32) / most
    light: NDArray[np.float32] = paper[:, :, :3] * paper[:, :, 3:4]
    return light
