"""From an image's bytes to its features: decode, extract, and keep the failures as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.config import ExtractorConfig, ImageLimits
from pipeline.errors import ImageReadError, InputError, NoFeaturesError
from pipeline.extraction.base import Extractor
from pipeline.extraction.registry import get_extractor
from pipeline.images import DecodedImage, decode_image, hash_bytes
from pipeline.records import Features, ImageFailure

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
    image = decode_image(data, name=name, limits=limits, max_side=config.max_side)
    return extract_decoded(image, get_extractor(config), max_features or config.max_features)


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
) -> tuple[list[tuple[str, Features]], list[ImageFailure]]:
    """Take the features of a batch of images.

    Parameters
    ----------
    items : sequence of (sha256, read, name)
        `read` is called once and returns the image's bytes.
    extractor : Extractor
    config : ExtractorConfig
    limits : ImageLimits

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
    for sha256, read, name in items:
        try:
            data = read()
            if hash_bytes(data) != sha256:
                sentence = "the file was changed after it was listed; index its folder again"
                raise ImageReadError(name, "changed", sentence)
            image = decode_image(data, name=name, limits=limits, max_side=config.max_side)
            done.append((sha256, extract_decoded(image, extractor, config.max_features)))
        except (ImageReadError, NoFeaturesError) as error:
            failures.append(ImageFailure(sha256, error.code, error.sentence))
        except InputError as error:
            failures.append(ImageFailure(sha256, "corrupt", str(error)))
    return done, failures
