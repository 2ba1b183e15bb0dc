"""Plain records that travel between stages: arrays and frozen dataclasses, no behaviour.

Shape letters: N descriptors, D their length, Q query descriptors, P cells probed, G groups,
M matches, L levels of the tree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEYPOINT_COLUMNS = ("x", "y", "size", "angle", "response", "octave", "laplacian")
"""Columns of a keypoint row: original pixels, pixels, degrees, and the detector's own units."""


@dataclass(frozen=True)
class Features:
    """What an extractor found in one image.

    Attributes
    ----------
    keypoints : ndarray of shape (N, 7), float32
        See `KEYPOINT_COLUMNS`; coordinates and sizes in pixels of the original image, after its
        EXIF orientation was applied.
    descriptors : ndarray of shape (N, D), uint8 or float32
        Native precision of the extractor (SIFT: uint8 x 128).
    width, height : int
        Original image, pixels, after EXIF orientation.
    """

    keypoints: NDArray[np.float32]
    descriptors: NDArray[Any]
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.descriptors)


@dataclass(frozen=True)
class ImageFailure:
    """Why an image has no features: data, not an exception."""

    sha256: str
    code: str
    sentence: str


@dataclass(frozen=True)
class Match:
    """One image of an answer.

    Attributes
    ----------
    rank : int
        1 is the best.
    image : str
        SHA-256 of the image's bytes.
    locations : tuple of str
        Paths where that content lies, sorted.
    score : float
        0 to 1, higher is better: the share of the query's evidence that this image collects
        (1: every query descriptor found itself). See `pipeline.retrieval.score`.
    votes : int
        Descriptors of this image that a query descriptor came near to, and that count.
    width, height : int
        Image, pixels.
    """

    rank: int
    image: str
    locations: tuple[str, ...]
    score: float
    votes: int
    width: int
    height: int


@dataclass(frozen=True)
class SearchResult:
    """The answer to one search.

    Attributes
    ----------
    matches : tuple of Match
        Best first.
    complete : bool
        False when a group did not answer before the deadline.
    missing_groups : tuple of int
        The groups that did not answer.
    plan : dict
        Which plan ran: ``kind`` ("probed" or "exhaustive"), ``cells``, ``cells_probed`` (mean per
        query descriptor), ``groups``, ``scanned_share`` (descriptor pairs computed over all).
    timings : dict of str to float
        Milliseconds per stage.
    query : dict
        ``descriptors`` (number), ``width``, ``height``, ``digest``.
    collection : str
    version : int
    """

    matches: tuple[Match, ...]
    complete: bool
    missing_groups: tuple[int, ...]
    plan: dict[str, Any]
    timings: dict[str, float]
    query: dict[str, Any] = field(default_factory=dict)
    collection: str = ""
    version: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-serialisable values."""
        return {
            "collection": self.collection,
            "version": self.version,
            "complete": self.complete,
            "missing_groups": list(self.missing_groups),
            "plan": self.plan,
            "timings": self.timings,
            "query": self.query,
            "matches": [
                {
                    "rank": m.rank,
                    "image": m.image,
                    "locations": list(m.locations),
                    "score": m.score,
                    "votes": m.votes,
                    "width": m.width,
                    "height": m.height,
                }
                for m in self.matches
            ],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SearchResult:
        """Inverse of `to_dict`."""
        matches = tuple(
            Match(**{**m, "locations": tuple(m["locations"])}) for m in values["matches"]
        )
        return cls(
            matches=matches,
            complete=values["complete"],
            missing_groups=tuple(values["missing_groups"]),
            plan=values["plan"],
            timings=values["timings"],
            query=values["query"],
            collection=values["collection"],
            version=values["version"],
        )
