"""Search several collections of the same images together, in this process.

A collection keeps one extractor, so several extractors are several collections; their answers are
joined by the images' SHA-256 and ranked together by `pipeline.retrieval.fuse`.

Examples
--------
>>> from pipeline.fused import search_fused
>>> result = search_fused(["objects", "looks"], "query.jpg", top=3)  # doctest: +SKIP
>>> for match in result.matches:  # doctest: +SKIP
...     print(match.rank, match.score, [(f.extractor, f.rank) for f in match.found_by])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from pipeline.config import PlanKind, Settings
from pipeline.errors import InputError, NoFeaturesError
from pipeline.local import Collection
from pipeline.metadata.engine import session_scope, upgrade
from pipeline.metadata.holdings import held_contents
from pipeline.metadata.records import VersionRecord
from pipeline.records import FusedResult, SearchResult
from pipeline.resources import Resources
from pipeline.retrieval.fuse import DEPTH, fuse
from pipeline.searching import ImageSource, only

__all__ = [
    "FusedCollection",
    "answer_or_nothing",
    "current_versions",
    "fuse_images",
    "fuse_parts",
    "require_different",
    "search_fused",
]


class FusedCollection:
    """Several collections of the same images, searched together in this process.

    Use `FusedCollection.open`, as a context manager or with `close`.
    """

    def __init__(self, collections: Sequence[Collection], resources: Resources) -> None:
        self._collections = collections
        self._resources = resources

    @classmethod
    def open(
        cls, names: Sequence[str], settings: Settings | None = None, *, threads: int | None = None
    ) -> Self:
        """Open at least two different collections.

        Parameters
        ----------
        names : sequence of str
        settings : Settings, optional
            Default: from the environment.
        threads : int, optional
            Threads at work; default one a core.

        Raises
        ------
        InputError
            There are fewer than two, or one is named twice.
        """
        require_different(names)
        resources = Resources(settings or Settings.from_env())
        upgrade(resources.engine)
        return cls([Collection(name, resources, threads) for name in names], resources)

    def close(self) -> None:
        """End the threads and the database connections."""
        for collection in self._collections:
            collection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def search(
        self,
        image: ImageSource,
        top: int = 10,
        plan: PlanKind = "auto",
        effort: float | None = None,
        *,
        exact: bool = False,
    ) -> FusedResult:
        """Find the images that show the same thing, by all extractors together.

        Parameters
        ----------
        image, top, plan, effort, exact
            As for `pipeline.local.Collection.search`.

        Raises
        ------
        UnknownNameError, IndexNotBuiltError
            There is no such collection, or nothing in it.
        NoFeaturesError
            No extractor finds anything in the image. (When only some find nothing, the others
            answer.)
        InputError
            The image cannot be used, or plan, effort and exact contradict each other.
        """
        return only(self.search_many([image], top, plan, effort, exact=exact))

    def search_many(
        self,
        images: Sequence[ImageSource],
        top: int = 10,
        plan: PlanKind = "auto",
        effort: float | None = None,
        *,
        exact: bool = False,
    ) -> list[FusedResult | InputError]:
        """Search for several images together; see `pipeline.local.Collection.search_many`."""
        versions = current_versions(self._resources, [c.name for c in self._collections])
        depth = max(top, DEPTH)
        parts = [
            collection.search_many(images, depth, plan, effort, exact=exact)
            for collection in self._collections
        ]
        return fuse_images(self._resources, versions, parts, top)


def search_fused(
    names: Sequence[str],
    image: ImageSource,
    top: int = 10,
    plan: PlanKind = "auto",
    settings: Settings | None = None,
) -> FusedResult:
    """Search several collections together once; see `FusedCollection`."""
    with FusedCollection.open(names, settings) as collections:
        return collections.search(image, top, plan)


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


def current_versions(resources: Resources, names: Sequence[str]) -> list[VersionRecord]:
    """Return what a search of each collection uses now.

    Raises
    ------
    UnknownNameError, IndexNotBuiltError
        Before any search is begun.
    """
    return [resources.current_version(name) for name in names]


def answer_or_nothing(search: Callable[[], SearchResult]) -> SearchResult | NoFeaturesError:
    """Return a collection's answer, or why its extractor sees nothing in the query."""
    try:
        return search()
    except NoFeaturesError as error:
        return error


def fuse_images(
    resources: Resources,
    versions: Sequence[VersionRecord],
    parts: Sequence[Sequence[SearchResult | InputError]],
    top: int,
) -> list[FusedResult | InputError]:
    """Fuse what each collection answered to several images.

    Parameters
    ----------
    resources, versions, top
        As for `fuse_parts`.
    parts : sequence of sequence of SearchResult or InputError
        For each collection the answer to each image.

    Returns
    -------
    list of FusedResult or InputError
        For each image; the error when it cannot be used.
    """
    return [_fuse_image(resources, versions, image, top) for image in zip(*parts, strict=True)]


def _fuse_image(
    resources: Resources,
    versions: Sequence[VersionRecord],
    parts: Sequence[SearchResult | InputError],
    top: int,
) -> FusedResult | InputError:
    """Fuse the answers to one image, or tell why it cannot be used."""
    usable: list[SearchResult | NoFeaturesError] = []
    for part in parts:
        if not isinstance(part, SearchResult | NoFeaturesError):
            return part
        usable.append(part)
    try:
        return fuse_parts(resources, versions, usable, top)
    except NoFeaturesError as error:
        return error


def fuse_parts(
    resources: Resources,
    versions: Sequence[VersionRecord],
    parts: Sequence[SearchResult | NoFeaturesError],
    top: int,
) -> FusedResult:
    """Fuse the answers of several collections.

    Parameters
    ----------
    resources : Resources
        Tells which images a collection does not hold.
    versions : sequence of VersionRecord
        Of the collections, in their order.
    parts : sequence of SearchResult or NoFeaturesError
        A collection whose extractor sees nothing in the query has an empty answer.
    top : int

    Raises
    ------
    NoFeaturesError
        No extractor sees anything.
    """
    answers = [part for part in parts if isinstance(part, SearchResult)]
    errors = [part for part in parts if isinstance(part, NoFeaturesError)]
    if not answers:
        raise errors[0]
    results = [
        part if isinstance(part, SearchResult) else _nothing(version, answers[0])
        for version, part in zip(versions, parts, strict=True)
    ]
    found = {match.image for result in results for match in result.matches}
    with session_scope(resources.engine, write=False) as session:
        lacking = [
            found - held_contents(session, version.collection_id, version.number, found)
            for version in versions
        ]
    return fuse(results, top, lacking)


def _nothing(version: VersionRecord, other: SearchResult) -> SearchResult:
    """Return the answer of an extractor that sees nothing in the query."""
    return SearchResult(
        matches=(),
        complete=True,
        missing_groups=(),
        plan={},
        timings={},
        query={**other.query, "descriptors": 0},
        collection=version.collection,
        version=version.number,
        extractor=version.extractor.name,
    )
