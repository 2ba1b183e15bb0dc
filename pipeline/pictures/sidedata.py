"""Removes side data from a picture file: text, profiles, resolution, everything without pixels.

Decoders fail on side data that is large or damaged, although every pixel is sound. Only what the
pixels need is kept, and the EXIF with the orientation. If the structure of a file is unclear, its
bytes stay as they are, and the decoder says what is wrong.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

MAX_EXIF = 2**20
"""The most bytes of EXIF that are read; the largest genuine one has a thumbnail of 64 KiB."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"acTL", b"fcTL", b"fdAT"})
_PNG_TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt"})
# Text chunks in which older programs keep the orientation.
_PNG_EXIF_NAMES = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")
_PNG_SIZES = {b"acTL": (8, 8), b"fcTL": (26, 26), b"fdAT": (4, 2**31), b"tRNS": (1, 256)}
_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_JP2_PIXELS = frozenset({b"jP  ", b"ftyp", b"jp2h", b"jp2c"})


def without_side_data(data: bytes) -> bytes:
    """Return an image file without its side data; other formats and odd files unchanged.

    Parameters
    ----------
    data : bytes
        A PNG, JPEG, WebP or JPEG 2000 file.
    """
    try:
        if data.startswith(_PNG):
            return b"".join([_PNG, *_png_chunks(data), _png_chunk(b"IEND", b"")])
        if data.startswith(b"\xff\xd8"):
            return b"".join(_jpeg_segments(data))
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            body = b"".join(_webp_chunks(data))
            return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
        if data[4:8] == b"jP  ":
            return b"".join(_jp2_boxes(data))
    except _OddFileError:
        pass
    return data


class _OddFileError(Exception):
    """The file's structure is unclear."""


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + _crc(kind, content)


def _crc(kind: bytes, content: bytes | memoryview) -> bytes:
    return struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _png_chunks(data: bytes) -> Iterator[bytes | memoryview]:
    """Yield the chunks that pixels need, except the last one."""
    view, at = memoryview(data), 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if kind == b"IEND":
            return
        critical = not kind[0] & 0x20
        if end > len(data):
            if critical or kind == b"fdAT":
                raise _OddFileError
            return
        content = view[at + 8 : end - 4]
        if critical or _png_wanted(kind, content, data[end - 4 : end]):
            yield view[at:end]
        at = end
    # No end: the decoder will say whether pixels are missing.


def _png_wanted(kind: bytes, content: memoryview, crc: bytes) -> bool:
    """Say whether an optional chunk is sound and concerns pixels."""
    if kind in _PNG_PIXELS:
        least, most = _PNG_SIZES[kind]
        # An animation without frames is none.
        sound = least <= len(content) <= most and not (kind == b"acTL" and not any(content[:4]))
    elif len(content) > MAX_EXIF:
        return False
    elif kind in _PNG_TEXT:
        sound = bytes(content[:32]).startswith(_PNG_EXIF_NAMES) and _inflates(kind, bytes(content))
    else:
        sound = kind == b"eXIf"
    return sound and _crc(kind, content) == crc


def _inflates(kind: bytes, content: bytes) -> bool:
    """Say whether a text chunk is plain, or sound and small when inflated."""
    at = content.index(b"\0") + 1
    if kind == b"iTXt":
        if content[at : at + 1] == b"\0":
            return True
        at = content.find(b"\0", content.find(b"\0", at + 2) + 1)
    elif kind == b"tEXt":
        return True
    inflate = zlib.decompressobj()
    try:
        inflate.decompress(content[at + 1 :], MAX_EXIF)
    except zlib.error:
        return False
    return inflate.eof


def _jpeg_segments(data: bytes) -> Iterator[bytes | memoryview]:
    """Yield the segments that pixels need, and everything from the first scan on."""
    view, at = memoryview(data), 2
    yield view[:2]
    while True:
        # Bytes between segments are skipped, as every decoder does.
        at = data.find(b"\xff", at)
        if at < 0 or at + 4 > len(data):
            raise _OddFileError
        marker = data[at + 1]
        if marker in (0x00, 0xFF):
            at += 1
            continue
        if marker == 0xDA:
            yield view[at:]
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xD0 <= marker <= 0xD9 or marker == 0x01:
            length = 0
        segment = view[at : at + 2 + length]
        if _jpeg_wanted(marker, segment):
            yield segment
        at += 2 + max(length, 2) if length else 2


def _jpeg_wanted(marker: int, segment: memoryview) -> bool:
    """Say whether a segment concerns pixels: all but comments and most of APP0 to APP15."""
    if marker == 0xE0:
        # Its presence says that colours are YCbCr.
        return len(segment) >= 16
    if marker == 0xE1:
        return bytes(segment[4:10]) == b"Exif\0\0"
    if marker == 0xEE:
        return len(segment) >= 16 and bytes(segment[4:9]) == b"Adobe"
    return not (0xE2 <= marker <= 0xEF or marker == 0xFE)


def _webp_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the chunks that pixels need, and EXIF."""
    at = 12
    while at + 8 <= len(data):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        content = data[at + 8 : at + 8 + length]
        cut = len(content) < length
        if cut and kind in (*_WEBP_PIXELS, b"VP8X"):
            raise _OddFileError
        if kind == b"VP8X":
            # Profile and XMP are no longer there.
            content = bytes([content[0] & ~0x24]) + content[1:] if content else content
        wanted = kind in (*_WEBP_PIXELS, b"VP8X") or (kind == b"EXIF" and length <= MAX_EXIF)
        if wanted and not cut:
            yield kind + struct.pack("<I", length) + content + b"\0" * (length & 1)
        if cut:
            # A profile with a wrong length hides what follows: continue where pixels begin.
            starts = [data.find(mark, at + 8) for mark in _WEBP_PIXELS]
            at = min((start for start in starts if start >= 0), default=len(data))
        else:
            at += 8 + length + (length & 1)


def _jp2_boxes(data: bytes) -> Iterator[bytes | memoryview]:
    """Yield the boxes that pixels need."""
    view, at = memoryview(data), 0
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size == 0:
            size = len(data) - at
        if size < 8:
            raise _OddFileError
        if kind in _JP2_PIXELS:
            yield view[at : at + size]
        at += size
