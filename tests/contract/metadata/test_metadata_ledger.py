"""What each version holds is one query, whatever is added, removed, restored, merged or undone."""

from __future__ import annotations

import time

import pytest
from metadata_database import Database, content, file, merged_segments, new_segments
from sqlalchemy import update

from pipeline.abandoned_jobs import this_process
from pipeline.metadata import compaction, holdings, jobs, ledger, versions
from pipeline.metadata.models import Holding, Image, Job, table
from pipeline.metadata.records import CollectionRecord, VersionRecord
from pipeline.metadata.sql import lock_collection


def _ids(db: Database, *names: str) -> set[int]:
    known = {row["sha256"]: row["id"] for row in db.rows()["images"]}
    return {known[content(name)] for name in names}


def _held(db: Database, collection: CollectionRecord, number: int) -> set[int]:
    with db.read() as session:
        return holdings.held_images(session, collection.id, number)


def _compact(db: Database, collection: CollectionRecord, before: VersionRecord) -> VersionRecord:
    """Merge all segments, without the rows of removed images."""
    job = db.job(collection, "compact")
    merged = db.segment(collection, before.tree, f"merged {job.id}")
    with db.write() as session:
        dropped = compaction.droppable_images(session, collection.id)
        made = merged_segments(before.segments, [merged], dropped)
        version = compaction.publish_compaction(session, job.id, made)
        jobs.finish_job(session, job.id, "done")
    assert version is not None
    return version


def _publish_nothing_new(db: Database, collection: CollectionRecord) -> VersionRecord:
    """Publish what has changed in the states of images alone."""
    job = db.job(collection)
    tree = db.adopted_tree(collection)
    db.assign(job, tree)
    version = db.publish(collection, job, tree, [])
    with db.write() as session:
        jobs.finish_job(session, job.id, "done")
    assert version is not None
    return version


def test_every_version_knows_what_it_holds(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/1", "a"), file("/2", "b"), key="s1")
    db.index(collection, file("/1", "c"), key="s2")  # a goes
    third = db.index(collection, file("/3", "a"), file("/2", "d"), key="s3")  # a is back, b goes
    assert third is not None
    _compact(db, collection, third)
    db.index(collection, file("/4", "b"), key="s5")  # extracted anew
    held = {
        1: _ids(db, "a", "b"),
        2: _ids(db, "b", "c"),
        3: _ids(db, "a", "c", "d"),
        4: _ids(db, "a", "c", "d"),
        5: _ids(db, "a", "b", "c", "d"),
    }
    hidden = {1: set[int](), 2: _ids(db, "a"), 3: _ids(db, "b"), 4: set[int](), 5: set[int]()}
    for number, images in held.items():
        assert _held(db, collection, number) == images
        with db.read() as session:
            assert holdings.hidden_images(session, collection.id, number) == hidden[number]
            rows = holdings.images_with_rows(session, collection.id, number)
        assert rows == images | hidden[number]
    with db.read() as session:
        assert holdings.images_with_rows(session, collection.id) == held[5]


def test_what_changed_between_two_versions_is_one_query(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/1", "a"), file("/2", "b"), key="s1")
    db.index(collection, file("/1", "c"), key="s2")
    db.index(collection, file("/3", "a"), file("/2", "d"), key="s3")
    (a, b, c, d) = (next(iter(_ids(db, name))) for name in "abcd")
    with db.read() as session:

        def changed(before: int, after: int) -> dict[int, str]:
            return dict(holdings.changed_images(session, collection.id, before, after))

        assert changed(1, 2) == {a: "removed", c: "added"}
        assert changed(2, 1) == {a: "added", c: "removed"}
        assert changed(1, 3) == {b: "removed", c: "added", d: "added"}  # a went and came
        assert changed(2, 2) == {}
        assert changed(0, 1) == {a: "added", b: "added"}


def test_versions_of_other_collections_are_independent(db: Database) -> None:
    collection, other = db.collection(), db.collection("other")
    db.index(collection, file("/1", "a"), key="s1")
    db.index(other, file("/2", "b"), key="s2")
    (b,) = _ids(db, "b")
    assert _held(db, other, 1) == {b}
    with db.read() as session:
        assert holdings.changed_images(session, other.id, 0, 1) == {b: "added"}
        asked = [content(name) for name in ("a", "b", "unknown")]
        assert holdings.held_contents(session, other.id, 1, asked) == {content("b")}
        assert holdings.held_contents(session, other.id, 0, asked) == set()
        assert holdings.held_contents(session, other.id, 1, []) == set()


def test_images_without_any_row_make_a_version(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/1", "a"), key="s1")
    job = db.job(collection)
    db.register(collection, job, file("/2", "blank"))
    db.extract(job)
    tree = db.adopted_tree(collection)
    db.assign(job, tree)
    version = db.publish(collection, job, tree, [])
    assert version is not None
    assert (version.number, [s.key for s in version.segments]) == (2, ["s1"])
    assert _held(db, collection, 1) == _ids(db, "a")
    assert _held(db, collection, 2) == _ids(db, "a", "blank")


def test_an_image_is_taken_out_on_purpose_and_put_back_without_touching_segments(
    db: Database,
) -> None:
    collection = db.collection()
    first = db.index(collection, file("/1", "a"), file("/2", "b"), key="s1")
    assert first is not None
    images = _ids(db, "a")
    with db.write() as session:
        lock_collection(session, collection.id)
        assert ledger.remove(session, sorted(images)) == 1
        assert ledger.remove(session, sorted(images)) == 0
    second = _publish_nothing_new(db, collection)
    assert (second.number, second.segments, second.tombstones) == (2, first.segments, images)
    with db.write() as session:
        lock_collection(session, collection.id)
        ledger.take_back(session, sorted(images), None)
    third = _publish_nothing_new(db, collection)
    assert (third.number, third.segments, third.tombstones) == (3, first.segments, frozenset())
    assert [_held(db, collection, n) for n in (1, 2, 3)] == [
        _ids(db, "a", "b"),
        _ids(db, "b"),
        _ids(db, "a", "b"),
    ]


def test_a_former_version_can_be_made_the_current_one_again(db: Database) -> None:
    """As a new version with its segments; former versions do not change."""
    collection = db.collection()
    first = db.index(collection, file("/1", "a"), file("/2", "b"), key="s1")
    db.index(collection, file("/1", "c"), key="s2")
    third = db.index(collection, file("/3", "d"), key="s3")
    assert first is not None
    assert third is not None
    with db.write() as session:
        lock_collection(session, collection.id)
        held = holdings.held_images(session, collection.id, first.number)
        rows = holdings.images_with_rows(session, collection.id, first.number)
        now = holdings.images_with_rows(session, collection.id)
        ledger.remove(session, sorted(now - held))
        ledger.take_back(session, sorted(held), None)
        changed = holdings.changes(session, collection.id, sorted(rows), now - rows)
        made = new_segments(first.tree, first.segments)
        version = versions.insert_version(session, collection.id, made, changed)
    assert (version.number, version.segments) == (4, first.segments)
    assert version.tombstones == frozenset()
    with db.read() as session:
        assert holdings.changed_images(session, collection.id, 1, 4) == {}
        assert holdings.images_with_rows(session, collection.id) == held == _ids(db, "a", "b")
        assert versions.get_version(session, third.id) == third
    assert _held(db, collection, 3) == _ids(db, "b", "c", "d")
    # What is added now is added to that.
    fifth = db.index(collection, file("/5", "e"), key="s5")
    assert fifth is not None
    assert [segment.key for segment in fifth.segments] == ["s1", "s5"]
    assert _held(db, collection, 5) == _ids(db, "a", "b", "e")


def test_rows_of_a_removed_image_that_come_back_are_skipped(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/1", "a"), file("/2", "b"), key="s1")
    second = db.index(collection, file("/1", "c"), key="s2")
    assert second is not None
    third = _compact(db, collection, second)
    gone = _ids(db, "a")
    assert third.tombstones == frozenset()
    with db.write() as session:
        lock_collection(session, collection.id)
        changed = holdings.changes(session, collection.id, sorted(gone), ())
        made = new_segments(second.tree, second.segments)
        fourth = versions.insert_version(session, collection.id, made, changed)
    assert fourth.tombstones == gone
    assert _held(db, collection, 4) == _held(db, collection, 2)


def test_a_rebuild_that_slept_while_its_rows_were_given_up_does_not_bring_them_back(
    db: Database,
) -> None:
    collection = db.collection()
    db.index(collection, file("/1", "a"), file("/2", "b"), key="s1")
    rebuild = db.job(collection, "rebuild", process=this_process("gone"))
    new = db.tree(collection, "trees/new")
    db.assign(rebuild, new)
    before = db.index(collection, file("/1", "c"), key="s2")
    assert before is not None
    with db.write() as session:
        values = {"progress_at": time.time() - jobs.LOCAL_SILENCE_S - 60}
        session.execute(update(Job).where(Job.id == rebuild.id).values(values))
    assert _compact(db, collection, before).tombstones == frozenset()
    segment = db.segment(collection, new, "s4")
    assert db.publish(collection, rebuild, new, [segment]) is None
    assigned = db.assign(rebuild, new).values()
    assert {image_id for some in assigned for image_id in some} == _ids(db, "b", "c")
    version = db.publish(collection, rebuild, new, [segment])
    assert version is not None
    assert version.tombstones == frozenset()


def test_what_an_addition_changes_is_found_without_a_look_at_every_image(db: Database) -> None:
    if db.engine.dialect.name != "sqlite":
        pytest.skip("counts the steps of SQLite's machine")
    steps = []
    for number, held in enumerate((100, 5000)):
        collection = db.collection(f"of-{held}")
        first = 10_000 * number
        images = [
            {
                "id": first + i,
                "collection_id": collection.id,
                "sha256": content(str(i)),
                "state": "removed" if i == 1 else "indexed",
            }
            for i in range(1, held + 1)
        ]
        stays = [
            {"collection_id": collection.id, "image_id": row["id"], "from_version": 1}
            for row in images
        ]
        with db.write() as session:
            session.execute(table(Image).insert(), images)
            session.execute(table(Holding).insert(), stays)
        ticks: list[int] = []
        with db.read() as session:
            connection = session.connection().connection.driver_connection
            assert connection is not None
            connection.set_progress_handler(lambda ticks=ticks: ticks.append(1), 10)
            found = holdings.changes(session, collection.id, [], ())
            connection.set_progress_handler(None, 0)
        assert found == holdings.HoldingChanges(hidden=[first + 1], begun=[], returned=[], ended=[])
        steps.append(len(ticks))
    assert steps[1] <= 2 * steps[0] + 10
