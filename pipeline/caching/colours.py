"""A metric that is dear: the earth mover's distance of the colours of pictures.

The signature of a picture is its eight colours by k-means in the Lab space, each with its share of
4,096 pixels. The distance of two signatures is the least work that makes one of the other: weight
times Euclidean distance of the colours. All have the same weight, so it is a metric. It takes
thousands of times as long as a distance of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.index.rows import read_only
from pipeline.machine_code import CompiledLoop

__all__ = ["COLOURS", "WEIGHT", "ColourDistance", "colour_signature"]

COLOURS = 8

SIDE = 64
"""Pictures are reduced to squares of so many pixels a side."""

WEIGHT = SIDE * SIDE
"""Sum of the weights of a signature."""

ROUNDS = 20
"""Of k-means."""

_distances = CompiledLoop("pipeline.caching.colour_loops", "earth_movers_distances")


class ColourDistance:
    """Earth mover's distance of signatures (N, 8, 4), float32, in units of the Lab space.

    Lab colours are 375 apart at most; a float32 of that size is right to 1.6e-5.
    """

    name = f"colours-{COLOURS}"
    squared = False
    error = 3e-5

    def distances(
        self, query: NDArray[Any], objects: NDArray[Any], which: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the distances of a signature to some signatures."""
        if query.shape != objects.shape[1:] or int(query[:, 3].sum()) != WEIGHT:
            raise InputError(f"a signature of shape {query.shape} is none of `colour_signature`")
        found = np.empty(len(which), np.float64)
        inputs = (read_only(array) for array in (query, objects, which))
        _distances(*inputs, WEIGHT, found)
        return found


def colour_signature(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the signature of a picture (H, W, 3), red first.

    Returns
    -------
    ndarray of shape (8, 4), float32
        L, a, b and weight of each colour, the darkest first. Equal pictures have equal signatures.
    """
    import cv2

    small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2Lab).reshape(-1, 3)
    order = np.argsort(lab[:, 0], kind="stable")
    labels = np.empty(WEIGHT, np.int32)
    labels[order] = np.arange(WEIGHT) * COLOURS // WEIGHT  # no random start
    criteria = (cv2.TERM_CRITERIA_MAX_ITER, ROUNDS, 0.0)
    _, found, means = cv2.kmeans(
        lab, COLOURS, labels[:, None], criteria, 1, cv2.KMEANS_USE_INITIAL_LABELS
    )
    weights = np.bincount(np.ravel(found), minlength=COLOURS)
    signature = np.column_stack([means, weights]).astype(np.float32)
    return signature[np.lexsort(signature.T[::-1])]
