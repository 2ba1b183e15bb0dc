"""The public class `Collection`, whichever driver does the work; see `vantage`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self, Unpack

from pipeline.config import ExtractorConfig, IndexConfig, Settings
from pipeline.driver import Driver, JobHandle, Report, SearchHandle
from pipeline.errors import InputError, UnknownNameError
from pipeline.job_kinds import COMPACT, INDEX, REBUILD
from pipeline.job_params import CompactParams, IndexParams
from pipeline.metadata import collections
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import CollectionRecord, CollectionStatus, FailureRow
from pipeline.opening import (
    ChosenExtractor,
    choose_extractor,
    find_collection,
    open_collection,
    rebuild_params,
)
from pipeline.request import SearchOptions, SearchRequest, request_of
from pipeline.searching import only
from pipeline.sources import Query, as_image, as_images, as_paths
from pipeline.status import read_failures
from workers.opened import Opened, open_driver, require_name

if TYPE_CHECKING:
    from pipeline.records import SearchResult
    from pipeline.verifying import Verification

__all__ = ["Collection"]


class Collection(Opened):
    """A collection of images: index folders into it, search in it.

    Use `Collection.open`, as a context manager or with `close`. Its length is the number of
    searchable images.

    Attributes
    ----------
    name : str

    Examples
    --------
    >>> from vantage import Collection
    >>> with Collection.open("holiday", local=True) as holiday:  # doctest: +SKIP
    ...     holiday.index("photos")
    ...     for match in holiday.search("query.jpg", top=3).matches:
    ...         print(match.rank, match.score, match.locations)
    """

    def __init__(self, name: str, driver: Driver, chosen: ChosenExtractor | None = None) -> None:
        super().__init__([name], driver)
        self.name = name
        self._chosen = chosen

    @classmethod
    def open(
        cls,
        name: str,
        settings: Settings | None = None,
        *,
        local: bool = False,
        extractor: str | None = None,
        threads: int | None = None,
    ) -> Self:
        """Open a collection; it is created when something is indexed into it.

        Parameters
        ----------
        name : str
        settings : Settings, optional
            Default: from the environment.
        local : bool
            Work in this process, without Redis and workers. Database and store are the same either
            way.
        extractor : str, optional
            ``sift``, ``surf``, ``cnn:FILE`` or another package's. Default: that of the collection;
            of a new one, that of the settings. A collection keeps its extractor.
        threads : int, optional
            Number of threads, with `local`; default: one a core.

        Returns
        -------
        Collection

        Raises
        ------
        ConfigError
            The collection was made with another extractor, or the model file does not exist.
        BrokerUnavailableError
            Redis does not answer, or is not running.
        SchemaVersionError
            The database must be migrated first.
        """
        require_name(name)
        settings = settings or Settings.from_env()
        chosen = None if extractor is None else choose_extractor(settings, extractor)
        driver = open_driver(settings, local=local, threads=threads)
        try:
            if chosen is not None:
                find_collection(driver.resources, name, chosen)
        except BaseException:
            driver.close()
            raise
        return cls(name, driver, chosen)

    def __bool__(self) -> bool:
        return True  # an empty collection is true, too

    def __len__(self) -> int:
        """Return the number of searchable images; 0 before the first is indexed."""
        try:
            return self.status().images.get("indexed", 0)
        except UnknownNameError:
            return 0

    def index(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        extractor: ExtractorConfig | None = None,
        index: IndexConfig | None = None,
        reread: bool = False,
        emptied: bool = False,
        report: Report | None = None,
    ) -> JobHandle:
        """Index a folder or file, or several.

        A known file is read again only if the file system says that it has changed: its size, the
        time of its last change, that of its status, or its inode.

        With `local` it returns when the job is done; otherwise at once: wait with the handle. If a
        group then has more segments than the settings allow, small ones are merged (or the index is
        rebuilt, see `pipeline.indexing.due_upkeep`).

        Parameters
        ----------
        paths : path, or iterable of paths
            Folders, searched recursively, and files; the paths must be valid for the workers.
        extractor : ExtractorConfig, optional
            Default: that of `open`. It must be that of an existing collection.
        index : IndexConfig, optional
            For a new collection; default from the settings.
        reread : bool
            Read every file again, also those that look unchanged.
        emptied : bool
            All drives are mounted: mark the files that were in empty folders as gone. Otherwise an
            empty folder counts as the place of a drive that is not mounted.
        report : callable, optional
            Called with a `JobProgress` when the job begins and, with `local`, after every part,
            from any thread.

        Returns
        -------
        JobHandle

        Raises
        ------
        InputError
            A value is not a path.
        ConfigError
            The collection was made with another extractor.
        NoWorkersError, BrokerUnavailableError
            No worker can do it, or Redis does not answer.
        MissingRootError
            With `local`: a whole folder is missing; the job is kept, paused.
        """
        names = as_paths(paths)
        driver = self._driver
        driver.require(INDEX)
        chosen = self._chosen if extractor is None else ChosenExtractor(extractor)
        record = open_collection(driver.resources, self.name, chosen, index)
        params = IndexParams(paths=tuple(names), reread=reread, emptied=emptied)
        return driver.begin(record, INDEX, params, report)

    def rebuild(
        self,
        *,
        extractor: str | ExtractorConfig | None = None,
        report: Report | None = None,
    ) -> JobHandle:
        """Make a new tree and new segments; with another extractor, from new features.

        Searches go on with the former index until the new one is published. Without another
        extractor no image is read: the features are kept.

        Parameters
        ----------
        extractor : str or ExtractorConfig, optional
            As for `open`. All images are extracted with it, those too that failed with the former
            one; later ones as well. Default: the collection's own.
        report : callable, optional
            As for `index`.

        Returns
        -------
        JobHandle

        Raises
        ------
        UnknownNameError
            The collection does not exist.
        ConfigError
            The model file does not exist.
        StateError
            The collection is being rebuilt in another way already.
        NoWorkersError, BrokerUnavailableError
            No worker can do it, or Redis does not answer.
        MissingRootError
            With `local` and another extractor: a whole folder is missing; the job is kept, paused.
        """
        driver = self._driver
        driver.require(REBUILD)
        chosen = None
        if extractor is not None:
            chosen = choose_extractor(driver.resources.settings, extractor)
        record = self._record()
        params = rebuild_params(driver.resources, record, chosen)
        handle = driver.begin(record, REBUILD, params, report)
        if chosen is not None:
            self._chosen = None  # what it was opened with is no longer asked for
        return handle

    def compact(self, report: Report | None = None) -> JobHandle:
        """Merge the segments of every group into one, without the rows of removed images.

        The counters of its progress say what was merged, and how many removed images still have
        rows (one call drops a limited number, and none during a rebuild). If there was nothing to
        do, it has no counters.

        Parameters
        ----------
        report : callable, optional
            As for `index`.

        Returns
        -------
        JobHandle

        Raises
        ------
        UnknownNameError
            The collection does not exist.
        NoWorkersError, BrokerUnavailableError
            No worker can do it, or Redis does not answer.
        """
        self._driver.require(COMPACT)
        return self._driver.begin(self._record(), COMPACT, CompactParams(), report)

    def search(
        self, image: Query, request: SearchRequest | None = None, **options: Unpack[SearchOptions]
    ) -> SearchResult:
        """Find the images that show the same thing.

        Features are extracted in this process; workers, if used, scan the groups.

        Parameters
        ----------
        image : path, bytes, array, Pillow image or open file
            A file, a file's bytes, or pixels (grey or RGB).
        request : SearchRequest, optional
            The options, as one value.
        **options
            ``top``, ``plan``, ``effort``, ``exact``, ``deadline_s``: see `SearchRequest`.

        Returns
        -------
        SearchResult

        Raises
        ------
        UnknownNameError, IndexNotBuiltError
            The collection does not exist, or is empty.
        InputError
            The image cannot be used, or options contradict each other.
        TransientError
            Redis does not answer, or has lost its data meanwhile.
        """
        request = request_of(request, options)
        driver = self._driver
        return only(driver.search(self.name, [as_image(image)], request))

    def search_many(
        self,
        images: Query | Sequence[Query],
        request: SearchRequest | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[SearchResult | InputError]:
        """For each of several images, find those that show the same thing.

        Up to `pipeline.retrieval.batch.BATCH_IMAGES` are searched for together: cells that several
        of them want are visited once. The answers equal those of single searches.

        Parameters
        ----------
        images : image, or sequence of images
            Each as for `search`.
        request, **options
            As for `search`; the deadline applies to each pass.

        Returns
        -------
        list of SearchResult or InputError
            In the order of the images; an error for an image that cannot be used.

        Raises
        ------
        UnknownNameError, IndexNotBuiltError
            The collection does not exist, or is empty.
        InputError
            Options contradict each other, or a value is not an image.
        TransientError
            Redis does not answer, or has lost its data meanwhile.
        """
        request = request_of(request, options)
        return self._driver.search(self.name, as_images(images), request)

    def enqueue_search(
        self, image: Query, request: SearchRequest | None = None, **options: Unpack[SearchOptions]
    ) -> SearchHandle:
        """Begin a search, extraction included, and return at once.

        Parameters
        ----------
        image : path, bytes, array, Pillow image or open file
        request, **options
            As for `search`.

        Returns
        -------
        SearchHandle
            With ``ready()`` and ``wait(timeout)``.

        Raises
        ------
        InputError
            The image cannot be read, or options contradict each other.
        NoWorkersError, BrokerUnavailableError
            No worker can do it, or Redis does not answer.
        """
        request = request_of(request, options)
        return self._driver.enqueue(self.name, as_image(image), request)

    def status(self) -> CollectionStatus:
        """Return what the collection holds now.

        Returns
        -------
        CollectionStatus

        Raises
        ------
        UnknownNameError
            The collection does not exist.
        """
        with session_scope(self._driver.resources.engine, write=False) as session:
            return collections.collection_status(session, self.name)

    def failures(self) -> list[FailureRow]:
        """Return the files that could not be indexed, with the reasons.

        Returns
        -------
        list of FailureRow

        Raises
        ------
        UnknownNameError
            The collection does not exist.
        """
        return read_failures(self._driver.resources.engine, self.name)

    def verify(self) -> Verification:
        """Read every file of the store that belongs to the collection, and compare its SHA-256.

        Damaged copies on this host are removed, to be fetched again.

        Returns
        -------
        Verification
            With the files that are lost or damaged, and the remedy for each.

        Raises
        ------
        UnknownNameError
            The collection does not exist.
        StorageUnavailableError
            The store does not answer.
        """
        from pipeline.verifying import verify_files

        resources = self._driver.resources
        return verify_files(resources.engine, resources.storage, [self.name])

    def _record(self) -> CollectionRecord:
        """Return the collection, which must be there."""
        with session_scope(self._driver.resources.engine, write=False) as session:
            return collections.get_collection(session, self.name)
