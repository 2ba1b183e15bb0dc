"""The supervisor: a thread of every worker that takes the reduce tasks of jobs.

Every second it reads SQL and Redis and restarts what has stopped. It plans jobs again whose
messages were lost (with a worker or with the whole broker), resumes jobs whose missing image folder
is back, begins compactions that are due, and ends enqueued searches at their deadline. It has no
state of its own: several may run at once, and one that is killed and started again knows as much as
before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Settings
from pipeline.errors import OtherInstallationError
from pipeline.metadata import compaction, heartbeats, jobs, parts
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import JobRecord, PartRecord, Snapshot
from workers import searches
from workers.context import Context
from workers.job_messages import PASSING, broker_epoch, keep_up, replan, waits_its_turn
from workers.presence import ANNOUNCE_EVERY_S, announce
from workers.up_watch import UpWatch

__all__ = ["supervise", "watch_jobs", "watch_segments"]

_log = logging.getLogger(__name__)

_TICK_S = 0.25
_JOBS_EVERY_S = 1.0
PATIENCE_S = 15.0
"""Messages of a job count as lost after so many seconds without progress and without a live worker
that has one of its parts. This is longer than a heartbeat's timeout, so that a dead worker is
noticed first."""


def watch_jobs(context: Context, patience_s: float = PATIENCE_S) -> int:
    """Plan every stopped job again; return how many."""
    now = time.time()
    timeout_s = context.settings.host_timeout_s
    epoch = broker_epoch(context)
    with session_scope(context.engine, write=False) as session:
        unfinished = [job for job in jobs.unfinished_jobs(session) if job.process is None]
        live = heartbeats.live_workers(session, now, timeout_s) if unfinished else []
        running = parts.running_parts(session) if unfinished else []
    seen = Snapshot(live, epoch, now, patience_s)
    renewed = 0
    for job in unfinished:
        try:
            if job.state == "paused":
                renewed += _resume(context, job)
                continue
            reason = _why_stopped(context, job, running, seen)
            if reason is not None:
                renewed += replan(context, job, reason)
        except PASSING:
            raise
        except Exception:
            # `replan` has ended the job; the others must still be watched.
            _log.exception("job %s could not be planned again", job.id)
    return renewed


def watch_segments(context: Context, patience_s: float = PATIENCE_S) -> int:
    """Begin the compactions that are due; return how many.

    The publisher begins one at once, unless it died after publishing.
    """
    above, before = context.settings.compact_above, time.time() - patience_s
    with session_scope(context.engine, write=False) as session:
        due = compaction.collections_to_compact(session, above, before)
    begun = 0
    for collection_id in due:
        try:
            begun += keep_up(context, collection_id)
        except PASSING:
            raise
        except Exception:
            # An error in one collection must not stop the others.
            _log.exception("segments of collection %d could not be merged", collection_id)
    return begun


def _why_stopped(
    context: Context,
    job: JobRecord,
    running: Sequence[PartRecord],
    seen: Snapshot,
) -> str | None:
    """Return why a job must be planned again, or None; read all its parts only if necessary."""
    mine = [part for part in running if (part.job_id, part.stage) == (job.id, job.stage)]
    # A job may legitimately wait behind another one's messages.
    busy = any(
        part.job_id != job.id and parts.runs_on_live_worker(part, seen.live_workers)
        for part in running
    )
    if parts.needs_replanning(job, mine, seen, workers_busy=busy) is None:
        return None
    put_off = waits_its_turn(context, job.id)
    with session_scope(context.engine, write=False) as session:
        all_parts = parts.parts(session, job.id, job.stage)
    return parts.needs_replanning(job, all_parts, seen, workers_busy=busy, put_off=put_off)


def _resume(context: Context, job: JobRecord) -> bool:
    """Resume a paused job whose image folders are all back."""
    folders = [Path(path) for path in job.params.folders]
    if not folders or not all(_is_filled(folder) for folder in folders):
        return False
    with session_scope(context.engine) as session:
        resumed = jobs.resume_job(session, job.id)
    return replan(context, resumed, "its image folders are back")


def _is_filled(path: Path) -> bool:
    """Tell whether a path is a file or a folder that is not empty (like a bare mount point)."""
    try:
        return path.is_file() or next(path.iterdir(), None) is not None
    except OSError:
        return False


def supervise(settings: Settings, identity: str, stop: threading.Event) -> None:
    """Watch until `stop` is set; wait while database or broker do not answer.

    Another database that claims our identity ends the process.
    """
    context = Context(settings, identity=identity)
    next_jobs = next_announcement = 0.0
    troubled = False
    while not stop.wait(_TICK_S):
        try:
            if time.monotonic() >= next_announcement:
                next_announcement = time.monotonic() + ANNOUNCE_EVERY_S
                announce(context)
            searches.tend_all(context)
            if time.monotonic() >= next_jobs:
                next_jobs = time.monotonic() + _JOBS_EVERY_S
                watch_jobs(context)
                watch_segments(context)
            troubled = False
        except PASSING as exc:
            if not troubled:
                _log.warning("waiting for database or broker: %s", exc)
            troubled = True
            context.close()
        except OtherInstallationError as exc:
            UpWatch().end_process(str(exc))
        except Exception:
            # An error in one job must not stop watching the others.
            _log.exception("the watch goes on")
    context.close()
