from __future__ import annotations

import os
from typing import Any

import pytest
from metadata_database import STAMP, Database, content, file

from pipeline.errors import UnknownNameError
from pipeline.metadata import images
from pipeline.metadata.records import (
    CollectionRecord,
    FailureRow,
    FileStamp,
    RegisterCounts,
)


def test_registering_the_same_files_again_changes_nothing(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    files = [file("/a"), file("/b"), file("/c", sha256=None, error_code="vanished")]
    first = db.register(collection, job, *files)
    before = db.rows()
    second = db.register(collection, job, *files)
    assert first == RegisterCounts(new_images=2, new_locations=3, unreadable=1)
    assert second == RegisterCounts(known_images=2, unreadable=1, unchanged_locations=2)
    assert db.rows() == before


def test_the_same_bytes_at_two_paths_are_one_image_with_two_locations(db: Database) -> None:
    collection = db.collection()
    counts = db.register(collection, None, file("/b", "x"), file("/a", "x"))
    assert (counts.new_images, counts.new_locations) == (1, 2)
    (image_id,) = (row["id"] for row in db.rows()["images"])
    with db.read() as session:
        assert images.image_records(session, [image_id])[image_id].locations == ("/a", "/b")


def test_a_location_that_is_gone_comes_last(db: Database) -> None:
    collection = db.collection()
    db.register(collection, None, *(file(path, "x") for path in ("/c", "/b", "/a")))
    with db.write() as session:
        images.mark_gone(session, collection.id, ["/a"], 5.0)
    with db.read() as session:
        (record,) = images.image_records(session, [1]).values()
    assert record.locations == ("/b", "/c", "/a")
    assert record.location_states == ("unknown", "unknown", "gone")


def test_the_same_content_in_two_collections_is_two_images(db: Database) -> None:
    db.register(db.collection("one"), None, file("/a"))
    counts = db.register(db.collection("two"), None, file("/a"))
    assert counts.new_images == 1


def test_names_come_back_exactly(db: Database) -> None:
    names = [
        "/line\nbreak.jpg",
        "/back\\slash\\u0041.jpg",
        "/Größe 写真 🖼.jpg",
        os.fsdecode(b"/not utf-8 \xff\xfe.jpg"),
        "/tab\t' \" ; -- %s :name.jpg",
    ]
    collection = db.collection()
    db.register(collection, None, *[file(name, root=names[3]) for name in names])
    known = [(name, STAMP) for name in names]
    with db.read() as session:
        assert images.unchanged_paths(session, collection.id, known) == set(names)
        ids = [row["id"] for row in db.rows()["images"]]
        rows = images.image_records(session, ids)
    assert sorted(row.locations[0] for row in rows.values()) == sorted(names)
    assert {row["root"] for row in db.rows()["locations"]} == {names[3]}


def test_a_changed_file_is_a_new_image_and_the_old_one_goes(db: Database) -> None:
    collection = db.collection()
    db.register(collection, None, file("/a", "old"))
    counts = db.register(collection, None, file("/a", "new"))
    assert counts == RegisterCounts(new_images=1, changed_locations=1, removed_images=1)
    states = db.image_states(collection)
    assert states == {content("old"): "removed", content("new"): "pending"}


def test_an_image_stays_while_one_location_holds_it(db: Database) -> None:
    collection = db.collection()
    db.register(collection, None, file("/a", "x"), file("/b", "x"))
    counts = db.register(collection, None, file("/a", "y"))
    assert (counts.changed_locations, counts.removed_images) == (1, 0)
    assert db.image_states(collection)[content("x")] == "pending"


def test_contents_that_change_places_stay(db: Database) -> None:
    collection = db.collection()
    db.register(collection, None, file("/a", "x"), file("/b", "y"))
    counts = db.register(collection, None, file("/a", "y"), file("/b", "x"))
    assert counts == RegisterCounts(known_images=2, changed_locations=2)
    assert set(db.image_states(collection).values()) == {"pending"}


def test_a_path_given_twice_counts_once_and_the_last_one_holds(db: Database) -> None:
    collection = db.collection()
    counts = db.register(collection, None, file("/a", "x"), file("/a", "y"))
    assert (counts.new_images, counts.new_locations) == (1, 1)
    assert db.image_states(collection) == {content("y"): "pending"}


def test_a_file_that_cannot_be_read_now_keeps_its_image(db: Database) -> None:
    collection = db.collection()
    db.register(collection, None, file("/a"))
    denied = file("/a", sha256=None, error_code="permission-denied", error_message="no right")
    assert db.register(collection, None, denied).unreadable == 1
    assert db.image_states(collection) == {content("/a"): "pending"}
    with db.read() as session:
        assert images.unchanged_paths(session, collection.id, [("/a", STAMP)]) == set()
        assert images.failures(session, collection.id) == [
            FailureRow("/a", content("/a"), "permission-denied", "no right")
        ]
    assert db.register(collection, None, file("/a")) == RegisterCounts(known_images=1)
    with db.read() as session:
        assert images.failures(session, collection.id) == []


def unchanged(db: Database, collection: CollectionRecord, **asked: FileStamp) -> set[str]:
    with db.read() as session:
        return images.unchanged_paths(session, collection.id, asked.items())


def test_only_files_of_the_same_size_times_and_inode_are_unchanged(db: Database) -> None:
    collection = db.collection()
    names = ("same", *FileStamp._fields)
    db.register(collection, None, *map(file, names))
    other = {name: STAMP._replace(**{name: 1}) for name in FileStamp._fields}
    assert unchanged(db, collection, same=STAMP, **other, unknown=STAMP) == {"same"}


def test_numbers_beyond_64_bits_are_kept_apart(db: Database) -> None:
    """A time after the year 2262 or before 1678, an inode of all bits."""
    collection = db.collection()
    odd = {
        "late": FileStamp(1, 10_428_393_600 * 10**9, 5, 2**64 - 1),
        "early": FileStamp(2**63 - 1, -(2**63) - 10**9, -5, 2**63),
        "latest": FileStamp(0, 2**63 * 10**9, 2**63 * 10**9, 0),
    }
    db.register(collection, None, *(file(name, stamp=stamp) for name, stamp in odd.items()))
    assert unchanged(db, collection, **odd) == set(odd)
    moved = {name: stamp._replace(mtime_ns=stamp.mtime_ns + 1) for name, stamp in odd.items()}
    assert unchanged(db, collection, **moved) == set()


def test_a_young_file_is_read_again_but_not_by_the_same_job(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, file("/young", stamp=STAMP._replace(ctime_ns=None)), file("/old"))
    asked = [("/young", STAMP), ("/old", STAMP)]

    def known(**options: Any) -> set[str]:
        with db.read() as session:
            return images.unchanged_paths(session, collection.id, asked, **options)

    assert known() == {"/old"}
    assert known(job_id=job.id) == {"/young", "/old"}
    assert known(reread=True, job_id="another") == set()
    assert known(reread=True, job_id=job.id) == {"/young", "/old"}


def test_a_job_does_not_read_a_file_again_that_has_another_inode_each_time(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, file("/a"))
    asked = [("/a", STAMP._replace(inode=1, ctime_ns=1))]
    with db.read() as session:
        assert images.unchanged_paths(session, collection.id, asked, job_id=job.id) == {"/a"}
        assert not images.unchanged_paths(session, collection.id, asked, job_id="another")


def test_what_is_gone_is_marked_and_comes_back(db: Database) -> None:
    collection = db.collection()
    odd = ["/p/a", "/p/b\n", "/p/\\", os.fsdecode(b"/p/\xff"), "/p/日本"]
    beside = ["/p", "/p0", "/p.x", "/P/a", "/o", "/q/p/a"]
    db.register(collection, None, *map(file, [*odd, *beside]))
    db.register(db.collection("other"), None, file("/p/a"))

    def below(folder: str, limit: int = 100) -> list[str]:
        found: list[str] = []
        with db.read() as session:
            while some := images.paths_below(
                session, collection.id, folder, found[-1] if found else "", limit
            ):
                found += some
        return found

    assert sorted(below("/p")) == sorted(below("/p/", 1)) == sorted(odd)
    assert sorted(below("/", 2)) == sorted([*odd, *beside])
    with db.write() as session:
        assert images.mark_gone(session, collection.id, odd[:3], 5.0) == 3
        assert images.mark_gone(session, collection.id, odd[:3], 6.0) == 0
    assert sorted(below("/p")) == sorted(odd[3:])
    asked = [(path, STAMP) for path in odd]
    with db.read() as session:
        assert images.unchanged_paths(session, collection.id, asked) == set(odd[3:])
    mine = [row for row in db.rows()["images"] if row["collection_id"] == collection.id]
    ids = [row["id"] for row in mine]
    with db.read() as session:
        records = {one.locations[0]: one for one in images.image_records(session, ids).values()}
        roots = images.location_roots(session, [collection.name], [odd[0], "/unknown", odd[4]])
    assert [records[path].location_states for path in odd] == [("gone",)] * 3 + [("unknown",)] * 2
    assert roots == {odd[0]: "/photos", odd[4]: "/photos"}
    db.register(collection, None, file(odd[0]))
    assert sorted(below("/p")) == sorted([odd[0], *odd[3:]])


def test_a_failed_image_stays_failed_unless_asked_to_retry(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, file("/a"), file("/b"))
    db.extract(job, bad=[content("/a")])
    db.register(collection, db.job(collection), file("/a"))
    assert db.image_states(collection)[content("/a")] == "failed"
    db.register(collection, db.job(collection), file("/a"), file("/b"), retry_codes={"corrupt"})
    assert db.image_states(collection) == {content("/a"): "pending", content("/b"): "extracted"}
    with db.read() as session:
        assert images.failures(session, collection.id) == []


@pytest.mark.parametrize("life", ["pending", "extracted", "failed", "indexed"])
def test_an_image_that_comes_back_is_what_it_was(db: Database, life: str) -> None:
    collection = db.collection()
    if life == "indexed":
        db.index(collection, file("/a", "x"), key="s1")
    else:
        job = db.job(collection)
        db.register(collection, job, file("/a", "x"))
        if life != "pending":
            db.extract(job, bad=[content("x")] if life == "failed" else [])
    assert db.image_states(collection)[content("x")] == life
    db.register(collection, None, file("/a", "y"))
    assert db.image_states(collection)[content("x")] == "removed"
    counts = db.register(collection, None, file("/b", "x"))
    assert (counts.known_images, counts.returned_images) == (1, 1)
    assert db.image_states(collection)[content("x")] == life


def test_a_failed_image_that_comes_back_can_be_retried(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, file("/a", "x"))
    db.extract(job, bad=[content("x")])
    db.register(collection, job, file("/a", "y"))
    db.register(collection, job, file("/a", "x"), retry_codes={"corrupt"})
    assert db.image_states(collection)[content("x")] == "pending"


def test_an_image_whose_file_was_at_fault_is_tried_again_when_it_can_be_read(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, file("/a"), file("/b"))
    db.extract(job, bad=[content("/a"), content("/b")])  # with code "corrupt"
    known = [(path, STAMP) for path in ("/a", "/b")]
    with db.read() as session:
        assert images.unchanged_paths(session, collection.id, known, retry_codes={"vanished"}) == {
            "/a",
            "/b",
        }
        assert (
            images.unchanged_paths(session, collection.id, known, retry_codes={"corrupt"}) == set()
        )
    db.register(collection, job, file("/a"), retry_codes={"vanished"})
    assert set(db.image_states(collection).values()) == {"failed"}
    db.register(collection, job, file("/a"), retry_codes={"corrupt"})
    assert db.image_states(collection) == {content("/a"): "pending", content("/b"): "failed"}


def test_failures_are_listed_by_path_and_in_pages(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    unread = file("/b", sha256=None, error_code="vanished", error_message="it is gone")
    db.register(collection, job, file("/c", "x"), unread, file("/a", "x"), file("/good"))
    db.extract(job, bad=[content("x")])
    with db.read() as session:
        rows = images.failures(session, collection.id)
        pages = [images.failures(session, collection.id, 1, i)[0] for i in range(3)]
    broken = ("corrupt", "its data is damaged")
    assert rows == pages
    assert rows == [
        FailureRow("/a", content("x"), *broken),
        FailureRow("/b", None, "vanished", "it is gone"),
        FailureRow("/c", content("x"), *broken),
    ]


def test_image_records_leave_out_unknown_ids(db: Database) -> None:
    with db.read() as session:
        assert images.image_records(session, [1, 2, 3]) == {}


def test_more_files_than_sqlite_takes_variables_fit_in_one_call(db: Database) -> None:
    collection = db.collection()
    files = [file(f"/{i}") for i in range(33_000)]
    assert db.register(collection, None, *files).new_images == len(files)
    with db.read() as session:
        known = [(f.path, f.stamp) for f in files]
        assert len(images.unchanged_paths(session, collection.id, known)) == len(files)


def test_callers_that_register_the_same_files_at_once_make_one_row_each(db: Database) -> None:
    collection = db.collection()
    files = [file(f"/{i}") for i in range(300)]
    counts = db.together(
        *[
            lambda session, order=order: images.register_files(
                session, collection.id, None, files[::order]
            )
            for order in (1, -1, 1, -1)
        ]
    )
    assert sorted(c.new_images for c in counts) == [0, 0, 0, 300]
    assert len(db.rows()["locations"]) == 300


def test_files_of_a_deleted_collection_are_refused(db: Database) -> None:
    with pytest.raises(UnknownNameError, match="no collection id"), db.write() as session:
        images.register_files(session, 99, None, [file("/a")])
