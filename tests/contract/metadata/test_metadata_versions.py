from __future__ import annotations

import pytest
from metadata_database import Database, content, file

from pipeline.errors import IndexNotBuiltError, UnknownNameError
from pipeline.metadata import extraction, images, jobs, trees, versions
from pipeline.metadata.records import CollectionRecord, JobRecord, TreeRecord, VersionRecord


def _current(db: Database, collection: CollectionRecord) -> VersionRecord:
    with db.read() as session:
        return versions.current_version(session, collection.id)


def _ready(db: Database, collection: CollectionRecord, *paths: str) -> tuple[JobRecord, TreeRecord]:
    """A job whose images are extracted and that stands before its publication."""
    job = db.job(collection)
    db.register(collection, job, *[file(path) for path in paths])
    db.extract(job)
    tree = db.adopted_tree(collection)
    return db.to_stage(job, "assign"), tree


def _image(db: Database, collection: CollectionRecord, name: str) -> int:
    """Id of the image with that content."""
    return next(
        row["id"]
        for row in db.rows()["images"]
        if (row["collection_id"], row["sha256"]) == (collection.id, content(name))
    )


def _kept(db: Database, collection: CollectionRecord) -> set[int]:
    """Images that a rebuild takes."""
    with db.read() as session:
        return {
            image_id
            for container in extraction.collection_containers(session, collection.id)
            for _, image_id in extraction.container_image_ids(session, container.id)
        }


def _rebuild(
    db: Database, collection: CollectionRecord, job: JobRecord, tree: TreeRecord, key: str
) -> VersionRecord | None:
    with db.read() as session:
        containers = extraction.collection_containers(session, collection.id)
    return db.publish(
        collection,
        job,
        tree,
        [db.segment(collection, tree, key)],
        "replace",
        container_ids=[container.id for container in containers],
    )


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
        ready.append((job.id, tree.id, db.segment(collection, tree, f"s{number}").id))
    found = db.together(
        *[
            lambda s, job=job, tree=tree, segment=segment: versions.publish_version(
                s, collection.id, job, tree, [segment], "append", {}
            )
            for job, tree, segment in ready
        ]
    )
    assert sorted(version.number for version in found) == [1, 2, 3, 4]
    assert [s.key for s in _current(db, collection).segments] == ["s0", "s1", "s2", "s3"]
    assert set(db.image_states(collection).values()) == {"indexed"}


def test_one_job_that_publishes_from_two_workers_at_once_makes_one_version(db: Database) -> None:
    collection = db.collection()
    job, tree = _ready(db, collection, "/a")
    segment = db.segment(collection, tree, "s1")
    found = db.together(
        *[
            lambda s: versions.publish_version(
                s, collection.id, job.id, tree.id, [segment.id], "append", {}
            )
        ]
        * 3
    )
    assert len({version.id for version in found}) == 1


def test_of_first_trees_trained_at_once_one_is_everyones(db: Database) -> None:
    collection = db.collection()
    made = [db.tree(collection, f"trees/{i}") for i in range(4)]
    held = db.together(
        *[lambda s, tree=tree: trees.adopt_tree(s, collection.id, tree.id) for tree in made]
    )
    assert len({tree.id for tree in held}) == 1
    assert held[0] in made


def test_trees_and_segments_noted_twice_are_one_row(db: Database) -> None:
    collection = db.collection()
    tree = db.tree(collection)
    assert db.tree(collection) == tree
    assert db.segment(collection, tree, "s1") == db.segment(collection, tree, "s1")


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
    db.to_stage(job, "assign")
    with db.read() as session:
        (container,) = extraction.job_containers(session, job.id)
        rows = extraction.container_image_ids(session, container.id)
    assert [image for _, image in rows] == [_image(db, collection, "/b")]
    # It comes back too late for this job: it has no rows in the segments, so it starts again.
    db.register(collection, None, file("/a", "x"))
    with db.read() as session:
        assert extraction.container_image_ids(session, container.id) == rows
    version = db.publish(collection, job, tree, [db.segment(collection, tree, "s1")])
    assert version is not None
    assert version.tombstones == frozenset()
    assert db.image_states(collection)[content("x")] == "pending"


def test_an_image_removed_after_the_assignment_gets_a_tombstone_at_once(db: Database) -> None:
    collection = db.collection()
    job, tree = _ready(db, collection, "/a", "/b")
    with db.read() as session:
        (container,) = extraction.job_containers(session, job.id)
        rows = extraction.container_image_ids(session, container.id)
    db.register(collection, None, file("/a", "changed"))
    with db.read() as session:
        # An assignment that runs twice gives the same file.
        assert extraction.container_image_ids(session, container.id) == rows
    version = db.publish(collection, job, tree, [db.segment(collection, tree, "s1")])
    assert version is not None
    assert version.tombstones == {_image(db, collection, "/a")}


def test_a_rebuild_replaces_segments_and_tree_and_needs_no_tombstones(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/a", "x"), file("/b"), key="s1")
    db.index(collection, file("/a", "y"), key="s2")
    job = db.job(collection, "rebuild")
    new = db.tree(collection, "trees/new")
    job = db.to_stage(job, "assign")
    assert _kept(db, collection) == {_image(db, collection, name) for name in ("/b", "y")}
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
    job = db.to_stage(job, "assign")
    with db.read() as session:
        known = [c.id for c in extraction.collection_containers(session, collection.id)]
    db.index(collection, file("/b"), key="s2")
    segment = db.segment(collection, new, "s3")
    assert db.publish(collection, job, new, [segment], "replace", container_ids=known) is None
    assert _current(db, collection).number == 2
    job = db.to_stage(job, "assign")
    assert _rebuild(db, collection, job, new, "s4") is not None
    assert _kept(db, collection) == {_image(db, collection, name) for name in ("/a", "/b")}


def test_a_rebuild_does_not_lose_an_image_that_comes_back_meanwhile(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/a", "x"), file("/b"), key="s1")
    db.index(collection, file("/a", "y"), key="s2")
    job = db.job(collection, "rebuild")
    new = db.tree(collection, "trees/new")
    job = db.to_stage(job, "assign")
    db.register(collection, None, file("/c", "x"))
    assert _rebuild(db, collection, job, new, "s3") is None
    job = db.to_stage(job, "assign")
    assert _image(db, collection, "x") in _kept(db, collection)
    version = _rebuild(db, collection, job, new, "s4")
    assert version is not None
    assert version.tombstones == frozenset()
    assert db.image_states(collection)[content("x")] == "indexed"


def test_an_image_removed_during_a_rebuild_gets_a_tombstone(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/a", "x"), file("/b"), key="s1")
    job = db.job(collection, "rebuild")
    new = db.tree(collection, "trees/new")
    job = db.to_stage(job, "assign")
    db.register(collection, None, file("/a", "y"))
    version = _rebuild(db, collection, job, new, "s2")
    assert version is not None
    assert version.tombstones == {_image(db, collection, "x")}


def test_a_job_that_was_overtaken_by_a_rebuild_assigns_anew(db: Database) -> None:
    collection = db.collection()
    db.index(collection, file("/a"), key="s1")
    late, old = _ready(db, collection, "/b")
    rebuild = db.to_stage(db.job(collection, "rebuild"), "assign")
    new = db.tree(collection, "trees/new")
    assert _rebuild(db, collection, rebuild, new, "s2") is not None
    segment = db.segment(collection, old, "s3")
    assert db.publish(collection, late, old, [segment]) is None
    assert db.image_states(collection)[content("/b")] == "extracted"
    late = db.to_stage(late, "assign")
    version = db.publish(collection, late, new, [db.segment(collection, new, "s4")])
    assert version is not None
    assert [s.key for s in version.segments] == ["s2", "s4"]


def test_containers_of_a_failed_job_are_indexed_by_the_next(db: Database) -> None:
    collection = db.collection()
    failed, tree = _ready(db, collection, "/a")
    with db.write() as session:
        jobs.finish_job(session, failed.id, "failed", "given up")
    job = db.job(collection)
    with db.write() as session:
        extraction.adopt_containers(session, job.id)
    db.to_stage(job, "assign")
    assert db.publish(collection, job, tree, [db.segment(collection, tree, "s1")]) is not None
    assert db.image_states(collection) == {content("/a"): "indexed"}


def test_an_image_is_held_from_its_indexing_to_its_removal(db: Database) -> None:
    collection, other = db.collection(), db.collection("other")
    db.index(collection, file("/a", "x"), file("/b", "y"), key="s1")
    db.index(other, file("/c", "z"), key="s2")
    db.register(collection, None, file("/d", "waiting"))
    asked = [content(name) for name in ("x", "y", "z", "waiting", "unknown")]
    with db.read() as session:
        found = images.indexed_images(session, collection.id, asked)
        assert found == {content("x"), content("y")}
        assert images.indexed_images(session, other.id, asked) == {content("z")}
        assert images.indexed_images(session, collection.id, []) == set()
    db.register(collection, None, file("/a", "new"))
    with db.read() as session:
        assert images.indexed_images(session, collection.id, asked) == {content("y")}
