"""Picture files of many variants, written by hand, which common libraries do not write."""

from __future__ import annotations

import io
import lzma
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COMPRESSIONS = {"none": 1, "lzw": 5, "deflate": 8, "packbits": 32773, "lzma": 34925, "zstd": 50000}


def truth(width: int = 48, height: int = 40) -> NDArray[np.float64]:
    """An RGB picture of the whole range, from 0 to 1: smooth, and unlike itself when turned."""
    y, x = np.mgrid[0:height, 0:width]
    red = x / (width - 1)
    green = y / (height - 1)
    blue = np.abs(np.sin(x / 9 + y / 5))
    return np.stack([red, green, (blue - blue.min()) / np.ptp(blue)], axis=2)


def grey_of(rgb: NDArray[Any]) -> NDArray[np.float64]:
    """The ITU-R 601 luma."""
    luma: NDArray[np.float64] = rgb @ np.array([0.299, 0.587, 0.114])
    return luma


def coded(values: NDArray[Any], bits: int, kind: str) -> NDArray[Any]:
    """Numbers from 0 to 1 as samples: `kind` is u (whole), i (with a sign) or f (floating)."""
    if kind == "f":
        return values.astype(f"f{bits // 8}")
    if kind == "i":
        low = -(2 ** (bits - 1))
        return np.rint(values * (2.0**bits - 1) + low).astype(np.int64)
    most = 2.0**bits - (1 if bits < 53 else 4096)
    return np.rint(values * most).astype(np.uint64)


@dataclass
class Tiff:
    """How samples are written as a TIFF."""

    bits: int = 8
    kind: str = "u"
    photometric: int = 1
    order: str = "<"
    planes: bool = False
    extra: int | None = None
    compression: str = "none"
    predictor: int = 1
    rows_per_strip: int | None = None
    tile: int = 0
    big: bool = False
    tags: dict[int, tuple[int, list[int]]] = field(default_factory=dict)

    def file(self, *pictures: NDArray[Any]) -> bytes:
        """Return a file of pictures of shape (h, w, samples)."""
        head = 16 if self.big else 8
        mark = b"II" if self.order == "<" else b"MM"
        body, chain = b"", []
        for samples in pictures:
            body += b"\0" * (len(body) % 2)
            chain.append((samples, [], []))
            for part in self._parts(samples):
                content = self._compressed(part)
                chain[-1][1].append(head + len(body))
                chain[-1][2].append(len(content))
                body += content
        start = head + len(body) + len(body) % 2
        body += b"\0" * (len(body) % 2)
        if self.big:
            begin = mark + struct.pack(f"{self.order}HHHQ", 43, 8, 0, start)
        else:
            begin = mark + struct.pack(f"{self.order}HI", 42, start)
        out = begin + body
        for number, (samples, starts, counts) in enumerate(chain):
            last = number == len(chain) - 1
            out += self._directory(samples, starts, counts, len(out), last)
        return out

    def _parts(self, samples: NDArray[Any]) -> list[NDArray[np.uint8]]:
        """Return the strips or tiles as rows of bytes."""
        planes = [samples[:, :, [c]] for c in range(samples.shape[2])] if self.planes else [samples]
        parts = []
        for plane in planes:
            height, width = plane.shape[:2]
            if self.tile:
                across, down = -(-width // self.tile), -(-height // self.tile)
                whole = np.zeros(
                    (down * self.tile, across * self.tile, plane.shape[2]), plane.dtype
                )
                whole[:height, :width] = plane
                parts += [
                    self._rows(whole[y : y + self.tile, x : x + self.tile])
                    for y in range(0, len(whole), self.tile)
                    for x in range(0, whole.shape[1], self.tile)
                ]
            else:
                rows = self.rows_per_strip or height
                parts += [self._rows(plane[y : y + rows]) for y in range(0, height, rows)]
        return parts

    def _rows(self, samples: NDArray[Any]) -> NDArray[np.uint8]:
        height, width, count = samples.shape
        if self.kind == "f":
            typed = samples.astype(f"{self.order}f{self.bits // 8}")
            if self.predictor == 3:
                apart = typed.astype(f">f{self.bits // 8}").view(np.uint8)
                apart = apart.reshape(height, width * count, -1).swapaxes(1, 2)
                steps = apart.reshape(height, -1, count)
                first = np.zeros((height, 1, count), np.uint8)
                return np.diff(steps, axis=1, prepend=first).reshape(height, -1)
            return np.ascontiguousarray(typed.reshape(height, -1)).view(np.uint8)
        if self.bits in (8, 16, 32, 64):
            whole = samples.astype(f"{self.kind}{self.bits // 8}")
            if self.predictor == 2:
                first = np.zeros((height, 1, count), whole.dtype)
                whole = np.diff(whole, axis=1, prepend=first)
            typed = whole.astype(f"{self.order}{self.kind}{self.bits // 8}").reshape(height, -1)
            return np.ascontiguousarray(typed).view(np.uint8)
        if self.bits == 24:
            places = [0, 8, 16] if self.order == "<" else [16, 8, 0]
            parts = [(samples >> np.uint64(place)) & np.uint64(255) for place in places]
            return np.stack(parts, axis=3).astype(np.uint8).reshape(height, -1)
        shifts = np.arange(self.bits - 1, -1, -1, dtype=np.uint64)
        loose = (samples.astype(np.uint64)[..., None] >> shifts) & np.uint64(1)
        return np.packbits(loose.reshape(height, -1).astype(np.uint8), axis=1)

    def _compressed(self, rows: NDArray[np.uint8]) -> bytes:
        data = rows.tobytes()
        if self.compression == "none":
            return data
        if self.compression == "deflate":
            return zlib.compress(data)
        if self.compression == "lzma":
            return lzma.compress(data)
        # Pillow's libtiff, of the bytes as of a grey picture.
        names = {"lzw": "tiff_lzw", "packbits": "packbits", "zstd": "zstd"}
        stream = io.BytesIO()
        options = {"compression": names[self.compression], "tiffinfo": {278: len(rows)}}
        Image.fromarray(rows).save(stream, "TIFF", **options)
        with Image.open(stream) as image:
            (at,), (size,) = image.tag_v2[273], image.tag_v2[279]  # type: ignore[attr-defined]
        return stream.getvalue()[at : at + size]

    def _directory(
        self, samples: NDArray[Any], starts: list[int], counts: list[int], at: int, last: bool
    ) -> bytes:
        height, width, count = samples.shape
        tags = {
            256: (4, [width]),
            257: (4, [height]),
            258: (3, [self.bits] * count),
            259: (3, [COMPRESSIONS[self.compression]]),
            262: (3, [self.photometric]),
            277: (3, [count]),
            284: (3, [2 if self.planes else 1]),
            317: (3, [self.predictor]),
            339: (3, [{"u": 1, "i": 2, "f": 3}[self.kind]] * count),
        }
        if self.tile:
            tags |= {
                322: (3, [self.tile]),
                323: (3, [self.tile]),
                324: (4, starts),
                325: (4, counts),
            }
        else:
            tags |= {273: (4, starts), 278: (3, [self.rows_per_strip or height]), 279: (4, counts)}
        if self.extra is not None:
            tags[338] = (3, [self.extra])
        return self._encoded(tags | self.tags, at, last)

    def _encoded(self, tags: dict[int, tuple[int, list[int]]], at: int, last: bool) -> bytes:
        word, number = ("Q", "Q") if self.big else ("I", "H")
        inline = struct.calcsize(f"={word}")
        size = struct.calcsize(f"={number}") + len(tags) * (4 + 2 * inline) + inline
        entries, contents = b"", b""
        for tag, (kind, values) in sorted(tags.items()):
            form = {1: "B", 2: "B", 3: "H", 4: "I", 7: "B"}[kind]
            content = struct.pack(f"{self.order}{len(values)}{form}", *values)
            if len(content) > inline:
                place = at + size + len(contents)
                contents += content + b"\0" * (len(content) % 2)
                content = struct.pack(f"{self.order}{word}", place)
            head = struct.pack(f"{self.order}HH{word}", tag, kind, len(values))
            entries += head + content.ljust(inline, b"\0")
        after = 0 if last else at + size + len(contents)
        begin = struct.pack(f"{self.order}{number}", len(tags))
        return begin + entries + struct.pack(f"{self.order}{word}", after) + contents


def png_chunk(kind: bytes, content: bytes, crc: bytes | None = None) -> bytes:
    """A chunk, with a checksum of its own or a wrong one."""
    crc = struct.pack(">I", zlib.crc32(kind + content)) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + crc


def png(samples: NDArray[Any], bits: int, *between: bytes, interlaced: bool = False) -> bytes:
    """A PNG of samples (h, w, channels), with chunks between its header and its pixels."""
    height, width, channels = samples.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    writer = Tiff(bits=bits, order=">")
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)]
        passes += [(0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    for x, y, dx, dy in passes:
        part = samples[y::dy, x::dx]
        if part.size:
            rows += b"".join(b"\0" + row.tobytes() for row in writer._rows(part))
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    parts = [png_chunk(b"IHDR", head), *between]
    parts += [png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
