"""Which cache a home has, and where its server is (``home/run/cache.json``).

A cache has one *primary*, which takes what is written, and any number of *replicas*, one a host,
which answer most reads.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config import Settings
from workers.processes import is_the_one, read_json, run_dir, start_time, write_private

__all__ = [
    "CACHE_FILE",
    "CacheServer",
    "Role",
    "forget_cache_server",
    "role_of",
    "running_cache_server",
    "write_down",
]

CACHE_FILE = "cache.json"
_FILES = (CACHE_FILE, "cache.conf", "cache.sock")

State = Literal["primary", "replica", "none", "waiting"]


@dataclass(frozen=True)
class Role:
    """What the settings of a host make of its cache server.

    Attributes
    ----------
    name : {"primary", "replica", "none"}
    reason : str
        Why there is no shared cache; empty if there is one.
    """

    name: Literal["primary", "replica", "none"]
    reason: str = ""


@dataclass(frozen=True)
class CacheServer:
    """The cache server of a home.

    Attributes
    ----------
    state : {"primary", "replica", "none", "waiting"}
        ``none``: there is no replica here; ``waiting``: for the primary.
    url : str or None
        Its address with the password, if one runs here.
    reason : str
        Why none runs.
    """

    state: State
    url: str | None = None
    reason: str = ""


def role_of(settings: Settings) -> Role:
    """Return what the settings ask for."""
    if not settings.caches:
        return Role("none", "no shared cache: VANTAGE_CACHE_URL is off")
    if settings.cache_url is not None:
        return Role("replica")
    if settings.cache_listen is not None or _runs_our_redis(settings):
        return Role("primary")
    return Role("none", "no shared cache: VANTAGE_REDIS_URL is given without VANTAGE_CACHE_URL")


def _runs_our_redis(settings: Settings) -> bool:
    """Tell whether the Redis of these settings is the one that `vantage up` has started."""
    if settings.redis_url is None:
        return True
    known = read_json(settings.home / "run" / "redis.json")
    return known is not None and known.get("url") == settings.redis_url


def write_down(home: Path, server: CacheServer) -> None:
    """Tell other processes on this home where this process's server is; it replaces the process."""
    run = run_dir(home)
    pid = os.getpid()
    record = {"state": server.state, "url": server.url, "reason": server.reason, "pid": pid}
    record |= {"started": start_time(pid), "run": run.stat().st_ino}
    write_private(run / CACHE_FILE, json.dumps(record))


def running_cache_server(home: Path) -> CacheServer | None:
    """Return the cache server of a home; None if none runs, or it is another user's."""
    run = home / "run"
    known = read_json(run / CACHE_FILE)
    try:
        if known is None or not is_the_one(known, run):
            return None
    except (OSError, ValueError, TypeError):
        return None
    return _read(known)


def _read(known: dict[str, Any]) -> CacheServer | None:
    """Return what was written down; None if it is something else."""
    url, state = known.get("url"), known.get("state")
    if state not in ("primary", "replica", "none", "waiting"):
        return None
    if url is not None and not isinstance(url, str):
        return None
    return CacheServer(state, url, str(known.get("reason", "")))


def forget_cache_server(home: Path) -> None:
    """Remove the files of a cache server that runs no longer."""
    for name in _FILES:
        (home / "run" / name).unlink(missing_ok=True)
