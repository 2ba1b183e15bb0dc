"""Queues: their names, which task goes where, which of them this host serves.

``python -m workers.queues`` prints the group queues that this host serves (the Procfile's ``-Q``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kombu.entity import Exchange, Queue

from pipeline.config import MAX_GROUPS, Settings
from pipeline.job_kinds import all_stages

__all__ = [
    "EXTRACT",
    "QUERY",
    "REDUCE",
    "SEARCH_ROUTES",
    "group_of",
    "group_queue",
    "queue_names",
    "route",
    "task_queues",
    "task_routes",
    "unrouted",
]

EXTRACT = "extract"
"""Long map tasks over batches of images: one process per core."""

REDUCE = "reduce"
"""Joins of index chords, training, publishing: few tasks, but possibly long."""

QUERY = "query"
"""First and last step of a search: they never wait behind the other two."""

_GROUP_PREFIX = "group."

SEARCH_ROUTES: Mapping[str, str | None] = {
    "retrieve.prepare": QUERY,
    "retrieve.rank": QUERY,
    "retrieve.scan": None,
}
"""Queue of the tasks of a search; None if the caller names the group's."""


def task_routes() -> dict[str, str | None]:
    """Return the queue of every task; None if the caller names the group's."""
    routes = dict(SEARCH_ROUTES)
    for stage in all_stages():
        routes[stage.task] = None if stage.queue == "group" else stage.queue
        if stage.join:
            routes[stage.join] = REDUCE
    return routes


def group_queue(group: int) -> str:
    """Return the queue of a group, ``group.3``.

    Raises
    ------
    ValueError
        There is no such group.
    """
    if not 0 <= group < MAX_GROUPS:
        raise ValueError(f"group {group} does not exist: groups are 0 to {MAX_GROUPS - 1}")
    return f"{_GROUP_PREFIX}{group}"


def group_of(queue: str) -> int | None:
    """Return the group of a queue, or None for other queues."""
    number = queue.removeprefix(_GROUP_PREFIX)
    if number == queue or not (number.isascii() and number.isdigit()):
        return None
    group = int(number)
    return group if group < MAX_GROUPS and queue == f"{_GROUP_PREFIX}{group}" else None


def queue_names() -> list[str]:
    """Return the name of every queue there is."""
    return [EXTRACT, REDUCE, QUERY, *(group_queue(group) for group in range(MAX_GROUPS))]


def task_queues() -> list[Queue]:
    """Return every queue as Celery wants it; each has an exchange of its own name."""
    return [_queue(name) for name in queue_names()]


def _queue(name: str) -> Queue:
    """Declare one queue."""
    exchange = Exchange(name, type="direct")  # type: ignore[no-untyped-call]
    return Queue(name, exchange, routing_key=name)  # type: ignore[no-untyped-call]


def route(
    name: str,
    args: object = (),
    kwargs: object = None,
    options: Mapping[str, Any] | None = None,
    task: object = None,
    **_: object,
) -> dict[str, str] | None:
    """Route one message (Celery's ``task_routes``).

    A group's task without a queue gets ``task_default_queue``, which does not exist. So it fails
    when sent, instead of waiting in a queue that nobody reads.
    """
    if options and "queue" in options:
        return None
    queue = task_routes().get(name)
    return None if queue is None else {"queue": queue}


def unrouted(names: Iterable[str]) -> list[str]:
    """Return the given tasks without a queue, except Celery's own."""
    known = task_routes()
    return sorted(name for name in names if not name.startswith("celery.") and name not in known)


def main() -> None:
    """Print the group queues that this host serves, joined by commas."""
    print(",".join(group_queue(group) for group in Settings.from_env().serve_groups))


if __name__ == "__main__":
    main()
