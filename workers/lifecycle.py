"""What happens when a Celery worker starts, forks, gets ready and stops."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Any

from celery import signals
from celery._state import get_current_task
from celery.exceptions import WorkerLostError

from pipeline.config import Settings
from pipeline.errors import VantageError
from workers.processes import set_death_signal
from workers.queues import EXTRACT, QUERY, REDUCE, group_of, unrouted

__all__ = ["kind_of_queues"]

_log = logging.getLogger(__name__)
_heartbeat: Any = None


def kind_of_queues(queues: list[str]) -> str:
    """Return the kind of a worker from what it consumes; one group's queue makes a group worker."""
    if any(group_of(name) is not None for name in queues):
        return "group"
    return next((name for name in (EXTRACT, REDUCE, QUERY) if name in queues), "other")


class _Formatter(logging.Formatter):
    """Adds the task, when there is one. Time and process are added by honcho or systemd."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        task = get_current_task()
        request_id = getattr(getattr(task, "request", None), "id", None)
        return f"{text} [{task.name} {request_id}]" if request_id else text


@signals.setup_logging.connect(weak=False)
def _set_up_logging(loglevel: int | str = logging.INFO, **_: object) -> None:
    """One plain handler on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=loglevel, handlers=[handler], force=True)
    # Two lines for every task cost a search more than they tell: Flower shows each task.
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


@signals.worker_init.connect(weak=False)
def _start(sender: Any, **_: object) -> None:
    """Check the tasks, begin to beat, fetch what this worker serves: before anything is consumed.

    Celery logs an exception of a signal handler and goes on, so trouble ends the process here.
    """
    global _heartbeat
    from workers.heartbeat import Heartbeat

    _set_up_logging()
    lost = unrouted(sender.app.tasks)
    if lost:
        raise SystemExit(f"no queue is decided for {', '.join(lost)}: see workers/queues.py")
    queues = sorted(sender.app.amqp.queues.consume_from)
    groups = sorted(group for group in map(group_of, queues) if group is not None)
    try:
        _heartbeat = Heartbeat(
            Settings.from_env(),
            name=sender.hostname,
            kind=kind_of_queues(queues),
            groups=groups,
            details={"queues": queues},
        )
        _heartbeat.start()
        if groups or QUERY in queues:
            from pipeline.index.warm import warm_up

            warm_up()
        if EXTRACT in queues or QUERY in queues:
            from pipeline.extraction.registry import warm_up_all

            # Before the pool is forked: its processes find everything compiled.
            warm_up_all()
        if groups:
            from workers.context import get_context
            from workers.placement import sync_groups

            sync_groups(get_context(), groups)
    except VantageError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


@signals.worker_process_init.connect(weak=False)
def _after_fork(**_: object) -> None:
    """Set up a pool process: it dies with its worker, OpenCV uses one thread."""
    set_death_signal(signal.SIGKILL)
    _one_opencv_thread()


def _one_opencv_thread() -> None:
    """Keep OpenCV from starting a thread per core in every process of a pool."""
    import cv2

    cv2.setNumThreads(1)


@signals.task_failure.connect(weak=False)
def _let_go(sender: Any, args: Any, exception: BaseException, **_: object) -> None:
    """Give back the part of a pool process that died for the last time that Celery tries.

    Sent in the worker's main process: the one that knew the part is gone. Nobody has the part then,
    and the watchman plans it again.
    """
    if not isinstance(exception, WorkerLostError):
        return
    from workers.heartbeat import write_between_beats
    from workers.jobs import release

    try:
        settings = Settings.from_env()
        write_between_beats(settings, lambda session: release(session, sender.name, list(args)))
    except VantageError:
        _log.exception("the part of %s is not given back", sender.name)


@signals.worker_ready.connect(weak=False)
def _ready(**_: object) -> None:
    if _heartbeat is not None:
        _heartbeat.set_state("ready")


@signals.worker_shutting_down.connect(weak=False)
def _draining(**_: object) -> None:
    if _heartbeat is not None:
        _heartbeat.set_state("draining")
