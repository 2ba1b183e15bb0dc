"""The very file that was asked with: found by its SHA-256, before any of its features.

An image with the bytes of the query is the first match, whatever its score. It is found too if it
was registered but has no features (a flat picture, a damaged file), and if the query has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.decoders import QueryFile
from pipeline.errors import InputError
from pipeline.metadata import collections, images
from pipeline.metadata.engine import session_scope
from pipeline.metadata.holdings import same_content
from pipeline.metadata.records import VersionRecord
from pipeline.records import SearchResult
from pipeline.resources import Resources
from pipeline.retrieval.score import NOTHING_RANKED, make_matches

__all__ = ["answer_same_file", "answer_without_version", "same_images"]


def same_images(
    resources: Resources, collection_id: int, version: int | None, query: QueryFile
) -> tuple[int, ...]:
    """Return the images of a collection that have the very bytes of a query.

    Parameters
    ----------
    resources : Resources
    collection_id : int
    version : int or None
        Number of the version that is searched; None: there is none yet.
    query : QueryFile
    """
    if isinstance(query.content, np.ndarray):
        return ()
    with session_scope(resources.engine, write=False) as session:
        return tuple(same_content(session, collection_id, version, query.sha256))


def answer_same_file(
    resources: Resources, version: VersionRecord, same: Sequence[int], error: InputError
) -> SearchResult:
    """Return the answer to a query without features whose file the collection has.

    Parameters
    ----------
    resources : Resources
    version : VersionRecord
    same : sequence of int
        What `same_images` found, at least one.
    error : InputError
        Why the query has no features.
    """
    about = (version.number, version.extractor.name)
    return _answer(resources, version.collection, same, error, about)


def answer_without_version(
    resources: Resources, collection: str, queries: Sequence[QueryFile | InputError]
) -> list[SearchResult | InputError] | None:
    """Answer in a collection of which nothing is searchable yet; None if it has no such file.

    Parameters
    ----------
    resources : Resources
    collection : str
    queries : sequence of QueryFile or InputError
        An error is passed on.
    """
    with session_scope(resources.engine, write=False) as session:
        record = collections.get_collection(session, collection)
    reason = InputError(f"nothing of collection {collection!r} is searchable yet")
    answers: list[SearchResult | InputError] = []
    for query in queries:
        if isinstance(query, InputError):
            answers.append(query)
        elif same := same_images(resources, record.id, None, query):
            about = (0, record.extractor.name)
            answers.append(_answer(resources, collection, same, reason, about))
        else:
            return None
    return answers if any(isinstance(one, SearchResult) for one in answers) else None


def _answer(
    resources: Resources,
    collection: str,
    same: Sequence[int],
    error: InputError,
    about: tuple[int, str],
) -> SearchResult:
    """Return an answer of these images alone; `about`: number of the version, extractor."""
    with session_scope(resources.engine, write=False) as session:
        rows = images.image_records(session, same)
    matches = make_matches(NOTHING_RANKED, rows, len(same), same)
    best = matches[0]
    version, extractor = about
    return SearchResult(
        matches=matches,
        complete=True,
        missing_groups=(),
        plan={},
        timings={},
        query={
            "descriptors": 0,
            "width": best.width,
            "height": best.height,
            "digest": best.image,
            "error": error.to_dict(),
        },
        collection=collection,
        version=version,
        extractor=extractor,
    )
