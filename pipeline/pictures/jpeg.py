"""JPEG files that lack their end marker, although all of the picture is there.

Some cameras and recovery tools leave it out. A decoder that is given the marker fills up whatever
is missing with grey; so what is there is decoded several times, with different bytes before the
marker: a complete picture does not depend on them.
"""

from __future__ import annotations

import random

__all__ = ["ENDINGS", "lacks_end_only"]

_END = b"\xff\xd9"
_SCAN = 0xDA
_PROGRESSIVE = frozenset({0xC2, 0xCA})
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xD9), 0xFF})
_COEFFICIENTS = 64


def _noise(seed: int) -> bytes:
    """Return bytes in which no marker begins, then the same behind every restart."""
    noise = bytes(random.Random(seed).choices(range(0xF0), k=4096))
    restarts = b"".join(bytes([0xFF, 0xD0 + number]) + noise for number in range(8))
    return noise + 2 * restarts


ENDINGS = (_END, _noise(1) + _END, _noise(2) + _END)
"""What is appended: the same picture must come of all. A decoder that misses something goes on with
the noise, at once or behind the next restart."""


def lacks_end_only(data: bytes) -> bool:
    """Tell whether a JPEG has all its scans and no end marker behind the last one.

    The last scan itself may be cut off.
    """
    at, progressive, behind = 2, False, 0
    left: dict[int, set[int]] = {}
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _END[1]:
            return False
        if marker in _FRAMES:
            progressive = marker in _PROGRESSIVE
            count = data[at + 9] if at + 9 < len(data) else 0
            components = data[at + 10 : at + 10 + 3 * count : 3]
            left = {component: set(range(_COEFFICIENTS)) for component in components}
        elif marker == _SCAN:
            _take_scan(data[at + 4 : at + 2 + length], left, progressive)
            behind = at + 2 + length
        at += 2 + length
    return 0 < behind < len(data) and not any(left.values()) and bool(left)


def _take_scan(header: bytes, left: dict[int, set[int]], progressive: bool) -> None:
    """Note which coefficients of which components a scan completes."""
    count = header[0] if header else 0
    components = header[1 : 1 + 2 * count : 2]
    if len(header) < 4 + 2 * count:
        return
    first, last, precision = header[1 + 2 * count : 4 + 2 * count]
    whole = not progressive or precision & 0x0F == 0
    done = set(range(first, last + 1)) if progressive else set(range(_COEFFICIENTS))
    for component in components if whole else b"":
        left.get(component, set()).difference_update(done)
