"""The cache's server on this host, a line of the Procfile: ``python -m workers.cache_server``.

Which one it is, `workers.cache_place.role_of` says: the *primary* of this home, a *replica* of the
primary that ``VANTAGE_CACHE_URL`` names, or none. This process becomes the server (``exec``), so it
costs no memory of its own; only a replica that follows Sentinels keeps it, as its parent.
"""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from redis import RedisError

from pipeline.config import Settings
from pipeline.errors import ConfigError, VantageError
from pipeline.redaction import redacted
from workers.cache_config import (
    KEEPER,
    Listen,
    listen_at,
    password_of,
    primary_configuration,
    replica_configuration,
    tls_lines,
)
from workers.cache_follower import follow_sentinels, version_at
from workers.cache_place import CacheServer, role_of, write_down
from workers.processes import EXIT_CONFIG, run_dir, write_private
from workers.redis_rights import USER
from workers.redis_url import RedisAddress, reason
from workers.server_programs import Program, Version, find_server, server_programs, version_of

__all__ = ["main", "run_cache_server", "why_no_replica"]

_log = logging.getLogger(__name__)

_CONF = "cache.conf"
_LONGEST_WAIT_S = 5.0


def run_cache_server(settings: Settings) -> NoReturn:
    """Become the cache's server of this host.

    Raises
    ------
    StateError
        There is no server program.
    ConfigError
        ``VANTAGE_CACHE_URL`` is not usable.
    """
    role = role_of(settings)
    if role.name == "none":
        _stay_without(settings, role.reason)
    if role.name == "primary":
        _become_primary(settings)
    _become_replica(settings)


def _become_primary(settings: Settings) -> NoReturn:
    """Run the primary of this home."""
    program = find_server()
    run = run_dir(settings.home)
    listen = listen_at(run, settings.cache_listen)
    password = password_of(run, kept=settings.cache_listen is not None)
    write_private(run / _CONF, primary_configuration(settings, listen, password))
    write_down(settings.home, CacheServer("primary", listen.url(USER, password)))
    _exec(program, run)


def _become_replica(settings: Settings) -> NoReturn:
    """Run a replica of the primary that the settings name, if there can be one here."""
    assert settings.cache_url is not None
    address = RedisAddress.parse(settings.cache_url, "VANTAGE_CACHE_URL")
    primary, version = _wait_for_primary(settings, address)
    if primary is None:
        _stay_without(settings, "no replica here: the cache is reached by a socket of this machine")
    program = next((one for one in _programs() if one.version.can_replicate(version)), None)
    lacking = why_no_replica(version, program, address)
    if program is None or lacking:
        _stay_without(settings, lacking)
    run = run_dir(settings.home)
    listen, reader = listen_at(run), secrets.token_urlsafe(24)
    keeper = secrets.token_urlsafe(24) if address.master_name is not None else None
    text = replica_configuration(address, primary, listen, (reader, keeper))
    write_private(run / _CONF, text)
    server = CacheServer("replica", listen.url(USER, reader))
    write_down(settings.home, server)
    if keeper is not None:
        follow_sentinels(address, program, run, (primary, _keepers_address(listen, keeper)))
    _exec(program.path, run)


def _keepers_address(listen: Listen, keeper: str) -> RedisAddress:
    """Return the address of a replica for who changes its primary."""
    return RedisAddress.parse(listen.url(KEEPER, keeper))


def _exec(program: Path, run: Path) -> NoReturn:
    """Replace this process by the server; its log is this process's output."""
    os.chdir(run)  # so that no character of the home's path must be quoted
    os.execv(program, [str(program), _CONF])


def _stay_without(settings: Settings, told: str) -> NoReturn:
    """Write down why there is no server here, and stay, as the end of a line means trouble."""
    print(told, flush=True)
    write_down(settings.home, CacheServer("none", reason=told))
    os.execvp("sleep", ["sleep", "infinity"])


def _wait_for_primary(
    settings: Settings, address: RedisAddress
) -> tuple[tuple[str, int] | None, Version]:
    """Return where the primary is, and its version, as soon as it tells them."""
    wait, told = 0.5, False
    while True:
        try:
            return address.server(), version_at(address)
        except (RedisError, OSError) as error:
            text = f"waiting for the cache at {address}: {reason(error)}"
        if not told:
            told = True
            text = redacted(text, set(address.passwords))
            print(text, flush=True)
            write_down(settings.home, CacheServer("waiting", reason=text))
        time.sleep(wait)
        wait = min(_LONGEST_WAIT_S, wait * 2)


def _programs() -> list[Program]:
    """Return the server programs of this machine and their versions."""
    found = ((path, version_of(path)) for path in server_programs())
    return [Program(path, version) for path, version in found if version is not None]


def why_no_replica(primary: Version, program: Program | None, address: RedisAddress) -> str:
    """Return why no replica can run here; empty if one can.

    Parameters
    ----------
    primary : Version
    program : Program or None
        The one that would run.
    address : RedisAddress
        Of the cache.
    """
    if program is None:
        here = ", ".join(str(one.version) for one in _programs()) or "no Redis"
        return (
            f"no replica here: it must be at least as new as the cache's primary, which is "
            f"{primary}; here is {here}; install a newer redis-server or valkey-server"
        )
    lines = tls_lines(address)
    if lines and not _knows(program.path, lines.splitlines()[0]):
        return f"no replica here: {program.path} was built without TLS"
    if lines and "tls-cert-file" not in lines:
        return (
            "no replica here: replication by TLS needs a certificate of this host (?ssl_certfile="
            "FILE&ssl_keyfile=FILE&ssl_ca_certs=FILE in VANTAGE_CACHE_URL)"
        )
    return ""


def _knows(program: Path, line: str) -> bool:
    """Tell whether a server program knows a line of a configuration; it does not start."""
    text = f"{line}\nno-such-option\n"
    done = subprocess.run([program, "-"], input=text, capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    return "no-such-option" in told and f"'{line}'" not in told


def main() -> None:
    """Entry point of ``python -m workers.cache_server``."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        run_cache_server(Settings.from_env())
    except ConfigError as error:
        print(f"ConfigError: {error}", file=sys.stderr)
        raise SystemExit(EXIT_CONFIG) from error
    except VantageError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()
