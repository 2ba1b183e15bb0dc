"""Protocol Buffers' wire format: just enough to change a few fields of a message.

A message is a sequence of fields: a key (field number and wire type) and a value. Fields that are
not looked at are kept as the bytes they were, so what is written differs from what was read only
where it was meant to. Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types: a number of variable length, eight bytes, counted bytes, four bytes."""

_FIXED = {FIXED64: 8, FIXED32: 4}
_LONGEST_VARINT = 10


class Field(NamedTuple):
    """One field of a message.

    Attributes
    ----------
    number : int
        Field number.
    wire_type : int
    value : memoryview
        Content; for counted bytes without the count, for a varint its encoded bytes.
    """

    number: int
    wire_type: int
    value: memoryview

    def text(self) -> str:
        """Return counted bytes as text."""
        return bytes(self.value).decode()

    def integer(self) -> int:
        """Return the value of a varint."""
        return _varint(self.value, 0)[0]


def fields(message: memoryview | bytes) -> Iterator[Field]:
    """Go through the fields of a message, in their order; nothing is copied.

    Raises
    ------
    ValueError
        The bytes are not a message.
    """
    view = memoryview(message)
    at = 0
    while at < len(view):
        key, at = _varint(view, at)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise ValueError(f"field number 0 at byte {at}")
        start = at
        if wire_type == VARINT:
            _, end = _varint(view, at)
        elif wire_type == BYTES:
            length, start = _varint(view, at)
            end = start + length
        elif wire_type in _FIXED:
            end = at + _FIXED[wire_type]
        else:
            raise ValueError(f"wire type {wire_type} at byte {at}")
        if end > len(view):
            raise ValueError(f"field {number} ends {end - len(view)} bytes behind the message")
        yield Field(number, wire_type, view[start:end])
        at = end


def message(parts: Iterable[Field | bytes]) -> bytes:
    """Return the bytes of a message: fields as they were read, or encoded ones (see `encoded`)."""
    chunks: list[bytes | memoryview] = []
    for part in parts:
        if isinstance(part, bytes):
            chunks.append(part)
        else:
            chunks.append(_head(part.number, part.wire_type, len(part.value)))
            chunks.append(part.value)
    return b"".join(chunks)


def encoded(number: int, value: str | bytes | int) -> bytes:
    """Return an encoded field: text and bytes are counted, integers (from 0) are varints."""
    if isinstance(value, int):
        return _head(number, VARINT, 0) + _encoded_varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _head(number, BYTES, len(content)) + content


def _head(number: int, wire_type: int, length: int) -> bytes:
    """Return what stands before a value."""
    key = _encoded_varint(number << 3 | wire_type)
    return key + _encoded_varint(length) if wire_type == BYTES else key


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """Read a varint; returns it and where it ends."""
    value = 0
    for place in range(_LONGEST_VARINT):
        if at + place >= len(view):
            raise ValueError(f"cut off at byte {len(view)}")
        byte = view[at + place]
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise ValueError(f"a number without end at byte {at}")


def _encoded_varint(value: int) -> bytes:
    """Write a varint."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
