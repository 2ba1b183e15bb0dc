"""The picture page: queries beside their matches, as one self-contained HTML file.

Thumbnails and styles are inlined; there is no script, and the page's own content security policy
forbids every other resource. All text goes through Jinja2's escaping.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any, TypeAlias

import jinja2
import numpy as np
from PIL import Image

from pipeline.config import ImageLimits
from pipeline.decoders import decode
from pipeline.errors import InputError, VantageError
from pipeline.existence import look
from pipeline.files import read_file
from pipeline.records import FoundBy, FusedResult, Match, SearchResult
from pipeline.text import displayable

THUMBNAIL_SIDE = 160
"""Longer side of a thumbnail, pixels: about 5 kB each, and a page may hold hundreds."""

_READ_S = 10.0
"""Seconds that a drive has to deliver a picture: one that sleeps needs some."""

QueryFile: TypeAlias = bytes | str | os.PathLike[str]


@dataclass(frozen=True)
class _Shown:
    """One match as the template draws it."""

    rank: int
    name: str
    folder: str
    other_locations: tuple[str, ...]
    score: str
    bar: str
    votes: int
    size: str
    thumbnail: str | None
    right: bool
    found_by: tuple[str, ...]
    marks: tuple[str, ...]


@dataclass(frozen=True)
class _Answer:
    """One search as the template draws it."""

    plan: str
    facts: tuple[str, ...]
    timings: tuple[tuple[str, str], ...]
    complete: bool
    missing: str
    matches: tuple[_Shown, ...]


@dataclass(frozen=True)
class _Query:
    """One query image and the searches made with it."""

    title: str
    thumbnail: str | None
    size: str
    answers: tuple[_Answer, ...]


def results_page(
    queries: Sequence[tuple[str, QueryFile, SearchResult | FusedResult]],
    load_image: Callable[[str], bytes],
    *,
    heading: str = "Search results",
    note: str = "",
    is_right: Callable[[str, Match], bool] | None = None,
) -> str:
    """Return a self-contained HTML page of searches.

    Parameters
    ----------
    queries : sequence of (title, image, SearchResult or FusedResult)
        The image is the query's bytes or path. Consecutive entries with the same title and image
        (one query searched with two plans) are drawn as one query with several answers.
    load_image : callable
        Takes a location of a match, returns the bytes there. If it raises `OSError` or a
        `VantageError`, the next location is tried; if none gives an image, a placeholder is drawn.
    heading, note : str
        Above the results.
    is_right : callable, optional
        Takes the title and a match; returns whether it is a right answer, which is then marked.

    Returns
    -------
    str
        HTML; write it as UTF-8.
    """
    thumbnails = _Thumbnails(load_image)
    shown = []
    for (title, image), entries in groupby(queries, key=lambda entry: entry[:2]):
        results = [result for _, _, result in entries]
        query = _answers(results[0])[0].query
        shown.append(
            _Query(
                title=displayable(title),
                thumbnail=thumbnails.of_query(image),
                size=_size(query.get("width"), query.get("height")),
                answers=tuple(_answer(title, result, thumbnails, is_right) for result in results),
            )
        )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    answers = [answer for _, _, result in queries for answer in _answers(result)]
    collections = sorted({answer.collection for answer in answers if answer.collection})
    return environment.get_template("results.html").render(
        heading=displayable(heading),
        note=displayable(note),
        collections=[displayable(name) for name in collections],
        queries=shown,
        searches=len(queries),
    )


def write_page(
    path: Path,
    queries: Sequence[tuple[str, QueryFile, SearchResult | FusedResult]],
    limits: ImageLimits,
    *,
    heading: str,
) -> None:
    """Write a page of searches, with the pictures that are on this host.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    page = results_page(queries, partial(_read_in_time, limits=limits), heading=heading)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"the page {str(path)!r} cannot be written: {error.strerror}") from error


def _read_in_time(path: str, *, limits: ImageLimits) -> bytes:
    """Read a picture; give up on a drive that does not answer.

    Raises
    ------
    OSError
        It cannot be read in time.
    """
    data = look([path], _READ_S, partial(read_file, limits=limits)).get(path)
    if data is None:
        raise OSError(f"{path!r} cannot be read")
    return data


class _Thumbnails:
    """Makes data URIs, once for each image."""

    def __init__(self, load_image: Callable[[str], bytes]) -> None:
        self._load_image = load_image
        self._made: dict[str, str | None] = {}

    def of_match(self, match: Match) -> str | None:
        if match.image not in self._made:
            states = dict(zip(match.locations, match.location_states, strict=False))
            places = [place for place in match.locations if states.get(place) != "gone"]
            self._made[match.image] = self._first(places)
        return self._made[match.image]

    def of_query(self, image: QueryFile) -> str | None:
        try:
            return thumbnail_uri(image if isinstance(image, bytes) else Path(image).read_bytes())
        except (OSError, ValueError, VantageError):
            return None

    def _first(self, locations: Sequence[str]) -> str | None:
        for location in locations:
            try:
                return thumbnail_uri(self._load_image(location))
            except (OSError, ValueError, VantageError):
                continue
        return None


def thumbnail_uri(
    data: bytes, side: int = THUMBNAIL_SIDE, limits: ImageLimits | None = None
) -> str:
    """Return a JPEG thumbnail as a ``data:`` URI.

    Parameters
    ----------
    data : bytes
        An image file, decoded in a child process and within limits, as for a search.
    side : int
        Longer side, pixels.
    limits : ImageLimits, optional
        Default: those of `ImageLimits`.

    Raises
    ------
    ImageReadError
        The bytes cannot be decoded.
    """
    limits = limits or ImageLimits()
    image = decode(data, name="thumbnail", limits=limits, max_side=side, color=True)
    target = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.pixels[:, :, ::-1])).save(target, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode("ascii")


def _answers(result: SearchResult | FusedResult) -> tuple[SearchResult, ...]:
    """Return the answers of the collections."""
    return result.answers if isinstance(result, FusedResult) else (result,)


def _answer(
    title: str,
    result: SearchResult | FusedResult,
    thumbnails: _Thumbnails,
    is_right: Callable[[str, Match], bool] | None,
) -> _Answer:
    """Put one answer into words."""
    labels: tuple[str, ...] = ()
    if isinstance(result, FusedResult):
        labels = result.labels
        plan, facts = " + ".join(labels), [_about_answer(*one) for one in _labelled(result)]
        timings = [
            (f"{label} {stage}", ms)
            for label, answer in _labelled(result)
            for stage, ms in answer.timings.items()
        ]
        missing = "; ".join(
            f"{label} {_numbers(answer.missing_groups)}"
            for label, answer in _labelled(result)
            if answer.missing_groups
        )
    else:
        plan, facts = str(result.plan.get("kind", "unknown")), _facts(result)
        timings, missing = list(result.timings.items()), _numbers(result.missing_groups)
    return _Answer(
        plan=displayable(plan),
        facts=tuple(facts),
        timings=tuple((displayable(k), f"{ms:,.1f} ms") for k, ms in timings),
        complete=result.complete,
        missing=displayable(missing),
        matches=tuple(
            _match(match, thumbnails, is_right is not None and is_right(title, match), labels)
            for match in result.matches
        ),
    )


def _labelled(result: FusedResult) -> list[tuple[str, SearchResult]]:
    """Return each collection's answer with its short name."""
    return list(zip(result.labels, result.answers, strict=True))


def _numbers(groups: Sequence[int]) -> str:
    """Return ``0, 3``."""
    return ", ".join(str(group) for group in groups)


def _about_answer(label: str, answer: SearchResult) -> str:
    """Say in a few words what one of several searches did."""
    kind = str(answer.plan.get("kind", "no keypoint in the query"))
    return displayable(f"{label}: {', '.join([kind, *_facts(answer)])}")


def _facts(result: SearchResult) -> list[str]:
    """Say in a few words what the search did."""
    plan: dict[str, Any] = result.plan
    facts = []
    if "error" in result.query:
        facts.append(displayable(f"not searched further: {result.query['error']['message']}"))
    if "cells" in plan and "cells_probed" in plan:
        facts.append(f"{plan['cells_probed']:,.4g} of {plan['cells']:,} cells")
    if "scanned_share" in plan:
        facts.append(f"{plan['scanned_share']:.1%} of the pairs computed")
    if result.timings:
        total = result.timings.get("total", sum(result.timings.values()))
        facts.append(f"{total:,.0f} ms")
    if "descriptors" in result.query:
        facts.append(f"{result.query['descriptors']:,} descriptors")
    if result.version:
        facts.append(f"version {result.version}")
    if result.complete:
        facts.append("complete")
    return [*facts, *result.causes]


def _match(
    match: Match, thumbnails: _Thumbnails, right: bool, labels: tuple[str, ...] = ()
) -> _Shown:
    """Put one match into words."""
    first = PurePath(match.locations[0]) if match.locations else PurePath("no location")
    return _Shown(
        rank=match.rank,
        name=displayable(first.name or str(first)),
        folder=displayable(str(first.parent)) if match.locations else "",
        other_locations=tuple(_marked(match, place) for place in match.locations[1:]),
        score=f"{match.score:.3f}",
        bar=f"{100 * min(1.0, max(0.0, match.score)):.1f}",
        votes=match.votes,
        size=_size(match.width, match.height),
        thumbnail=thumbnails.of_match(match),
        right=right,
        found_by=tuple(
            displayable(f"{label} {_said(found)}")
            for label, found in zip(labels, match.found_by, strict=False)
        ),
        marks=(*(["same file"] if match.same_file else []), *_state(match, match.locations[:1])),
    )


def _state(match: Match, places: Sequence[str]) -> list[str]:
    """Return the state of a location unless it is there; nothing if it was not checked."""
    states = dict(zip(match.locations, match.location_states, strict=False))
    return [states[place] for place in places if states.get(place, "present") != "present"]


def _marked(match: Match, place: str) -> str:
    """Return a location with its state unless it is there."""
    return " ".join([displayable(place), *(f"({state})" for state in _state(match, [place]))])


def _said(found: FoundBy) -> str:
    """Return what one of several collections said of an image."""
    if found.rank is None:
        return "does not list it" if found.indexed else "has not indexed it"
    return f"#{found.rank}, score {found.score:.3f}"


def _size(width: object, height: object) -> str:
    """Return ``600 × 400`` or nothing."""
    return f"{width} × {height}" if width and height else ""
