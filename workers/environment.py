"""Settings as environment variables, for child processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.config import MAX_GROUPS, Settings

__all__ = ["environment"]


def environment(settings: Settings, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment from which `Settings.from_env` reads the same settings.

    Processes start in the data directory, never in the user's working directory: a folder
    ``workers`` there would be imported instead of ours. So a checkout that is not installed is
    added to their path.

    Parameters
    ----------
    settings : Settings
    base : mapping of str to str, optional
        All other variables; default: this process's environment. Its ``VANTAGE_*`` variables are
        dropped.

    Raises
    ------
    ValueError
        A setting from Python cannot be written as a variable.
    """
    source = os.environ if base is None else base
    env = {name: value for name, value in source.items() if not name.startswith("VANTAGE_")}
    groups = settings.serve_groups
    # One flat list, in the order of `Settings.from_env`.
    values: dict[str, object] = {
        "HOME": settings.home,
        "STORE": settings.store,
        "LOCAL": settings.local,
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "REDIS_LISTEN": settings.redis_listen,
        "CACHE_URL": settings.cache_url,
        "CACHE_MB": settings.cache_mb,
        "CACHE_LISTEN": settings.cache_listen,
        "IMAGE_ROOTS": os.pathsep.join(settings.image_roots),
        "HOST": settings.host,
        "SERVE_GROUPS": "all" if len(groups) == MAX_GROUPS else ",".join(map(str, groups)),
        "EXTRACT_PROCESSES": settings.extract_processes,
        "GROUP_THREADS": settings.group_threads,
        "BATCH_SIZE": settings.batch_size,
        "SEARCH_DEADLINE_S": settings.search_deadline_s,
        "HEARTBEAT_S": settings.heartbeat_s,
        "HOST_TIMEOUT_S": settings.host_timeout_s,
        "VISIBILITY_TIMEOUT_S": settings.visibility_timeout_s,
        "COMPACT_ABOVE": settings.compact_above,
        "QUEUED_BYTES": settings.queued_bytes,
        "FLOWER_ADDRESS": settings.flower_address,
        "FLOWER_PORT": settings.flower_port,
        "FLOWER_PASSWORD": settings.flower_password,
        "MAX_BYTES": settings.image_limits.max_bytes,
        "MAX_PIXELS": settings.image_limits.max_pixels,
        "DECODE_MEMORY": settings.image_limits.decode_memory,
        "DECODE_SECONDS": settings.image_limits.decode_seconds,
        "EXTRACTOR": settings.extractor_spec,
        "MAX_SIDE": settings.extractor.max_side,
        "MAX_FEATURES": settings.extractor.max_features,
        "QUERY_MAX_FEATURES": settings.extractor.query_max_features,
        "GROUP_COUNT": settings.index.groups,
        "CELL_SIZE": settings.index.cell_size,
        "VANTAGE_POINTS": settings.index.vantage,
        "CELLS": settings.index.cells,
    }
    env |= {f"VANTAGE_{name}": str(value) for name, value in values.items() if value is not None}
    if Settings.from_env(env) != settings:
        raise ValueError("these settings cannot be given to other processes as variables")
    root = Path(__file__).resolve().parent.parent
    if (root / "pyproject.toml").is_file():
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), env.get("PYTHONPATH")]))
    return env
