"""From an image's bytes to its features: decode, extract, and keep the failures as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.config import ExtractorConfig, ImageLimits
from pipeline.decoders import decode
from pipeline.errors import ImageReadError, InputError, NoFeaturesError
from pipeline.extraction.base import Extractor
from pipeline.extraction.registry import get_extractor
from pipeline.files import hash_bytes
from pipeline.images import DecodedImage
from pipeline.records import Features, ImageFailure

DECODED_AT_ONCE = 16
"""Decoded images held at once: at 1024 x 1024 pixels in colour 48 MiB, enough for a network's
batch."""

BatchItem = tuple[str, Callable[[], bytes], str]
"""SHA-256 of an image's bytes, a function that reads them, a name for messages."""


def extract_image(
    data: bytes,
    name: str,
    config: ExtractorConfig,
    limits: ImageLimits,
    max_features: int | None = None,
) -> Features:
    """Decode an image and take its features.

    Parameters
    ----------
    data : bytes
        The image file.
    name : str
        For messages: its path.
    config : ExtractorConfig
    limits : ImageLimits
    max_features : int, optional
        Default: ``config.max_features``; a query takes ``config.query_max_features``.

    Returns
    -------
    Features
        At least one.

    Raises
    ------
    ImageReadError
        It cannot be decoded.
    NoFeaturesError
        It can, and has no keypoint.
    """
    extractor = get_extractor(config)
    image = decode(data, name=name, limits=limits, max_side=config.max_side, color=extractor.color)
    return extract_decoded(image, extractor, max_features or config.max_features)


def extract_decoded(image: DecodedImage, extractor: Extractor, max_features: int) -> Features:
    """Take the features of a decoded image.

    Raises
    ------
    NoFeaturesError
        It has no keypoint.
    """
    features = extractor.extract(image, max_features)
    if not len(features):
        raise NoFeaturesError(image.name, extractor.name)
    return features


def extract_batch(
    items: Sequence[BatchItem],
    extractor: Extractor,
    config: ExtractorConfig,
    limits: ImageLimits,
    at_once: int = DECODED_AT_ONCE,
) -> tuple[list[tuple[str, Features]], list[ImageFailure]]:
    """Take the features of a batch of images.

    Parameters
    ----------
    items : sequence of (sha256, read, name)
        `read` is called once and returns the image's bytes.
    extractor : Extractor
    config : ExtractorConfig
    limits : ImageLimits
    at_once : int
        Images that are decoded before the extractor gets them together. With 1 an image is done
        with before the next one is read.

    Returns
    -------
    features : list of (sha256, Features)
        In the order of the items.
    failures : list of ImageFailure
        Images that cannot be used, and why. What is not an image's fault (a missing folder, a
        store that does not answer) is raised instead.
    """
    done: list[tuple[str, Features]] = []
    failures: list[ImageFailure] = []
    for first in range(0, len(items), at_once):
        some = items[first : first + at_once]
        decoded = [_decode_item(item, extractor, config, limits) for item in some]
        pictures = [image for image in decoded if isinstance(image, DecodedImage)]
        results = iter(_extract_each(pictures, extractor, config.max_features))
        for (sha256, _, _), image in zip(some, decoded, strict=True):
            result = next(results) if isinstance(image, DecodedImage) else image
            if isinstance(result, Features):
                done.append((sha256, result))
            else:
                failures.append(_failure(sha256, result))
    return done, failures


def _decode_item(
    item: BatchItem, extractor: Extractor, config: ExtractorConfig, limits: ImageLimits
) -> DecodedImage | InputError:
    """Return a decoded image, or why there is none."""
    sha256, read, name = item
    try:
        data = read()
        if hash_bytes(data) != sha256:
            sentence = "the file was changed after it was listed; index its folder again"
            return ImageReadError(name, "changed", sentence)
        return decode(
            data, name=name, limits=limits, max_side=config.max_side, color=extractor.color
        )
    except InputError as error:
        return error


def _extract_each(
    images: Sequence[DecodedImage], extractor: Extractor, max_features: int
) -> list[Features | InputError]:
    """Return the features of every image, or why there are none."""
    try:
        together = extractor.extract_many(images, max_features) if images else []
    except InputError:
        # One of them is not to the extractor's liking: find out which.
        return [_extract_one(image, extractor, max_features) for image in images]
    return [
        features if len(features) else NoFeaturesError(image.name, extractor.name)
        for image, features in zip(images, together, strict=True)
    ]


def _extract_one(
    image: DecodedImage, extractor: Extractor, max_features: int
) -> Features | InputError:
    try:
        return extract_decoded(image, extractor, max_features)
    except InputError as error:
        return error


def _failure(sha256: str, error: InputError) -> ImageFailure:
    """Return what is recorded of an image that cannot be used."""
    if isinstance(error, ImageReadError | NoFeaturesError):
        return ImageFailure(sha256, error.code, error.sentence)
    return ImageFailure(sha256, "corrupt", str(error))
