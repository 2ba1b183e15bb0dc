"""Pairs of keypoints of a query and an image, which make up a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.index.segments import decode_geometry
from pipeline.retrieval.blocks import DistanceBlock
from pipeline.retrieval.score import MatchedImage, voting_pairs


@dataclass(frozen=True)
class Pairs:
    """The pairs whose gains sum to an image's score, by query descriptor.

    Attributes
    ----------
    query : ndarray of shape (P, 4), float32
        x, y, size (original pixels) and angle (degrees) of the keypoint in the query image.
    image : ndarray of shape (P, 4), float32
        The same of the keypoint in the image.
    distance : ndarray of shape (P,), uint32
        Squared distance of the 8-bit rows.
    gain : ndarray of shape (P,), int64
        The gain that the pair adds to the score (`pipeline.retrieval.score.rank_blocks`).
    """

    query: NDArray[np.float32]
    image: NDArray[np.float32]
    distance: NDArray[np.uint32]
    gain: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.distance)


def pairs_of(
    blocks: Sequence[DistanceBlock],
    radius: NDArray[np.int32],
    keypoints: NDArray[np.float32],
    images: Mapping[int, MatchedImage],
) -> dict[int, Pairs]:
    """Return the pairs of one query image with some images, from the available blocks.

    Parameters
    ----------
    blocks : sequence of DistanceBlock
        Of this query image only (`pipeline.retrieval.blocks.split_block`), with row ids.
    radius : ndarray of shape (Q,), int32
        See `pipeline.retrieval.score.rank_blocks`.
    keypoints : ndarray of shape (Q, 4), float32
        Of the query's descriptors.
    images : mapping of int to image row
        The images, by row id.

    Returns
    -------
    dict of int to Pairs
        One for each of the images; empty if nothing was found.
    """
    wanted = np.fromiter(images, np.uint32, len(images))
    mine = [block.some(np.isin(block.image, wanted)) for block in blocks]
    found, gain = voting_pairs(mine, radius)
    made = {}
    for image_id, row in images.items():
        its = np.flatnonzero(found.image == image_id)
        its = its[np.argsort(found.query[its], kind="stable")]
        made[image_id] = Pairs(
            keypoints[found.query[its]],
            decode_geometry(found.geometry[its], row.width or 0, row.height or 0),
            found.distance[its],
            gain[its],
        )
    return made
