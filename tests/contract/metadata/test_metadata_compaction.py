"""Versions with merged segments: nothing that happens meanwhile is lost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from metadata_database import Database, content, file, merged_segments, new_segments
from sqlalchemy import update

from pipeline.abandoned_jobs import this_process
from pipeline.job_params import CompactParams
from pipeline.metadata import compaction, jobs, versions
from pipeline.metadata.models import Job
from pipeline.metadata.records import CollectionRecord, JobRecord, SegmentRecord, VersionRecord


def _image(db: Database, collection: CollectionRecord, name: str) -> dict[str, object]:
    return next(
        row
        for row in db.rows()["images"]
        if (row["collection_id"], row["sha256"]) == (collection.id, content(name))
    )


def _grown(db: Database, collection: CollectionRecord, count: int = 3) -> VersionRecord:
    """A collection of so many images and segments."""
    version = None
    for number in range(count):
        version = db.index(collection, file(f"/{number}"), key=f"s{number}")
    assert version is not None
    return version


def _compact(
    db: Database,
    job: JobRecord,
    replaced: Sequence[SegmentRecord],
    made: Sequence[SegmentRecord],
    dropped: Sequence[int] = (),
) -> VersionRecord | None:
    with db.write() as session:
        merged = merged_segments(replaced, made, dropped)
        return compaction.publish_compaction(session, job.id, merged)


def _droppable(db: Database, collection: CollectionRecord) -> list[int]:
    with db.read() as session:
        return compaction.droppable_images(session, collection.id)


def _due(db: Database, above: int, before: float | None = None) -> list[int]:
    with db.read() as session:
        return compaction.collections_to_compact(session, above, before)


def _hear_nothing_of(db: Database, job: JobRecord, seconds: float) -> None:
    with db.write() as session:
        values = {"progress_at": time.time() - seconds}
        session.execute(update(Job).where(Job.id == job.id).values(values))


@pytest.mark.parametrize("kind", ["compact", "rebuild"])
def test_a_silent_local_job_blocks_no_other_job(db: Database, kind: Any) -> None:
    collection = db.collection()
    _grown(db, collection)
    db.register(collection, db.job(collection), file("/0", holds="something else"))
    assert (_due(db, 2), len(_droppable(db, collection))) == ([collection.id], 1)
    left = db.job(collection, kind, process=this_process("gone"))
    for seconds, works in ((0.0, True), (590.0, True), (610.0, False)):
        _hear_nothing_of(db, left, seconds)
        assert _due(db, 2) == ([] if works else [collection.id])
        rebuilt = works and kind == "rebuild"
        assert len(_droppable(db, collection)) == (0 if rebuilt else 1)
    assert db.job(collection, kind).id != left.id
    _hear_nothing_of(db, left, 0.0)
    # The supervisor repairs jobs of workers, however long they take.
    theirs = db.job(collection, kind)
    _hear_nothing_of(db, theirs, 610.0)
    assert _due(db, 2) == []


def test_what_one_compaction_does_not_leave_out_is_counted(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "DROPPED_AT_ONCE", 2)
    collection = db.collection()
    _grown(db, collection)
    for number in range(3):
        db.register(collection, db.job(collection), file(f"/{number}", holds=f"other {number}"))
    with db.read() as session:
        assert len(compaction.droppable_images(session, collection.id)) == 2
        assert compaction.count_removed(session, collection.id) == 3


def test_merged_segments_take_the_place_of_those_they_were_made_of(db: Database) -> None:
    collection = db.collection()
    before = _grown(db, collection)
    job = db.job(collection, "compact")
    merged = db.segment(collection, before.tree, "m")
    version = _compact(db, job, before.segments[:2], [merged])
    assert version is not None
    assert (version.number, version.tree, version.job_id) == (4, before.tree, job.id)
    assert [s.key for s in version.segments] == ["s2", "m"]
    assert set(db.image_states(collection).values()) == {"indexed"}
    rows = db.rows()
    assert _compact(db, job, before.segments[:2], [merged]) == version
    assert db.rows() == rows
    with db.read() as session:
        assert versions.get_version(session, before.id) == before


def test_segments_that_are_published_meanwhile_stay(db: Database) -> None:
    collection = db.collection()
    before = _grown(db, collection)
    job = db.job(collection, "compact")
    db.index(collection, file("/late"), key="late")
    version = _compact(db, job, before.segments, [db.segment(collection, before.tree, "m")])
    assert version is not None
    assert [s.key for s in version.segments] == ["late", "m"]


def test_index_jobs_and_a_compaction_that_publish_at_once_all_land(db: Database) -> None:
    collection = db.collection()
    before = _grown(db, collection)
    compacting = db.job(collection, "compact")
    merged = db.segment(collection, before.tree, "m")
    job = db.job(collection)
    db.register(collection, job, file("/late"))
    db.extract(job)
    db.assign(job, before.tree)
    late = db.segment(collection, before.tree, "late")
    found = db.together(
        lambda s: versions.publish_version(s, job.id, new_segments(before.tree, [late])),
        lambda s: compaction.publish_compaction(
            s, compacting.id, merged_segments(before.segments, [merged])
        ),
    )
    assert sorted(version.number for version in found) == [4, 5]
    with db.read() as session:
        current = versions.current_version(session, collection.id)
    assert {s.key for s in current.segments} == {"late", "m"}


def test_nothing_is_published_when_a_rebuild_or_another_compaction_came_first(
    db: Database,
) -> None:
    collection = db.collection()
    before = _grown(db, collection)
    first, second = (
        db.job(collection, "compact", CompactParams(everything=False, above=2)),
        db.job(collection, "compact"),
    )
    assert first.id != second.id
    merged = db.segment(collection, before.tree, "m")
    assert _compact(db, first, before.segments[:2], [merged]) is not None
    rows = db.rows()
    other = db.segment(collection, before.tree, "m2")
    rows["segments"] = db.rows()["segments"]
    assert _compact(db, second, before.segments, [other]) is None
    rebuild = db.job(collection, "rebuild")
    new = db.tree(collection, "trees/new")
    db.assign(rebuild, new)
    assert db.publish(collection, rebuild, new, []) is not None
    assert _compact(db, second, [merged], [other]) is None


@pytest.mark.parametrize("state", ["failed", "paused"])
def test_a_compaction_that_does_not_run_publishes_nothing(db: Database, state: str) -> None:
    collection = db.collection()
    before = _grown(db, collection)
    job = db.job(collection, "compact")
    with db.write() as session:
        if state == "failed":
            jobs.finish_job(session, job.id, "failed", "given up")
        else:
            jobs.pause_job(session, job.id, "wait")
    merged = db.segment(collection, before.tree, "m")
    assert _compact(db, job, before.segments, [merged]) is None
    assert len(db.rows()["versions"]) == 3


def test_an_image_whose_rows_were_left_out_starts_again_when_it_returns(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/a", "x"), file("/b"), key="s1")
    before = db.index(collection, file("/a", "y"), key="s2")
    assert before is not None
    gone = _image(db, collection, "x")["id"]
    assert before.tombstones == {gone} == set(_droppable(db, collection))
    job = db.job(collection, "compact")
    merged = db.segment(collection, before.tree, "m")
    version = _compact(db, job, before.segments, [merged], _droppable(db, collection))
    assert version is not None
    assert version.tombstones == frozenset()
    assert _droppable(db, collection) == []
    with db.read() as session:
        assert versions.get_version(session, before.id).tombstones == {gone}
    with db.write() as session:
        jobs.finish_job(session, job.id, "done")
    # A rebuild leaves it out, too.
    rebuild = db.job(collection, "rebuild")
    assigned = db.assign(rebuild, before.tree).values()
    assert gone not in [image_id for some in assigned for image_id in some]
    with db.write() as session:
        jobs.finish_job(session, rebuild.id, "failed", "enough seen")
    db.register(collection, None, file("/c", "x"))
    assert db.image_states(collection)[content("x")] == "pending"
    after = db.index(collection, file("/c", "x"), key="s3")
    assert after is not None
    assert ([s.key for s in after.segments], after.tombstones) == (["m", "s3"], frozenset())
    assert db.image_states(collection)[content("x")] == "indexed"
    # Gone again: a tombstone again.
    last = db.index(collection, file("/c", "z"), key="s4")
    assert last is not None
    assert last.tombstones == {gone}


def test_rows_are_not_left_out_when_their_image_returns_meanwhile(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/a", "x"), file("/b"), key="s1")
    before = db.index(collection, file("/a", "y"), key="s2")
    assert before is not None
    dropped = _droppable(db, collection)
    job = db.job(collection, "compact")
    db.register(collection, None, file("/c", "x"))
    merged = db.segment(collection, before.tree, "m")
    rows = db.rows()
    assert _compact(db, job, before.segments, [merged], dropped) is None
    assert db.rows() == rows
    assert _droppable(db, collection) == []
    # Planned anew, its rows are kept: it is found again, with no tombstone.
    version = _compact(db, job, before.segments, [merged], _droppable(db, collection))
    assert version is not None
    assert version.tombstones == frozenset()
    assert db.image_states(collection)[content("x")] == "indexed"


def test_an_image_removed_meanwhile_keeps_its_rows_and_gets_a_tombstone(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/a", "x"), file("/b"), key="s1")
    before = db.index(collection, file("/c"), key="s2")
    assert before is not None
    job = db.job(collection, "compact")
    db.register(collection, None, file("/a", "y"))
    version = _compact(db, job, before.segments, [db.segment(collection, before.tree, "m")])
    assert version is not None
    assert version.tombstones == {_image(db, collection, "x")["id"]}
    db.register(collection, None, file("/d", "x"))
    assert db.image_states(collection)[content("x")] == "indexed"


def test_no_rows_are_left_out_while_a_rebuild_is_unfinished(db: Database) -> None:
    """Its segments may have their rows: planning its assignment has fixed what it leaves out."""
    collection = db.collection()
    db.index(collection, file("/a", "x"), file("/b"), key="s1")
    rebuild = db.job(collection, "rebuild")
    db.assign(rebuild, db.tree(collection, "trees/new"))
    before = db.index(collection, file("/a", "y"), key="s2")
    assert before is not None
    assert _droppable(db, collection) == []
    job = db.job(collection, "compact")
    gone = [int(str(_image(db, collection, "x")["id"]))]
    merged = db.segment(collection, before.tree, "m")
    assert _compact(db, job, before.segments, [merged], gone) is None
    with db.write() as session:
        jobs.finish_job(session, rebuild.id, "failed", "given up")
    assert _droppable(db, collection) == gone
    assert _compact(db, job, before.segments, [merged], gone) is not None


def test_a_collection_is_due_above_so_many_segments_until_a_job_begins(db: Database) -> None:
    collection, other = db.collection(), db.collection("other")
    version = _grown(db, collection, 3)
    _grown(db, other, 1)
    assert _due(db, 3) == _due(db, 0) == []
    assert _due(db, 2) == [collection.id]
    assert _due(db, 2, version.created_at + 1) == [collection.id]
    assert _due(db, 2, version.created_at) == []
    job = db.job(collection, "compact")
    assert _due(db, 2) == []
    # It failed: the next publication is the next try, not the next second.
    with db.write() as session:
        jobs.finish_job(session, job.id, "failed", "a segment is damaged")
    assert _due(db, 2) == []
    db.index(collection, file("/next"), key="next")
    assert _due(db, 2) == [collection.id]


def test_a_compaction_that_does_less_does_not_stand_for_one_that_does_more(db: Database) -> None:
    collection = db.collection()
    small = db.job(collection, "compact", CompactParams(everything=False, above=8))
    assert db.job(collection, "compact", CompactParams(everything=False, above=8)).id == small.id
    whole = db.job(collection, "compact")
    assert whole.id != small.id
    assert (whole.stage, whole.kind) == ("merge", "compact")
    assert db.job(collection, "compact").id == whole.id
