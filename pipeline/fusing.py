"""Fuse the answers of several collections of the same images.

A collection keeps one extractor, so several extractors are several collections; their answers are
joined by the images' SHA-256 and ranked together by `pipeline.retrieval.fuse`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.errors import InputError, NoFeaturesError, UnknownNameError
from pipeline.metadata.engine import session_scope
from pipeline.metadata.holdings import held_contents
from pipeline.metadata.records import VersionRecord
from pipeline.records import FusedResult, SearchResult
from pipeline.resources import Resources
from pipeline.retrieval.fuse import fuse

__all__ = ["answer_or_error", "fuse_answers", "fuse_images", "require_different"]


def require_different(names: Sequence[str]) -> None:
    """Raise unless there are at least two collections, all different."""
    if len(names) < 2:
        raise InputError(f"fusing takes at least two collections, not {len(names)}; name another")
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"collection {twice!r} is named twice and cannot be fused with itself; name a "
            "collection of the same images with another extractor"
        )


def answer_or_error(search: Callable[[], SearchResult]) -> SearchResult | InputError:
    """Return a collection's answer, or the error if it cannot use the image."""
    try:
        return search()
    except UnknownNameError:
        raise
    except InputError as error:
        return error


def fuse_images(
    resources: Resources,
    versions: Sequence[VersionRecord],
    answers: Sequence[Sequence[SearchResult | InputError]],
    top: int,
) -> list[FusedResult | InputError]:
    """Fuse the answers of several collections to several images.

    Parameters
    ----------
    resources, versions, top
        As for `fuse_answers`.
    answers : sequence of sequence of SearchResult or InputError
        For each collection the answer to each image.

    Returns
    -------
    list of FusedResult or InputError
        One for each image; an error if it cannot be used.
    """
    return [_fuse_image(resources, versions, image, top) for image in zip(*answers, strict=True)]


def _fuse_image(
    resources: Resources,
    versions: Sequence[VersionRecord],
    answers: Sequence[SearchResult | InputError],
    top: int,
) -> FusedResult | InputError:
    """Fuse the answers to one image, or return the error if it cannot be used."""
    try:
        return fuse_answers(resources, versions, answers, top)
    except InputError as error:
        return error


def fuse_answers(
    resources: Resources,
    versions: Sequence[VersionRecord],
    answers: Sequence[SearchResult | InputError],
    top: int,
) -> FusedResult:
    """Fuse the answers of several collections.

    Parameters
    ----------
    resources : Resources
        Tells which images a collection does not hold.
    versions : sequence of VersionRecord
        Of the collections, in their order.
    answers : sequence of SearchResult or InputError
        A collection whose extractor finds no keypoint in the query counts as an empty answer.
    top : int

    Raises
    ------
    InputError
        The image cannot be used: no extractor finds a keypoint, say.
    """
    found_any = [answer for answer in answers if isinstance(answer, SearchResult)]
    # A file that cannot be read is an error everywhere but where the collection has the same file.
    known = any("error" in answer.query for answer in found_any)
    passed_over = (InputError if known else NoFeaturesError) if found_any else ()
    for answer in answers:
        if isinstance(answer, InputError) and not isinstance(answer, passed_over):
            raise answer
    results = [
        answer if isinstance(answer, SearchResult) else _nothing(version, found_any[0])
        for version, answer in zip(versions, answers, strict=True)
    ]
    found = {match.image for result in results for match in result.matches}
    with session_scope(resources.engine, write=False) as session:
        lacking = [
            found - held_contents(session, version.collection_id, version.number, found)
            for version in versions
        ]
    return fuse(results, top, lacking)


def _nothing(version: VersionRecord, other: SearchResult) -> SearchResult:
    """Return the empty answer of an extractor that finds no keypoint in the query."""
    query = {name: value for name, value in other.query.items() if name != "error"}
    return SearchResult(
        matches=(),
        complete=True,
        missing_groups=(),
        plan={},
        timings={},
        query={**query, "descriptors": 0},
        collection=version.collection,
        version=version.number,
        extractor=version.extractor.name,
    )
