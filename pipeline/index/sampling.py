"""Samples of a collection's descriptors, spread evenly over its images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import IndexConfig

BACKGROUND_PER_IMAGE = 16
"""The most background descriptors of one image: many copies of one picture must not make the
background look near (see `pipeline.retrieval.plan.background_radius`)."""

BACKGROUND_SHARE = 8
"""At most one in so many descriptors of an image is background, for the same reason."""


def draw_samples(
    images: Iterable[tuple[str, NDArray[Any]]],
    image_count: int,
    config: IndexConfig,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw the training and the background sample in one pass.

    A generator seeded with the image's SHA-256 draws its rows, so the samples do not depend on the
    order of the images.

    Parameters
    ----------
    images : iterable of (sha256, descriptors of shape (N_i, D))
    image_count : int
        Total number of images.
    config : IndexConfig

    Returns
    -------
    training : ndarray of shape (N, D)
        About ``config.sample_size`` rows, or all if there are fewer.
    background : ndarray of shape (S, D)
        At most ``config.background_size`` rows, and at least one if there are any.
    """
    training: list[tuple[str, NDArray[Any]]] = []
    background: list[tuple[str, NDArray[Any]]] = []
    per_image = -(-config.sample_size // max(image_count, 1))
    for sha256, descriptors in images:
        count = len(descriptors)
        if not count:
            continue
        order = np.random.default_rng([config.seed, int(sha256[:16], 16)]).permutation(count)
        few = max(1, min(BACKGROUND_PER_IMAGE, count // BACKGROUND_SHARE))
        training.append((sha256, descriptors[np.sort(order[:per_image])]))
        background.append((sha256, descriptors[np.sort(order[count - few :])]))
    return (
        _thin(training, config.sample_size, config.seed),
        _thin(background, config.background_size, config.seed),
    )


def _thin(named: list[tuple[str, NDArray[Any]]], size: int, seed: int) -> NDArray[Any]:
    """Concatenate by SHA-256 and keep a random `size` of the rows, in order."""
    if not named:
        return np.empty((0, 0))
    rows = np.concatenate([rows for _, rows in sorted(named, key=lambda pair: pair[0])])
    if len(rows) <= size:
        return rows
    kept = np.random.default_rng(seed).choice(len(rows), size, replace=False)
    kept.sort()
    return rows[kept]
