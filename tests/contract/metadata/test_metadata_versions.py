from __future__ import annotations

import dataclasses

import pytest
from metadata_database import Database, content, file, new_segments, segment_info
from sqlalchemy import update

from pipeline.config import ExtractorConfig
from pipeline.errors import IndexNotBuiltError, UnknownNameError
from pipeline.metadata import assignment, containers, holdings, jobs, trees, versions
from pipeline.metadata.models import Collection
from pipeline.metadata.records import CollectionRecord, JobRecord, TreeRecord, VersionRecord


def _current(db: Database, collection: CollectionRecord) -> VersionRecord:
    with db.read() as session:
        return versions.current_version(session, collection.id)


def _ready(db: Database, collection: CollectionRecord, *paths: str) -> tuple[JobRecord, TreeRecord]:
    """A job whose images are extracted and that is about to publish."""
    job = db.job(collection)
    db.register(collection, job, *[file(path) for path in paths])
    db.extract(job)
    tree = db.adopted_tree(collection)
    db.assign(job, tree)
    return job, tree


def _image(db: Database, collection: CollectionRecord, name: str) -> int:
    """Id of the image with that content."""
    return next(
        row["id"]
        for row in db.rows()["images"]
        if (row["collection_id"], row["sha256"]) == (collection.id, content(name))
    )


def _held(db: Database, collection: CollectionRecord, number: int) -> set[int]:
    with db.read() as session:
        return holdings.held_images(session, collection.id, number)


def _assigned(db: Database, job: JobRecord) -> set[int]:
    """Images that a job's segments have rows of."""
    with db.read() as session:
        assigned = assignment.assigned_images(session, job.id)
    return {image_id for some in assigned.values() for image_id in some}


def _rebuild(
    db: Database, collection: CollectionRecord, job: JobRecord, tree: TreeRecord, key: str
) -> VersionRecord | None:
    return db.publish(collection, job, tree, [db.segment(collection, tree, key)])


def test_a_collection_without_a_version_cannot_be_searched(db: Database) -> None:
    collection = db.collection("covers")
    with pytest.raises(IndexNotBuiltError, match="'covers'"):
        _current(db, collection)
    with db.read() as session:
        assert versions.current_version_id(session, "covers") is None
        with pytest.raises(UnknownNameError):
            versions.current_version(session, "other")


def test_a_version_has_all_that_a_search_needs(db: Database) -> None:
    collection = db.collection()
    job, tree = _ready(db, collection, "/a", "/b")
    segments = [db.segment(collection, tree, f"s{g}", g) for g in (2, 0, 1)]
    version = db.publish(collection, job, tree, segments)
    assert version == _current(db, collection)
    assert version is not None
    assert (version.number, version.tree, version.tombstones) == (1, tree, frozenset())
    assert [s.key for s in version.segments] == ["s0", "s1", "s2"]
    assert (version.groups, [s.key for s in version.group_segments(2)]) == ((0, 1, 2), ["s2"])
    assert (version.extractor, version.index) == (collection.extractor, collection.index)
    assert version.stats == {"median_cell": 700}
    assert set(db.image_states(collection).values()) == {"indexed"}
    assert {row["state"] for row in db.rows()["containers"]} == {"indexed"}


def test_a_later_version_has_the_segments_of_the_one_before(db: Database) -> None:
    collection = db.collection()
    first = db.index(collection, file("/a"), key="s1")
    second = db.index(collection, file("/a"), file("/b"), key="s2")
    assert first is not None
    assert second is not None
    assert (second.number, [s.key for s in second.segments]) == (2, ["s1", "s2"])
    with db.read() as session:
        assert versions.get_version(session, first.id) == first


def test_publishing_twice_gives_the_same_version(db: Database) -> None:
    collection = db.collection()
    job, tree = _ready(db, collection, "/a")
    segments = [db.segment(collection, tree, "s1")]
    first = db.publish(collection, job, tree, segments)
    before = db.rows()
    assert db.publish(collection, job, tree, segments) == first
    assert db.rows() == before


def test_nothing_new_makes_no_version(db: Database) -> None:
    collection = db.collection()
    first = db.index(collection, file("/a"), key="s1")
    job, tree = _ready(db, collection, "/a")
    assert db.publish(collection, job, tree, []) == first
    assert len(db.rows()["versions"]) == 1


def test_index_jobs_that_publish_at_once_all_land(db: Database) -> None:
    collection = db.collection()
    ready = []
    for number in range(4):
        job, tree = _ready(db, collection, f"/{number}")
        segments = [db.segment(collection, tree, f"s{number}")]
        ready.append((job.id, new_segments(tree, segments)))
    found = db.together(
        *[lambda s, job=job, new=new: versions.publish_version(s, job, new) for job, new in ready]
    )
    assert sorted(version.number for version in found) == [1, 2, 3, 4]
    assert [s.key for s in _current(db, collection).segments] == ["s0", "s1", "s2", "s3"]
    assert set(db.image_states(collection).values()) == {"indexed"}


def test_one_job_that_publishes_from_two_workers_at_once_makes_one_version(db: Database) -> None:
    collection = db.collection()
    job, tree = _ready(db, collection, "/a")
    segment = db.segment(collection, tree, "s1")
    found = db.together(
        *[lambda s: versions.publish_version(s, job.id, new_segments(tree, [segment]))] * 3
    )
    assert len({version.id for version in found}) == 1


def test_of_first_trees_trained_at_once_one_is_everyones(db: Database) -> None:
    collection = db.collection()
    made = [db.tree(collection, f"trees/{i}") for i in range(4)]
    held = db.together(
        *[
            lambda s, tree=tree: trees.adopt_tree(
                s, collection.id, tree.id, collection.extractor_id
            )
            for tree in made
        ]
    )
    assert len({tree.id for tree in held}) == 1
    assert held[0] in made


def test_trees_and_segments_noted_twice_are_one_row(db: Database) -> None:
    collection = db.collection()
    tree = db.tree(collection)
    assert db.tree(collection) == tree
    assert db.segment(collection, tree, "s1") == db.segment(collection, tree, "s1")


def test_a_file_that_was_made_again_has_its_row_with_the_checksum_of_now(db: Database) -> None:
    collection = db.collection()
    tree = db.tree(collection)
    segment = db.segment(collection, tree, "s1")
    later = dataclasses.replace(segment, checksum="d", byte_count=7, job_id=None)
    with db.write() as session:
        info = segment_info(tree, "s1", checksum="d", byte_count=7)
        again = trees.add_segment(session, collection.id, info, "another")
        assert again == later
        assert trees.get_segments(session, [segment.id]) == [later]


def test_segments_of_another_tree_are_not_appended(db: Database) -> None:
    collection = db.collection()
    job, tree = _ready(db, collection, "/a")
    other = db.tree(collection, "trees/other")
    before = db.rows()
    assert db.publish(collection, job, other, []) is None
    assert db.rows() == before
    assert db.publish(collection, job, tree, [db.segment(collection, tree, "s1")]) is not None


@pytest.mark.parametrize("state", ["failed", "paused"])
def test_a_job_that_does_not_run_publishes_nothing(db: Database, state: str) -> None:
    collection = db.collection()
    job, tree = _ready(db, collection, "/a")
    with db.write() as session:
        if state == "failed":
            jobs.finish_job(session, job.id, "failed", "given up")
        else:
            jobs.pause_job(session, job.id, "mount it")
    assert db.publish(collection, job, tree, [db.segment(collection, tree, "s1")]) is None
    assert db.rows()["versions"] == []


def test_a_removed_image_gets_a_tombstone_from_the_next_version_on(db: Database) -> None:
    collection = db.collection()
    first = db.index(collection, file("/a", "x"), file("/b"), key="s1")
    second = db.index(collection, file("/a", "y"), key="s2")
    assert first is not None
    assert second is not None
    assert second.tombstones == {_image(db, collection, "x")}
    with db.read() as session:
        assert versions.get_version(session, first.id).tombstones == frozenset()


def test_an_indexed_image_that_comes_back_loses_its_tombstone(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/a", "x"), key="s1")
    second = db.index(collection, file("/a", "y"), key="s2")
    job, tree = _ready(db, collection)
    db.register(collection, job, file("/b", "x"))
    third = db.publish(collection, job, tree, [])
    assert second is not None
    assert third is not None
    assert third.number == 3
    assert (third.segments, third.tombstones) == (second.segments, frozenset())
    with db.read() as session:
        assert versions.get_version(session, second.id) == second
    # Gone once more: the tombstone stands again.
    fourth = db.index(collection, file("/b", "z"), key="s4")
    assert fourth is not None
    assert fourth.tombstones == second.tombstones


def test_an_image_removed_before_the_assignment_is_left_out(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, file("/a", "x"), file("/b"))
    db.extract(job)
    db.register(collection, None, file("/a", "y"))
    tree = db.adopted_tree(collection)
    (assigned,) = db.assign(job, tree).values()
    assert assigned == [_image(db, collection, "/b")]
    # It comes back too late for this job: it has no rows in the segments, so it starts again.
    db.register(collection, None, file("/a", "x"))
    assert db.image_states(collection)[content("x")] == "pending"
    assert _assigned(db, job) == set(assigned)
    version = db.publish(collection, job, tree, [db.segment(collection, tree, "s1")])
    assert version is not None
    assert version.tombstones == frozenset()
    assert _held(db, collection, 1) == set(assigned)
    assert db.image_states(collection)[content("x")] == "pending"


def test_an_image_removed_after_the_assignment_gets_a_tombstone_at_once(db: Database) -> None:
    collection = db.collection()
    job, tree = _ready(db, collection, "/a", "/b")
    rows = _assigned(db, job)
    db.register(collection, None, file("/a", "changed"))
    # Planned once: an assignment that runs twice gives the same file.
    with db.write() as session:
        assignment.plan_assignment(session, job.id, tree.id)
    assert _assigned(db, job) == rows
    version = db.publish(collection, job, tree, [db.segment(collection, tree, "s1")])
    assert version is not None
    gone = _image(db, collection, "/a")
    assert version.tombstones == {gone}
    assert _held(db, collection, 1) == rows - {gone}
    # Its rows are there: when it comes back, the next version holds it.
    db.register(collection, None, file("/c", "/a"))
    later, _ = _ready(db, collection)
    second = db.publish(collection, later, tree, [])
    assert second is not None
    assert second.tombstones == frozenset()
    assert _held(db, collection, 2) == rows | {_image(db, collection, "changed")}


def test_a_rebuild_replaces_segments_and_tree_and_needs_no_tombstones(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/a", "x"), file("/b"), key="s1")
    db.index(collection, file("/a", "y"), key="s2")
    job = db.job(collection, "rebuild")
    new = db.tree(collection, "trees/new")
    db.assign(job, new)
    assert _assigned(db, job) == {_image(db, collection, name) for name in ("/b", "y")}
    version = _rebuild(db, collection, job, new, "s3")
    assert version is not None
    assert (version.number, version.tree.id) == (3, new.id)
    assert ([s.key for s in version.segments], version.tombstones) == (["s3"], frozenset())
    # The new segments have no rows of x: when it comes back, it is extracted and indexed again.
    db.register(collection, None, file("/c", "x"))
    assert db.image_states(collection)[content("x")] == "pending"
    fourth = db.index(collection, file("/c", "x"), key="s4")
    assert fourth is not None
    assert [s.key for s in fourth.segments] == ["s3", "s4"]
    assert db.image_states(collection)[content("x")] == "indexed"


def test_a_rebuild_does_not_lose_images_indexed_meanwhile(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/a"), key="s1")
    job = db.job(collection, "rebuild")
    new = db.tree(collection, "trees/new")
    db.assign(job, new)
    db.index(collection, file("/b"), key="s2")
    before = db.rows()
    assert _rebuild(db, collection, job, new, "s3") is None
    assert {k: v for k, v in db.rows().items() if k != "segments"} == {
        k: v for k, v in before.items() if k != "segments"
    }
    assert _current(db, collection).number == 2
    db.assign(job, new)
    assert _rebuild(db, collection, job, new, "s4") is not None
    assert _held(db, collection, 3) == {_image(db, collection, name) for name in ("/a", "/b")}


def test_a_rebuild_does_not_lose_an_image_that_comes_back_meanwhile(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/a", "x"), file("/b"), key="s1")
    db.index(collection, file("/a", "y"), key="s2")
    job = db.job(collection, "rebuild")
    new = db.tree(collection, "trees/new")
    db.assign(job, new)
    db.register(collection, None, file("/c", "x"))
    assert _rebuild(db, collection, job, new, "s3") is None
    db.assign(job, new)
    assert _image(db, collection, "x") in _assigned(db, job)
    version = _rebuild(db, collection, job, new, "s4")
    assert version is not None
    assert version.tombstones == frozenset()
    assert db.image_states(collection)[content("x")] == "indexed"


def test_an_image_removed_during_a_rebuild_gets_a_tombstone(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/a", "x"), file("/b"), key="s1")
    job = db.job(collection, "rebuild")
    new = db.tree(collection, "trees/new")
    db.assign(job, new)
    db.register(collection, None, file("/a", "y"))
    version = _rebuild(db, collection, job, new, "s2")
    assert version is not None
    assert version.tombstones == {_image(db, collection, "x")}


def test_a_job_overtaken_by_a_rebuild_assigns_again(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/a"), key="s1")
    late, old = _ready(db, collection, "/b")
    rebuild = db.job(collection, "rebuild")
    new = db.tree(collection, "trees/new")
    db.assign(rebuild, new)
    assert _rebuild(db, collection, rebuild, new, "s2") is not None
    segment = db.segment(collection, old, "s3")
    assert db.publish(collection, late, old, [segment]) is None
    assert db.image_states(collection)[content("/b")] == "extracted"
    db.assign(late, new)
    version = db.publish(collection, late, new, [db.segment(collection, new, "s4")])
    assert version is not None
    assert [s.key for s in version.segments] == ["s2", "s4"]


def test_a_version_keeps_the_extractor_that_it_was_made_with(db: Database) -> None:
    collection = db.collection()
    first = db.index(collection, file("/a"), key="s1")
    assert first is not None
    changed = ExtractorConfig(max_features=77)
    with db.write() as session:
        values = {"extractor": changed.to_dict(), "extractor_id": changed.config_id()}
        session.execute(update(Collection).where(Collection.id == collection.id).values(values))
    second = db.index(collection, file("/b"), key="s2")
    assert second is not None
    with db.read() as session:
        assert versions.get_version(session, first.id) == first
    assert (first.extractor, second.extractor) == (collection.extractor, changed)


def test_containers_of_a_failed_job_are_indexed_by_the_next(db: Database) -> None:
    collection = db.collection()
    failed, tree = _ready(db, collection, "/a")
    with db.write() as session:
        jobs.finish_job(session, failed.id, "failed", "given up")
    job = db.job(collection)
    with db.write() as session:
        containers.adopt_containers(session, job.id)
    db.assign(job, tree)
    assert db.publish(collection, job, tree, [db.segment(collection, tree, "s1")]) is not None
    assert db.image_states(collection) == {content("/a"): "indexed"}
