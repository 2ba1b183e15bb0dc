"""From an image's bytes to its features: decode, extract, record failures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.config import ExtractorConfig, ImageLimits
from pipeline.decoders import BudgetExceededError, decode, try_decode
from pipeline.errors import ImageReadError, InputError, NoFeaturesError, VantageError
from pipeline.extraction.base import Extractor
from pipeline.extraction.registry import get_extractor
from pipeline.files import hash_bytes
from pipeline.images import DecodedImage
from pipeline.pictures.contrast import has_structure, levels, stretched
from pipeline.records import Features, ImageFailure

DECODED_AT_ONCE = 16
"""Decoded images held at once: at 1024 x 1024 pixels in colour 48 MiB, enough for a network's
batch."""

DECODING_S = 5.0
"""Seconds of decoding after which no more images are added to a group."""

FEW_FEATURES = 40
"""An image of fewer keypoints and low contrast is stretched and tried again."""

_SMALL_SIDE = 16
"""A picture with a shorter side below so many pixels is too small for a keypoint."""

_FLAT_LEVELS = 12
"""A picture with fewer of 255 levels is called nearly flat."""

_BY_VALUES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""Errors of code that meets values that it does not expect."""

BatchItem = tuple[str, Callable[[], bytes], str]
"""SHA-256 of an image's bytes, a function that reads them, a name for messages."""


def extract_image(
    data: bytes,
    name: str,
    config: ExtractorConfig,
    limits: ImageLimits,
    max_features: int | None = None,
) -> Features:
    """Decode an image and extract its features.

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
        It has no keypoint.
    """
    extractor = get_extractor(config)
    image = decode(data, name=name, limits=limits, max_side=config.max_side, color=extractor.color)
    return extract_decoded(image, extractor, max_features or config.max_features)


def extract_decoded(image: DecodedImage, extractor: Extractor, max_features: int) -> Features:
    """Extract the features of a decoded image.

    Raises
    ------
    NoFeaturesError
        It has no keypoint.
    ImageReadError
        The extractor fails on it.
    """
    try:
        features = extractor.extract(image, max_features)
        features = _with_contrast(features, image, extractor, max_features)
    except Exception as error:
        if isinstance(error, InputError) or not _is_of_one_image(error):
            raise
        told = (str(error).strip().splitlines() or [""])[0]
        sentence = f"the {extractor.name} extractor failed on it ({type(error).__name__}: {told})"
        raise ImageReadError(image.name, "extractor-failed", sentence) from error
    if not len(features):
        raise NoFeaturesError(image.name, extractor.name, _cause(image))
    return features


@dataclass(frozen=True)
class Extracted:
    """The outcome of the first images of a batch.

    Attributes
    ----------
    count : int
        Number of these images.
    done : list of (sha256, Features)
    failures : list of ImageFailure
        Images that cannot be used, and why.
    exceeded : list of ImageFailure
        Images that exceeded their limits in decoding: worth another try, alone.
    """

    count: int
    done: list[tuple[str, Features]]
    failures: list[ImageFailure]
    exceeded: list[ImageFailure]


def _with_contrast(
    features: Features, image: DecodedImage, extractor: Extractor, max_features: int
) -> Features:
    """Return the features of the stretched picture if an image of low contrast has few."""
    if extractor.one_vector or len(features) >= FEW_FEATURES:
        return features
    pixels = stretched(image.pixels)
    if pixels is None:
        return features
    again = extractor.extract(replace(image, pixels=pixels), max_features)
    return again if len(again) > len(features) else features


def _cause(image: DecodedImage) -> str:
    """Say why an image has no keypoint."""
    height, width = image.pixels.shape[:2]
    used = levels(image.pixels)
    if not used:
        return "one flat colour"
    if min(height, width) < _SMALL_SIDE:
        return f"too small: {image.width:,} x {image.height:,} pixels"
    if used < _FLAT_LEVELS:
        return f"nearly one flat colour: {used} of 255 levels"
    if not has_structure(image.pixels):
        return "nothing but noise"
    return "smooth: nothing in it stands out"


def extract_batch(
    items: Sequence[BatchItem],
    extractor: Extractor,
    config: ExtractorConfig,
    limits: ImageLimits,
    at_once: int = DECODED_AT_ONCE,
) -> tuple[list[tuple[str, Features]], list[ImageFailure]]:
    """Extract the features of a batch of images; slow ones to decode come last, alone.

    Parameters
    ----------
    items : sequence of (sha256, read, name)
        `read` returns the image's bytes.
    extractor : Extractor
    config : ExtractorConfig
    limits : ImageLimits
    at_once : int
        Images decoded before they go to the extractor together. With 1, an image is finished before
        the next one is read.

    Returns
    -------
    features : list of (sha256, Features)
        In the order of the items, those that came last at the end.
    failures : list of ImageFailure
        Images that cannot be used, and why. What is not an image's fault (a missing folder, a
        store that does not answer) is raised instead.
    """
    done: list[tuple[str, Features]] = []
    failures: list[ImageFailure] = []
    last: list[BatchItem] = []
    while items:
        some = extract_some(items, extractor, config, limits, at_once)
        again = {failure.sha256 for failure in some.exceeded}
        last += [item for item in items[: some.count] if item[0] in again]
        done, failures = done + some.done, failures + some.failures
        items = items[some.count :]
    for item in last:
        some = extract_some([item], extractor, config, limits, alone=True)
        done, failures = done + some.done, failures + some.failures
    return done, failures


def extract_some(
    items: Sequence[BatchItem],
    extractor: Extractor,
    config: ExtractorConfig,
    limits: ImageLimits,
    at_once: int = DECODED_AT_ONCE,
    *,
    alone: bool = False,
) -> Extracted:
    """Extract the features of the first images of a batch, few enough to be quick.

    Parameters
    ----------
    items, extractor, config, limits, at_once
        As for `extract_batch`; at least one item.
    alone : bool
        A second try (see `pipeline.decoders.try_decode`); images that exceed its limits fail.
    """
    until = time.monotonic() + DECODING_S
    decoded: list[DecodedImage | InputError] = []
    for item in items[:at_once]:
        decoded.append(_decode_item(item, extractor, config, limits, alone))
        if time.monotonic() > until:
            break
    pictures = [image for image in decoded if isinstance(image, DecodedImage)]
    results = iter(_extract_each(pictures, extractor, config.max_features))
    found = Extracted(len(decoded), [], [], [])
    for (sha256, _, _), image in zip(items, decoded, strict=False):
        result = next(results) if isinstance(image, DecodedImage) else image
        if isinstance(result, Features):
            found.done.append((sha256, result))
        elif isinstance(result, BudgetExceededError) and not alone:
            found.exceeded.append(_failure(sha256, result))
        else:
            found.failures.append(_failure(sha256, result))
    return found


def _decode_item(
    item: BatchItem,
    extractor: Extractor,
    config: ExtractorConfig,
    limits: ImageLimits,
    alone: bool,
) -> DecodedImage | InputError:
    """Return a decoded image, or its failure."""
    sha256, read, name = item
    try:
        data = read()
        if hash_bytes(data) != sha256:
            sentence = "the file changed after it was listed; index its folder again"
            return ImageReadError(name, "changed", sentence)
        side, color = config.max_side, extractor.color
        return try_decode(data, name=name, limits=limits, max_side=side, color=color, alone=alone)
    except InputError as error:
        return error


def _extract_each(
    images: Sequence[DecodedImage], extractor: Extractor, max_features: int
) -> list[Features | InputError]:
    """Return the features or the failure of every image."""
    try:
        together = extractor.extract_many(images, max_features) if images else []
        features_of = [
            _with_contrast(features, image, extractor, max_features)
            for image, features in zip(images, together, strict=True)
        ]
    except Exception as error:
        if not _is_of_one_image(error):
            raise
        # The extractor refuses one of them, or fails on it: find out which.
        found = [_extract_one(image, extractor, max_features) for image in images]
        if len(images) > 1 and all(_has_failed(result) for result in found):
            raise  # on all of them: it does not work
        return found
    return [
        features if len(features) else NoFeaturesError(image.name, extractor.name, _cause(image))
        for image, features in zip(images, features_of, strict=True)
    ]


def _extract_one(
    image: DecodedImage, extractor: Extractor, max_features: int
) -> Features | InputError:
    try:
        return extract_decoded(image, extractor, max_features)
    except InputError as error:
        return error


def _has_failed(result: Features | InputError) -> bool:
    """Tell whether the extractor failed, instead of saying what is wrong with the image."""
    return isinstance(result, ImageReadError) and result.code == "extractor-failed"


def _is_of_one_image(error: Exception) -> bool:
    """Tell whether an error may be about the picture, not about the process or a service."""
    if isinstance(error, VantageError):
        return isinstance(error, InputError)
    return isinstance(error, _BY_VALUES) or type(error).__module__ == "cv2"


def _failure(sha256: str, error: InputError) -> ImageFailure:
    """Return what is recorded of an image that cannot be used."""
    if isinstance(error, ImageReadError | NoFeaturesError):
        return ImageFailure(sha256, error.code, error.sentence)
    return ImageFailure(sha256, "corrupt", str(error))
