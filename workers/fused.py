"""Search several collections of the same images together, by the workers.

Every collection is searched at the same time; see `pipeline.fused` for what comes of it.

Examples
--------
>>> from workers.fused import FusedCollection
>>> with FusedCollection.open(["objects", "looks"]) as collections:  # doctest: +SKIP
...     for match in collections.search("query.jpg", top=3).matches:
...         print(match.rank, match.score, [(f.extractor, f.rank) for f in match.found_by])
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Self

from pipeline.config import PlanKind, Settings
from pipeline.errors import InputError
from pipeline.fused import (
    answer_or_nothing,
    current_versions,
    fuse_images,
    fuse_parts,
    require_different,
)
from pipeline.metadata.records import VersionRecord
from pipeline.records import FusedResult, SearchResult
from pipeline.resources import Resources
from pipeline.retrieval.fuse import DEPTH
from pipeline.searching import ImageSource, only
from workers.client import Collection, SearchHandle

__all__ = ["FusedCollection", "FusedSearchHandle", "search_fused"]


class FusedSearchHandle:
    """A search of several collections that the workers do.

    Attributes
    ----------
    ids : tuple of str
        Of the collections' own searches.
    """

    def __init__(
        self,
        resources: Resources,
        versions: Sequence[VersionRecord],
        handles: Sequence[SearchHandle],
        top: int,
    ) -> None:
        self._resources = resources
        self._versions = versions
        self._handles = handles
        self._top = top
        self.ids = tuple(handle.id for handle in handles)

    def ready(self) -> bool:
        """Tell whether every collection's search has ended."""
        return all(handle.ready() for handle in self._handles)

    def wait(self, timeout: float = 30.0) -> FusedResult:
        """Return the answer.

        Raises
        ------
        TimeoutError
            A collection has no answer after `timeout` seconds.
        BrokerUnavailableError
            Redis does not answer.
        VantageError
            A collection's search ended with it (the image cannot be read, say).
        """
        until = time.monotonic() + timeout
        parts = [
            answer_or_nothing(partial(handle.wait, max(0.0, until - time.monotonic())))
            for handle in self._handles
        ]
        return fuse_parts(self._resources, self._versions, parts, self._top)


class FusedCollection:
    """Several collections of the same images, searched together by the workers.

    Use `FusedCollection.open`, as a context manager or with `close`.
    """

    def __init__(self, collections: Sequence[Collection], resources: Resources) -> None:
        self._collections = collections
        self._resources = resources
        self._pool = ThreadPoolExecutor(len(collections), "vantage-fused")

    @classmethod
    def open(cls, names: Sequence[str], settings: Settings | None = None) -> Self:
        """Open at least two different collections.

        Parameters
        ----------
        names : sequence of str
        settings : Settings, optional
            Default: from the environment.

        Raises
        ------
        InputError
            There are fewer than two, or one is named twice.
        BrokerUnavailableError, SchemaVersionError
            As for `workers.client.Collection.open`.
        """
        require_different(names)
        settings = settings or Settings.from_env()
        with ExitStack() as opened:
            # Connections of its own for each: their searches are threads of this process.
            collections = [opened.enter_context(Collection.open(n, settings)) for n in names]
            opened.pop_all()
        return cls(collections, Resources(settings))

    def close(self) -> None:
        """End the threads and close the connections."""
        self._pool.shutdown()
        for collection in self._collections:
            collection.close()
        self._resources.close()

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
        deadline_s: float | None = None,
        *,
        exact: bool = False,
    ) -> FusedResult:
        """Find the images that show the same thing, by all extractors together.

        Features are extracted in this process, groups are scanned by the workers; all collections
        at the same time.

        Parameters
        ----------
        image, top, plan, effort, deadline_s, exact
            As for `workers.client.Collection.search`; the deadline is each collection's.

        Raises
        ------
        UnknownNameError, IndexNotBuiltError
            There is no such collection, or nothing in it.
        NoFeaturesError
            No extractor finds anything in the image. (When only some find nothing, the others
            answer.)
        InputError
            The image cannot be used, or plan, effort and exact contradict each other.
        TransientError
            Redis does not answer, or has lost its data meanwhile.
        """
        return only(self.search_many([image], top, plan, effort, deadline_s, exact=exact))

    def search_many(
        self,
        images: Sequence[ImageSource],
        top: int = 10,
        plan: PlanKind = "auto",
        effort: float | None = None,
        deadline_s: float | None = None,
        *,
        exact: bool = False,
    ) -> list[FusedResult | InputError]:
        """Search for several images together; see `workers.client.Collection.search_many`."""
        versions = self._versions()

        def ask(collection: Collection) -> list[SearchResult | InputError]:
            return collection.search_many(
                images, max(top, DEPTH), plan, effort, deadline_s, exact=exact
            )

        parts = list(self._pool.map(ask, self._collections))
        return fuse_images(self._resources, versions, parts, top)

    def enqueue_search(
        self,
        image: ImageSource,
        top: int = 10,
        plan: PlanKind = "auto",
        effort: float | None = None,
        deadline_s: float | None = None,
        *,
        exact: bool = False,
    ) -> FusedSearchHandle:
        """Leave a search to the workers, extraction included; see `search` for the parameters."""
        versions = self._versions()
        handles = [
            collection.enqueue_search(image, max(top, DEPTH), plan, effort, deadline_s, exact=exact)
            for collection in self._collections
        ]
        return FusedSearchHandle(self._resources, versions, handles, top)

    def _versions(self) -> list[VersionRecord]:
        """Return what a search of each collection uses now."""
        return current_versions(self._resources, [c.name for c in self._collections])


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
