"""From pictures to the input of a network."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.extraction.cnn.settings import CnnSettings


class Preprocessor:
    """Converts pictures to a network's size and range.

    Parameters
    ----------
    settings : CnnSettings
    """

    def __init__(self, settings: CnnSettings) -> None:
        self._settings = settings
        scale, mean, std = (
            np.array(settings.channel_values(name), np.float64) for name in ("scale", "mean", "std")
        )
        # (pixel * scale - mean) / std, as one multiplication and one addition.
        self._factor = (scale / std).astype(np.float32)
        self._offset = (-mean / std).astype(np.float32)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return one image of a batch.

        Parameters
        ----------
        pixels : ndarray of shape (h, w, 3) or (h, w), uint8
            BGR; grey for a network with one channel.

        Returns
        -------
        ndarray of shape (C, height, width), or (height, width, C) for ``NHWC``, float32
        """
        settings = self._settings
        inner = self._resized(pixels)
        if settings.channels == "RGB":
            inner = inner[:, :, ::-1]
        # An axis for the one channel of grey pixels.
        inner = inner.reshape(*inner.shape[:2], settings.channel_count)
        values = inner * self._factor + self._offset
        if settings.resize == "letterbox":
            values = self._with_margins(values)
        if settings.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values, dtype=np.float32)

    def _resized(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the picture in the network's size; for ``letterbox`` without its margins."""
        settings = self._settings
        height, width = pixels.shape[:2]
        if settings.resize == "stretch":
            return _resize(pixels, settings.height, settings.width)
        if settings.resize == "letterbox":
            factor = min(settings.height / height, settings.width / width)
            return _resize(
                pixels,
                min(settings.height, max(1, round(height * factor))),
                min(settings.width, max(1, round(width * factor))),
            )
        if settings.resize_to:
            factor = settings.resize_to / min(height, width)
        else:
            factor = max(settings.height / height, settings.width / width)
        tall = max(settings.height, round(height * factor))
        wide = max(settings.width, round(width * factor))
        # Cut before resizing: the same pixels for less work, and the long side of a narrow strip
        # would become huge. The cut is between whole pixels, at most half a pixel off.
        pixels = _middle(pixels, settings.height / tall, settings.width / wide)
        return _resize(pixels, settings.height, settings.width)

    def _with_margins(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Put a normalised picture into the middle of zeros."""
        settings = self._settings
        height, width, channels = values.shape
        framed = np.zeros((settings.height, settings.width, channels), np.float32)
        top, left = (settings.height - height) // 2, (settings.width - width) // 2
        framed[top : top + height, left : left + width] = values
        return framed


def _middle(pixels: NDArray[np.uint8], share_y: float, share_x: float) -> NDArray[np.uint8]:
    """Cut shares of height and width out of the centre, at least one pixel."""
    height, width = pixels.shape[:2]
    tall, wide = max(1, round(height * share_y)), max(1, round(width * share_x))
    top, left = (height - tall) // 2, (width - wide) // 2
    return pixels[top : top + tall, left : left + wide]


def _resize(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize: averaging where it shrinks, so that nothing flickers; linearly where it grows."""
    tall, wide = pixels.shape[:2]
    smaller = (min(wide, width), min(tall, height))
    if smaller != (wide, tall):
        pixels = np.asarray(cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA), np.uint8)
    if smaller != (width, height):
        enlarged = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        pixels = np.asarray(enlarged, np.uint8)
    return pixels
