"""Compaction by workers: automatic and requested, disturbed, killed, sent twice."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from heavy import long_only
from sites import (
    Eventually,
    files_below,
    found_names,
    frozen,
    live_workers,
    make_settings,
    served_groups,
)
from sqlalchemy import text

from pipeline import indexing
from pipeline.config import Settings
from pipeline.job_kinds import COMPACT
from pipeline.job_params import CompactParams
from pipeline.metadata import collections, compaction, jobs, parts
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import CollectionStatus, JobRecord, JobStage
from pipeline.metadata.versions import current_version
from pipeline.status import read_status
from vantage import Collection
from workers.context import Context
from workers.job_messages import broker_epoch, replan
from workers.stack import Stack
from workers.supervise import watch_segments

NAMES = ("astronaut", "chelsea", "coffee", "coins", "page", "rocket")
PLANS = ("probed", "exhaustive")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A group may have two segments."""
    return make_settings(tmp_path_factory.mktemp("compaction") / "home", compact_above=2)


@pytest.fixture(scope="module")
def stack(settings: Settings) -> Iterator[Stack]:
    with Stack(settings) as stack:
        yield stack


@pytest.fixture
def context(settings: Settings, stack: Stack) -> Iterator[Context]:
    context = Context(settings)
    yield context
    context.close()


@pytest.fixture
def folder(tmp_path: Path, small_photographs: dict[str, bytes]) -> Path:
    path = tmp_path / "photographs"
    path.mkdir()
    for name in NAMES:
        (path / f"{name}.png").write_bytes(small_photographs[name])
    return path


def status(context: Context, name: str) -> CollectionStatus:
    with session_scope(context.engine, write=False) as session:
        return collections.collection_status(session, name)


def compactions(context: Context, name: str) -> list[JobRecord]:
    with session_scope(context.engine, write=False) as session:
        found = jobs.list_jobs(session, collections.get_collection(session, name).id)
    return [job for job in found if job.kind == "compact"]


def answers(collection: Collection, folder: Path) -> list[Any]:
    """What every photograph finds, with both plans."""
    found = []
    for name in NAMES:
        for plan in PLANS:
            result = collection.search(folder / f"{name}.png", top=50, plan=plan)  # type: ignore[arg-type]
            assert result.complete
            found.append(result.to_dict()["matches"])
    return found


def many_segments(settings: Settings, name: str, folder: Path) -> None:
    """Index photographs one by one, in this process, without compaction."""

    never = dataclasses.replace(settings, compact_above=0)
    with Collection.open(name, never, threads=1, local=True) as collection:
        collection.index([folder / f"{name}.png" for name in NAMES[:3]])
        for photograph in NAMES[3:]:
            collection.index([folder / f"{photograph}.png"])


def begun(
    settings: Settings, context: Context, name: str, folder: Path, epoch: str | None = None
) -> JobRecord:
    """A compaction whose merges were not sent; without `epoch` the supervisor sends them."""
    many_segments(settings, name, folder)
    with session_scope(context.engine) as session:
        found = collections.get_collection(session, name)
        job = jobs.create_job(session, found.id, "compact", CompactParams(), broker_epoch=epoch)
    indexing.open_stage(context.resources, job)
    return job


def test_small_segments_are_merged_after_an_index_job_and_all_by_hand(
    settings: Settings, context: Context, folder: Path, eventually: Eventually
) -> None:
    with Collection.open("grown", settings) as collection:
        collection.index([folder / f"{name}.png" for name in NAMES[:3]]).wait(timeout=600)
        for name in NAMES[3:]:
            done = collection.index([folder / f"{name}.png"]).wait(timeout=600)
            assert (done.kind, done.state) == ("index", "done")
        # The supervisor begins a merge that was not begun by an index job: a moment later.
        eventually(lambda: status(context, "grown").largest_group <= 2)
        eventually(lambda: status(context, "grown").jobs == ())
        assert {job.state for job in compactions(context, "grown")} == {"done"}
        before = answers(collection, folder)
        whole = collection.compact().wait(timeout=600)
        assert whole.kind == "compact"
        assert status(context, "grown").segments == dict.fromkeys(range(4), 1)
        assert answers(collection, folder) == before
        assert collection.compact().wait(timeout=600).counters == {}
    with Collection.open("grown", settings, local=True) as same:
        assert answers(same, folder) == before


@long_only
def test_workers_train_a_model_of_the_first_images_alone_again(
    settings: Settings, context: Context, folder: Path, eventually: Eventually
) -> None:
    with Collection.open("young", settings) as collection:
        for name in NAMES:
            collection.index([folder / f"{name}.png"]).wait(timeout=600)
        eventually(lambda: status(context, "young").jobs == ())
        with session_scope(context.engine, write=False) as session:
            found = current_version(session, "young")
            kinds = {job.kind for job in jobs.list_jobs(session, found.collection_id)}
        assert kinds == {"index", "compact", "rebuild"}
        assert found.tree.trained_on * 4 >= sum(s.descriptor_count for s in found.segments)
        assert status(context, "young").images == {"indexed": len(NAMES)}
        for name in NAMES:
            assert found_names(collection.search(folder / f"{name}.png"))[0] == name


def test_rows_of_removed_images_are_left_out_by_workers_too(
    settings: Settings, context: Context, folder: Path, small_photographs: dict[str, bytes]
) -> None:
    many_segments(settings, "replaced", folder)
    (folder / "page.png").write_bytes(small_photographs["text"])
    with Collection.open("replaced", settings) as collection:
        collection.index([folder / "page.png"]).wait(timeout=600)
        before = answers(collection, folder)
        done = collection.compact().wait(timeout=600)
        assert done.counters["images_dropped"] == 1
        assert answers(collection, folder) == before
        with session_scope(context.engine, write=False) as session:
            assert current_version(session, "replaced").tombstones == frozenset()
        (folder / "page.png").write_bytes(small_photographs["page"])
        collection.index([folder / "page.png"]).wait(timeout=600)
        best = collection.search(folder / "page.png").matches[0]
        assert best.locations == (str(folder / "page.png"),)
        assert best.score > 0.5


def test_the_supervisor_begins_a_compaction_that_is_due(
    settings: Settings, context: Context, folder: Path, eventually: Eventually
) -> None:
    many_segments(settings, "unbegun", folder)
    assert status(context, "unbegun").largest_group == 4
    assert watch_segments(context, patience_s=60) == 0  # whoever published may be about to
    assert watch_segments(context, patience_s=0) == 1
    assert watch_segments(context, patience_s=0) == 0
    eventually(lambda: status(context, "unbegun").jobs == ())
    assert status(context, "unbegun").largest_group <= 2
    with session_scope(context.engine, write=False) as session:
        assert compaction.collections_to_compact(session, 2) == []


def _send_twice(context: Context, job: JobRecord, stage: JobStage) -> None:
    """Send every message of a stage twice, as a broker that redelivers would."""
    found = COMPACT.stage(stage)
    assert found is not None
    for _ in range(2):
        if stage == "merge":
            for number in range(4):
                args = (job.id, job.attempt, number)
                context.app.send_task(
                    found.task, args=args, ignore_result=True, queue=f"group.{number}"
                )
        context.app.send_task(
            found.join or found.task, args=(job.id, job.attempt), ignore_result=True
        )


def test_every_message_may_come_twice(
    settings: Settings, context: Context, folder: Path, eventually: Eventually
) -> None:
    many_segments(settings, "twice", folder)
    with Collection.open("twice", settings) as collection:
        before = answers(collection, folder)
        seen: dict[JobStage, JobRecord] = {}

        def finished() -> bool:
            with session_scope(context.engine, write=False) as session:
                now = jobs.get_job(session, job_id)
            if now.stage not in seen and not now.finished:
                seen[now.stage] = now
                _send_twice(context, now, now.stage)
            return now.finished

        with frozen(settings, "group"):
            job_id = collection.compact().id
            assert not finished()
            assert set(seen) == {"merge"}
        eventually(finished)
        groups = files_below(settings.store, "groups/**/*")
        number = status(context, "twice").version
        for record in seen.values():
            _send_twice(context, record, record.stage)
        collection.compact().wait(timeout=600)  # its messages come after those
        assert (files_below(settings.store, "groups/**/*"), status(context, "twice").version) == (
            groups,
            number,
        )
        assert answers(collection, folder) == before


def test_indexing_and_searching_go_on_while_workers_merge(
    settings: Settings, context: Context, folder: Path, eventually: Eventually
) -> None:
    stop, wrong, versions, merged = threading.Event(), [], set(), []
    with Collection.open("busy", settings) as collection:
        collection.index([folder / f"{name}.png" for name in NAMES[:2]]).wait(timeout=600)

        def search() -> None:
            with Collection.open("busy", settings) as mine:
                while not stop.is_set():
                    result = mine.search(folder / "chelsea.png", deadline_s=600)
                    if result.complete:
                        versions.add(result.version)
                    if result.complete and found_names(result)[0] != "chelsea":
                        wrong.append(result)

        def merge() -> None:
            with Collection.open("busy", settings) as mine:
                while not stop.is_set():
                    merged.append(mine.compact().wait(timeout=600).counters)

        threads = [threading.Thread(target=target) for target in (search, merge)]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: versions)
            for name in NAMES[2:]:
                collection.index([folder / f"{name}.png"]).wait(timeout=600)
            eventually(lambda: len(versions) > 1 and len(merged) > 1)
        finally:
            stop.set()
            for thread in threads:
                thread.join(timeout=600)
        assert wrong == []
        assert len(versions) > 1
        merged.append(collection.compact().wait(timeout=600).counters)
        assert len(merged) > 2
        assert any(merged)
        assert status(context, "busy").images == {"indexed": len(NAMES)}
        for name in NAMES:
            assert found_names(collection.search(folder / f"{name}.png"))[0] == name


@long_only
def test_a_compaction_goes_on_after_the_group_worker_was_killed(
    settings: Settings, context: Context, folder: Path, eventually: Eventually
) -> None:
    """Frozen first, so that it has the merges, or their messages, when it dies."""
    many_segments(settings, "killed", folder)
    with Collection.open("killed", settings) as collection:
        before = answers(collection, folder)
        worker = psutil.Process(live_workers(settings)[f"group@{settings.host}"].pid)
        worker.suspend()
        handle = collection.compact()
        assert handle.progress().stage == "merge"
        worker.kill()
        assert handle.wait(timeout=600).state == "done"
        assert status(context, "killed").largest_group == 1
        with session_scope(context.engine, write=False) as session:
            done = parts.parts(session, handle.id, "merge")
        assert [part.state for part in done] == ["done"] * 4
        eventually(lambda: f"group@{settings.host}" in live_workers(settings))
        eventually(lambda: collection.search(folder / "page.png").complete)
        assert answers(collection, folder) == before


def test_merges_leave_a_thread_to_searches(
    settings: Settings, context: Context, folder: Path
) -> None:
    """The merges that were begun cannot go on: a foreign transaction keeps the database."""
    many_segments(settings, "merged", folder)
    with Collection.open("merged", settings) as collection:
        collection.search(folder / "page.png")
        with contextlib.ExitStack() as lock:
            with frozen(settings, "group"):
                handle = collection.compact()
                lock.enter_context(session_scope(context.engine)).execute(text("SELECT 1"))
            # Before the merges give the database up, after 10 s, and leave their threads.
            result = collection.search(folder / "page.png", deadline_s=8)
        assert result.complete, f"groups {result.missing_groups} were not scanned"
        done = handle.wait(timeout=600)
        assert (done.state, done.counters["segments_made"]) == ("done", 4)
        with session_scope(context.engine, write=False) as session:
            assert jobs.get_job(session, handle.id).attempt == 3  # one a stage, and the end


def test_a_repeated_message_leaves_a_part_to_its_worker(
    settings: Settings, context: Context, folder: Path, eventually: Eventually
) -> None:
    job = begun(settings, context, "again", folder, broker_epoch(context))

    def send(number: int, began: str) -> None:
        with session_scope(context.engine) as session:
            parts.start_part(session, job.id, "merge", number, began)
        context.app.send_task(
            "group.merge",
            args=(job.id, job.attempt, number),
            queue=f"group.{number}",
            ignore_result=True,
            delivery_info={"redelivered": True},
        )

    def part(number: int) -> Any:
        with session_scope(context.engine, write=False) as session:
            return parts.get_part(session, job.id, "merge", number)

    send(0, f"query@{settings.host}")  # lives
    send(1, f"extract@{settings.host}")  # lives, but its process may not
    eventually(lambda: part(1).state == "done")
    address = context.redis_address
    queue, unacked = (context.keys.queue(name) for name in ("group.0", "unacked"))
    with address.client(database=address.broker_db) as broker:
        eventually(lambda: not broker.exists(queue) and not broker.hlen(unacked))
    assert (part(0).state, part(0).starts) == ("running", 1)
    # In another attempt it is begun again, whichever worker has it; so are parts of dead workers.
    assert replan(context, job, "the test says so")
    eventually(lambda: part(0).state == "done")


@long_only
def test_a_message_that_comes_again_does_what_a_dead_worker_had(
    settings: Settings, context: Context, folder: Path, eventually: Eventually
) -> None:
    job = begun(settings, context, "dead", folder)
    with session_scope(context.engine) as session:
        parts.start_part(session, job.id, "merge", 0, "group@elsewhere")
    context.app.send_task(
        "group.merge",
        args=(job.id, job.attempt, 0),
        queue="group.0",
        ignore_result=True,
        delivery_info={"redelivered": True},
    )
    # By this message, or by those that the supervisor sends when it sees it first.
    eventually(lambda: status(context, "dead").jobs == ())
    assert status(context, "dead").largest_group == 1


def test_groups_with_sound_segments_answer_when_another_is_damaged(
    settings: Settings, context: Context, folder: Path, eventually: Eventually
) -> None:
    with Collection.open("damaged", settings) as collection:
        collection.index([folder]).wait(timeout=600)
        with session_scope(context.engine, write=False) as session:
            (segment,) = current_version(session, "damaged").group_segments(1)
        path = Path(settings.store) / segment.key
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.unlink()
        path.write_bytes(data)
        (settings.local / segment.key).unlink()
        worker = psutil.Process(live_workers(settings)[f"group@{settings.host}"].pid)
        worker.terminate()  # what it had open would go on to serve
        worker.wait(600)
        eventually(lambda: set(range(4)) <= served_groups(settings))
        result = collection.search(folder / "page.png", plan="exhaustive")
        assert (result.complete, result.missing_groups) == (False, ())
        (cause,) = result.causes
        assert f"{path}' is damaged" in cause
        assert "`vantage rebuild damaged`" in cause
        assert found_names(result)[0] == "page"
        log = (settings.home / "logs" / "vantage.log").read_text(encoding="utf-8")
        assert f"{path}' is damaged" in log
        assert "`vantage rebuild COLLECTION`" in log
        (trouble,) = read_status(settings, context.engine, "damaged").troubles
        assert segment.key in trouble
        collection.rebuild().wait(timeout=600)
        assert collection.search(folder / "page.png", plan="exhaustive").complete
