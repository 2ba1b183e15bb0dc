from __future__ import annotations

import pytest
from metadata_database import Database, content, file

from pipeline.errors import UnknownNameError
from pipeline.job_params import CompactParams, IndexParams, RebuildParams
from pipeline.metadata import heartbeats, jobs, parts
from pipeline.metadata.records import JobRecord, WorkerRecord


def _get(db: Database, job: JobRecord) -> JobRecord:
    with db.read() as session:
        return jobs.get_job(session, job.id)


def test_a_job_keeps_its_parameters(db: Database) -> None:
    collection = db.collection()
    params = IndexParams(paths=("/photos/\udcff\n", "/more"))
    with db.write() as session:
        job = jobs.create_job(session, collection.id, "index", params, broker_epoch="e1")
    assert job == _get(db, job)
    assert (job.params, job.broker_epoch) == (params, "e1")
    assert (job.process, job.origin) == (None, "request")
    assert job.params_as(IndexParams).folders == params.paths
    own = db.job(collection, "compact", process="this one", origin="upkeep")
    assert (_get(db, own).process, _get(db, own).origin) == ("this one", "upkeep")
    assert _get(db, own).params == CompactParams(everything=True, above=0)
    assert (job.state, job.stage, job.attempt, job.counters) == ("running", "register", 1, {})
    assert not job.finished


def test_unfinished_jobs_are_listed_oldest_first_and_all_newest_first(db: Database) -> None:
    one, two = db.collection("one"), db.collection("two")
    first, second, third = db.job(one), db.job(two), db.job(one)
    with db.write() as session:
        jobs.pause_job(session, first.id, "mount it")
        jobs.finish_job(session, second.id, "done")
    with db.read() as session:
        assert [j.id for j in jobs.unfinished_jobs(session)] == [first.id, third.id]
        assert jobs.unfinished_jobs(session, two.id) == []
        assert [j.id for j in jobs.list_jobs(session, limit=2)] == [third.id, second.id]
        assert [j.id for j in jobs.list_jobs(session, one.id)] == [third.id, first.id]


def test_one_of_many_callers_advances_a_stage(db: Database) -> None:
    job = db.job(db.collection())
    winners = db.together(*[lambda s: jobs.advance_stage(s, job.id, "register", 1, "extract")] * 4)
    assert sum(winner is not None for winner in winners) == 1
    assert (_get(db, job).stage, _get(db, job).attempt) == ("extract", 2)


def test_a_job_that_is_not_where_it_is_expected_does_not_advance(db: Database) -> None:
    job = db.job(db.collection())
    with db.write() as session:
        assert jobs.advance_stage(session, job.id, "extract", 1, "train") is None
        assert jobs.advance_stage(session, job.id, "register", 2, "extract") is None
        jobs.pause_job(session, job.id, "mount it")
        assert jobs.advance_stage(session, job.id, "register", 1, "extract") is None
    assert (_get(db, job).stage, _get(db, job).attempt) == ("register", 1)


def test_going_back_a_stage_drops_the_parts_from_there_on(db: Database) -> None:
    job = db.job(db.collection())
    with db.write() as session:
        for stage in ("extract", "assign", "merge"):
            parts.create_parts(session, job.id, stage, [{}])  # type: ignore[arg-type]
    db.to_stage(job, "publish")
    db.to_stage(job, "assign")
    assert [part["stage"] for part in db.rows()["parts"]] == ["extract"]


def test_one_of_many_supervisors_begins_a_new_attempt(db: Database) -> None:
    job = db.job(db.collection(), broker_epoch="e1")
    winners = db.together(*[lambda s: jobs.new_attempt(s, job.id, 1, "e2")] * 4)
    assert sum(winner is not None for winner in winners) == 1
    assert (_get(db, job).attempt, _get(db, job).broker_epoch) == (2, "e2")


def test_the_first_end_of_a_job_stays(db: Database) -> None:
    job = db.job(db.collection())
    with db.write() as session:
        done = jobs.finish_job(session, job.id, "done")
        assert jobs.finish_job(session, job.id, "failed", "too late") == done
        assert jobs.pause_job(session, job.id, "too late") == done
        assert jobs.resume_job(session, job.id) == done
    assert (done.state, done.stage, done.finished) == ("done", "done", True)
    assert done.finished_at is not None


def test_a_paused_job_runs_again_when_resumed(db: Database) -> None:
    job = db.job(db.collection())
    with db.write() as session:
        paused = jobs.pause_job(session, job.id, "mount /photos")
        assert (paused.state, paused.message) == ("paused", "mount /photos")
        resumed = jobs.resume_job(session, job.id)
        assert (resumed.state, resumed.message) == ("running", None)


def test_counters_added_at_once_are_all_counted(db: Database) -> None:
    job = db.job(db.collection())
    db.together(*[lambda s: jobs.add_counters(s, job.id, files_seen=3, unreadable=1)] * 4)
    assert _get(db, job).counters == {"files_seen": 12, "unreadable": 4}
    with db.write() as session:
        jobs.set_counters(session, job.id, files_seen=5)
    assert _get(db, job).counters == {"files_seen": 5, "unreadable": 4}


def test_a_collection_has_one_rebuild_at_a_time(db: Database) -> None:
    collection = db.collection()
    found = db.together(
        *[lambda s: jobs.create_job(s, collection.id, "rebuild", RebuildParams())] * 3
    )
    assert len({job.id for job in found}) == 1
    with db.write() as session:
        jobs.finish_job(session, found[0].id, "done")
    assert db.job(collection, "rebuild").id != found[0].id


def test_a_job_that_is_not_there_is_refused(db: Database) -> None:
    with pytest.raises(UnknownNameError, match="no job is named 'x'"), db.read() as session:
        jobs.get_job(session, "x")


def test_parts_planned_again_stay_as_they_are(db: Database) -> None:
    job = db.job(db.collection())
    with db.write() as session:
        parts.create_parts(session, job.id, "assign", [{"c": 1}, {"c": 2}], images=[5, 6])
        parts.finish_part(session, job.id, "assign", 0, {"key": "a"})
    before = db.rows()
    with db.write() as session:
        planned = parts.create_parts(session, job.id, "assign", [{"c": 9}] * 3)
    assert db.rows() == before
    assert [(part.number, part.args, part.images) for part in planned] == [
        (0, {"c": 1}, 5),
        (1, {"c": 2}, 6),
    ]
    with db.read() as session:
        assert [p.number for p in parts.unfinished_parts(session, job.id, "assign")] == [1]


def test_callers_that_plan_a_stage_at_once_plan_it_once(db: Database) -> None:
    job = db.job(db.collection())
    planned = db.together(
        *[lambda s, n=n: parts.create_parts(s, job.id, "assign", [{"n": n}] * n) for n in (2, 3, 4)]
    )
    assert planned[0] == planned[1] == planned[2]


def test_parts_appended_at_once_all_get_a_number(db: Database) -> None:
    job = db.job(db.collection())
    db.together(*[lambda s: parts.append_parts(s, job.id, "extract", [{}] * 3)] * 4)
    with db.read() as session:
        numbers = [part.number for part in parts.parts(session, job.id, "extract")]
    assert numbers == list(range(12))


def test_a_part_that_is_done_is_not_started_or_finished_again(db: Database) -> None:
    job = db.job(db.collection())
    with db.write() as session:
        parts.create_parts(session, job.id, "merge", [{}])
        started = parts.start_part(session, job.id, "merge", 0, "group@a")
        assert (started.state, started.worker) == ("running", "group@a")
        done = parts.finish_part(session, job.id, "merge", 0, {"segment": 1})
        assert parts.start_part(session, job.id, "merge", 0, "group@b") == done
        assert parts.finish_part(session, job.id, "merge", 0, {"segment": 2}) == done
    assert (done.state, done.result, done.worker) == ("done", {"segment": 1}, "group@a")


def test_a_part_found_ready_counts_as_started_when_it_finished(db: Database) -> None:
    job = db.job(db.collection())
    with db.write() as session:
        parts.create_parts(session, job.id, "merge", [{}])
        done = parts.finish_part(session, job.id, "merge", 0, {})
    assert done.started_at == done.finished_at


def test_a_deleted_part_of_an_old_attempt_raises(db: Database) -> None:
    job = db.job(db.collection())
    with pytest.raises(UnknownNameError, match="no part is named"), db.write() as session:
        parts.start_part(session, job.id, "merge", 0, "group@a")


def test_progress_counts_images_and_foresees_the_end(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, *[file(f"/{i}") for i in range(10)])
    job = db.to_stage(job, "extract")
    with db.read() as session:
        fresh = parts.job_progress(session, job.id)
    assert (fresh.total_parts, fresh.rate_per_s, fresh.eta_s) == (0, None, None)
    db.extract(job, bad=[content("/3")])
    with db.write() as session:  # two more, not begun
        parts.append_parts(session, job.id, "extract", [{"images": []}] * 2, images=[2, 2])
        first = min(p.started_at or 0 for p in parts.parts(session, job.id, "extract")[:5])
        progress = parts.job_progress(session, job.id, now=first + 5.0)
    assert (progress.done_parts, progress.total_parts) == (5, 7)
    assert (progress.images_done, progress.images_total, progress.images_failed) == (10, 14, 1)
    assert progress.rate_per_s == pytest.approx(2.0)
    assert progress.eta_s == pytest.approx(2.0)


def test_the_rate_of_a_resumed_job_ignores_the_pause(db: Database) -> None:
    collection = db.collection()
    job = db.job(collection)
    db.register(collection, job, *[file(f"/{i}") for i in range(4)])
    job = db.to_stage(job, "extract")
    db.extract(job)
    with db.write() as session:
        parts.append_parts(session, job.id, "extract", [{"images": []}] * 2, images=[2, 2])
        jobs.new_attempt(session, job.id, job.attempt, "e2")
        assert parts.job_progress(session, job.id).rate_per_s is None
        again = parts.start_part(session, job.id, "extract", 2, "extract@box")
        parts.finish_part(session, job.id, "extract", 2, {})
        assert again.started_at is not None
        progress = parts.job_progress(session, job.id, now=again.started_at + 4.0)
    assert progress.images_done == 6
    assert progress.rate_per_s == pytest.approx(0.5)
    assert progress.eta_s == pytest.approx(4.0)


def test_stages_without_images_are_measured_in_parts(db: Database) -> None:
    job = db.to_stage(db.job(db.collection()), "merge")
    with db.write() as session:
        parts.create_parts(session, job.id, "merge", [{}] * 4)
        began = parts.start_part(session, job.id, "merge", 0, "group@a").started_at
        parts.finish_part(session, job.id, "merge", 0, {})
        assert began is not None
        progress = parts.job_progress(session, job.id, now=began + 2.0)
    assert (progress.rate_per_s, progress.eta_s) == (pytest.approx(0.5), pytest.approx(6.0))


def test_parts_of_dead_workers_are_found(db: Database) -> None:
    job, paused = db.job(db.collection("a")), db.job(db.collection("b"))
    with db.write() as session:
        for owner in (job, paused):
            parts.create_parts(session, owner.id, "assign", [{}] * 4)
        now = parts.start_part(session, job.id, "assign", 0, "live").started_at or 0.0
        for number, worker in ((1, "dead"), (2, "restarted"), (3, "unheard")):
            parts.start_part(session, job.id, "assign", number, worker)
        parts.start_part(session, paused.id, "assign", 0, "dead")
        jobs.pause_job(session, paused.id, "mount it")
        for name, beat, start in (
            ("live", now, now - 60),
            ("dead", now - 11, now - 60),
            ("restarted", now, now + 60),
        ):
            heartbeats.beat(
                session, WorkerRecord(name, ("reduce",), "box", 1, (), "ready", beat, start)
            )
        live = heartbeats.live_workers(session, now, 10.0)
        running = parts.running_parts(session)
    stale = [part for part in running if not parts.runs_on_live_worker(part, live)]
    assert [(part.job_id, part.number) for part in stale] == [(job.id, n) for n in (1, 2, 3)]
