"""A rebuild with another extractor: nothing of it is seen until it is published, then all."""

from __future__ import annotations

import time

import pytest
from metadata_database import Database, content, file, found
from sqlalchemy import update

from pipeline.abandoned_jobs import this_process
from pipeline.config import ExtractorConfig, IndexConfig
from pipeline.errors import StateError
from pipeline.job_params import RebuildParams
from pipeline.metadata import (
    collections,
    containers,
    extraction,
    holdings,
    jobs,
    parts,
    trees,
    versions,
)
from pipeline.metadata.models import Job
from pipeline.metadata.records import CollectionRecord, JobRecord, VersionRecord

SURF = ExtractorConfig(name="surf")
PARAMS = RebuildParams(
    extractor=SURF, index=IndexConfig(dimensions=128), roots=("/photos", "/more")
)


def _get(db: Database, collection: CollectionRecord) -> CollectionRecord:
    with db.read() as session:
        return collections.get_collection_by_id(session, collection.id)


def _current(db: Database, collection: CollectionRecord) -> VersionRecord:
    with db.read() as session:
        return versions.current_version(session, collection.id)


def _held(db: Database, collection: CollectionRecord, number: int) -> set[str]:
    """SHA-256 of the images that a version holds."""
    names = {row["id"]: row["sha256"] for row in db.rows()["images"]}
    with db.read() as session:
        return {names[i] for i in holdings.held_images(session, collection.id, number)}


def _contents(*names: str) -> set[str]:
    return {content(name) for name in names}


def _assign(db: Database, collection: CollectionRecord, job: JobRecord) -> None:
    db.assign(job, db.tree(collection, f"trees/{job.id}"))


def _publish(db: Database, collection: CollectionRecord, job: JobRecord) -> VersionRecord | None:
    tree = db.tree(collection, f"trees/{job.id}")
    return db.publish(collection, job, tree, [db.segment(collection, tree, f"s {job.id}")])


def _rebuild(
    db: Database, collection: CollectionRecord, *, bad: tuple[str, ...] = ()
) -> VersionRecord:
    """Do a whole rebuild with the other extractor."""
    job = db.job(collection, "rebuild", PARAMS)
    db.extract(job, bad=[content(name) for name in bad])
    _assign(db, collection, job)
    version = _publish(db, collection, job)
    assert version is not None
    with db.write() as session:
        jobs.finish_job(session, job.id, "done")
    return version


def test_nothing_changes_until_it_is_published_and_then_everything(db: Database) -> None:
    collection = db.collection()
    first = db.job(collection)
    db.register(collection, first, *[file(f"/{name}") for name in "abcd"])
    db.extract(first, bad=[content("/c"), content("/d")])
    tree = db.adopted_tree(collection)
    db.assign(first, tree)
    old = db.publish(collection, first, tree, [db.segment(collection, tree, "s1")])
    with db.write() as session:
        jobs.finish_job(session, first.id, "done")
    before = db.rows()

    job = db.job(collection, "rebuild", PARAMS)
    assert job.params == PARAMS
    db.extract(job, bad=[content("/b"), content("/d")])
    _assign(db, collection, job)
    after = db.rows()
    for name in ("images", "holdings", "versions", "collections"):
        assert after[name] == before[name]
    assert [row["state"] for row in after["containers"]].count("rebuild") == 2

    version = _publish(db, collection, job)
    assert version is not None
    assert (version.number, version.extractor, version.index) == (2, SURF, PARAMS.index)
    now = _get(db, collection)
    assert (now.extractor, now.extractor_id) == (SURF, SURF.config_id())
    assert (now.index, now.tree_id) == (PARAMS.index, version.tree.id)
    assert db.image_states(collection) == {
        content("/a"): "indexed",
        content("/b"): "failed",
        content("/c"): "indexed",
        content("/d"): "failed",
    }
    assert _held(db, collection, 1) == _contents("/a", "/b")
    assert _held(db, collection, 2) == _contents("/a", "/c")
    assert version.tombstones == frozenset()
    assert {row["state"] for row in db.rows()["containers"]} == {"indexed"}
    with db.read() as session:
        assert old is not None
        assert versions.get_version(session, old.id) == old


def test_only_images_indexed_meanwhile_are_extracted_again(
    db: Database,
) -> None:
    collection = db.collection()
    db.index(collection, file("/a"), file("/b"), key="s1")
    job = db.job(collection, "rebuild", PARAMS)
    db.extract(job)
    _assign(db, collection, job)
    db.index(collection, file("/c"), key="s2")
    assert _publish(db, collection, job) is None
    db.to_stage(job, "extract")
    with db.read() as session:
        done = parts.parts(session, job.id, "extract")
    db.extract(job)
    with db.read() as session:
        late = parts.parts(session, job.id, "extract")[len(done) :]
        (image,) = extraction.batch_images(session, late[0].args["images"])
    assert (len(late), image.sha256) == (1, content("/c"))
    _assign(db, collection, job)
    assert _publish(db, collection, job) is not None
    assert _held(db, collection, 3) == _contents("/a", "/b", "/c")


def test_an_index_job_whose_images_it_has_taken_in_has_nothing_left_to_do(
    db: Database,
) -> None:
    collection = db.collection()
    db.index(collection, file("/a"), key="s1")
    beside = db.job(collection)
    db.register(collection, beside, file("/b"), file("/c"))
    db.extract(beside)
    db.assign(beside, _current(db, collection).tree)
    former = _current(db, collection).tree
    # The rebuild takes in what the other job has extracted.
    version = _rebuild(db, collection)
    assert _held(db, collection, version.number) == _contents("/a", "/b", "/c")
    tree = version.tree
    # Its tree is not the collection's any more; nothing of it is left to do.
    assert db.publish(collection, beside, former, []) is None
    db.to_stage(beside, "extract")
    db.extract(beside)
    assert db.assign(beside, tree) == {}
    assert db.publish(collection, beside, tree, []) == version


def test_images_of_an_index_job_that_the_rebuild_has_not_seen_are_extracted_again(
    db: Database,
) -> None:
    collection = db.collection()
    db.index(collection, file("/a"), key="s1")
    job = db.job(collection, "rebuild", PARAMS)
    db.extract(job)
    _assign(db, collection, job)
    beside = db.job(collection)
    db.register(collection, beside, file("/b"), file("/c"), file("/d"))
    with db.write() as session:
        extraction.plan_extraction(session, beside.id, 2)
        first, second = parts.parts(session, beside.id, "extract")
        outcome = found("containers/early", first.args["images"])
        extraction.record_extraction(session, beside.id, first.number, outcome)
    version = _publish(db, collection, job)
    assert version is not None
    states = db.image_states(collection)
    assert [states.pop(content("/a")), set(states.values())] == ["indexed", {"pending"}]
    # What was under way with the former extractor comes too late.
    with db.write() as session:
        late = found("containers/late", second.args["images"])
        record = extraction.record_extraction(session, beside.id, second.number, late)
        assert record.state != "done"
        late = found("containers/late", second.args["images"], extractor=SURF)
        record = extraction.record_extraction(session, beside.id, second.number, late)
        assert record.state == "done"
    # Two of its images wait again: it cannot publish the third alone, and plans them anew.
    db.assign(beside, version.tree)
    assert db.publish(collection, beside, version.tree, []) is None
    db.to_stage(beside, "extract")
    db.extract(beside)
    db.assign(beside, version.tree)
    segment = db.segment(collection, version.tree, "s3")
    assert db.publish(collection, beside, version.tree, [segment]) is not None
    assert _held(db, collection, 3) == _contents("/a", "/b", "/c", "/d")
    assert set(db.image_states(collection).values()) == {"indexed"}


def test_a_first_tree_for_the_former_extractor_is_not_adopted(db: Database) -> None:
    collection = db.collection()
    first = db.job(collection)
    db.register(collection, first, file("/a"))
    db.extract(first)
    version = _rebuild(db, collection)
    mine = db.tree(collection, "trees/former")
    with db.write() as session:
        args = session, collection.id, mine.id
        assert trees.adopt_tree(*args, collection.extractor_id) == mine
        assert trees.adopt_tree(*args, SURF.config_id()) == version.tree


def test_removed_images_come_back_as_what_the_new_extractor_makes_of_them(db: Database) -> None:
    collection = db.collection()
    first = db.job(collection)
    db.register(collection, first, *[file(f"/{i}", name) for i, name in enumerate("abcde")])
    db.extract(first, bad=[content("a")])
    tree = db.adopted_tree(collection)
    db.assign(first, tree)
    assert db.publish(collection, first, tree, [db.segment(collection, tree, "s1")])
    # Removed: a had failed, b has rows.
    db.register(collection, first, file("/0", "x"), file("/1", "y"))
    with db.write() as session:
        jobs.finish_job(session, first.id, "failed", "enough seen")
    job = db.job(collection, "rebuild", PARAMS)
    db.extract(job, bad=[content("d")])
    # While it goes on: c and d go, of which d has failed.
    _assign(db, collection, job)
    db.register(collection, None, file("/2", "z"), file("/3", "v"))
    version = _publish(db, collection, job)
    assert version is not None
    gone = {row["id"] for row in db.rows()["images"] if row["sha256"] == content("c")}
    assert version.tombstones == gone
    assert _held(db, collection, version.number) == _contents("e")
    back = [file(f"/back {name}", name) for name in "abcd"]
    db.register(collection, None, *back)
    states = db.image_states(collection)
    assert {name: states[content(name)] for name in "abcd"} == {
        "a": "pending",
        "b": "pending",
        "c": "indexed",
        "d": "pending",
    }


def test_one_that_was_given_up_leaves_nothing_to_index_jobs_and_its_work_to_the_next(
    db: Database,
) -> None:
    collection = db.collection()
    db.index(collection, file("/a"), file("/b"), key="s1")
    job = db.job(collection, "rebuild", PARAMS)
    db.extract(job)
    with db.write() as session:
        jobs.finish_job(session, job.id, "failed", "given up")
    taker = db.job(collection)
    with db.write() as session:
        assert containers.adopt_containers(session, taker.id) == 0
        jobs.finish_job(session, taker.id, "done")
    before = db.rows()["containers"]
    _rebuild(db, collection)
    after = db.rows()["containers"]
    assert [row["id"] for row in after] == [row["id"] for row in before]
    # Back to the former extractor: its container is there, and its row.
    back = RebuildParams(extractor=collection.extractor, index=collection.index)
    job = db.job(collection, "rebuild", back)
    db.extract(job)
    _assign(db, collection, job)
    assert _publish(db, collection, job) is not None
    assert db.rows()["containers"] == after
    assert _get(db, collection).extractor == collection.extractor


def test_a_collection_is_rebuilt_in_one_way_at_a_time(db: Database) -> None:
    collection = db.collection()
    with_surf = db.job(collection, "rebuild", PARAMS)
    assert db.job(collection, "rebuild").id == with_surf.id
    other = RebuildParams(extractor=ExtractorConfig(name="other"))
    with pytest.raises(StateError, match=with_surf.id):
        db.job(collection, "rebuild", other)
    with db.write() as session:
        jobs.finish_job(session, with_surf.id, "done")
    plain = db.job(collection, "rebuild", process=this_process("gone"))
    with pytest.raises(StateError, match=plain.id):
        db.job(collection, "rebuild", PARAMS)
    # A silent one blocks no other.
    long_ago = time.time() - 2 * jobs.LOCAL_SILENCE_S
    with db.write() as session:
        session.execute(update(Job).where(Job.id == plain.id).values(progress_at=long_ago))
    assert db.job(collection, "rebuild", PARAMS).id != plain.id
