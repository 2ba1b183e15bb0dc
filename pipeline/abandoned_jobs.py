"""Jobs of ``pipeline.local`` whose process died.

Workers find their jobs in SQL, whatever happens. But a job may belong to one process, which may be
killed. An abandoned job blocks its images for every other job, so the next index call ends it first
and takes over what it had extracted (`containers.adopt_containers`).
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

_CLOCK_S = (
    2.0  # the start of a process is known to a clock tick, and the clock may be set meanwhile
)


def this_process(host: str) -> str:
    """Return a text that identifies this process among all others: host, id, start time."""
    started = psutil.Process().create_time()
    run = uuid.uuid4().hex
    return json.dumps({"host": host, "pid": os.getpid(), "started": started, "run": run})


def end_abandoned_jobs(engine: Engine, collection_id: int, host: str) -> list[JobRecord]:
    """End the jobs of a collection that died with a process of this host.

    Parameters
    ----------
    engine : sqlalchemy.Engine
    collection_id : int
    host : str
        Name of this host in the settings. Processes of other hosts cannot be seen from here.

    Returns
    -------
    list of JobRecord
        The ended jobs, in their new state.
    """
    with session_scope(engine, write=False) as session:
        unfinished = jobs.unfinished_jobs(session, collection_id)
    left = [job for job in unfinished if job.process is not None and not _is_alive(job, host)]
    ended = []
    for job in left:
        with session_scope(engine) as session:
            sentence = "the process that worked on it has ended; the same call goes on from there"
            ended.append(jobs.finish_job(session, job.id, "failed", sentence))
    return ended


def _is_alive(job: JobRecord, host: str) -> bool:
    """Whether the job's process is alive, as far as can be known."""
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
