"""Rank fusion: one ranking from the answers of several collections of the same images.

Each collection's scores are normalised by how far they stand out of the noise of that answer, and
added. A collection that recognises the query has a few scores hundreds of deviations above the rest
and decides; one that does not has a flat answer and hardly counts. Nothing is trained, and no
weight is set for any extractor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.records import FoundBy, FusedResult, LocationState, Match, SearchResult, in_order

DEPTH = 200
"""Number of matches requested from each collection, on which its noise is measured. The noise is
taken from the middle of them: correct with up to a hundred right answers, and equally good with 100
to 500 matches."""

HALF_EVIDENCE = 30.0
"""Evidence, in deviations of the noise, that gives the score 0.5. The best wrong image of a query
collects about 7, which is shown as 0.19. Only shown; the ranking does not depend on it."""

_SIGMA = 0.6745
"""Median absolute deviation of a normal distribution of deviation 1."""

_FEW = 3
"""The fewest scores for a median deviation."""

_FLAT = 1e-9
"""Smaller median deviations mean equal scores."""

_LEAST_SPREAD = 1e-4
"""The least deviation of the noise: differences too small to be shown (0.000) are not evidence,
however equal the other scores of a small collection are. A third of SIFT's deviation among 2,800
images."""


@dataclass(frozen=True)
class _Evidence:
    """The evidence of one collection's answer.

    Attributes
    ----------
    answer : SearchResult
    listed : dict of str to (Match, float or None)
        By SHA-256, with the evidence for the image, in deviations of the noise; None for the file
        that was asked with if it has no features here.
    unlisted : float or None
        Evidence for an image that the collection holds but does not list; None if unknown, because
        groups are missing or the answer is empty.
    lacking : set of str
        Images that the collection does not hold.
    """

    answer: SearchResult
    listed: dict[str, tuple[Match, float | None]]
    unlisted: float | None
    lacking: AbstractSet[str]

    def of(self, image: str) -> float | None:
        """Return the evidence for an image; None if the collection has none."""
        if image in self.listed:
            return self.listed[image][1]
        return None if image in self.lacking else self.unlisted

    def found_by(self, image: str) -> FoundBy:
        """Return rank and score of an image in the collection."""
        said = FoundBy(self.answer.collection, self.answer.extractor)
        if image in self.listed:
            match = self.listed[image][0]
            return replace(said, rank=match.rank, score=match.score)
        return replace(said, indexed=image not in self.lacking)


def fuse(
    results: Sequence[SearchResult],
    top: int = 10,
    lacking: Sequence[AbstractSet[str]] | None = None,
) -> FusedResult:
    """Rank the images of several answers together.

    The evidence of an answer for an image is its modified z-score, ``0.6745 (score - median) /
    MAD`` over the answer's best `DEPTH` scores; the fused evidence is their sum over the
    collections that have evidence on the image, divided by the square root of their number
    (Stouffer's method), so that the others rank an image that one collection does not hold.

    Parameters
    ----------
    results : sequence of SearchResult
        Of different collections and one query, `DEPTH` deep or deeper; their order only orders
        `Match.found_by`.
    top : int
        Images in the answer.
    lacking : sequence of set of str, optional
        For each result, the SHA-256 of images that its collection does not hold. Default: each
        holds all.

    Returns
    -------
    FusedResult
        The file that was asked with is first. Ties are broken by SHA-256. A score is
        ``e / (e + HALF_EVIDENCE)`` of the fused evidence e, 0 for what does not stand out of the
        noise.

    References
    ----------
    B. Iglewicz, D. Hoaglin, "How to detect and handle outliers", ASQC 1993 (modified z-score);
    S. Stouffer et al., "The American Soldier", 1949, vol. 1 (sum of z over root of their number);
    E. Fox, J. Shaw, "Combination of multiple searches", TREC-2, 1994 (adding normalised scores);
    docs/decisions/0008-rank-fusion.md for the measurement.
    """
    lacks = lacking if lacking is not None else [frozenset[str]()] * len(results)
    weighed = [_weigh(result, lack) for result, lack in zip(results, lacks, strict=True)]
    images = {image for one in weighed for image in one.listed}
    evidence = {image: _combine([one.of(image) for one in weighed]) for image in images}
    same = {match.image for one in results for match in one.matches if match.same_file}
    order = sorted(images, key=lambda image: (image not in same, -evidence[image], image))
    matches = tuple(
        _match(image, rank, evidence[image], weighed)
        for rank, image in enumerate(order[:top], start=1)
    )
    return FusedResult(matches, tuple(results))


def deviations(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far scores stand out of the noise.

    Parameters
    ----------
    scores : ndarray of shape (R,), float64
        0 to 1, best first. Fewer than three are filled up with zeros to measure the noise.

    Returns
    -------
    ndarray of shape (R,), float64
        Modified z-scores.
    """
    noise = scores[:DEPTH]
    noise = np.append(noise, np.zeros(max(0, _FEW - len(noise))))
    middle = np.median(noise)
    away = np.abs(noise - middle)
    spread = float(np.median(away)) / _SIGMA
    if spread < _FLAT:
        # More than half of the scores are equal: the mean deviation, as Iglewicz and Hoaglin do.
        spread = float(np.mean(away)) * math.sqrt(math.pi / 2)
    found: NDArray[np.float64] = (scores - middle) / max(spread, _LEAST_SPREAD)
    return found


def _weigh(result: SearchResult, lacking: AbstractSet[str]) -> _Evidence:
    """Turn an answer's scores into evidence."""
    # The file that was asked with is listed even if it has no features: that says nothing of noise.
    ranked = [match for match in result.matches if match.votes or not match.same_file]
    found = deviations(np.array([match.score for match in ranked], np.float64))
    listed: dict[str, tuple[Match, float | None]] = {
        match.image: (match, None) for match in result.matches
    }
    for match, evidence in zip(ranked, found, strict=True):
        listed[match.image] = match, float(evidence)
    knows = result.complete and ranked
    # An unlisted image is at most as good as the last listed one, and no better than noise.
    unlisted = min(0.0, float(found[-1])) if knows else None
    return _Evidence(result, listed, unlisted, lacking)


def _combine(evidence: Sequence[float | None]) -> float:
    """Return the combined evidence of the collections that have some; 0 if none has."""
    known = [value for value in evidence if value is not None]
    # An exactly rounded sum does not depend on the order of the collections.
    return math.fsum(known) / math.sqrt(max(1, len(known)))


def _match(image: str, rank: int, evidence: float, weighed: Sequence[_Evidence]) -> Match:
    """Return the fused match of an image."""
    matches = [one.listed[image][0] for one in weighed if image in one.listed]
    above = max(0.0, evidence)
    states: dict[str, LocationState] = {}
    for match in matches:
        known = dict(zip(match.locations, match.location_states, strict=False))
        for path in match.locations:
            if states.get(path, "unknown") == "unknown":
                states[path] = known.get(path, "unknown")
    locations, location_states = in_order(states)
    return Match(
        rank=rank,
        image=image,
        locations=locations,
        score=above / (above + HALF_EVIDENCE),
        votes=sum(match.votes for match in matches),
        width=max(match.width for match in matches),
        height=max(match.height for match in matches),
        found_by=tuple(one.found_by(image) for one in weighed),
        same_file=any(match.same_file for match in matches),
        location_states=location_states,
    )
