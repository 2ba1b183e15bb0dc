from __future__ import annotations

import pytest
from metadata_database import DATABASES, Database, file

from pipeline.config import ExtractorConfig, IndexConfig
from pipeline.errors import InputError, UnknownNameError
from pipeline.metadata import collections, heartbeats, jobs
from pipeline.metadata.models import Base
from pipeline.metadata.records import WorkerRecord


def test_this_run_includes_postgresql(request: pytest.FixtureRequest) -> None:
    if "postgresql" not in DATABASES:
        pytest.skip("VANTAGE_TEST_POSTGRESQL_URL names no server: the contract ran on SQLite only")
    assert request.getfixturevalue("postgresql_url").startswith("postgresql")


def test_a_collection_keeps_what_it_was_made_with(db: Database) -> None:
    extractor = ExtractorConfig(max_features=77)
    index = IndexConfig(groups=8, vantage="spread")
    with db.write() as session:
        made = collections.get_or_create_collection(session, "covers", extractor, index)
    with db.read() as session:
        found = collections.get_collection(session, "covers")
    assert found == made
    assert (found.extractor, found.index) == (extractor, index)
    assert found.extractor_id == extractor.config_id()
    assert (found.tree_id, found.current_version_id) == (None, None)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "x" * 65, "covers\n", "é"])
def test_a_name_that_cannot_name_a_collection_is_refused(db: Database, name: str) -> None:
    with pytest.raises(InputError, match="cannot be named"), db.write() as session:
        collections.get_or_create_collection(session, name, ExtractorConfig(), IndexConfig())


def test_an_existing_collection_keeps_its_settings(db: Database) -> None:
    made = db.collection("covers")
    with db.write() as session:
        found = collections.get_or_create_collection(
            session, "covers", ExtractorConfig(max_features=9), IndexConfig(groups=1)
        )
    assert found == made


def test_callers_that_create_a_collection_at_once_get_the_same(db: Database) -> None:
    records = db.together(
        *[
            lambda session: collections.get_or_create_collection(
                session, "covers", ExtractorConfig(), IndexConfig()
            )
        ]
        * 4
    )
    assert len({record.id for record in records}) == 1


def test_an_unknown_name_suggests_the_nearest_one(db: Database) -> None:
    db.collection("covers")
    with pytest.raises(UnknownNameError, match="did you mean 'covers'"), db.read() as session:
        collections.collection_status(session, "cover")


def test_status_and_list_count_the_rows(db: Database) -> None:
    collection = db.collection("covers")
    db.collection("empty")
    db.index(collection, file("/a"), file("/b"), file("/copy of a", "/a"), key="s1")
    job = db.job(collection)
    db.register(collection, job, file("/c"), file("/d", sha256=None, error_code="vanished"))
    db.extract(job, bad=[file("/c").sha256 or ""])
    with db.read() as session:
        status = collections.collection_status(session, "covers")
        summaries = collections.list_collections(session)
    assert status.images == {"indexed": 2, "failed": 1}
    assert (status.locations, status.unreadable_locations) == (5, 1)
    assert status.descriptors == 200
    assert (status.version, status.segments) == (1, {0: 1})
    assert [running.id for running in status.jobs] == [job.id]
    assert (status.median_cell, status.target_cell, status.outgrown) == (700.0, 1500.0, False)
    assert [(s.name, s.images, s.indexed, s.locations, s.version) for s in summaries] == [
        ("covers", 3, 2, 5, 1),
        ("empty", 0, 0, 0, None),
    ]


def test_the_status_of_an_empty_collection_has_no_version(db: Database) -> None:
    db.collection("empty")
    with db.read() as session:
        status = collections.collection_status(session, "empty")
    assert (status.images, status.locations, status.descriptors) == ({}, 0, 0)
    assert (status.version, status.segments, status.outgrown) == (None, {}, False)


def test_a_deleted_collection_leaves_the_others_alone(db: Database) -> None:
    kept = db.collection("kept")
    db.index(kept, file("/a"), key="s1")
    before = db.rows()
    gone = db.collection("gone")
    db.index(gone, file("/a"), file("/b"), key="s1")
    db.index(gone, file("/a", "changed"), key="s2")  # writes a tombstone
    with db.write() as session:
        collections.delete_collection(session, "gone")
    assert db.rows() == before
    # Caches in worker processes are kept by id.
    assert db.collection("gone").id > gone.id


def test_an_end_of_a_job_whose_collection_was_deleted_says_so(db: Database) -> None:
    job = db.job(db.collection("gone"))
    with db.write() as session:
        collections.delete_collection(session, "gone")
    with pytest.raises(UnknownNameError, match="no job is named"), db.write() as session:
        jobs.finish_job(session, job.id, "done")


def test_every_table_is_in_the_dump_that_these_tests_compare(db: Database) -> None:
    assert set(db.rows()) == set(Base.metadata.tables)


def _worker(name: str, **changes: object) -> WorkerRecord:
    values: dict[str, object] = {
        "name": name,
        "roles": ("group",),
        "host": "box",
        "pid": 7,
        "groups": (0, 1),
        "state": "ready",
        "heartbeat_at": 100.0,
        "started_at": 50.0,
        "details": {"segments": 3},
    }
    return WorkerRecord(**{**values, **changes})  # type: ignore[arg-type]


def test_a_heartbeat_replaces_the_one_before(db: Database) -> None:
    with db.write() as session:
        heartbeats.beat(session, _worker("group@box", state="starting"))
        heartbeats.beat(session, _worker("group@box", heartbeat_at=102.0))
        assert heartbeats.live_workers(session, 103.0, 10.0) == [
            _worker("group@box", heartbeat_at=102.0)
        ]


def test_a_worker_counts_as_live_until_its_heartbeat_is_too_old(db: Database) -> None:
    with db.write() as session:
        heartbeats.beat(session, _worker("group@box"))
        assert heartbeats.live_workers(session, 110.0, 10.0)
        assert not heartbeats.live_workers(session, 110.1, 10.0)


def test_groups_are_served_by_ready_group_workers_only(db: Database) -> None:
    with db.write() as session:
        heartbeats.beat(session, _worker("b", groups=(1, 2)))
        heartbeats.beat(session, _worker("a", groups=(1,)))
        heartbeats.beat(session, _worker("starting", state="starting"))
        heartbeats.beat(session, _worker("draining", state="draining"))
        heartbeats.beat(session, _worker("extract", roles=("extract",)))
        heartbeats.beat(session, _worker("dead", heartbeat_at=10.0))
        assert heartbeats.groups_served(session, 101.0, 10.0) == {1: ["a", "b"], 2: ["b"]}
        heartbeats.forget_worker(session, "b")
        assert heartbeats.groups_served(session, 101.0, 10.0) == {1: ["a"]}
