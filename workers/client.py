"""Use Vantage from Python: enqueue jobs, search, wait.

Examples
--------
>>> from workers.client import Collection
>>> with Collection.open("holiday") as collection:  # doctest: +SKIP
...     collection.index(["/photos"]).wait(timeout=600)
...     for match in collection.search("query.jpg", top=3).matches:
...         print(match.rank, match.score, match.locations)
"""

from __future__ import annotations

import contextlib
import io
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
from kombu.exceptions import OperationalError
from PIL import Image
from redis import RedisError

from pipeline.abandoned import end_abandoned_jobs
from pipeline.config import ExtractorConfig, IndexConfig, PlanKind, Settings
from pipeline.creation import ChosenExtractor, choose_extractor, find_collection, open_collection
from pipeline.errors import (
    BrokerUnavailableError,
    InputError,
    NoWorkersError,
    StateError,
    TransientError,
)
from pipeline.files import read_file
from pipeline.job_params import CompactParams, IndexParams, JobParams, RebuildParams
from pipeline.kinds import COMPACT, INDEX, REBUILD, Kind
from pipeline.metadata import collections, heartbeats, jobs, parts
from pipeline.metadata.engine import require_schema, session_scope
from pipeline.metadata.records import JobProgress
from pipeline.pixels import pixels_of_array
from pipeline.records import SearchResult
from pipeline.request import SearchRequest
from pipeline.retrieval.batch import Batch
from pipeline.searching import ImageSource, only, search_images
from workers import searches
from workers.context import Context
from workers.jobs import broker_epoch, send_stage
from workers.keys import KEEP_S, KEYS

__all__ = ["Collection", "JobHandle", "SearchHandle"]

_POLL_S = 0.2
_BLOCK_S = 1.0


class JobHandle:
    """A job that the workers do; it goes on whether or not anybody waits.

    Attributes
    ----------
    id : str
    """

    def __init__(self, context: Context, job_id: str) -> None:
        self._context = context
        self.id = job_id

    def progress(self) -> JobProgress:
        """Return how far the job is, from SQL."""
        with session_scope(self._context.engine, write=False) as session:
            return parts.job_progress(session, self.id)

    def wait(self, timeout: float | None = None) -> JobProgress:
        """Wait until the job has ended.

        Parameters
        ----------
        timeout : float, optional
            Seconds; default: as long as it takes.

        Raises
        ------
        TimeoutError
            The job is still running; it goes on.
        StateError
            The job failed, or is paused because a whole image folder is missing.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            progress = self.progress()
            if progress.state == "done":
                return progress
            if progress.state in ("failed", "paused"):
                raise StateError(f"job {self.id} is {progress.state}: {progress.message}")
            if until is not None and time.monotonic() > until:
                raise TimeoutError(
                    f"job {self.id} is in stage {progress.stage} after {timeout} s and goes on"
                )
            time.sleep(_POLL_S)


class SearchHandle:
    """A search that the workers do.

    Attributes
    ----------
    id : str
    """

    def __init__(self, context: Context, search_id: str) -> None:
        self._context = context
        self.id = search_id

    def ready(self) -> bool:
        """Tell whether the search has ended."""
        with _broker(self._context):
            return bool(self._context.redis.exists(KEYS.result(self.id)))

    def wait(self, timeout: float = 30.0) -> SearchResult:
        """Return the answer.

        Raises
        ------
        TimeoutError
            There is none after `timeout` seconds.
        BrokerUnavailableError
            Redis does not answer.
        VantageError
            The search ended with it (the image cannot be read, say).
        """
        until = time.monotonic() + timeout
        with _broker(self._context):
            while (results := searches.fetch_results(self._context.redis, self.id)) is None:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"search {self.id} has no answer after {timeout} s")
                _block(self._context, self.id, left)
            return only(results)


class Collection:
    """A collection, worked on by the workers.

    Use `Collection.open`, as a context manager or with `close`.
    """

    def __init__(self, name: str, context: Context, chosen: ChosenExtractor | None = None) -> None:
        self.name = name
        self._context = context
        self._chosen = chosen

    @classmethod
    def open(
        cls, name: str, settings: Settings | None = None, *, extractor: str | None = None
    ) -> Self:
        """Open a collection; it is created when something is indexed into it.

        Parameters
        ----------
        name : str
        settings : Settings, optional
            Default: from the environment.
        extractor : str, optional
            ``sift``, ``surf``, ``cnn:FILE`` or another package's. Default: the collection's own;
            of a new one, the settings'. A collection keeps the one that it was made with.

        Raises
        ------
        ConfigError
            The collection was made with another extractor, or there is no such model file.
        BrokerUnavailableError
            Redis does not answer, or none runs here.
        SchemaVersionError
            The database must be migrated first.
        """
        settings = settings or Settings.from_env()
        chosen = None if extractor is None else choose_extractor(settings, extractor)
        context = Context(settings)
        try:
            with _broker(context):
                context.redis.ping()
            require_schema(context.engine)
            if chosen is not None:
                find_collection(context.resources, name, chosen)
        except BaseException:
            context.close()
            raise
        return cls(name, context, chosen)

    def close(self) -> None:
        """Close the connections."""
        self._context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def index(
        self,
        paths: Sequence[str | Path],
        *,
        extractor: ExtractorConfig | None = None,
        index: IndexConfig | None = None,
    ) -> JobHandle:
        """Enqueue the indexing of folders and files.

        Parameters
        ----------
        paths : sequence of str or Path
            Folders, searched recursively, and files, as the workers see them.
        extractor : ExtractorConfig, optional
            Default: as the collection was opened. An existing collection takes no other.
        index : IndexConfig, optional
            Used when the collection is new; default from the settings.

        Raises
        ------
        ConfigError
            The collection was made with another extractor.
        NoWorkersError
            Nobody is there to do it.
        BrokerUnavailableError
            Redis does not answer. If the job was created already, it begins when Redis is back.
        """
        self._require_workers(*INDEX.queues)
        chosen = self._chosen if extractor is None else ChosenExtractor(extractor)
        collection = open_collection(self._context.resources, self.name, chosen, index)
        names = tuple(os.path.abspath(path) for path in paths)  # noqa: PTH100 - keeps link names
        return self._enqueue(collection.id, INDEX, IndexParams(paths=names))

    def rebuild(self) -> JobHandle:
        """Enqueue a new tree and new segments, made from the feature containers."""
        self._require_workers(*REBUILD.queues)
        with session_scope(self._context.engine, write=False) as session:
            collection = collections.get_collection(session, self.name)
        return self._enqueue(collection.id, REBUILD, RebuildParams())

    def compact(self) -> JobHandle:
        """Enqueue the merge of every group's segments into one, without removed images' rows.

        The counters of its progress tell what was merged, and of how many removed images rows are
        left (so many at once, and none while a rebuild is under way); there are none when there was
        nothing to do.
        """
        self._require_workers(*COMPACT.queues)
        with session_scope(self._context.engine, write=False) as session:
            collection = collections.get_collection(session, self.name)
        return self._enqueue(collection.id, COMPACT, CompactParams())

    def search(
        self,
        image: ImageSource,
        top: int = 10,
        plan: PlanKind = "auto",
        effort: float | None = None,
        deadline_s: float | None = None,
        *,
        exact: bool = False,
    ) -> SearchResult:
        """Find the images that show the same thing.

        Features are extracted in this process, groups are scanned by the workers.

        Parameters
        ----------
        image : str, Path, bytes or ndarray
            A file, a file's bytes, or pixels (grey or RGB).
        top : int
            Images in the answer.
        plan : {"auto", "probed", "exhaustive"}
        effort : float, optional
            Share of the cells that the probed plan opens for a query descriptor; asks for that
            plan. Default: that of `SearchRequest`.
        deadline_s : float, optional
            Seconds after which the answer comes with what is there (``complete`` is then False);
            default from the settings.
        exact : bool
            Compare with every row: the exhaustive plan.

        Raises
        ------
        UnknownNameError, IndexNotBuiltError
            There is no such collection, or nothing in it.
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
    ) -> list[SearchResult | InputError]:
        """Find for each of several images those that show the same thing.

        They are searched for together, up to `pipeline.retrieval.batch.BATCH_IMAGES` at a time:
        one message a group serves them all, and cells that several of them want are visited once.
        The answers are those of single searches.

        Parameters
        ----------
        images : sequence of str, Path, bytes or ndarray
        top, plan, effort, exact
            As for `search`.
        deadline_s : float, optional
            As for `search`, for each pass.

        Returns
        -------
        list of SearchResult or InputError
            In the order of the images; for one that cannot be used, the error.

        Raises
        ------
        UnknownNameError, IndexNotBuiltError
            There is no such collection, or nothing in it.
        InputError
            Plan, effort and exact contradict each other.
        TransientError
            Redis does not answer, or has lost its data meanwhile.
        """
        request = SearchRequest(
            top=top, plan=plan, effort=effort, exact=exact, deadline_s=deadline_s
        )
        context = self._context
        version = context.resources.current_version(self.name)

        def answer(batch: Batch) -> list[SearchResult]:
            deadline_at = time.time() + request.seconds(context.settings.search_deadline_s)
            search_id = uuid.uuid4().hex
            with _broker(context):
                ticket = searches.begin(context, search_id, version, batch, deadline_at)
                return _tend_until_answered(context, ticket)

        if len(images) < 2:
            return search_images(context.resources, version, images, request, answer)
        with ThreadPoolExecutor(min(len(images), os.cpu_count() or 1), "vantage-query") as pool:
            return search_images(context.resources, version, images, request, answer, pool.map)

    def enqueue_search(
        self,
        image: ImageSource,
        top: int = 10,
        plan: PlanKind = "auto",
        effort: float | None = None,
        deadline_s: float | None = None,
        *,
        exact: bool = False,
    ) -> SearchHandle:
        """Leave a search to the workers, extraction included; see `search` for the parameters."""
        request = SearchRequest(
            top=top, plan=plan, effort=effort, exact=exact, deadline_s=deadline_s
        )
        self._require_workers("query")
        search_id = uuid.uuid4().hex
        data = self._image_bytes(image)
        with _broker(self._context):
            searches.request(self._context, search_id, self.name, data, request)
        return SearchHandle(self._context, search_id)

    def _image_bytes(self, image: ImageSource) -> bytes:
        """Return a query as the bytes of an image file; pixels are packed without loss."""
        if isinstance(image, bytes):
            return image
        if isinstance(image, np.ndarray):
            stream = io.BytesIO()
            # With its colours, for extractors that look at them.
            pixels = pixels_of_array(image, color=image.ndim == 3)
            Image.fromarray(pixels).save(stream, "PNG")
            return stream.getvalue()
        return read_file(image, limits=self._context.settings.image_limits)

    def _require_workers(self, *kinds: str) -> None:
        """Raise when a kind of worker is not alive."""
        timeout_s = self._context.settings.host_timeout_s
        with session_scope(self._context.engine, write=False) as session:
            live = {host.kind for host in heartbeats.live_workers(session, time.time(), timeout_s)}
        for kind in kinds:
            if kind not in live:
                raise NoWorkersError(kind)

    def _enqueue(self, collection_id: int, kind: Kind, params: JobParams) -> JobHandle:
        """Create a job and send its first stage."""
        end_abandoned_jobs(self._context.engine, collection_id, self._context.settings.host)
        epoch = broker_epoch(self._context.redis)
        with session_scope(self._context.engine) as session:
            job = jobs.create_job(
                session,
                collection_id,
                kind.name,
                params,
                broker_epoch=epoch,
            )
        if job.process is not None:
            raise StateError(
                f"collection {self.name!r} is worked on already, by the {job.kind} job {job.id} of "
                "another process; wait for it, see `vantage status`"
            )
        with _broker(self._context):
            send_stage(self._context, job)
        return JobHandle(self._context, job.id)


@contextlib.contextmanager
def _broker(context: Context) -> Iterator[None]:
    """Turn the errors of Redis, which come from two libraries, into ours."""
    try:
        yield
    except (RedisError, OperationalError) as exc:
        raise BrokerUnavailableError(str(context.redis_address), str(exc)) from exc


def _tend_until_answered(context: Context, ticket: searches.Ticket) -> list[SearchResult]:
    """Wait for a search and see to its late parts and its deadline, as the watchman does."""
    over = False
    while (results := searches.fetch_results(context.redis, ticket.id)) is None:
        if over:
            raise TransientError("Redis has lost this search with its data; search again")
        now = time.time()
        due = ticket.deadline_at if ticket.resent else ticket.resend_at
        if now >= due:
            over = now >= ticket.deadline_at
            ticket = searches.tend(context, ticket, now)
            due = now + 0.05
        _block(context, ticket.id, 0.0 if over else due - now)
    return results


def _block(context: Context, search_id: str, seconds: float) -> None:
    """Wait for a search's reply, at most so long."""
    # The element is put back for other callers who wait for the same search.
    key = KEYS.reply(search_id)
    if context.redis.blpop([key], timeout=max(0.01, min(seconds, _BLOCK_S))):
        # A list that was emptied is gone, and its time to live with it.
        pipe = context.redis.pipeline(transaction=True)
        pipe.rpush(key, b"1")
        pipe.expire(key, KEEP_S)
        pipe.execute()
