"""Celery's settings, each with its reason."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from pipeline.config import Settings
from pipeline.errors import DatabaseUnavailableError, StateError
from workers import queues
from workers.embedded import discover_redis_url
from workers.keys import Keys
from workers.redis_url import NO_BROKER_URL, RedisAddress

__all__ = [
    "NO_INSTALLATION",
    "celery_settings",
    "identity_of_environment",
    "settings_of_environment",
]

NO_INSTALLATION = "none"
"""Stands for the identity while there is no usable database; a worker does not start with it."""

_AGAIN_S = 5.0


def settings_of_environment() -> dict[str, Any]:
    """Return the Celery settings of this environment; `celery -A workers.app` runs with them.

    This works without a reachable broker; sending a message does not.
    """
    settings = Settings.from_env()
    url = discover_redis_url(settings) or NO_BROKER_URL
    keys = Keys(identity_of_environment(settings))
    return celery_settings(settings, RedisAddress.parse(url), keys)


def identity_of_environment(settings: Settings) -> str:
    """Return the identity of the database; `NO_INSTALLATION` if it has none that can be used.

    The processes of ``vantage up`` are told. Others read it, and wait for a database that does not
    answer: without it they do not know which messages are theirs.
    """
    told = os.environ.get("VANTAGE_INSTALLATION")
    if told:
        return told
    from pipeline.installation import find_installation

    while True:
        try:
            own = find_installation(settings.database_url)
        except DatabaseUnavailableError as error:
            print(f"waiting for the database: {error}", file=sys.stderr, flush=True)
            time.sleep(_AGAIN_S)
        except StateError:
            return NO_INSTALLATION  # a worker says so when it starts
        else:
            return NO_INSTALLATION if own is None else own.identity


def celery_settings(settings: Settings, address: RedisAddress, keys: Keys) -> dict[str, Any]:
    """Return Celery's settings by name.

    Parameters
    ----------
    settings : Settings
    address : RedisAddress
        Redis is broker and result store, in two databases of one server.
    keys : Keys
        Of the installation: everything that Celery keeps in Redis, its channels for events and
        remote control too, has their prefix.
    """
    timeout_s = settings.visibility_timeout_s
    return _FIXED | {
        "redis_socket_keepalive": not address.is_socket,
        "broker_url": address.broker_url,
        "result_backend": address.result_url,
        "task_queues": queues.task_queues(),
        # An unacknowledged message is delivered again after the visibility timeout. It must exceed
        # the longest batch, or slow ones run twice: harmless, as every task may, but wasted. The
        # shortest value among all clients of a broker wins, so it is set in all three places that
        # read it.
        "visibility_timeout": timeout_s,
        "broker_transport_options": {
            "global_keyprefix": keys.prefix,
            "visibility_timeout": timeout_s,
            # Looked for every 5 s (defaults: 10 s x 10).
            "unacked_restore_interval": min(5, max(1, timeout_s // 4)),
            "unacked_restore_throttle": 1,
            "priority_steps": [0],  # one list per queue: BRPOP names queues x steps keys
            "socket_timeout": 10,  # kombu's default waits for ever on a dead peer
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 10,
            **address.transport_options,
        },
        "result_backend_transport_options": {
            "global_keyprefix": keys.prefix,
            "visibility_timeout": timeout_s,
            "retry_policy": {"timeout": 5.0},
            **address.transport_options,
        },
        # Time limits work only in prefork pools (extraction). The soft one comes first, so that a
        # batch can say what it was doing; both are below the visibility timeout, or the message
        # would run twice.
        "task_soft_time_limit": max(1.0, timeout_s * 0.8),
        "task_time_limit": max(2.0, timeout_s * 0.9),
    }


_FIXED: dict[str, Any] = {
    "broker_connection_retry_on_startup": True,  # workers may start before Redis is up
    "broker_connection_max_retries": None,  # a worker outlives any outage
    "redis_socket_timeout": 10.0,
    "redis_socket_connect_timeout": 2.0,
    "redis_backend_health_check_interval": 10,
    # JSON only: whoever can write to Redis must not be able to run code through pickle.
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    "task_serializer": "json",
    "result_serializer": "json",
    "event_serializer": "json",
    "timezone": "UTC",
    "enable_utc": True,
    # Acknowledge after the work: by default (before it), a worker killed with SIGKILL loses the
    # message, and its chord hangs for ever.
    "task_acks_late": True,
    "task_acks_on_failure": True,  # an error is an answer, not a reason to run again
    "task_acks_on_timeout": False,  # a task killed by the hard limit runs again, with more care
    # When a pool process dies (out of memory, a crash in a decoder), its task is retried and
    # counted against max_retries, so that an image that always kills it cannot loop. The delay is
    # the task's default_retry_delay, 180 s by default: every task gets 1 s.
    "task_reject_on_worker_lost": True,
    "task_retry_on_worker_lost": True,
    "task_annotations": {"*": {"default_retry_delay": 1}},
    "worker_prefetch_multiplier": 1,  # with late acks: nothing waits reserved behind a long batch
    "worker_cancel_long_running_tasks_on_connection_loss": False,  # finished work is found by name
    # All queues are declared: a typo fails when sending, instead of making a queue that nobody
    # reads. The default queue does not exist on purpose (see `workers.queues.route`).
    "task_routes": (queues.route,),
    "task_create_missing_queues": False,
    "task_default_queue": "no-queue-was-given",
    # Results are small and read within seconds. A chord's state must outlive the longest gap
    # between two of its tasks, or the chord hangs silently: a day.
    "result_expires": 3600,
    "result_chord_expires": 86_400,
    "result_extended": False,
    "worker_consumer": "workers.consumer:VantageConsumer",
    "worker_max_tasks_per_child": 1000,  # bounds slow leaks in image decoders
    "worker_proc_alive_timeout": 30.0,  # a busy two-core machine needs more than the default 4 s
    # REMAP_SIGTERM=SIGQUIT (set by `vantage up`) makes a stop give running tasks these seconds,
    # then puts them back into their queues.
    "worker_soft_shutdown_timeout": 3.0,
    "worker_hijack_root_logger": False,  # `workers.lifecycle` sets logging up
    "worker_redirect_stdouts": False,
    "worker_disable_rate_limits": True,
    "worker_enable_remote_control": True,  # Flower and `celery inspect`
    "worker_send_task_events": True,  # for Flower: names, arguments, times of every task
    "task_send_sent_event": True,
    "task_track_started": False,  # one more write per task; events tell the same
}
