"""An extractor that fails on one picture fails that picture alone."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import ExtractorConfig, ImageLimits
from pipeline.errors import ConfigError, DecoderUnavailableError
from pipeline.extraction.base import Extractor
from pipeline.extraction.features import extract_batch
from pipeline.files import hash_bytes
from pipeline.images import DecodedImage
from pipeline.records import Features


class Choosy(Extractor):
    """Fails on pictures of some widths."""

    name = "choosy"
    dimensions = 4
    one_vector = True
    color = False

    def __init__(self, error: Exception, *widths: int) -> None:
        self._error = error
        self._widths = widths

    def extract(self, image: DecodedImage, max_features: int) -> Features:
        if image.width in self._widths:
            raise self._error
        keypoints = np.zeros((1, 7), np.float32)
        return Features(keypoints, np.ones((1, 4), np.float32), image.width, image.height)

    def extract_many(self, images: Sequence[DecodedImage], max_features: int) -> list[Features]:
        return [self.extract(image, max_features) for image in images]

    def normalize(self, descriptors: NDArray[np.generic]) -> NDArray[np.float32]:
        return descriptors.astype(np.float32)


def pictures(*widths: int) -> list[tuple[str, object, str]]:
    items = []
    for width in widths:
        stream = io.BytesIO()
        Image.effect_noise((width, 20), 50).save(stream, "PNG")
        data = stream.getvalue()
        items.append((hash_bytes(data), lambda data=data: data, f"{width}.png"))
    return items


def extract(extractor: Extractor, *widths: int) -> tuple[list[int], dict[str, str]]:
    """Return the widths of the pictures with features, and the codes of the others."""
    items = pictures(*widths)
    names = {sha256: name for sha256, _, name in items}
    done, failures = extract_batch(items, extractor, ExtractorConfig(), ImageLimits())  # type: ignore[arg-type]
    return [found.width for _, found in done], {names[f.sha256]: f.code for f in failures}


OF_A_PICTURE = (
    ValueError("odd"),
    IndexError("7"),
    ZeroDivisionError(),
    TypeError(),
    cv2.error("?"),
)
OF_THE_PROCESS = (
    MemoryError(),
    ConfigError("a", "b", "c"),
    DecoderUnavailableError("x"),
    OSError(28, "full"),
)


@pytest.mark.parametrize("error", OF_A_PICTURE, ids=repr)
def test_the_others_are_extracted(error: Exception) -> None:
    assert extract(Choosy(error, 30), 20, 30, 40) == ([20, 40], {"30.png": "extractor-failed"})
    assert extract(Choosy(error, 30), 30) == ([], {"30.png": "extractor-failed"})


def test_an_extractor_that_fails_on_all_of_them_does_not_work() -> None:
    with pytest.raises(ValueError, match="broken"):
        extract(Choosy(ValueError("broken"), 20, 30), 20, 30)


@pytest.mark.parametrize("error", OF_THE_PROCESS, ids=repr)
def test_what_is_not_about_a_picture_is_raised(error: Exception) -> None:
    with pytest.raises(type(error)):
        extract(Choosy(error, 30), 20, 30, 40)
