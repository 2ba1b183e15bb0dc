"""Queues: their names, which task goes where, which of them this host serves.

``python -m workers.queues`` prints the group queues that this host serves (the Procfile's ``-Q``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kombu.entity import Exchange, Queue

from pipeline.config import MAX_GROUPS, Settings

__all__ = [
    "EXTRACT",
    "GROUP_TASKS",
    "QUERY",
    "REDUCE",
    "TASK_ROUTES",
    "group_of",
    "group_queue",
    "queue_names",
    "route",
    "task_queues",
    "unrouted",
]

EXTRACT = "extract"
"""Long map tasks over batches of images: one process per core."""

REDUCE = "reduce"
"""Joins of indexing chords, training, publishing: few, may be long."""

QUERY = "query"
"""First and last step of a search: never behind the other two."""

_GROUP_PREFIX = "group."

TASK_ROUTES: Mapping[str, str] = {
    "extract.batch": EXTRACT,
    "group.assign": EXTRACT,
    "job.register": REDUCE,
    "extract.collect": REDUCE,
    "group.train": REDUCE,
    "group.collect": REDUCE,
    "group.publish": REDUCE,
    "retrieve.prepare": QUERY,
    "retrieve.rank": QUERY,
}
"""Queue of every task that always goes to the same one."""

GROUP_TASKS = frozenset({"group.merge", "retrieve.scan"})
"""Tasks whose caller names the queue: that of the group they work on."""


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
    """Return the group of a queue, or None where the queue is not a group's."""
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

    A group's task without a queue falls through to ``task_default_queue``, a queue that does not
    exist, and so fails where it is sent instead of waiting where nobody reads.
    """
    queue = TASK_ROUTES.get(name)
    if queue is None or (options and "queue" in options):
        return None
    return {"queue": queue}


def unrouted(names: Iterable[str]) -> list[str]:
    """Return the given tasks that no queue was decided for, but for Celery's own."""
    return sorted(
        name
        for name in names
        if not name.startswith("celery.") and name not in TASK_ROUTES and name not in GROUP_TASKS
    )


def main() -> None:
    """Print the group queues that this host serves, joined by commas."""
    print(",".join(group_queue(group) for group in Settings.from_env().serve_groups))


if __name__ == "__main__":
    main()
