"""Query images in all their forms."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ImageLimits
from pipeline.decoders.decoder import decode
from pipeline.files import hash_bytes, read_file
from pipeline.images import DecodedImage, from_array


@dataclass(frozen=True)
class QueryFile:
    """A query image that was read, not decoded.

    Attributes
    ----------
    name : str
        For messages.
    content : bytes or ndarray
        A file's bytes, or pixels.
    sha256 : str
        Of the bytes; of an array: of its shape, dtype and values.
    """

    name: str
    content: bytes | NDArray[Any]
    sha256: str


def read_query(source: str | Path | bytes | NDArray[Any], limits: ImageLimits) -> QueryFile:
    """Read a query image of any form.

    Parameters
    ----------
    source : str, Path, bytes or ndarray
        A file, a file's bytes, or pixels (see `pipeline.images.from_array`).
    limits : ImageLimits

    Raises
    ------
    ImageReadError
    """
    if isinstance(source, np.ndarray):
        head = f"{source.shape} {source.dtype.str} ".encode()
        return QueryFile("query", source, hash_bytes(head + np.ascontiguousarray(source).tobytes()))
    if isinstance(source, bytes):
        return QueryFile("query", source, hash_bytes(source))
    data = read_file(source, limits=limits)
    return QueryFile(os.fspath(source), data, hash_bytes(data))


def decode_query(
    query: QueryFile, *, limits: ImageLimits, max_side: int, color: bool = False
) -> DecodedImage:
    """Decode a query image.

    Parameters
    ----------
    query : QueryFile
    limits : ImageLimits
    max_side : int
        Longer side of the decoded picture, pixels.
    color : bool
        BGR instead of grey.

    Raises
    ------
    ImageReadError, InputError
    """
    if isinstance(query.content, np.ndarray):
        return from_array(query.content, max_side=max_side, color=color)
    return decode(query.content, name=query.name, limits=limits, max_side=max_side, color=color)
