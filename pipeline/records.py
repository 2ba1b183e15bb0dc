"""Plain records that travel between stages: arrays and frozen dataclasses, no behaviour.

Shape letters: N descriptors, D their length, Q query descriptors, P cells probed, G groups,
M matches, L levels of the tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

KEYPOINT_COLUMNS = ("x", "y", "size", "angle", "response", "octave", "laplacian")
"""Columns of a keypoint row: original pixels, pixels, degrees, and the detector's own units."""


LATE = "its answer did not come in time"
"""Begins the reason of a group whose scan was too slow, or waited too long."""


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
class FoundBy:
    """What one of several collections that were searched together says of an image.

    Attributes
    ----------
    collection, extractor : str
        Names of the collection and of its extractor.
    rank : int or None
        Rank there, 1 is best; None if it is not among the requested matches.
    score : float or None
        Score there, as in `Match`; None if there is no rank.
    indexed : bool
        False if that collection does not hold the image: then the missing rank means nothing.
    """

    collection: str
    extractor: str
    rank: int | None = None
    score: float | None = None
    indexed: bool = True


LocationState = Literal["present", "unknown", "gone"]
"""Whether a file lies at a location: see `pipeline.locations`."""

_ORDER = ("present", "unknown", "gone")


def in_order(
    states: Mapping[str, LocationState],
) -> tuple[tuple[str, ...], tuple[LocationState, ...]]:
    """Return locations and their states: what exists first, what is gone last, each by name."""
    order = sorted(states, key=lambda path: (_ORDER.index(states[path]), path))
    return tuple(order), tuple(states[path] for path in order)


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
        Paths where that content lies or lay: those that exist first, those that are gone last.
    score : float
        0 to 1, higher is better: the share of the query's evidence that this image collects
        (1: every query descriptor found itself). See `pipeline.retrieval.score`.
    votes : int
        Descriptors of this image that match a query descriptor and count.
    width, height : int
        Image, pixels.
    found_by : tuple of FoundBy
        In the answer of several collections (`FusedResult`): one for each, in their order; then
        `score` is the fused score and `votes` the sum. Empty in the answer of one collection.
    same_file : bool
        The image has the very bytes that were asked with. It comes first, whatever its score; the
        score is 0 if the image has no features.
    location_states : tuple of str
        For each location ``present``, ``unknown`` or ``gone``, as seen from this host when the
        answer was received.
    """

    rank: int
    image: str
    locations: tuple[str, ...]
    score: float
    votes: int
    width: int
    height: int
    found_by: tuple[FoundBy, ...] = ()
    same_file: bool = False
    location_states: tuple[LocationState, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-serialisable values; ``found_by`` only if it is not empty."""
        values = {
            "rank": self.rank,
            "image": self.image,
            "locations": list(self.locations),
            "score": self.score,
            "votes": self.votes,
            "width": self.width,
            "height": self.height,
            "same_file": self.same_file,
            "location_states": list(self.location_states),
        }
        if self.found_by:
            values["found_by"] = [asdict(found) for found in self.found_by]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Match:
        """Inverse of `to_dict`.

        Parameters
        ----------
        values : dict
            As `to_dict` returns them.

        Returns
        -------
        Match
        """
        found_by = tuple(FoundBy(**found) for found in values.get("found_by", ()))
        lists = {name: tuple(values.get(name, ())) for name in ("locations", "location_states")}
        return cls(**{**values, **lists, "found_by": found_by})


@dataclass(frozen=True)
class SearchResult:
    """The answer to one search.

    Attributes
    ----------
    matches : tuple of Match
        Best first; before all others the image that has the very bytes of the query
        (`Match.same_file`).
    complete : bool
        False if a group did not answer before the deadline, or could not search all that it has.
    missing_groups : tuple of int
        The groups that did not answer.
    plan : dict
        Which plan ran: ``kind`` ("probed" or "exhaustive"), ``cells``, ``cells_probed`` (mean per
        query descriptor), ``groups``, ``scanned_share`` (descriptor pairs computed over all).
    timings : dict of str to float
        Milliseconds per stage. If several images were searched for together, only ``extract`` and
        ``plan`` belong to this image; the others belong to all.
    query : dict
        ``descriptors`` (number), ``width``, ``height``, ``digest``. If the file has no features but
        the collection has the same file: ``error``, which says why, and no plan.
    collection : str
    version : int
    extractor : str
        Name of the collection's extractor.
    explain : dict
        Why this plan, what each group visited and compared, predicted against actual
        (`pipeline.explain`).
    causes : tuple of str
        Why the answer is not complete: a sentence for each group that did not answer, and for each
        file that could not be read, with the remedy. Empty if it is complete.
    """

    matches: tuple[Match, ...]
    complete: bool
    missing_groups: tuple[int, ...]
    plan: dict[str, Any]
    timings: dict[str, float]
    query: dict[str, Any] = field(default_factory=dict)
    collection: str = ""
    version: int = 0
    extractor: str = ""
    explain: dict[str, Any] = field(default_factory=dict)
    causes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-serialisable values."""
        return {
            "collection": self.collection,
            "version": self.version,
            "extractor": self.extractor,
            "complete": self.complete,
            "missing_groups": list(self.missing_groups),
            "causes": list(self.causes),
            "plan": self.plan,
            "timings": self.timings,
            "explain": self.explain,
            "query": self.query,
            "matches": [match.to_dict() for match in self.matches],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SearchResult:
        """Inverse of `to_dict`.

        Parameters
        ----------
        values : dict
            As `to_dict` returns them.

        Returns
        -------
        SearchResult
        """
        return cls(
            matches=tuple(Match.from_dict(match) for match in values["matches"]),
            complete=values["complete"],
            missing_groups=tuple(values["missing_groups"]),
            plan=values["plan"],
            timings=values["timings"],
            query=values["query"],
            collection=values["collection"],
            version=values["version"],
            extractor=values.get("extractor", ""),
            explain=values.get("explain", {}),
            causes=tuple(values.get("causes", ())),
        )


@dataclass(frozen=True)
class FusedResult:
    """The answer of several collections over the same images, searched together.

    Attributes
    ----------
    matches : tuple of Match
        Best first; each says in `Match.found_by` which collection found it.
    answers : tuple of SearchResult
        The answer of each collection, with all matches that were requested from it.
    """

    matches: tuple[Match, ...]
    answers: tuple[SearchResult, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Short names of the answers: the extractors, or the collections if two have the same."""
        extractors = [answer.extractor for answer in self.answers]
        if len(set(extractors)) == len(extractors):
            return tuple(extractors)
        return tuple(answer.collection for answer in self.answers)

    @property
    def complete(self) -> bool:
        """Whether every collection's answer is complete."""
        return all(answer.complete for answer in self.answers)

    @property
    def missing_groups(self) -> dict[str, tuple[int, ...]]:
        """The groups that did not answer, by collection."""
        return {answer.collection: answer.missing_groups for answer in self.answers}

    @property
    def causes(self) -> dict[str, tuple[str, ...]]:
        """Why answers are not complete, by collection."""
        return {answer.collection: answer.causes for answer in self.answers}

    @property
    def timings(self) -> dict[str, dict[str, float]]:
        """Milliseconds per stage, by collection."""
        return {answer.collection: answer.timings for answer in self.answers}

    @property
    def plan(self) -> dict[str, Any]:
        """Only the kinds of plan that ran, as ``kind``; `plans` has the rest."""
        kinds = dict.fromkeys(
            answer.plan["kind"] for answer in self.answers if "kind" in answer.plan
        )
        return {"kind": " + ".join(kinds)}

    @property
    def plans(self) -> dict[str, dict[str, Any]]:
        """Which plan ran, by collection."""
        return {answer.collection: answer.plan for answer in self.answers}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-serialisable values: of each answer, all but its own matches."""
        return {
            "collections": [answer.collection for answer in self.answers],
            "extractors": {answer.collection: answer.extractor for answer in self.answers},
            "versions": {answer.collection: answer.version for answer in self.answers},
            "complete": self.complete,
            "missing_groups": {name: list(found) for name, found in self.missing_groups.items()},
            "causes": {name: list(said) for name, said in self.causes.items()},
            "plans": self.plans,
            "timings": self.timings,
            "explains": {answer.collection: answer.explain for answer in self.answers},
            "queries": {answer.collection: answer.query for answer in self.answers},
            "matches": [match.to_dict() for match in self.matches],
        }
