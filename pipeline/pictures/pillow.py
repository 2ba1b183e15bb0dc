"""Pillow's state, which belongs to the whole process."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

_PROCESS_STATE = threading.Lock()


@contextmanager
def pillow_state(max_pixels: int) -> Iterator[None]:
    """Set Pillow's pixel limit and silence its warnings: our own limits and errors hold."""
    with _PROCESS_STATE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
