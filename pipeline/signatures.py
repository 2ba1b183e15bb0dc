"""What a file's bytes say about its format, without a decoder: for messages that help."""

from __future__ import annotations

import struct
from collections.abc import Iterable

# What is often found in a photo folder and cannot be decoded: (offset, signature, name).
_FOREIGN = (
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (4, b"ftypcrx", "Canon CR3"),
    (0, b"FUJIFILMCCD-RAW", "Fujifilm RAW"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"<svg", "SVG"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"\x00\x00\x01\x00", "Windows icon"),
    (0, b"DDS ", "DirectDraw"),
    (0, b"PF\n", "colour PFM"),
    (0, b"P7\n", "PAM"),
)

# What can be decoded: a file that starts so and does not open is damaged.
_KNOWN = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"II+\x00", "TIFF"),
    (0, b"MM\x00+", "TIFF"),
    (0, b"BM", "BMP"),
    (4, b"ftypavi", "AVIF"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
)


def foreign_format(data: bytes) -> str | None:
    """Return the name of an image format that is recognised but cannot be decoded, else None."""
    return _match(data, _FOREIGN)


def known_format(data: bytes) -> str | None:
    """Return the name of a format that can be decoded and starts with these bytes, else None."""
    return _match(data, _KNOWN)


def _match(data: bytes, signatures: Iterable[tuple[int, bytes, str]]) -> str | None:
    """Return the first format whose signature is there."""
    return next((name for at, mark, name in signatures if data.startswith(mark, at)), None)


def is_cut_off(data: bytes) -> bool:
    """Say whether a file is shorter than its own structure says.

    Knows the formats whose decoders cannot tell a file that ends early from a damaged one: WebP,
    TIFF, AVIF and JPEG 2000. False for all others.
    """
    kind = known_format(data)
    if kind == "WebP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if kind == "TIFF":
        start = data[8:16] if b"+" in data[2:4] else data[4:8]
        return len(data) < int.from_bytes(start, "little" if data[:2] == b"II" else "big")
    if kind in ("AVIF", "JPEG 2000"):
        return not data.endswith(b"\xff\xd9") if data[:1] == b"\xff" else _last_box_is_cut_off(data)
    return False


def odd_flavour(data: bytes) -> str | None:
    """Name the variant of a JPEG or BMP file that no decoder here reads, else None."""
    kind = known_format(data)
    if kind == "BMP":
        return _odd_bmp(data)
    return _odd_jpeg(data) if kind == "JPEG" else None


def _odd_bmp(data: bytes) -> str | None:
    """Name the variant of a BMP with uncommon depth, compression or bit fields."""
    if len(data) < 70 or int.from_bytes(data[14:18], "little") < 40:
        return None
    bits = int.from_bytes(data[28:30], "little")
    compression = int.from_bytes(data[30:34], "little")
    what = _BMP_COMPRESSIONS.get(compression, f"compression {compression}")
    if compression == 3:
        masks = struct.unpack_from("<3I", data, 54)
        common = all((mask >> _lowest_bit(mask)) in (31, 63, 255) for mask in masks)
        what += " " + "/".join(f"{mask:x}" for mask in masks)
    else:
        common = compression in (0, 1, 2)
    return None if common and bits in (1, 4, 8, 16, 24, 32) else f"BMP, {bits}-bit, {what}"


def _lowest_bit(mask: int) -> int:
    return max(0, (mask & -mask).bit_length() - 1)


_BMP_COMPRESSIONS = {0: "plain", 1: "RLE", 2: "RLE", 3: "bit fields", 4: "JPEG", 5: "PNG"}


def _odd_jpeg(data: bytes) -> str | None:
    """Name the variant of a JPEG with an uncommon kind of frame."""
    at = 2
    while at + 10 <= len(data):
        at = data.find(b"\xff", at)
        if at < 0 or at + 10 > len(data):
            return None
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0x00, 0xFF):
            at += 1
        elif marker in _JPEG_FRAMES:
            samples = data[at + 9]
            if marker in _COMMON_FRAMES and data[at + 4] == 8 and samples in (1, 3, 4):
                return None
            count = f"{samples} sample{'s' * (samples != 1)}"
            return f"JPEG, {data[at + 4]}-bit {_JPEG_FRAMES[marker]}, {count}"
        elif marker == 0xDA:
            return None
        else:
            at += 2 + max(length, 2)
    return None


_COMMON_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
_JPEG_FRAMES = {
    0xC0: "baseline",
    0xC1: "extended",
    0xC2: "progressive",
    0xC3: "lossless",
    0xC5: "differential",
    0xC6: "differential progressive",
    0xC7: "differential lossless",
    0xC9: "arithmetic",
    0xCA: "arithmetic progressive",
    0xCB: "arithmetic lossless",
    0xCD: "differential arithmetic",
    0xCE: "differential arithmetic progressive",
    0xCF: "differential arithmetic lossless",
    0xF7: "LS",
}


def _last_box_is_cut_off(data: bytes) -> bool:
    """Follow the boxes of an ISO base media file: size, type, content."""
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size == 0:
            # The last box may leave its size open: its codestream has an end marker of its own.
            return not data.endswith(b"\xff\xd9")
        if size < 8 or at + size > len(data):
            return True
        at += size
    return False
