from __future__ import annotations

import pytest
from metadata_database import Database, content, file, found

from pipeline.errors import UnknownNameError
from pipeline.metadata import containers, extraction, jobs, parts
from pipeline.metadata.records import FailedImage, JobRecord


def _batches(db: Database, job: JobRecord) -> list[list[str]]:
    """SHA-256 of the images of every part."""
    hashes = {row["id"]: row["sha256"] for row in db.rows()["images"]}
    with db.read() as session:
        return [
            [hashes[i] for i in part.args["images"]]
            for part in parts.parts(session, job.id, "extract")
        ]


def _plan(db: Database, job: JobRecord, batch_size: int = 4) -> int:
    with db.write() as session:
        return extraction.plan_extraction(session, job.id, batch_size)


def test_batches_are_of_one_size_and_sorted_by_content(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, *[file(f"/{i}") for i in range(10)])
    assert _plan(db, job) == 3
    hashes = sorted(content(f"/{i}") for i in range(10))
    assert _batches(db, job) == [hashes[:4], hashes[4:8], hashes[8:]]


def test_planning_again_keeps_the_parts(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, *[file(f"/{i}") for i in range(10)])
    _plan(db, job)
    with db.write() as session:
        parts.start_part(session, job.id, "extract", 1, "extract@box")
    before = db.rows()
    assert _plan(db, job, batch_size=3) == 3
    assert db.rows() == before


def test_images_registered_after_the_planning_get_parts_of_their_own(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, *[file(f"/{i}") for i in range(4)])
    _plan(db, job)
    first = _batches(db, job)
    db.register(collection, job, file("/late"))
    assert _plan(db, job) == 2
    assert _batches(db, job) == [*first, [content("/late")]]


def test_nothing_pending_is_no_part(db: Database) -> None:
    job = db.job(db.collection())
    assert _plan(db, job) == 0


def test_images_of_another_running_job_are_left_to_it(db: Database) -> None:
    collection = db.collection()
    first, second = db.job(collection), db.job(collection)
    db.register(collection, first, file("/a"), file("/b"))
    db.register(collection, second, file("/b"), file("/c"))
    assert (_plan(db, first), _plan(db, second)) == (1, 1)
    assert sorted(_batches(db, first)[0]) == sorted([content("/a"), content("/b")])
    assert _batches(db, second) == [[content("/c")]]


def test_images_of_a_job_that_failed_are_taken_over(db: Database) -> None:
    collection = db.collection()
    first, second = db.job(collection), db.job(collection)
    db.register(collection, first, file("/a"))
    _plan(db, first)
    with db.write() as session:
        jobs.finish_job(session, first.id, "failed", "no space")
    assert _plan(db, second) == 1
    assert _batches(db, second) == [[content("/a")]]


def test_jobs_that_plan_at_once_share_no_image(db: Database) -> None:
    collection = db.collection()
    db.register(collection, None, *[file(f"/{i}") for i in range(40)])
    work = [db.job(collection) for _ in range(4)]
    db.together(*[lambda s, job=job: extraction.plan_extraction(s, job.id, 8) for job in work])
    planned = [sha256 for job in work for batch in _batches(db, job) for sha256 in batch]
    assert sorted(planned) == sorted(content(f"/{i}") for i in range(40))


def test_a_batch_names_the_readable_locations_first(db: Database) -> None:
    collection = db.collection()
    db.register(collection, None, file("/a", "x"), file("/c", "x"), file("/b", "x"))
    db.register(collection, None, file("/a", sha256=None, error_code="permission-denied"))
    ids = [row["id"] for row in db.rows()["images"]]
    with db.read() as session:
        (image,) = extraction.batch_images(session, ids)
    assert image.sha256 == content("x")
    assert image.locations == (("/b", "/photos"), ("/c", "/photos"), ("/a", "/photos"))


def test_a_batch_shows_that_an_image_was_removed(db: Database) -> None:
    collection = db.collection()
    db.register(collection, None, file("/a", "x"))
    ids = [row["id"] for row in db.rows()["images"]]
    db.register(collection, None, file("/a", "y"))
    with db.read() as session:
        assert extraction.batch_images(session, ids)[0].locations == ()


def _record(db: Database, job: JobRecord, number: int = 0) -> None:
    with db.write() as session:
        part = parts.get_part(session, job.id, "extract", number)
        batch = extraction.batch_images(session, part.args["images"])
        failed = [FailedImage(batch[-1].id, "truncated", "it ends too early")]
        outcome = found("containers/k", [image.id for image in batch[:-1]], failed)
        extraction.record_extraction(session, job.id, number, outcome)


def test_an_extraction_recorded_twice_gives_the_same_rows(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, *[file(f"/{i}") for i in range(4)])
    _plan(db, job)
    _record(db, job)
    before = db.rows()
    _record(db, job)
    assert db.rows() == before
    (container,) = before["containers"]
    assert (container["image_count"], container["failed_count"]) == (3, 1)
    (part,) = before["parts"]
    assert (part["state"], part["images"], part["failed"]) == ("done", 4, 1)
    assert before["jobs"][0]["counters"] == {"images_extracted": 3, "images_failed": 1}
    by_row = sorted(before["images"], key=lambda row: row["row_in_container"] is None)
    assert [(row["state"], row["width"], row["descriptor_count"]) for row in by_row] == [
        *[("extracted", 640, 100)] * 3,
        ("failed", None, 0),
    ]
    assert by_row[-1]["error_code"] == "truncated"


def test_two_workers_that_record_the_same_part_at_once_leave_one_record(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, *[file(f"/{i}") for i in range(4)])
    _plan(db, job)
    with db.read() as session:
        batch = parts.get_part(session, job.id, "extract", 0).args["images"]
    outcome = found("containers/k", batch)
    db.together(*[lambda s: extraction.record_extraction(s, job.id, 0, outcome)] * 3)
    rows = db.rows()
    assert rows["jobs"][0]["counters"] == {"images_extracted": 4, "images_failed": 0}
    assert len(rows["containers"]) == 1


def test_a_part_without_any_features_has_no_container(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, file("/a"))
    db.extract(job, bad=[content("/a")])
    rows = db.rows()
    assert (rows["containers"], rows["parts"][0]["state"]) == ([], "done")


def test_an_image_removed_during_its_extraction_stays_removed(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, file("/a", "x"))
    _plan(db, job)
    db.register(collection, None, file("/a", "y"))
    db.extract(job)
    assert db.image_states(collection)[content("x")] == "removed"
    # Its features are kept, so that it need not be extracted again when it comes back.
    db.register(collection, None, file("/a", "x"))
    assert db.image_states(collection)[content("x")] == "extracted"


def test_an_image_that_failed_because_it_was_removed_has_not_failed(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, file("/a", "x"))
    _plan(db, job)
    db.register(collection, None, file("/a", "y"))
    db.extract(job, bad=[content("x")])
    db.register(collection, None, file("/a", "x"))
    assert db.image_states(collection)[content("x")] == "pending"


def test_a_late_record_of_a_failed_job_takes_nothing_from_its_successor(db: Database) -> None:
    collection = db.collection()
    first, second = db.job(collection), db.job(collection)
    db.register(collection, first, file("/a"), file("/b"))
    _plan(db, first)
    with db.write() as session:
        jobs.finish_job(session, first.id, "failed", "given up")
    db.extract(second)
    tree = db.adopted_tree(collection)
    db.assign(second, tree)
    assert db.publish(collection, second, tree, [db.segment(collection, tree, "s1")])
    images, containers = db.rows()["images"], db.rows()["containers"]
    db.extract(first)
    assert db.rows()["images"] == images
    assert db.rows()["containers"] == containers


def test_a_late_record_of_a_file_that_differs_notes_its_checksum(db: Database) -> None:
    collection = db.collection()
    first, second = db.job(collection), db.job(collection)
    db.register(collection, first, file("/a"))
    _plan(db, first)
    with db.write() as session:
        jobs.finish_job(session, first.id, "failed", "given up")
    db.extract(second)
    (container,) = db.rows()["containers"]
    with db.write() as session:
        images = parts.get_part(session, first.id, "extract", 0).args["images"]
        outcome = found(container["key"], images, checksum="of the file of now")
        extraction.record_extraction(session, first.id, 0, outcome)
    assert db.rows()["containers"] == [{**container, "checksum": "of the file of now"}]
    with db.write() as session:
        containers.correct_checksum(session, container["id"], "corrected")
    assert db.rows()["containers"] == [{**container, "checksum": "corrected"}]


def test_containers_of_failed_jobs_are_adopted_and_those_of_running_ones_not(db: Database) -> None:
    collection = db.collection()
    failed, running, taker = (db.job(collection) for _ in range(3))
    db.register(collection, failed, file("/a"))
    db.extract(failed)
    db.register(collection, running, file("/b"))
    db.extract(running)
    with db.write() as session:
        jobs.finish_job(session, failed.id, "failed", "given up")
        assert containers.adopt_containers(session, taker.id) == 1
        assert containers.adopt_containers(session, taker.id) == 0
        assert len(containers.job_containers(session, taker.id)) == 1
        assert len(containers.job_containers(session, running.id)) == 1
        assert containers.job_containers(session, failed.id) == []


def test_containers_are_listed_by_key_with_their_images_by_row(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, *[file(f"/{i}") for i in range(6)])
    db.extract(job)
    with db.read() as session:
        made = containers.job_containers(session, job.id)
    assert len(made) == 3
    assert [c.key for c in made] == sorted(c.key for c in made)
    db.assign(job, db.tree(collection))
    with db.read() as session:
        planned = parts.parts(session, job.id, "assign")
    assert [part.args["container"] for part in planned] == [c.id for c in made]
    assert [[row for row, _ in part.args["rows"]] for part in planned] == [[0, 1]] * 3


def test_the_result_of_a_deleted_part_is_refused(db: Database) -> None:
    job = db.job(db.collection())
    with pytest.raises(UnknownNameError, match="no part is named"), db.write() as session:
        extraction.record_extraction(session, job.id, 0, found("containers/k", []))
