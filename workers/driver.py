"""A driver that lets workers do the work: it sends jobs and searches and waits for them."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.abandoned_jobs import end_abandoned_jobs
from pipeline.config import Settings
from pipeline.cores import usable_cores
from pipeline.driver import JobHandle, Report
from pipeline.errors import (
    DatabaseUnavailableError,
    IndexNotBuiltError,
    InputError,
    NoWorkersError,
    StateError,
    TransientError,
)
from pipeline.job_kinds import Kind
from pipeline.job_params import JobParams
from pipeline.locations import check_locations
from pipeline.metadata import heartbeats, jobs
from pipeline.metadata.engine import require_schema, session_scope
from pipeline.metadata.records import CollectionRecord
from pipeline.metadata.sqlite import LOCKED, is_locked
from pipeline.records import SearchResult
from pipeline.request import SearchRequest
from pipeline.resources import Resources
from pipeline.retrieval.batch import Batch
from pipeline.searching import ImageSource, only, search_images, search_unbuilt
from pipeline.sources import image_bytes
from workers import searches
from workers.context import Context
from workers.io_deadline import io_until
from workers.job_messages import broker_epoch, send_stage
from workers.keys import KEEP_S
from workers.passes import MeasuredPasses
from workers.presence import require_claim

__all__ = ["WorkersDriver", "WorkersSearch"]

_BLOCK_S = 1.0


class WorkersSearch:
    """A search by the workers.

    Attributes
    ----------
    id : str
    """

    def __init__(self, context: Context, search_id: str) -> None:
        self._context = context
        self._pid = os.getpid()
        self._inherited: list[Context] = []
        self.id = search_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    @property
    def context(self) -> Context:
        """Its connections; in a forked child others, as the parent still uses its own."""
        if self._pid != os.getpid():
            self._inherited.append(self._context)
            self._context, self._pid = Context(self._context.settings), os.getpid()
        return self._context

    def ready(self) -> bool:
        """Tell whether the search has ended."""
        with self.context.broker_errors():
            return bool(self.context.redis.exists(self.context.keys.result(self.id)))

    def wait(self, timeout: float = 30.0) -> SearchResult:
        """Return the answer.

        Raises
        ------
        TimeoutError
            There is no answer after `timeout` seconds.
        BrokerUnavailableError
            Redis does not answer.
        VantageError
            The search ended with this error (for instance, the image cannot be read).
        """
        until = time.monotonic() + timeout
        look_at: float | None = time.time() + searches.LOOK_EVERY_S
        with self.context.broker_errors(), io_until(time.time() + timeout):
            while (results := searches.fetch_results(self.context, self.id)) is None:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"search {self.id} has no answer after {timeout} s")
                _block(self.context, self.id, left)
                # As the supervisor does, which may be in a worker that has died.
                if look_at is not None and (now := time.time()) >= look_at:
                    look_at = now + searches.LOOK_EVERY_S
                    with contextlib.suppress(TransientError):
                        look_at = searches.look_after(self.context, self.id, now)
            return only(check_locations(self.context.engine, results))


class WorkersDriver:
    """Lets workers do the work of collections.

    Parameters
    ----------
    settings : Settings

    Attributes
    ----------
    context : Context
        Connections, and the app that sends.

    Raises
    ------
    BrokerUnavailableError
        Redis does not answer, or is not running.
    SchemaVersionError
        The database must be migrated first.
    OtherInstallationError
        The database is a copy, or another one uses its identity at this Redis.
    """

    local = False

    def __init__(self, settings: Settings) -> None:
        self._inherited: list[Context] = []
        self.context = Context(settings)
        try:
            with self.context.broker_errors():
                self.context.redis.ping()
            require_schema(self.context.engine)
            with self.context.broker_errors():
                require_claim(self.context)
        except BaseException:
            self.close()
            raise

    @property
    def resources(self) -> Resources:
        """Database, store, and the files that are open."""
        return self.context.resources

    def reopen(self) -> None:
        """Open everything again in a forked child; do not touch what belongs to the parent."""
        self._inherited.append(self.context)
        self.context = Context(self.context.settings)

    def close(self) -> None:
        """Close the connections."""
        self.context.close()

    def require(self, kind: Kind) -> None:
        """Raise unless workers for all stages of this kind are alive.

        Raises
        ------
        NoWorkersError
            A kind of worker is not alive.
        """
        self._require_workers(*kind.queues)

    def begin(
        self, record: CollectionRecord, kind: Kind, params: JobParams, report: Report | None
    ) -> JobHandle:
        """Create a job and send its first stage.

        Raises
        ------
        StateError
            Another process works on the collection already.
        BrokerUnavailableError
            Redis does not answer. A job that was created already begins when Redis is back.
        """
        context = self.context
        end_abandoned_jobs(context.engine, record.id, context.settings.host)
        epoch = broker_epoch(context)
        with session_scope(context.engine) as session:
            job = jobs.create_job(session, record.id, kind.name, params, broker_epoch=epoch)
        if job.process is not None:
            raise StateError(
                f"collection {record.name!r} is worked on already, by the {job.kind} job {job.id} "
                "of another process; wait for it, see `vantage status`"
            )
        with context.broker_errors():
            send_stage(context, job)
        handle = JobHandle(context.engine, job.id)
        if report is not None:
            report(handle.progress())
        return handle

    def search(
        self, collection: str, images: Sequence[ImageSource], request: SearchRequest
    ) -> list[SearchResult | InputError]:
        """Search for several images in one pass; the answer for an unusable image is its error.

        This process extracts features, workers scan the groups: one message a group serves all
        images of a pass.

        Raises
        ------
        TransientError
            Redis does not answer, or has lost its data meanwhile.
        """
        found = self._search(collection, images, request)
        return check_locations(self.context.engine, found)

    def _search(
        self, collection: str, images: Sequence[ImageSource], request: SearchRequest
    ) -> list[SearchResult | InputError]:
        """Extract, let workers scan and rank."""
        context = self.context
        try:
            version = context.resources.current_version(collection)
        except IndexNotBuiltError:
            return search_unbuilt(context.resources, collection, images)

        deadline_s = request.seconds(context.settings.search_deadline_s)

        def answer(batch: Batch) -> list[SearchResult]:
            deadline_at = time.time() + deadline_s
            with context.broker_errors(), io_until(deadline_at):
                ticket = searches.begin(context, uuid.uuid4().hex, version, batch, deadline_at)
                return _tend_until_answered(context, ticket)

        passes = MeasuredPasses(context, answer, deadline_s, len(images))
        if len(images) < 2:
            return search_images(context.resources, version, images, request, passes)
        with ThreadPoolExecutor(min(len(images), usable_cores()), "vantage-query") as pool:
            return search_images(context.resources, version, images, request, passes, pool.map)

    def enqueue(self, collection: str, image: ImageSource, request: SearchRequest) -> WorkersSearch:
        """Leave a search to the workers, extraction included.

        Raises
        ------
        NoWorkersError
            No query worker is alive.
        """
        context = self.context
        self._require_workers("query")
        search_id = uuid.uuid4().hex
        data = image_bytes(image, context.settings.image_limits)
        until = time.time() + request.seconds(context.settings.search_deadline_s)
        with context.broker_errors(), io_until(until):
            searches.request(context, search_id, collection, data, request)
        return WorkersSearch(context, search_id)

    def _require_workers(self, *roles: str) -> None:
        """Raise if no live worker has one of these roles."""
        timeout_s = self.context.settings.host_timeout_s
        with session_scope(self.context.engine, write=False) as session:
            live = heartbeats.live_workers(session, time.time(), timeout_s)
        played = {role for worker in live for role in worker.roles}
        for role in roles:
            if role not in played:
                if is_locked(self.context.engine):
                    # Heartbeats cannot be written, so nobody is known to live.
                    raise DatabaseUnavailableError(LOCKED)
                raise NoWorkersError(role)


def _tend_until_answered(context: Context, ticket: searches.Ticket) -> list[SearchResult]:
    """Wait for a search; handle late scans and the deadline, as the supervisor does."""
    over = False
    while (results := searches.fetch_results(context, ticket.id)) is None:
        if over:
            raise TransientError(searches.LOST)
        now = time.time()
        due = ticket.deadline_at if ticket.resent else ticket.resend_at
        if now >= due:
            over = now >= ticket.deadline_at
            ticket = searches.tend(context, ticket, now)
            due = now + 0.05
        _block(context, ticket.id, 0.0 if over else due - now)
    return results


def _block(context: Context, search_id: str, seconds: float) -> None:
    """Wait for a search's reply, for at most so long."""
    # The element is put back for other callers that wait for the same search.
    key = context.keys.reply(search_id)
    if context.redis.blpop([key], timeout=max(0.01, min(seconds, _BLOCK_S))):
        # An emptied list no longer exists, and neither does its time to live.
        pipe = context.redis.pipeline(transaction=True)
        pipe.rpush(key, b"1")
        pipe.expire(key, KEEP_S)
        pipe.execute()
