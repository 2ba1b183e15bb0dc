"""Jobs of ``pipeline.local`` whose process has ended without ending them.

A job belongs to workers, who find it in SQL whatever happens, or to one process, which may be
killed. A job that nobody works on keeps its images from every other job, so whoever is about to
index ends it first; what it had extracted is then taken over (`containers.adopt_containers`).
"""

from __future__ import annotations

import json
import os
import uuid

import psutil
from sqlalchemy import Engine

from pipeline.metadata import jobs
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import JobRecord

_CLOCK_S = 2.0  # a process's start is known to a tick, and the clock may be set meanwhile


def this_process(host: str) -> str:
    """Return a text for one run of a job that tells its process from any other: host, id, start."""
    started = psutil.Process().create_time()
    run = uuid.uuid4().hex
    return json.dumps({"host": host, "pid": os.getpid(), "started": started, "run": run})


def end_abandoned_jobs(engine: Engine, collection_id: int, host: str) -> list[JobRecord]:
    """End the jobs of a collection that a process of this host began and left.

    Parameters
    ----------
    engine : sqlalchemy.Engine
    collection_id : int
    host : str
        Name of this host in the settings. What other hosts do cannot be seen from here.

    Returns
    -------
    list of JobRecord
        The jobs that were ended, as they are now.
    """
    with session_scope(engine, write=False) as session:
        unfinished = jobs.unfinished_jobs(session, collection_id)
    left = [job for job in unfinished if job.process is not None and not _is_alive(job, host)]
    ended = []
    for job in left:
        with session_scope(engine) as session:
            sentence = "the process that worked on it has ended; index again to go on"
            ended.append(jobs.finish_job(session, job.id, "failed", sentence))
    return ended


def _is_alive(job: JobRecord, host: str) -> bool:
    """Whether a process works on the job, as far as can be known."""
    if job.state == "paused" or job.process is None:
        return False
    owner = json.loads(job.process)
    if not isinstance(owner, dict):
        return False
    if owner["host"] != host:
        return True
    try:
        started = psutil.Process(owner["pid"]).create_time()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    return bool(abs(started - owner["started"]) < _CLOCK_S)
