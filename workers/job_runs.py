"""Run a job of a collection to its end, in this process or by workers."""

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

    If Ctrl-C or an exception of `report` ends the wait, workers go on with their job. A job of this
    process stops; what it has done is kept, and the same job continues from there.

    Parameters
    ----------
    collection : Collection
    begin : callable
        Begins the job: ``Collection.rebuild``, say.
    report : callable
        Called from any thread with a `JobProgress`, and whether no worker is left to continue.
    wait : bool
        False: leave it to the workers and return at once.

    Returns
    -------
    JobProgress
        The outcome; the job may have failed.
    """
    engine, settings = collection.resources.engine, collection.resources.settings
    if collection.local:
        with watched(engine, lambda progress: report(progress, False)) as own:
            return begin(collection, own).progress()
    handle = begin(collection, None)
    if not wait:
        return handle.progress()
    return follow_job(engine, handle.id, report, settings.host_timeout_s)
