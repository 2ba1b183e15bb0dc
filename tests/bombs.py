"""Small files that are expensive to decode, made by code."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def flat_png(width: int, height: int, colour_type: int = 6) -> bytes:
    """A PNG of one colour: grey (0), RGB (2) or RGBA (6), 8 bits."""
    channels = {0: 1, 2: 3, 6: 4}[colour_type]
    packer, row = zlib.compressobj(9), bytes(1 + channels * width)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def flat_webp(width: int, height: int) -> bytes:
    """A lossless WebP of one colour: 34 bytes, whatever its size."""
    bits = [(width - 1, 14), (height - 1, 14), (1, 1), (0, 3), (0, 1), (0, 1), (0, 1)]
    # Five prefix codes, each of one symbol, 0: pixels take no bits at all.
    bits += [(1, 1), (0, 1), (0, 1), (0, 1)] * 5
    value = place = 0
    for number, size in bits:
        value |= number << place
        place += size
    body = b"\x2f" + value.to_bytes((place + 7) // 8, "little")
    body += bytes(14 - len(body))  # decoders read ahead
    content = b"WEBPVP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(content)) + content


def resized_header(kind: str, width: int, height: int) -> bytes:
    """A file whose header announces a size that its data do not have."""
    small = Image.fromarray(np.zeros((60, 80, 3), np.uint8))
    stream = io.BytesIO()
    small.save(stream, kind)
    data = stream.getvalue()
    if kind == "PPM":
        return b"P6 %d %d 255\n" % (width, height)
    if kind == "TIFF":
        for tag, value in ((256, width), (257, height)):
            old = struct.pack("<HHI", tag, 4, 1) + struct.pack("<I", 80 if tag == 256 else 60)
            old_short = struct.pack("<HHIHH", tag, 3, 1, 80 if tag == 256 else 60, 0)
            new = struct.pack("<HHII", tag, 4, 1, value)
            data = data.replace(old, new).replace(old_short, new)
        return data
    order = {"BMP": "<", "GIF": "<H", "AVIF": ">", "JPEG2000": ">", "JPEG": ">H"}[kind]
    if kind == "GIF":
        old, new = struct.pack("<HH", 80, 60), struct.pack("<HH", width, height)
    elif kind == "JPEG":
        old, new = struct.pack(">HH", 60, 80), struct.pack(">HH", height, width)
    elif kind == "JPEG2000":
        data = data.replace(struct.pack(">II", 60, 80), struct.pack(">II", height, width))
        old, new = struct.pack(">II", 80, 60), struct.pack(">II", width, height)
    else:
        old, new = struct.pack(f"{order}II", 80, 60), struct.pack(f"{order}II", width, height)
    assert old in data, kind
    return data.replace(old, new)


def many_scans(scans: int, side: int = 2048) -> bytes:
    """A progressive JPEG of one colour whose last scan comes `scans` times: each is decoded."""
    stream = io.BytesIO()
    Image.new("L", (side, side), 90).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]
