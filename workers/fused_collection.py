"""Search several collections of the same images together; see `vantage.FusedCollection`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Self, Unpack

from pipeline.config import Settings
from pipeline.driver import Driver, SearchHandle
from pipeline.errors import InputError
from pipeline.fusing import answer_or_error, fuse_answers, fuse_images, require_different
from pipeline.metadata import collections
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import CollectionStatus, FailureRow, VersionRecord
from pipeline.records import FusedResult, SearchResult
from pipeline.request import SearchOptions, SearchRequest, request_of
from pipeline.resources import Resources
from pipeline.retrieval.fuse import DEPTH
from pipeline.searching import only
from pipeline.sources import Query, as_image, as_images
from pipeline.status import read_failures
from workers.collection import Collection
from workers.opened import Opened, open_driver, require_name

__all__ = ["FusedCollection", "FusedSearchHandle", "open_collections"]


class FusedSearchHandle:
    """A search of several collections that goes on while the caller does something else.

    Attributes
    ----------
    ids : tuple of str
        One for each collection.
    """

    def __init__(
        self,
        resources: Resources,
        versions: Sequence[VersionRecord],
        handles: Sequence[SearchHandle],
        top: int,
    ) -> None:
        self._fuse: Callable[..., FusedResult] = partial(fuse_answers, resources, versions, top=top)
        self._handles = handles
        self.ids = tuple(handle.id for handle in handles)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {' + '.join(self.ids)}>"

    def ready(self) -> bool:
        """Tell whether every collection's search has ended."""
        return all(handle.ready() for handle in self._handles)

    def wait(self, timeout: float = 30.0) -> FusedResult:
        """Return the answer.

        Parameters
        ----------
        timeout : float
            Seconds.

        Returns
        -------
        FusedResult

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
        return self._fuse(
            answers=[
                answer_or_error(partial(handle.wait, max(0.0, until - time.monotonic())))
                for handle in self._handles
            ]
        )


class FusedCollection(Opened):
    """Several collections of the same images, searched together.

    A collection has one extractor, so several extractors are several collections. Their answers are
    joined by the images' SHA-256 and ranked together. Use `FusedCollection.open`, as a context
    manager or with `close`. Index, rebuild and compact each one as a `vantage.Collection`: it has
    its own jobs.

    Attributes
    ----------
    names : tuple of str

    Examples
    --------
    >>> from vantage import FusedCollection
    >>> with FusedCollection.open(["objects", "looks"]) as both:  # doctest: +SKIP
    ...     for match in both.search("query.jpg", top=3).matches:
    ...         print(match.rank, match.score, [(f.extractor, f.rank) for f in match.found_by])
    """

    def __init__(self, names: Sequence[str], driver: Driver) -> None:
        super().__init__(names, driver)
        self.names = tuple(names)

    @classmethod
    def open(
        cls,
        names: Sequence[str],
        settings: Settings | None = None,
        *,
        local: bool = False,
        threads: int | None = None,
    ) -> Self:
        """Open at least two different collections.

        Parameters
        ----------
        names : sequence of str
        settings : Settings, optional
            Default: from the environment.
        local : bool
            Work in this process, without Redis and workers.
        threads : int, optional
            Number of threads, with `local`; default: one a core.

        Returns
        -------
        FusedCollection

        Raises
        ------
        InputError
            There are fewer than two, one is named twice, or a value is not a name.
        BrokerUnavailableError, SchemaVersionError
            As for `Collection.open`.
        """
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise InputError(f"collections are named in a list of at least two, not by {names!r}")
        for name in names:
            require_name(name)
        require_different(names)
        settings = settings or Settings.from_env()
        return cls(names, open_driver(settings, local=local, threads=threads))

    def search(
        self, image: Query, request: SearchRequest | None = None, **options: Unpack[SearchOptions]
    ) -> FusedResult:
        """Find the images that show the same thing, by all extractors together.

        Parameters
        ----------
        image : path, bytes, array, Pillow image or open file
        request : SearchRequest, optional
        **options
            As for `Collection.search`; the deadline applies to each collection.

        Returns
        -------
        FusedResult

        Raises
        ------
        UnknownNameError, IndexNotBuiltError
            A collection does not exist, or is empty.
        NoFeaturesError
            No extractor finds a keypoint in the image. (If only some find none, the others answer.)
        InputError
            The image cannot be used, or options contradict each other.
        TransientError
            Redis does not answer, or has lost its data meanwhile.
        """
        return only(self.search_many([image], request, **options))

    def search_many(
        self,
        images: Query | Sequence[Query],
        request: SearchRequest | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[FusedResult | InputError]:
        """Search for several images together.

        Parameters
        ----------
        images : image, or sequence of images
        request, **options
            As for `search`.

        Returns
        -------
        list of FusedResult or InputError
            As `Collection.search_many`.

        Raises
        ------
        UnknownNameError, IndexNotBuiltError
            A collection does not exist, or is empty.
        InputError
            Options contradict each other, or a value is not an image.
        TransientError
            Redis does not answer, or has lost its data meanwhile.
        """
        request = request_of(request, options)
        driver = self._driver
        sources = as_images(images)
        versions = self._versions(driver)

        def ask(name: str) -> list[SearchResult | InputError]:
            return driver.search(name, sources, _deeper(request))

        # In this process one after the other, as each uses all threads.
        with ThreadPoolExecutor(1 if driver.local else len(self.names), "vantage-fused") as pool:
            answers = list(pool.map(ask, self.names))
        return fuse_images(driver.resources, versions, answers, request.top)

    def enqueue_search(
        self, image: Query, request: SearchRequest | None = None, **options: Unpack[SearchOptions]
    ) -> FusedSearchHandle:
        """Begin a search, extraction included, and return at once.

        Parameters
        ----------
        image : path, bytes, array, Pillow image or open file
        request, **options
            As for `search`.

        Returns
        -------
        FusedSearchHandle

        Raises
        ------
        UnknownNameError, IndexNotBuiltError
            A collection does not exist, or is empty.
        InputError
            The image cannot be read, or options contradict each other.
        NoWorkersError, BrokerUnavailableError
            No worker can do it, or Redis does not answer.
        """
        request = request_of(request, options)
        driver = self._driver
        source = as_image(image)
        versions = self._versions(driver)
        handles = [driver.enqueue(name, source, _deeper(request)) for name in self.names]
        return FusedSearchHandle(driver.resources, versions, handles, request.top)

    def status(self) -> tuple[CollectionStatus, ...]:
        """Return what each of the collections holds now.

        Returns
        -------
        tuple of CollectionStatus

        Raises
        ------
        UnknownNameError
            A collection does not exist.
        """
        with session_scope(self._driver.resources.engine, write=False) as session:
            return tuple(collections.collection_status(session, name) for name in self.names)

    def failures(self) -> tuple[list[FailureRow], ...]:
        """Return the files that each collection could not index, with the reasons.

        Returns
        -------
        tuple of list of FailureRow

        Raises
        ------
        UnknownNameError
            A collection does not exist.
        """
        engine = self._driver.resources.engine
        return tuple(read_failures(engine, name) for name in self.names)

    def _versions(self, driver: Driver) -> list[VersionRecord]:
        """Return the current version of each collection, before any search begins."""
        return [driver.resources.current_version(name) for name in self.names]


def open_collections(
    names: Sequence[str], settings: Settings, *, local: bool
) -> Collection | FusedCollection:
    """Open one collection, or several to search together."""
    if len(names) == 1:
        return Collection.open(names[0], settings, local=local)
    return FusedCollection.open(names, settings, local=local)


def _deeper(request: SearchRequest) -> SearchRequest:
    """Ask each collection for as many matches as fusing needs."""
    return replace(request, top=max(request.top, DEPTH))
