"""The supervisor's decisions on a real Redis and a real database, without any worker running."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sites import Eventually, make_settings
from sqlalchemy import update

from pipeline.abandoned_jobs import this_process
from pipeline.arrays import arrays_to_bytes
from pipeline.config import Settings
from pipeline.errors import (
    BrokerUnavailableError,
    DatabaseUnavailableError,
    DeadlinePassedError,
    NoWorkersError,
    OtherInstallationError,
    StateError,
    StorageUnavailableError,
    TooManyQueriesError,
    TransientError,
    UnknownNameError,
)
from pipeline.job_kinds import COMPACT, REBUILD
from pipeline.job_params import IndexParams
from pipeline.metadata import collections, heartbeats, jobs, parts
from pipeline.metadata.engine import session_scope
from pipeline.metadata.models import Job, Version
from pipeline.metadata.records import JobRecord, WorkerRecord
from pipeline.records import LATE, SearchResult
from pipeline.request import SearchRequest
from pipeline.retrieval.batch import BATCH_SHARE, Batch
from pipeline.retrieval.cost import REFERENCE
from pipeline.searching import _answer_all, prepare_query
from pipeline.status import read_status
from vantage import Collection
from workers import searches
from workers.context import Context
from workers.driver import WorkersSearch, _block
from workers.embedded import EmbeddedRedis
from workers.job_messages import (
    PASSING,
    broker_epoch,
    do_join,
    do_whole_stage,
    keep_up,
    proceed,
    replan,
    send_stage,
    waits_its_turn,
)
from workers.pace import measured_pace
from workers.passes import MeasuredPasses
from workers.supervise import watch_jobs, watch_segments

PATIENCE_S = 15.0


@pytest.fixture(scope="module")
def indexed_home(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Settings:
    """A home with a collection of 15 photographs, without broker or workers."""
    settings = make_settings(tmp_path_factory.mktemp("watched") / "home")
    with Collection.open("photographs", settings, local=True) as collection:
        collection.index(sorted(photo_folder.glob("*.png")))
    return settings


@pytest.fixture
def context(indexed_home: Settings, redis_url: str) -> Iterator[Context]:
    settings = dataclasses.replace(indexed_home, redis_url=redis_url)
    context = Context(settings)
    yield context
    with session_scope(context.engine) as session:
        for host in heartbeats.live_workers(session, time.time(), 1e9):
            heartbeats.forget_worker(session, host.name)
        for job in jobs.unfinished_jobs(session):
            jobs.finish_job(session, job.id, "failed", "end of the test")
    context.close()


def _messages(context: Context, queue: str) -> list[tuple[str, list[Any]]]:
    """Take what waits in a queue: names and arguments of the tasks."""
    with context.redis_address.client(database=context.redis_address.broker_db) as broker:
        key = context.keys.queue(queue)
        texts = broker.lrange(key, 0, -1)
        broker.delete(key)
    found = []
    for text in reversed(texts):
        assert len(text) < 2048, "a message carries ids, not data"
        message = json.loads(text)
        args = json.loads(base64.b64decode(message["body"]))[0]
        found.append((message["headers"]["task"], args))
    return found


def _beat(
    context: Context, name: str, kind: str, groups: tuple[int, ...] = (), age_s: float = 0.0
) -> None:
    now = time.time()
    row = WorkerRecord(name, (kind,), "test", 1, groups, "ready", now - age_s, now - 100, {})
    with session_scope(context.engine) as session:
        heartbeats.beat(session, row)


def _job(
    context: Context, paths: tuple[str, ...] = ("/nowhere at all",), process: str | None = None
) -> JobRecord:
    """Make a job whose first message was sent."""
    with session_scope(context.engine) as session:
        job = jobs.create_job(
            session,
            collections.get_collection(session, "photographs").id,
            "index",
            IndexParams(paths=paths),
            process=process,
            broker_epoch=broker_epoch(context),
        )
    send_stage(context, job)
    return job


def _read(context: Context, job: JobRecord) -> JobRecord:
    with session_scope(context.engine, write=False) as session:
        return jobs.get_job(session, job.id)


def _let_be_due(context: Context, search_id: str, *steps: str) -> None:
    """Let the time of steps of a search, which is in no hurry, have come."""
    ticket = searches.Ticket.load(context, search_id)
    assert ticket is not None
    dataclasses.replace(ticket, **dict.fromkeys(steps, time.time())).save(context)
    context.redis.zadd(context.keys.in_flight, {search_id: 0.0})


class TestJobs:
    def test_a_store_that_cannot_be_written_is_shown_until_the_job_goes_on(
        self, context: Context, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = _job(context, (str(photo_folder / "page.png"),))

        def full(*_: object) -> None:
            raise StorageUnavailableError("groups/0/a.npz", "OSError: No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("pipeline.indexing.run_part", full)
            with pytest.raises(StorageUnavailableError):
                do_whole_stage(context, job.id, job.attempt, "register")
        (line,) = read_status(context.settings, context.engine, "photographs").jobs
        assert line.state == "running"
        assert "tried again: " in line.sentence()
        assert "No space left on device" in line.sentence()
        assert context.settings.host in line.sentence()
        do_whole_stage(context, job.id, job.attempt, "register")
        assert _read(context, job).message is None

    def test_a_job_on_its_way_is_left_alone(self, context: Context) -> None:
        job = _job(context)
        assert watch_jobs(context) == 0
        assert _messages(context, "reduce") == [("job.register", [job.id, 1])]

    def test_a_broker_that_lost_everything_gets_the_messages_again(self, context: Context) -> None:
        job = _job(context)
        context.redis.flushall()
        assert watch_jobs(context) == 1
        assert _messages(context, "reduce") == [("job.register", [job.id, 2])]
        assert _read(context, job).attempt == 2
        assert watch_jobs(context) == 0
        assert _messages(context, "reduce") == []

    def test_a_job_without_progress_is_planned_again_after_a_while(self, context: Context) -> None:
        job = _job(context)
        assert watch_jobs(context, patience_s=0.0) == 1
        sent = _messages(context, "reduce")
        assert sent == [("job.register", [job.id, 1]), ("job.register", [job.id, 2])]

    def test_a_part_in_the_hands_of_a_live_worker_is_waited_for(self, context: Context) -> None:
        job = _job(context)
        _beat(context, "reduce@test", "reduce")
        with session_scope(context.engine) as session:
            parts.start_part(session, job.id, "register", 0, "reduce@test")
        assert watch_jobs(context, patience_s=0.0) == 0
        # It falls silent: its host has died.
        _beat(context, "reduce@test", "reduce", age_s=context.settings.host_timeout_s + 1)
        assert watch_jobs(context, patience_s=0.0) == 1

    def test_a_restarted_worker_has_lost_its_part(self, context: Context) -> None:
        job = _job(context)
        with session_scope(context.engine) as session:
            parts.start_part(session, job.id, "register", 0, "reduce@test")
        now = time.time()
        row = WorkerRecord("reduce@test", ("reduce",), "test", 2, (), "ready", now, now + 1, {})
        with session_scope(context.engine) as session:
            heartbeats.beat(session, row)
        assert watch_jobs(context, patience_s=0.0) == 1

    def test_jobs_that_have_ended_or_run_without_a_broker_are_not_touched(
        self, context: Context
    ) -> None:
        ended, foreign = _job(context), _job(context, process=this_process("x"))
        with session_scope(context.engine) as session:
            jobs.finish_job(session, ended.id, "failed", "why not")
        _messages(context, "reduce")
        context.redis.flushall()
        assert watch_jobs(context, patience_s=0.0) == 0
        assert _messages(context, "reduce") == []
        assert _read(context, foreign).attempt == 1

    def test_a_broker_that_is_away_is_waited_for_and_ends_no_job(self, context: Context) -> None:
        job = _job(context, paths=())
        with session_scope(context.engine) as session:
            parts.finish_part(session, job.id, "register", 0, {})
        away = dataclasses.replace(context.settings, redis_url="redis://127.0.0.1:1/0")
        alone = Context(away)
        try:
            with pytest.raises(PASSING):
                proceed(alone, job.id, job.attempt)
            with pytest.raises(PASSING):
                watch_jobs(alone)
        finally:
            alone.close()
        moved = _read(context, job)
        assert (moved.state, moved.stage) == ("running", "train")
        # Its next message was never sent: the supervisor makes up for it.
        assert watch_jobs(context, patience_s=0.0) == 1
        assert _messages(context, "reduce")[-1] == ("group.train", [job.id, moved.attempt + 1])

    def test_a_job_that_cannot_be_planned_ends_and_blocks_no_other(self, context: Context) -> None:
        broken, sound = _job(context), _job(context)
        with session_scope(context.engine) as session:
            # Its stage needs the result of one that has left none.
            parts.create_parts(session, broken.id, "train", [{}])
            parts.finish_part(session, broken.id, "train", 0, {"tree": 10**6})
            jobs.advance_stage(session, broken.id, "register", 1, "merge")
        context.redis.flushall()
        assert watch_jobs(context) == 1
        ended = _read(context, broken)
        assert ended.state == "failed"
        assert "1000000" in (ended.message or "")
        assert _messages(context, "reduce") == [("job.register", [sound.id, 2])]

    @pytest.fixture
    def grown(self, context: Context, photo_folder: Path) -> Iterator[Context]:
        """Two collections with two segments in a group, where one is allowed."""
        photographs = sorted(photo_folder.glob("*.png"))[:7]
        names = ("broken", "sound")
        for name in names:
            with Collection.open(name, context.settings, local=True) as collection:
                collection.index(photographs[:1])
                collection.index(photographs[1:])
        grown = Context(dataclasses.replace(context.settings, compact_above=1))
        yield grown
        with session_scope(grown.engine) as session:
            for name in names:
                collections.delete_collection(session, name)
        grown.close()

    def test_a_collection_that_cannot_be_looked_at_keeps_no_other_from_its_merges(
        self, grown: Context
    ) -> None:
        with session_scope(grown.engine) as session:
            found = collections.get_collection(session, "broken")
            wrong = {**found.extractor.to_dict(), "name": "nowhere-installed"}
            values = {"extractor": wrong}
            session.execute(update(Version).where(Version.collection_id == found.id).values(values))
        assert watch_segments(grown, patience_s=0.0) == 1
        with session_scope(grown.engine, write=False) as session:
            begun = [
                collections.get_collection_by_id(session, job.collection_id).name
                for job in jobs.unfinished_jobs(session)
            ]
        assert begun == ["sound"]

    def test_the_job_of_another_process_is_waited_for_until_it_says_nothing_any_more(
        self, grown: Context
    ) -> None:
        for kind in ("reduce", "extract"):
            _beat(grown, f"{kind}@a", kind)
        _beat(grown, "group@a", "group", (0, 1, 2, 3))
        with session_scope(grown.engine) as session:
            found = collections.get_collection(session, "sound")
            process = this_process("elsewhere")
            theirs = {
                kind.name: jobs.create_job(
                    session, found.id, kind.name, kind.params(), process=process
                )
                for kind in (COMPACT, REBUILD)
            }
        with Collection.open("sound", grown.settings) as collection:
            for call in (collection.compact, collection.rebuild):
                with pytest.raises(StateError, match="of another process"):
                    call()
        assert not keep_up(grown, found.id)
        queues = ["reduce", *(f"group.{group}" for group in range(4))]
        assert [_messages(grown, queue) for queue in queues] == [[]] * 5
        with session_scope(grown.engine) as session:
            silent = time.time() - jobs.LOCAL_SILENCE_S - 1
            ids = [job.id for job in theirs.values()]
            session.execute(update(Job).where(Job.id.in_(ids)).values(progress_at=silent))
        assert keep_up(grown, found.id)
        with session_scope(grown.engine, write=False) as session:
            (fresh,) = [j for j in jobs.unfinished_jobs(session, found.id) if j.id not in ids]
        sent = [message for queue in queues for message in _messages(grown, queue)]
        assert sent
        assert {args[0] for _, args in sent} == {fresh.id}

    def test_jobs_take_no_more_threads_than_are_theirs_and_one_that_waits_is_not_lost(
        self, context: Context, tmp_path: Path, photo_folder: Path
    ) -> None:
        (tmp_path / "a.png").write_bytes((photo_folder / "page.png").read_bytes())
        job = _job(context, paths=(str(tmp_path),))
        _messages(context, "reduce")
        held = 0
        while context.reduce_slots.acquire(blocking=False):
            held += 1
        assert held == 2
        assert do_whole_stage(context, job.id, job.attempt, "register") is None
        assert do_join(context, job.id, job.attempt) is None
        assert waits_its_turn(context, job.id)
        assert do_join(context, job.id, job.attempt - 1) == {"void": True}
        assert _read(context, job).stage == "register"
        context.reduce_slots.release()
        assert do_whole_stage(context, job.id, job.attempt, "register") == {"stage": "extract"}
        context.reduce_slots.release()

    def test_one_of_two_supervisors_sends(self, context: Context) -> None:
        job = _job(context)
        _messages(context, "reduce")
        stale = _read(context, job)
        assert replan(context, stale, "first")
        assert not replan(context, stale, "second")
        assert _messages(context, "reduce") == [("job.register", [job.id, 2])]

    def test_a_paused_job_goes_on_when_its_folder_holds_something(
        self, context: Context, tmp_path: Path, photo_folder: Path
    ) -> None:
        folder = tmp_path / "mount"
        job = _job(context, paths=(str(folder),))
        with session_scope(context.engine) as session:
            jobs.pause_job(session, job.id, "no folder")
        _messages(context, "reduce")
        assert watch_jobs(context) == 0
        folder.mkdir()  # the mount point alone
        assert watch_jobs(context) == 0
        assert _read(context, job).state == "paused"
        (folder / "a.png").write_bytes((photo_folder / "page.png").read_bytes())
        assert watch_jobs(context) == 1
        resumed = _read(context, job)
        assert (resumed.state, resumed.message) == ("running", None)
        assert _messages(context, "reduce") == [("job.register", [job.id, 2])]


class TestSearches:
    @pytest.fixture
    def query(self, photo_folder: Path) -> bytes:
        return (photo_folder / "coffee.png").read_bytes()

    def _begin(self, context: Context, query: bytes, deadline_s: float) -> searches.Ticket:
        version = context.resources.current_version("photographs")
        config = SearchRequest(plan="exhaustive", top=5)
        prepared = prepare_query(context.resources, version, query, config)
        return searches.begin(
            context, uuid.uuid4().hex, version, prepared, time.time() + deadline_s
        )

    def test_each_live_group_is_asked_on_its_own_queue(
        self, context: Context, query: bytes
    ) -> None:
        _beat(context, "group@a", "group", (0, 1))
        _beat(context, "group@b", "group", (3,))
        _beat(context, "group@c", "group", (2,), age_s=context.settings.host_timeout_s + 1)
        ticket = self._begin(context, query, 60)
        assert (ticket.asked, ticket.missing) == ((0, 1, 3), (2,))
        for group in (0, 1, 3):
            sent = _messages(context, f"group.{group}")
            assert sent == [("retrieve.scan", [ticket.id, group])]
        assert _messages(context, "group.2") == []

    def test_a_late_scan_is_sent_again_once_and_the_deadline_ends_it(
        self, context: Context, query: bytes
    ) -> None:
        _beat(context, "group@a", "group", (0, 1, 2, 3))
        ticket = self._begin(context, query, 60)
        for group in range(4):
            _messages(context, f"group.{group}")
        for group in (0, 3):
            searches.scan(context, ticket.id, group)
        before = ticket.resend_at - 0.01
        assert searches.tend(context, ticket, before) == ticket
        assert _messages(context, "group.1") == []

        late = searches.tend(context, ticket, ticket.resend_at)
        assert late.resent
        assert searches.Ticket.load(context, ticket.id) == late
        again = searches.tend(context, late, ticket.resend_at + 1)
        assert again == late
        for group in range(4):
            sent = _messages(context, f"group.{group}")
            assert sent == ([("retrieve.scan", [ticket.id, group])] if group in (1, 2) else [])
        assert searches.fetch_results(context, ticket.id) is None

        searches.tend(context, late, ticket.deadline_at)
        (result,) = searches.fetch_results(context, ticket.id) or []
        assert (result.complete, result.missing_groups) == (False, (1, 2))
        # What comes after the end changes nothing.
        searches.scan(context, ticket.id, 1)
        searches.rank(context, ticket.id)
        assert searches.fetch_results(context, ticket.id) == [result]

    def test_a_lost_ranking_is_made_up_for(self, context: Context, query: bytes) -> None:
        _beat(context, "group@a", "group", (0, 1, 2, 3))
        ticket = self._begin(context, query, 60)
        for group in range(4):
            assert "matches" in searches.scan(context, ticket.id, group)
            assert searches.scan(context, ticket.id, group) == {"group": group, "known": True}
        assert searches.fetch_results(context, ticket.id) is None
        searches.tend(context, ticket, ticket.resend_at)
        (result,) = searches.fetch_results(context, ticket.id) or []
        assert result.complete

    def test_a_scan_that_fails_is_a_missing_group_not_an_error(
        self, context: Context, query: bytes
    ) -> None:
        _beat(context, "group@a", "group", (0, 1, 2, 3))
        ticket = self._begin(context, query, 60)
        version = context.resources.version(ticket.version_id)
        (segment,) = version.group_segments(2)
        stored = Path(context.settings.store) / segment.key
        local_copy = context.settings.local / segment.key
        content = stored.read_bytes()
        fresh = Context(context.settings)  # has nothing of it open
        try:
            for path in (stored, local_copy):
                path.unlink(missing_ok=True)
            assert searches.scan(fresh, ticket.id, 2)["matches"] == 0
        finally:
            stored.write_bytes(content)
            fresh.close()
        for group in (0, 1, 3):
            searches.scan(context, ticket.id, group)
        (result,) = searches.rank(context, ticket.id) or []
        assert (result.complete, result.missing_groups) == (False, ())
        (cause,) = result.causes
        assert segment.key in cause
        assert Path(result.matches[0].locations[0]).stem == "coffee"

    def test_an_enqueued_search_is_watched_until_its_end(
        self, context: Context, query: bytes
    ) -> None:
        _beat(context, "group@a", "group", (0, 1, 2, 3))
        search_id = uuid.uuid4().hex
        config = SearchRequest(plan="exhaustive", deadline_s=600)
        searches.request(context, search_id, "photographs", query, config)
        assert _messages(context, "query") == [("retrieve.prepare", [search_id])]
        searches.prepare(context, search_id)
        searches.scan(context, search_id, 0)
        handle = WorkersSearch(context, search_id)
        for step in ("resend_at", "deadline_at"):
            assert not handle.ready()
            _let_be_due(context, search_id, step)
            searches.tend_all(context)
        result = handle.wait(timeout=1)
        assert (result.complete, result.missing_groups) == (False, (1, 2, 3))
        assert context.redis.zcard(context.keys.in_flight) == 0
        # Sent with the chord, and once more.
        assert len(_messages(context, "group.1")) == 2

    def test_the_image_of_a_query_is_deleted_when_it_is_prepared_or_its_search_is_over(
        self, context: Context, query: bytes, eventually: Eventually
    ) -> None:
        _beat(context, "group@a", "group", (0, 1, 2, 3))
        redis, keys = context.redis, context.keys
        for image, prepared in ((query, True), (b"no image", True), (query, False)):
            search_id = uuid.uuid4().hex
            asked = SearchRequest(deadline_s=600 if prepared else 0.1)
            searches.request(context, search_id, "photographs", image, asked)
            assert redis.strlen(keys.image(search_id)) == len(image)
            assert redis.hlen(keys.waiting) == 1
            if prepared:
                searches.prepare(context, search_id)
                assert searches.prepare(context, search_id) == {"error": "the search is over"}
            else:
                handle = WorkersSearch(context, search_id)
                eventually(lambda handle=handle: searches.tend_all(context) and handle.ready())
            assert not redis.exists(keys.image(search_id))
            assert not redis.exists(keys.waiting)

    def test_queries_that_wait_are_bounded_together(self, context: Context, query: bytes) -> None:
        settings = dataclasses.replace(context.settings, queued_bytes=2 * len(query) + 10)
        bounded = Context(settings)
        ask = functools.partial(searches.request, bounded, collection="photographs", image=query)
        try:
            # A reservation whose search is long over, and one that nobody can read, count nothing.
            bounded.redis.hset(bounded.keys.waiting, "old", f"{10**9} 1")
            bounded.redis.hset(bounded.keys.waiting, "odd", b"\xff")
            for name in ("a", "b"):
                ask(name, asked=SearchRequest(deadline_s=600))
            with pytest.raises(TooManyQueriesError, match="VANTAGE_QUEUED_BYTES"):
                ask("c", asked=SearchRequest())
            assert not bounded.redis.exists(bounded.keys.image("c"), bounded.keys.request("c"))
            searches.prepare(bounded, "a")
            ask("c", asked=SearchRequest(deadline_s=600))
            with pytest.raises(TooManyQueriesError):
                ask("d", asked=SearchRequest())
        finally:
            bounded.close()

    def test_of_many_queries_at_once_no_more_wait_than_may(
        self, context: Context, query: bytes
    ) -> None:
        settings = dataclasses.replace(context.settings, queued_bytes=3 * len(query))
        refused: list[str] = []

        def ask(number: int) -> None:
            own = Context(settings)
            try:
                searches.request(own, str(number), "photographs", query, SearchRequest())
            except TooManyQueriesError:
                refused.append(str(number))
            own.close()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))
        waiting = {str(n) for n in range(8)} - set(refused)
        assert len(waiting) <= 3
        assert all(context.redis.exists(context.keys.image(name)) for name in waiting)

    def test_a_search_that_was_never_prepared_ends_with_an_error(
        self, context: Context, query: bytes, eventually: Eventually
    ) -> None:
        search_id = uuid.uuid4().hex
        config = SearchRequest(deadline_s=0.3)
        searches.request(context, search_id, "photographs", query, config)
        handle = WorkersSearch(context, search_id)
        with pytest.raises(TimeoutError, match=search_id):
            handle.wait(timeout=0.1)
        eventually(lambda: searches.tend_all(context) and handle.ready())
        with pytest.raises(TransientError, match="was not prepared in time"):
            handle.wait(timeout=1)
        assert context.redis.zcard(context.keys.in_flight) == 0

    def test_all_callers_waiting_for_a_search_get_its_answer(
        self, context: Context, query: bytes
    ) -> None:
        ticket = self._begin(context, query, 60)  # nobody serves anything
        assert ticket.missing == (0, 1, 2, 3)
        first = WorkersSearch(context, ticket.id).wait(timeout=600)
        assert WorkersSearch(context, ticket.id).wait(timeout=600) == first
        # Waiting takes its element and puts it back: it still goes by itself.
        _block(context, ticket.id, 1.0)
        assert 500 < context.redis.ttl(context.keys.reply(ticket.id)) <= 600
        assert not first.complete

    def test_finished_and_unknown_searches_are_left_alone(self, context: Context) -> None:
        assert "error" in searches.prepare(context, "unknown")
        assert "error" in searches.scan(context, "unknown", 0)
        assert searches.rank(context, "unknown") is None
        assert searches.fetch_results(context, "unknown") is None
        assert context.redis.keys("*unknown*") == []

    @pytest.mark.parametrize("deadline_s", [60.0, 5000.0])
    def test_keys_of_a_search_expire_but_not_before_its_deadline(
        self, context: Context, query: bytes, deadline_s: float
    ) -> None:
        _beat(context, "group@a", "group", (0, 1, 2, 3))
        search_id = uuid.uuid4().hex
        config = SearchRequest(deadline_s=deadline_s)
        searches.request(context, search_id, "photographs", query, config)
        searches.prepare(context, search_id)
        for group in range(4):
            searches.scan(context, search_id, group)
        searches.rank(context, search_id)
        names = context.redis.keys(f"*{search_id}*")
        assert len(names) == 9  # the image is deleted when the query is prepared
        lives = {name.decode().split(":")[2]: context.redis.ttl(name) for name in names}
        assert 500 < lives.pop("result") <= 600
        assert 500 < lives.pop("reply") <= 600
        assert {n: v for n, v in lives.items() if not deadline_s < v <= deadline_s + 600} == {}

    def test_a_search_in_a_deleted_collection_ends_and_blocks_no_other(
        self, context: Context, query: bytes, photo_folder: Path
    ) -> None:
        _beat(context, "group@a", "group", (0, 1, 2, 3))
        with Collection.open("passing", context.settings, local=True) as collection:
            collection.index([photo_folder / "page.png", photo_folder / "coffee.png"])
        config = SearchRequest(plan="exhaustive", deadline_s=600)
        ids = {name: uuid.uuid4().hex for name in ("passing", "photographs")}
        for name, search_id in ids.items():
            searches.request(context, search_id, name, query, config)
            searches.prepare(context, search_id)
        with session_scope(context.engine) as session:
            collections.delete_collection(session, "passing")
        fresh = Context(context.settings)  # the supervisor's, which has not read the version before
        handles = {name: WorkersSearch(context, search_id) for name, search_id in ids.items()}
        for search_id in ids.values():
            _let_be_due(context, search_id, "resend_at", "deadline_at")
        assert searches.tend_all(fresh) == 2
        fresh.close()
        with pytest.raises(UnknownNameError):
            handles["passing"].wait(timeout=1)
        assert not handles["photographs"].wait(timeout=1).complete
        assert context.redis.zcard(context.keys.in_flight) == 0


class TestPasses:
    """Several images at once: how many share a pass."""

    @pytest.fixture
    def queries(self, context: Context, photo_folder: Path) -> list[Batch]:
        version = context.resources.current_version("photographs")
        images = [path.read_bytes() + b"\0" for path in sorted(photo_folder.glob("*.png"))[:8]]
        made = [prepare_query(context.resources, version, one, SearchRequest()) for one in images]
        assert all(isinstance(one, Batch) for one in made)
        return [one for one in made if isinstance(one, Batch)]

    @staticmethod
    def _answer(size: int, most: int) -> list[SearchResult]:
        """Answer a pass of some images; more than some are late."""
        if size <= most:
            return [SearchResult((), True, (), {}, {})] * size
        cause = f"group 0: {LATE} (5.0 s)"
        return [SearchResult((), False, (0,), {}, {}, causes=(cause,))] * size

    def _passes(
        self, context: Context, most: int, images: int, deadline_s: float = 600
    ) -> tuple[MeasuredPasses, list[int]]:
        sizes: list[int] = []

        def answer(batch: Batch) -> list[SearchResult]:
            sizes.append(len(batch.images))
            return self._answer(len(batch.images), most)

        return MeasuredPasses(context, answer, deadline_s, images), sizes

    def test_a_late_pass_is_done_again_in_halves_until_it_is_not_late(
        self, context: Context, queries: list[Batch]
    ) -> None:
        passes, sizes = self._passes(context, 2, len(queries))
        results = _answer_all(queries, passes)
        assert sizes == [8, 4, 2, 2, 2, 2]
        assert all(result.complete for result in results)

    def test_no_pass_is_done_again_beyond_the_patience_of_the_caller(
        self, context: Context, queries: list[Batch]
    ) -> None:
        passes, sizes = self._passes(context, 2, len(queries))
        passes._until = time.monotonic()
        results = _answer_all(queries, passes)
        assert sizes == [8]
        assert [result.missing_groups for result in results] == [(0,)] * 8

    def test_an_image_that_is_late_alone_is_not_asked_again(
        self, context: Context, queries: list[Batch]
    ) -> None:
        passes, sizes = self._passes(context, 0, len(queries))
        results = _answer_all(queries, passes)
        assert sizes == [8, 4, 2, *[1] * 8]
        assert not any(result.complete for result in results)

    def test_passes_are_cut_by_what_scans_take_now(
        self, context: Context, queries: list[Batch]
    ) -> None:
        # So that all eight fit at the predicted speed.
        ms = sum(query.predicted(REFERENCE).wait_ms for query in queries)
        deadline_s = ms / 1e3 / BATCH_SHARE * 1.01
        passes, _ = self._passes(context, 8, 8, deadline_s)
        assert [len(some) for some in passes.cut(queries)] == [8]
        key, now = context.keys.pace, time.time()
        context.redis.hset(key, "0", f"4.2 0 {now}")
        assert len(passes.cut(queries)) >= 4
        context.redis.hset(key, "0", f"1 {deadline_s * 0.8} {now}")  # they wait behind others
        assert len(passes.cut(queries)) >= 4
        context.redis.hset(key, "0", f"100 100 {now - 60}")  # long ago
        context.redis.hset(key, "1", b"\xff")
        assert [len(some) for some in passes.cut(queries)] == [8]

    def test_each_scan_tells_how_slow_it_was_and_how_long_it_waited(
        self, context: Context, queries: list[Batch]
    ) -> None:
        _beat(context, "group@a", "group", (0, 1, 2, 3))
        version = context.resources.current_version("photographs")
        searches.begin(context, "s", version, queries[0], time.time() + 600)
        ticket = searches.Ticket.load(context, "s")
        assert ticket is not None
        dataclasses.replace(ticket, sent_at=ticket.sent_at - 7).save(context)
        searches.scan(context, "s", 2)
        slowness, wait_s = measured_pace(context)
        assert slowness >= 1
        assert wait_s >= 7

    def test_an_answer_says_that_time_was_the_reason(
        self, context: Context, queries: list[Batch]
    ) -> None:
        _beat(context, "group@a", "group", (0, 1, 2, 3))
        version = context.resources.current_version("photographs")
        searches.begin(context, "s", version, queries[0], time.time() + 600)
        searches.scan(context, "s", 0)
        error = arrays_to_bytes({}, {"error": f"DeadlinePassedError: {DeadlinePassedError()}"})
        context.redis.set(context.keys.scan("s", 1), error)
        (result,) = searches.rank(context, "s") or []
        assert result.missing_groups == (1, 2, 3)
        assert all(LATE in cause and "--deadline" in cause for cause in result.causes)

    def test_a_ticket_of_another_installation_is_refused(
        self, context: Context, queries: list[Batch]
    ) -> None:
        _beat(context, "group@a", "group", (0, 1, 2, 3))
        version = context.resources.current_version("photographs")
        ticket = searches.begin(context, "s", version, queries[0], time.time() + 600)
        dataclasses.replace(ticket, installation="0123456789abcdef").save(context)
        assert "0123456789abcdef" in searches.scan(context, "s", 0)["error"]
        with pytest.raises(OtherInstallationError, match="two databases use one identity"):
            searches.rank(context, "s")


class TestClient:
    def test_without_workers_nothing_is_enqueued(
        self, context: Context, photo_folder: Path
    ) -> None:
        with Collection.open("photographs", context.settings) as collection:
            with pytest.raises(NoWorkersError, match="vantage up"):
                collection.index([photo_folder])
            with pytest.raises(NoWorkersError):
                collection.rebuild()
            with pytest.raises(NoWorkersError):
                collection.enqueue_search(photo_folder / "page.png")
        with session_scope(context.engine, write=False) as session:
            assert jobs.unfinished_jobs(session) == []

    def test_a_locked_database_is_not_told_as_workers_gone(
        self, context: Context, photo_folder: Path
    ) -> None:
        query = (photo_folder / "page.png").read_bytes() + b"\0"  # not the same file
        _beat(context, "group@a", "group", (0, 1, 2, 3), age_s=1e6)
        _beat(context, "query@a", "query", age_s=1e6)
        version = context.resources.current_version("photographs")
        batch = prepare_query(context.resources, version, query, SearchRequest())
        assert isinstance(batch, Batch)
        other = sqlite3.connect(context.settings.home / "vantage.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            with Collection.open("photographs", context.settings) as collection:
                for ask in (
                    lambda: collection.enqueue_search(photo_folder / "page.png"),
                    lambda: searches.begin(context, "s", version, batch, time.time() + 60),
                ):
                    with pytest.raises(DatabaseUnavailableError, match="holds the write lock"):
                        ask()
            searches.request(context, "t", "photographs", query, SearchRequest())
            searches.prepare(context, "t")
            with pytest.raises(DatabaseUnavailableError, match="holds the write lock"):
                searches.fetch_results(context, "t")
        finally:
            other.execute("ROLLBACK")
            other.close()

    def test_a_redis_that_does_not_answer_is_named_without_its_password(
        self, context: Context
    ) -> None:
        settings = dataclasses.replace(context.settings, redis_url="redis://:hush@127.0.0.1:1/0")
        with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1") as caught:
            Collection.open("photographs", settings)
        assert "hush" not in str(caught.value)

    def test_every_call_reports_a_lost_redis(
        self, context: Context, photo_folder: Path, tmp_path: Path
    ) -> None:
        for kind in ("extract", "reduce", "query"):
            _beat(context, f"{kind}@a", kind)
        _beat(context, "group@a", "group", (0, 1, 2, 3))
        page = photo_folder / "page.png"
        with EmbeddedRedis(tmp_path / "redis") as server:
            settings = dataclasses.replace(context.settings, redis_url=server.url)
            with Collection.open("photographs", settings) as collection:
                handle = collection.enqueue_search(page, deadline_s=600)
                server.stop()
                for call in (
                    lambda: collection.search(page),
                    lambda: collection.enqueue_search(page),
                    lambda: collection.index([page]),
                    lambda: collection.rebuild(),
                    handle.ready,
                    handle.wait,
                ):
                    with pytest.raises(BrokerUnavailableError, match="unix://"):
                        call()

    def test_a_search_whose_data_redis_has_lost_does_not_hang(
        self, context: Context, photo_folder: Path, eventually: Eventually
    ) -> None:
        _beat(context, "group@a", "group", (0, 1, 2, 3))
        with Collection.open("photographs", context.settings) as collection:
            caught: list[Exception] = []

            def search() -> None:
                try:
                    collection.search(photo_folder / "page.png", deadline_s=8.0)
                except Exception as error:
                    caught.append(error)

            searcher = threading.Thread(target=search)
            searcher.start()
            eventually(lambda: context.redis.keys(context.keys.ticket("*")))
            context.redis.flushall()
            searcher.join(timeout=600)
            assert not searcher.is_alive()
        assert [type(error) for error in caught] == [TransientError]

    def test_a_home_where_nothing_runs_says_what_to_start(self, tmp_path: Path) -> None:
        with pytest.raises(BrokerUnavailableError, match="vantage up"):
            Collection.open("photographs", make_settings(tmp_path))

    def test_waiting_for_a_job_ends_with_it_or_with_the_time(self, context: Context) -> None:
        from vantage import JobHandle

        job = _job(context)
        with pytest.raises(TimeoutError, match="goes on"):
            JobHandle(context.engine, job.id).wait(timeout=0.05)
        with session_scope(context.engine) as session:
            jobs.finish_job(session, job.id, "failed", "the disk is full")
        with pytest.raises(StateError, match="failed: the disk is full"):
            JobHandle(context.engine, job.id).wait(timeout=1)
