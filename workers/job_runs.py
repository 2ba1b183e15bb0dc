"""A job of a collection from its beginning to its end, in this process or by workers."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.driver import JobHandle, Report
from pipeline.following import follow_job, watched
from pipeline.metadata.records import JobProgress
from workers.collection import Collection

__all__ = ["Begin", "do_job"]

Begin = Callable[[Collection, Report | None], JobHandle]
"""Begins a job, as ``Collection.rebuild`` does."""


def do_job(
    collection: Collection,
    begin: Begin,
    report: Callable[[JobProgress, bool], None],
    *,
    wait: bool = True,
) -> JobProgress:
    """Do a job in this process, or let the workers do it and follow it.

    When an exception of `report` or Ctrl-C ends the wait, a job of workers goes on. What this
    process has done is kept, and the same job goes on from there.

    Parameters
    ----------
    collection : Collection
    begin : callable
        Begins the job: ``Collection.rebuild``, say.
    report : callable
        Called from any thread with a `JobProgress`, and whether nobody is there to go on.
    wait : bool
        False: leave it to the workers and return at once.

    Returns
    -------
    JobProgress
        What became of it; it may have failed.
    """
    engine, settings = collection.resources.engine, collection.resources.settings
    if collection.local:
        with watched(engine, lambda progress: report(progress, False)) as own:
            return begin(collection, own).progress()
    handle = begin(collection, None)
    if not wait:
        return handle.progress()
    return follow_job(engine, handle.id, report, settings.host_timeout_s)
