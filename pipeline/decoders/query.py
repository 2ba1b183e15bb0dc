"""Query images in all their forms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ImageLimits
from pipeline.decoders.decoder import decode
from pipeline.files import hash_bytes, read_file
from pipeline.images import DecodedImage, from_array


def open_query(
    source: str | Path | bytes | NDArray[Any],
    *,
    limits: ImageLimits,
    max_side: int,
    color: bool = False,
) -> tuple[DecodedImage, str]:
    """Decode a query image of any form.

    Parameters
    ----------
    source : str, Path, bytes or ndarray
        A file, a file's bytes, or pixels (see `pipeline.images.from_array`).
    limits : ImageLimits
    max_side : int
        Longer side of the decoded picture, pixels.
    color : bool
        BGR instead of grey.

    Returns
    -------
    image : DecodedImage
    digest : str
        SHA-256 of the bytes; of an array: of its shape, dtype and values.

    Raises
    ------
    ImageReadError, InputError
    """
    if isinstance(source, np.ndarray):
        head = f"{source.shape} {source.dtype.str} ".encode()
        digest = hash_bytes(head + np.ascontiguousarray(source).tobytes())
        return from_array(source, max_side=max_side, color=color), digest
    if isinstance(source, bytes):
        data, name = source, "query"
    else:
        data, name = read_file(source, limits=limits), os.fspath(source)
    image = decode(data, name=name, limits=limits, max_side=max_side, color=color)
    return image, hash_bytes(data)
