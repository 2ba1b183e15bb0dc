"""A replica of the cache that follows its primary from server to server, as Sentinels name it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from redis import RedisError

from workers.processes import die_with_parent, stop_process
from workers.redis_url import RedisAddress
from workers.server_programs import Program, Version

__all__ = ["follow_sentinels", "version_at"]

_ASK_EVERY_S = 1.0
_STOP_S = 3.0


def follow_sentinels(
    address: RedisAddress,
    program: Program,
    run: Path,
    followed: tuple[tuple[str, int], RedisAddress],
) -> NoReturn:
    """Run a replica, and have it replicate whichever primary the Sentinels name.

    Sentinels do not know of the replica (``replica-announced no``), so they never make it a
    primary, nor do they tell it of another one. It ends with its server.

    Parameters
    ----------
    address : RedisAddress
        Of the Sentinels.
    program : Program
    run : Path
        The folder with its configuration.
    followed : pair
        The primary in the configuration, and the address of the replica for the user who may give
        it another one.
    """
    server = subprocess.Popen(
        [str(program.path), "cache.conf"],
        cwd=run,
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_parent(signal.SIGKILL),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(stop_process(server, _STOP_S)))
    primary, replica = followed
    while server.poll() is None:
        time.sleep(_ASK_EVERY_S)
        try:
            named = address.server()
            if named is not None and named != primary:
                _require_fitting(address, program)
                _replicate(replica, named)
                print(f"the cache's primary is {named[0]}:{named[1]} now", flush=True)
                primary = named
        except (RedisError, OSError):
            continue  # asked again: until then it has what it has
        except _TooOldError:
            stop_process(server, _STOP_S)
            print("the cache's new primary is newer than this replica", flush=True)
            raise SystemExit(1) from None  # started again, it says that none can run here
    raise SystemExit(server.returncode or 1)


def version_at(address: RedisAddress) -> Version:
    """Ask a server for its version.

    Raises
    ------
    RedisError
        It does not answer, or does not tell it.
    """
    client = address.client(0, timeout_s=2.0)
    try:
        found = Version.of_info(client.info("server"))
    finally:
        client.close()
    if found is None:
        raise RedisError("it does not tell its version")
    return found


class _TooOldError(Exception):
    """The new primary is newer than the replica."""


def _require_fitting(address: RedisAddress, program: Program) -> None:
    """Raise if a replica cannot read the snapshots of the new primary."""
    if not program.version.can_replicate(version_at(address)):
        raise _TooOldError


def _replicate(replica: RedisAddress, primary: tuple[str, int]) -> None:
    """Give a replica another primary."""
    client = replica.client(0)
    try:
        client.execute_command("REPLICAOF", *primary)  # type: ignore[no-untyped-call]
    finally:
        client.close()
