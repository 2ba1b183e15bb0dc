"""What happens when a worker of Vantage starts, forks, gets ready and stops.

Celery's signals are global in a process: the worker of another app would get them too. So they are
connected only when a worker of Vantage is created.
"""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading
from collections.abc import Collection
from typing import Any

from celery import signals
from celery.apps.worker import Worker
from celery.exceptions import WorkerLostError
from redis import RedisError

from pipeline.config import Settings
from pipeline.errors import ConfigError, StateError, TransientError, VantageError
from pipeline.installation import check_store, find_installation
from pipeline.metadata.engine import session_scope
from pipeline.metadata.installation import require_identity
from pipeline.store_root import StoreRoot
from workers.celery_private import current_task
from workers.celery_private.transport import dropped_messages
from workers.celery_settings import NO_INSTALLATION
from workers.context import Context, get_context
from workers.heartbeat import Heartbeat, write_between_beats
from workers.job_messages import release
from workers.keys import PROTOCOL
from workers.messages import newer_protocol
from workers.placement import sync_groups, watch_copies
from workers.presence import announce_first
from workers.processes import EXIT_CONFIG, set_death_signal
from workers.queues import EXTRACT, QUERY, REDUCE, group_of, unrouted
from workers.supervise import supervise

__all__ = ["VantageWorker", "roles_of_queues"]

_log = logging.getLogger(__name__)
SUPERVISE = "supervise"

_heartbeat: Heartbeat | None = None
_roles: tuple[str, ...] = ()
_groups: tuple[int, ...] = ()
_draining_began = threading.Event()


def roles_of_queues(queues: Collection[str], pool: object) -> tuple[str, ...]:
    """Return the roles of a worker, from its queues and its kind of pool.

    A worker that does reduce tasks in threads also runs the supervisor in one more thread. A pool
    of processes is forked, when no thread may be using the database.
    """
    roles = [name for name in (EXTRACT, QUERY, REDUCE) if name in queues]
    if any(group_of(name) is not None for name in queues):
        roles.append("group")
    if REDUCE in queues and "thread" in str(pool):
        roles.append(SUPERVISE)
    return tuple(roles)


class _Formatter(logging.Formatter):
    """Adds the task, if there is one. honcho or systemd adds time and process."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        task = current_task()
        request_id = getattr(getattr(task, "request", None), "id", None)
        return f"{text} [{task.name} {request_id}]" if request_id else text


def _set_up_logging(loglevel: int | str = logging.INFO, **_: object) -> None:
    """One plain handler on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=loglevel, handlers=[handler], force=True)
    # Two lines for every task would slow searches down, and Flower shows each task anyway.
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _start(sender: Any, **_: object) -> None:
    """Check the tasks, start heartbeats, fetch the worker's data, before it takes messages.

    Celery only logs an exception of a signal handler, so an error must end the process here.
    """
    global _heartbeat, _roles, _groups
    _set_up_logging()
    lost = unrouted(sender.app.tasks)
    if lost:
        raise SystemExit(f"no queue is decided for {', '.join(lost)}: see workers/queues.py")
    queues = sorted(sender.app.amqp.queues.consume_from)
    _roles = roles_of_queues(queues, sender.pool_cls)
    groups = sorted(group for group in map(group_of, queues) if group is not None)
    _groups = tuple(groups)
    settings = Settings.from_env()
    _check_installation(settings, sender.app, queues)
    try:
        _heartbeat = Heartbeat(
            settings,
            sender.app.installation,
            name=sender.hostname,
            roles=_roles,
            groups=groups,
            details={"queues": queues},
            # The context of a worker whose pool is forked belongs to its processes.
            troubles=_tell_all if groups else _tell_messages,
        )
        _heartbeat.start()
        if groups or QUERY in queues:
            from pipeline.index.warm import warm_up

            warm_up()
        if EXTRACT in queues:
            # Imported before the pool is forked, so that its processes share it; run only in them,
            # because running code may start threads, which do not survive a fork.
            import pipeline.indexing  # noqa: F401

            # Memory is shared with the pool until one of them writes to it, and garbage collection
            # writes to every object that it visits.
            gc.collect()
            gc.freeze()
        if QUERY in queues:
            from pipeline.extraction.registry import warm_up_all

            warm_up_all()
        if groups:
            sync_groups(get_context(), groups)
    except VantageError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


def _tell_messages() -> list[str]:
    """Say which messages this worker could not read, or has put back, if there were any."""
    name = _heartbeat.name if _heartbeat else "a worker"
    told = []
    count = dropped_messages()
    if count:
        text = "message that it could not read" if count == 1 else "messages that it could not read"
        told.append(f"{name} has dropped {count:,} {text}: see the log")
    protocol = newer_protocol()
    if protocol is not None:
        told.append(
            f"{name} puts back messages of protocol {protocol}, as it speaks protocol {PROTOCOL}: "
            "install a newer Vantage there"
        )
    return told


def _tell_all() -> list[str]:
    """Say that, and what this worker cannot read of the store."""
    return [*get_context().troubles.told(), *_tell_messages()]


def _check_installation(settings: Settings, app: Any, queues: Collection[str]) -> None:
    """End the process if database, store or Redis are not those of its installation."""
    context = Context(settings, app)
    try:
        if app.installation == NO_INSTALLATION and find_installation(settings.database_url) is None:
            raise StateError("there is no database yet: run `vantage up` or `vantage migrate`")
        with session_scope(context.engine, write=False) as session:
            require_identity(session, app.installation)
        root = StoreRoot(settings.store)
        # A client of an object store has threads, which do not survive the fork of a pool; its
        # processes check the store themselves.
        if root.on_disk or EXTRACT not in queues:
            check_store(context.engine, root)
        announce_first(context, _log.warning)
    except (TransientError, RedisError) as error:
        _log.warning("the installation is not checked now: %s", error)
    except (StateError, ConfigError) as error:
        _log.error("%s: %s", type(error).__name__, error)
        raise SystemExit(EXIT_CONFIG) from error
    finally:
        context.close()


def _after_fork(**_: object) -> None:
    """Set up a pool process: it dies with its worker, OpenCV uses one thread."""
    set_death_signal(signal.SIGKILL)
    _one_opencv_thread()


def _one_opencv_thread() -> None:
    """Keep OpenCV from starting a thread per core in every process of a pool."""
    import cv2

    cv2.setNumThreads(1)


def _let_go(sender: Any, args: Any, exception: BaseException, **_: object) -> None:
    """Give back the part of a dead pool process after Celery's last retry.

    The worker's main process does this, because the process with the part is gone. Then the
    supervisor plans the part again.
    """
    if not isinstance(exception, WorkerLostError):
        return
    try:
        settings = Settings.from_env()
        write_between_beats(settings, lambda session: release(session, sender.name, list(args)))
    except VantageError:
        _log.exception("the part of %s is not given back", sender.name)


def _ready(sender: Any, **_: object) -> None:
    if SUPERVISE in _roles:
        watch = (Settings.from_env(), sender.app.installation, _draining_began)
        threading.Thread(target=supervise, args=watch, name="supervisor", daemon=True).start()
    if _groups:
        copies = (get_context(), _groups, _draining_began)
        threading.Thread(target=watch_copies, args=copies, name="copies", daemon=True).start()
    if _heartbeat is not None:
        _heartbeat.set_state("ready")


def _draining(**_: object) -> None:
    _draining_began.set()
    if _heartbeat is not None:
        _heartbeat.set_state("draining")


_HANDLERS = (
    (signals.setup_logging, _set_up_logging),
    (signals.worker_init, _start),
    (signals.worker_process_init, _after_fork),
    (signals.task_failure, _let_go),
    (signals.worker_ready, _ready),
    (signals.worker_shutting_down, _draining),
)


class VantageWorker(Worker):
    """Celery's worker with the handlers of this module."""

    def on_before_init(self, **options: Any) -> None:
        """Connect the signals before the first is sent."""
        for signal_of_celery, handler in _HANDLERS:
            signal_of_celery.connect(handler, weak=False)
        super().on_before_init(**options)
