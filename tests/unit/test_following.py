"""Following jobs: those without a worker, and those of this process between their parts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from pipeline.abandoned_jobs import this_process
from pipeline.config import ExtractorConfig, IndexConfig
from pipeline.following import follow_job, watched
from pipeline.job_params import RebuildParams
from pipeline.metadata.collections import get_or_create_collection
from pipeline.metadata.engine import open_database, session_scope
from pipeline.metadata.jobs import create_job, finish_job
from pipeline.metadata.parts import job_progress
from pipeline.metadata.records import JobProgress, JobRecord


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with open_database(f"sqlite:///{tmp_path / 'vantage.sqlite'}") as engine:
        yield engine


def job_of(engine: Engine, process: str | None) -> JobRecord:
    with session_scope(engine) as session:
        made = get_or_create_collection(session, "one", ExtractorConfig(), IndexConfig())
        return create_job(session, made.id, "rebuild", RebuildParams(), process=process)


@pytest.mark.parametrize("ours", [False, True])
def test_a_job_of_workers_is_deserted_when_none_is_alive(engine: Engine, ours: bool) -> None:
    job = job_of(engine, this_process("here") if ours else None)
    told: list[tuple[str, bool]] = []

    def report(progress: JobProgress, deserted: bool) -> None:
        told.append((progress.state, deserted))
        with session_scope(engine) as session:
            finish_job(session, job.id, "done")

    assert follow_job(engine, job.id, report).state == "done"
    assert told == [("running", not ours)]


def test_a_job_of_this_process_is_read_between_its_own_reports(engine: Engine) -> None:
    job = job_of(engine, this_process("here"))
    reports: list[JobProgress] = []
    read = threading.Event()

    def show(progress: JobProgress) -> None:
        reports.append(progress)
        if len(reports) == 2:
            read.set()

    with session_scope(engine, write=False) as session:
        now = job_progress(session, job.id)
    with watched(engine, show) as report:
        report(now)
        assert read.wait(600)
    assert {progress.job_id for progress in reports} == {job.id}
    assert "progress" not in {thread.name for thread in threading.enumerate()}
