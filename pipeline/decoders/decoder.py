"""Decode an image in a child process: the only way for untrusted bytes."""

from __future__ import annotations

from pipeline.config import ImageLimits
from pipeline.decoders.pool import pool
from pipeline.decoders.process import BudgetExceededError
from pipeline.errors import ImageReadError
from pipeline.files import require_bytes
from pipeline.images import DecodedImage

SECOND_CHANCE = 3
"""Factor of the processor time in the second try of an image, alone."""


def start_early() -> None:
    """Start a child process for the first image while the caller does something else."""
    pool().start_early()


def decode(
    data: bytes, *, name: str, limits: ImageLimits, max_side: int, color: bool = False
) -> DecodedImage:
    """Decode an image file's bytes; if memory was lacking, try again at once, alone.

    Parameters
    ----------
    data : bytes
        The file.
    name : str
        For messages: its path.
    limits : ImageLimits
    max_side : int
        Longer side of the result, pixels.
    color : bool
        BGR instead of grey.

    Raises
    ------
    ImageReadError
        It cannot be decoded: codes of `pipeline.images.FAILURE_CODES`.
    DecoderUnavailableError
        No child process can be started, or it gets no processor.
    """
    try:
        return try_decode(data, name=name, limits=limits, max_side=max_side, color=color)
    except BudgetExceededError as exc:
        if exc.code == "too-slow":
            raise  # a caller waits
        return try_decode(
            data, name=name, limits=limits, max_side=max_side, color=color, alone=True
        )


def try_decode(
    data: bytes,
    *,
    name: str,
    limits: ImageLimits,
    max_side: int,
    color: bool = False,
    alone: bool = False,
) -> DecodedImage:
    """Decode an image file's bytes within the budget of a first try, or of a second.

    Parameters
    ----------
    data, name, limits, max_side, color
        As for `decode`.
    alone : bool
        Decode while no other image is decoded in this process, with `SECOND_CHANCE` times the time.

    Raises
    ------
    BudgetExceededError
        It took too much, or its decoder died: a second try may help.
    ImageReadError, DecoderUnavailableError
        As for `decode`.
    """
    require_bytes(name, len(data), limits)
    request = {
        "limits": limits.to_dict(),
        "max_side": max_side,
        "color": color,
        "seconds": limits.decode_seconds * (SECOND_CHANCE if alone else 1),
    }
    try:
        pixels, known = pool().decode(data, request, alone=alone)
    except ImageReadError as exc:
        raise type(exc)(name, exc.code, exc.sentence) from None
    return DecodedImage(pixels, name=name, **known)
