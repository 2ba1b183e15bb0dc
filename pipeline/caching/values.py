"""What a cache holds: bytes under a key that names what they are a function of.

Equal keys mean equal values, so nothing is ever invalidated: a value is evicted, or computed again.
A value that comes from another process is *sealed*: a keyed digest over key and bytes shows that a
process of the same installation made it for this key. Whoever can write to the cache without that
secret can make values be missed, but never believed.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["KINDS", "CacheKey", "CachedValue", "Kind", "seal", "unseal"]

Kind = Literal["features", "block", "verification", "ranking"]
"""What a value is: the features of a query; what a query found in a segment; how a query fits an
image; the images of an answer."""

KINDS: tuple[Kind, ...] = ("features", "block", "verification", "ranking")

_MAGIC = b"VC1\n"
_DIGEST_BYTES = 16
_HEAD = struct.Struct(f"<4s{_DIGEST_BYTES}sI")
_LARGEST_COST = 2**32 - 1


class CacheKey(NamedTuple):
    """Names a value.

    Attributes
    ----------
    kind : {"features", "block", "verification", "ranking"}
    digest : str
        Of everything that the value is a function of.
    """

    kind: Kind
    digest: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.digest}"


@dataclass(frozen=True)
class CachedValue:
    """A value, and what it saves.

    Attributes
    ----------
    content : bytes
    cost_us : int
        Microseconds that computing it has taken.
    """

    content: bytes
    cost_us: int


def seal(key: CacheKey, value: CachedValue, secret: bytes) -> bytes:
    """Return a value as bytes that `unseal` believes.

    Parameters
    ----------
    key : CacheKey
    value : CachedValue
    secret : bytes
        Of the installation, at most 64 bytes.
    """
    cost = min(max(0, value.cost_us), _LARGEST_COST)
    return _HEAD.pack(_MAGIC, _mac(key, cost, value.content, secret), cost) + value.content


def unseal(key: CacheKey, sealed: bytes, secret: bytes) -> CachedValue | None:
    """Return a value; None if it was not sealed with this secret for this key, or was changed.

    Parameters
    ----------
    key : CacheKey
    sealed : bytes
        What another process wrote, or anything.
    secret : bytes
    """
    if len(sealed) < _HEAD.size:
        return None
    magic, mac, cost = _HEAD.unpack_from(sealed)
    content = sealed[_HEAD.size :]
    if magic != _MAGIC or not hmac.compare_digest(mac, _mac(key, cost, content, secret)):
        return None
    return CachedValue(content, cost)


def _mac(key: CacheKey, cost: int, content: bytes, secret: bytes) -> bytes:
    """Return the keyed digest of a value (BLAKE2b, which is a MAC when it has a key)."""
    made = hashlib.blake2b(key=secret, digest_size=_DIGEST_BYTES, person=b"vantage-cache")
    name = str(key).encode()
    made.update(struct.pack("<II", len(name), cost))
    made.update(name)
    made.update(content)
    return made.digest()
