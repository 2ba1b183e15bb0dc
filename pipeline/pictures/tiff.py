"""The directories of a TIFF: its pictures, their variants and their layout.

Reads TIFF 6.0 and BigTIFF. Only the tags that pixels need are read, and only within the file:
anything else in a directory may be damaged.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.pictures.errors import PictureError

__all__ = ["TiffPage", "alone", "pages"]

_TYPES = {
    1: "B",
    3: "H",
    4: "I",
    6: "b",
    7: "B",
    8: "h",
    9: "i",
    13: "I",
    16: "Q",
    17: "q",
    18: "Q",
}
# Subfile, width, height, bits, compression, photometric, fill order, strips, orientation, samples,
# rows, counts, planes, T4, T6, predictor, colours, tiles, sub-directories, inks, extra, format,
# JPEG, YCbCr, reference black and white.
_PIXEL_TAGS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320}
    | {322, 323, 324, 325, 330, 332, 338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521}
    | {530, 531, 50706}
)
_JPEG_TABLES = 347
_RATIONAL_TAGS = frozenset({529, 532})
_FORMATS = {1: "", 2: " signed", 3: " float", 4: "", 5: " complex integer", 6: " complex float"}
_COLOURS = {
    0: "grey, white is zero",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "Lab",
    9: "ICC Lab",
    10: "ITU Lab",
    32803: "colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
_COMPRESSIONS = {
    1: "",
    2: "CCITT",
    3: "CCITT fax 3",
    4: "CCITT fax 4",
    5: "LZW",
    6: "old JPEG",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34713: "Nikon NEF",
    34887: "LERC",
    34892: "lossy JPEG",
    34925: "LZMA",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
# What Pillow has the colours of; palettes of it have 8 bits at most.
_COMMON = frozenset({0, 1, 2, 3, 5, 6, 8})
_RAW = frozenset({32803, 34892})
_MOST_DIRECTORIES = 4096
_MOST_VALUES = 1 << 24

Values = tuple[int, ...]


@dataclass(frozen=True)
class TiffPage:
    """One picture of a TIFF."""

    order: str
    big: bool
    tags: dict[int, Values]
    camera: str = ""
    rationals: dict[int, bytes] = field(default_factory=dict)

    def first(self, tag: int, default: int = 0) -> int:
        """Return a tag's first value."""
        values = self.tags.get(tag)
        return values[0] if values else default

    @property
    def width(self) -> int:
        """Columns."""
        return self.first(256)

    @property
    def height(self) -> int:
        """Rows."""
        return self.first(257)

    @property
    def samples(self) -> int:
        """Samples a pixel."""
        return self.first(277, 1)

    @property
    def bits(self) -> Values:
        """Bits of every sample."""
        bits = self.tags.get(258, (1,))
        return bits if len(bits) >= self.samples else (bits[0],) * self.samples

    @property
    def photometric(self) -> int:
        """The meaning of the samples; guessed from their number if it is missing."""
        return self.first(262, 1 if self.samples < 3 else 2)

    @property
    def is_reduced(self) -> bool:
        """Whether it is a thumbnail or a mask of another picture."""
        return bool(self.first(254) & 5) or self.first(255) == 2 or self.photometric == 4

    @property
    def is_common(self) -> bool:
        """Whether Pillow reads this variant correctly, if at all."""
        depth = set(self.bits[: self.samples])
        return (
            self.first(339, 1) == 1
            and self.photometric in _COMMON
            and len(depth) == 1
            and depth <= {1, 2, 4, 8}
        )

    @property
    def flavour(self) -> str:
        """For messages: as ``TIFF, 16-bit float, 3 samples (RGB), LZW``."""
        bits = "/".join(str(each) for each in sorted(set(self.bits)))
        kind = _FORMATS.get(self.first(339, 1), " unknown")
        colours = _COLOURS.get(self.photometric, f"photometric {self.photometric}")
        count = f"{self.samples} sample{'s' * (self.samples != 1)}"
        text = f"TIFF, {bits}-bit{kind}, {count} ({colours})"
        if self.first(284, 1) == 2 and self.samples > 1:
            text += ", planes"
        code = self.first(259, 1)
        how = _COMPRESSIONS.get(code, f"compression {code}")
        return f"{text}, {how}" if how else text


def pages(data: bytes) -> Iterator[TiffPage]:
    """Yield the full pictures of a TIFF in their order.

    Raises
    ------
    PictureError
        A raw camera file, or one with a thumbnail only.
    """
    found, reduced = False, None
    for page in _directories(data):
        subs = list(_sub_pages(data, page))
        if data[8:10] == b"CR" or any(sub.photometric in _RAW for sub in (page, *subs)):
            raise _raw(page)
        full = [page] if not page.is_reduced else [sub for sub in subs if not sub.is_reduced]
        reduced = page
        for each in full:
            found = True
            yield each
    if not found and reduced is not None:
        raise _raw(reduced)


def _raw(page: TiffPage) -> PictureError:
    """Return the error for a file whose picture is not decoded here."""
    if page.camera:
        text = f"it is a raw file of a camera ({page.camera})"
    elif page.photometric in _RAW or 50706 in page.tags:
        text = "it is a raw file of a camera"
    else:
        text = "it is a TIFF with a thumbnail only"
    return PictureError("unsupported-format", f"{text}; convert it to JPEG, PNG or a plain TIFF")


def _directories(data: bytes) -> Iterator[TiffPage]:
    """Follow the chain of directories."""
    order = "<" if data[:2] == b"II" else ">"
    version = int.from_bytes(data[2:4], "little" if order == "<" else "big")
    big = version == 43
    seen: set[int] = set()
    at = _unpack(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)
    while at and at not in seen and len(seen) < _MOST_DIRECTORIES:
        seen.add(at)
        read = _directory(data, order, big, at)
        if read is None:
            return
        page, at = read
        if page.width and page.height:
            yield page


def _sub_pages(data: bytes, page: TiffPage) -> Iterator[TiffPage]:
    for at in page.tags.get(330, ())[:16]:
        read = _directory(data, page.order, page.big, at)
        if read is not None and read[0].width and read[0].height:
            yield read[0]


def _unpack(form: str, data: bytes, at: int) -> int:
    """Return one number; 0 if the file ends before it."""
    try:
        return int(struct.unpack_from(form, data, at)[0])
    except (struct.error, OverflowError):
        return 0


def _directory(data: bytes, order: str, big: bool, at: int) -> tuple[TiffPage, int] | None:
    """Return a directory and the place of the next one; None if there is none."""
    entry, head, word = (20, 8, "Q") if big else (12, 2, "I")
    count = _unpack(f"{order}{'Q' if big else 'H'}", data, at)
    if not count or at + head + count * entry > len(data) or count > 65535:
        return None
    tags: dict[int, Values] = {}
    rationals: dict[int, bytes] = {}
    camera: list[str] = []
    for place in range(at + head, at + head + count * entry, entry):
        tag, kind, values = struct.unpack_from(f"{order}HH{word}", data, place)
        inline = place + 4 + struct.calcsize(word)
        if tag in _PIXEL_TAGS and (read := _values(data, order, big, inline, kind, values)):
            tags.setdefault(tag, read)
        elif tag in (271, 272) and kind == 2 and values < 256:
            camera.append(_bytes(data, order, big, inline, values).split(b"\0")[0].decode("latin1"))
        elif tag in _RATIONAL_TAGS and kind == 5 and values <= 6:
            rationals[tag] = _bytes(data, order, big, inline, 8 * values)
    _fill_counts(tags, len(data))
    page = TiffPage(order, big, tags, " ".join(filter(None, camera)), rationals)
    return page, _unpack(f"{order}{word}", data, at + head + count * entry)


def _fill_counts(tags: dict[int, Values], size: int) -> None:
    """Replace byte counts that some programs leave out, or write as 0.

    A strip or tile then ends where the next one begins, or the file. One at 0 is left out on
    purpose.
    """
    for places, counts in ((273, 279), (324, 325)):
        starts, known = tags.get(places, ()), tags.get(counts, ())
        if len(known) >= len(starts) and all(known):
            continue
        bounds = sorted({*starts, size})
        room = [bounds[min(bisect_right(bounds, at), len(bounds) - 1)] - at for at in starts]
        tags[counts] = tuple(
            known[number]
            if number < len(known) and (known[number] or not at)
            else max(0, room[number])
            for number, at in enumerate(starts)
        )


def _values(data: bytes, order: str, big: bool, at: int, kind: int, count: int) -> Values | None:
    """Return an entry's numbers; None if they are not numbers or are outside the file."""
    form = _TYPES.get(kind)
    if form is None or not 0 < count <= _MOST_VALUES:
        return None
    size = count * struct.calcsize(f"={form}")
    content = _bytes(data, order, big, at, size)
    return struct.unpack(f"{order}{count}{form}", content) if len(content) == size else None


def _bytes(data: bytes, order: str, big: bool, at: int, size: int) -> bytes:
    """Return an entry's content, which is in the entry itself if small."""
    if size > (8 if big else 4):
        at = _unpack(f"{order}{'Q' if big else 'I'}", data, at)
    return data[at : at + size]


def alone(data: bytes, page: TiffPage) -> bytes:
    """Return the file with a new directory that has one page and only the tags of its pixels.

    The place of the pixels does not change, so the file is copied as a whole.
    """
    start = len(data) + len(data) % 2
    # Turning the picture is left to the caller, which knows its tag.
    unwanted = (254, 255, 274, 330)
    tags = {tag: values for tag, values in page.tags.items() if tag not in unwanted}
    entries, contents = [], b""
    ids = sorted({*tags, *page.rationals})
    head, entry, word = (8, 20, "Q") if page.big else (2, 12, "I")
    inline = struct.calcsize(f"={word}")
    after = start + head + entry * len(ids) + inline
    for tag in ids:
        kind, count, content = _encoded(page, tag)
        if len(content) <= inline:
            field_bytes = content.ljust(inline, b"\0")
        else:
            field_bytes = struct.pack(f"{page.order}{word}", after + len(contents))
            contents += content + b"\0" * (len(content) % 2)
        entries.append(struct.pack(f"{page.order}HH{word}", tag, kind, count) + field_bytes)
    number = struct.pack(f"{page.order}{'Q' if page.big else 'H'}", len(ids))
    directory = b"".join([number, *entries, bytes(inline), contents])
    place = 8 if page.big else 4
    begin = struct.pack(f"{page.order}{word}", start)
    body = data[place + inline :]
    return b"".join([data[:place], begin, body, b"\0" * (start - len(data)), directory])


def _encoded(page: TiffPage, tag: int) -> tuple[int, int, bytes]:
    """Return a tag's type, count and content."""
    if tag in page.rationals:
        content = page.rationals[tag]
        return 5, len(content) // 8, content
    values = page.tags[tag]
    if tag == _JPEG_TABLES:
        return 7, len(values), bytes(values)
    wide = max(values) > 0xFFFFFFFF
    short = max(values) <= 0xFFFF and min(values) >= 0
    kind, form = (16, "Q") if wide else (3, "H") if short else (4, "I")
    if min(values) < 0:
        kind, form = 9, "i"
    return kind, len(values), struct.pack(f"{page.order}{len(values)}{form}", *values)
