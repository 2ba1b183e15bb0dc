"""From distance blocks to a ranking (reduce)."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.records import LocationState, Match
from pipeline.retrieval.blocks import DistanceBlock, merge_blocks, pack_geometry, split_block


class MatchedImage(Protocol):
    """What the ranking needs to know of an image."""

    @property
    def sha256(self) -> str:
        """Identity of the image, hex."""
        ...

    @property
    def width(self) -> int | None:
        """Pixels."""
        ...

    @property
    def height(self) -> int | None:
        """Pixels."""
        ...

    @property
    def locations(self) -> tuple[str, ...]:
        """Where its content lies."""
        ...

    @property
    def location_states(self) -> tuple[LocationState, ...]:
        """What is known of these places."""
        ...


@dataclass(frozen=True)
class Ranking:
    """Images that collected any evidence, best first.

    Attributes
    ----------
    images : ndarray of shape (R,), uint32
        Image row ids.
    scores : ndarray of shape (R,), int64
        Sum over the pairs that count of ``background^2 - distance^2``.
    votes : ndarray of shape (R,), int64
        Pairs that count.
    full_score : int
        Score of an image in which every query descriptor finds itself.
    """

    images: NDArray[np.uint32]
    scores: NDArray[np.int64]
    votes: NDArray[np.int64]
    full_score: int

    def candidates(self, top: int) -> NDArray[np.uint32]:
        """Return the images that can be among the `top` best: all that tie with the last are in."""
        if len(self.scores) <= top:
            return self.images
        tied: NDArray[np.uint32] = self.images[self.scores >= self.scores[top - 1]]
        return tied


NOTHING_RANKED = Ranking(
    np.empty(0, np.uint32), np.empty(0, np.int64), np.empty(0, np.int64), full_score=0
)
"""Of a query without features."""


def rank_blocks(blocks: list[DistanceBlock], radius: NDArray[np.int32]) -> Ranking:
    """Score every image by the background distance.

    ``score(image) = sum of max(0, background^2 - distance^2)`` over pairs of a query descriptor and
    the image's nearest row to it. Where several query descriptors have the same nearest row, the
    pair of the greatest gain counts alone: a query descriptor votes once for an image, and so does
    each row of the image (a row of windows must not outvote the rest of a house). Sums are 64-bit
    integers, so that the order of the blocks cannot matter.

    Parameters
    ----------
    blocks : list of DistanceBlock
    radius : ndarray of shape (Q,), int32
        Squared background distances (`pipeline.retrieval.plan.background_radius`).

    References
    ----------
    H. Jegou, M. Douze, C. Schmid, "On the burstiness of visual elements", CVPR 2009, and
    "Exploiting descriptor distances for precise image search", INRIA RR-7656, 2011;
    docs/decisions/0004-scoring.md for the measurement.
    """
    found, gain = voting_pairs(blocks, radius)
    image = found.image
    images, first = np.unique(image, return_index=True)
    scores = np.add.reduceat(gain, first) if len(first) else np.empty(0, np.int64)
    votes = np.diff(np.append(first, len(gain)))
    order = np.lexsort((images, -scores))
    return Ranking(
        images[order],
        scores[order],
        votes[order].astype(np.int64),
        int(radius.astype(np.int64).sum()),
    )


def rank_images(
    blocks: Sequence[DistanceBlock], radius: NDArray[np.int32], offsets: Sequence[int]
) -> list[Ranking]:
    """Score the images for each query image of a pass by itself.

    Parameters
    ----------
    blocks : sequence of DistanceBlock
    radius : ndarray of shape (Q,), int32
    offsets : sequence of int
        Query image i has the query descriptors ``offsets[i]`` to ``offsets[i + 1] - 1``.
    """
    split = [split_block(block, offsets) for block in blocks]
    return [
        rank_blocks([parts[i] for parts in split], radius[start:stop])
        for i, (start, stop) in enumerate(itertools.pairwise(offsets))
    ]


def voting_pairs(
    blocks: Sequence[DistanceBlock], radius: NDArray[np.int32]
) -> tuple[DistanceBlock, NDArray[np.int64]]:
    """Return the pairs that count, by image, and the gain of each; keypoints tell rows apart.

    Parameters
    ----------
    blocks, radius
        See `rank_blocks`.
    """
    merged = merge_blocks(list(blocks))
    gain = radius[merged.query].astype(np.int64) - merged.distance.astype(np.int64)
    place = pack_geometry(merged.geometry)
    order = np.lexsort((-gain, place, merged.image))
    image, place = merged.image[order], place[order]
    same = (image[1:] == image[:-1]) & (place[1:] == place[:-1])
    kept = order[np.append(True, ~same)[: len(order)]]
    return merged.some(kept), gain[kept]


def make_matches(
    ranking: Ranking, rows: Mapping[int, MatchedImage], top: int, same: Collection[int] = ()
) -> tuple[Match, ...]:
    """Return the answer's images; ties are broken by SHA-256.

    Parameters
    ----------
    ranking : Ranking
    rows : mapping of int to image row
        At least the ranking's `Ranking.candidates`; an image without a row is left out.
    top : int
    same : collection of int
        Images with the very bytes of the query: they come first, with a score of 0 if they have no
        features. They too need rows.
    """
    found = {
        int(ranking.images[i]): (int(ranking.scores[i]), int(ranking.votes[i]))
        for i in np.flatnonzero(np.isin(ranking.images, np.fromiter(rows, np.uint32, len(rows))))
    }
    found |= {image: found.get(image, (0, 0)) for image in same if image in rows}
    order = sorted(found, key=lambda i: (i not in same, -found[i][0], rows[i].sha256))
    return tuple(
        Match(
            rank=rank,
            image=rows[image].sha256,
            locations=rows[image].locations,
            score=found[image][0] / max(1, ranking.full_score),
            votes=found[image][1],
            width=rows[image].width or 0,
            height=rows[image].height or 0,
            same_file=image in same,
            location_states=rows[image].location_states,
        )
        for rank, image in enumerate(order[:top], start=1)
    )
