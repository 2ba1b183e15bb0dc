"""Configurations of the cache's servers: what they keep, who may do what."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from pipeline.config import Settings
from workers.embedded import LONGEST_SOCKET, is_utf8
from workers.processes import free_port, write_private
from workers.redis_rights import USER
from workers.redis_url import RedisAddress

__all__ = [
    "CACHE_RIGHTS",
    "KEEPER",
    "Listen",
    "listen_at",
    "password_of",
    "primary_configuration",
    "replica_configuration",
    "tls_lines",
]

KEEPER = "keeper"
"""User of the process that has a replica follow another primary."""

CACHE_RIGHTS = "-@all +mget +set +touch +ping +info"
"""Rules of Redis' ACL that suffice for those who use a cache."""

_READ_RIGHTS = "-@all +mget +ping +info"
_REPLICATION = "+psync +sync +replconf"
_KEEPER_RIGHTS = "-@all +replicaof +ping +info"

_SOCKET = "cache.sock"

_COMMON = """\
{listen}
user default off
databases 1
save ""
appendonly no
daemonize no
loglevel warning
rdb-del-sync-files yes
lazyfree-lazy-eviction yes
"""

_PRIMARY = """\
user {user} on >{password} ~vantage:* {rights}
maxmemory {megabytes}mb
maxmemory-policy allkeys-lfu
maxmemory-samples 10
repl-diskless-sync yes
repl-diskless-sync-delay 0
"""

_REPLICA = """\
user {user} on >{password} ~vantage:* {rights}
replicaof {host} {port}
replica-read-only yes
replica-priority 0
replica-announced no
replica-serve-stale-data yes
replica-ignore-maxmemory yes
"""


@dataclass(frozen=True)
class Listen:
    """Where a server listens.

    Attributes
    ----------
    lines : str
        Of its configuration.
    place : str
        A path of a socket, or ``HOST:PORT``.
    """

    lines: str
    place: str

    def url(self, user: str, password: str) -> str:
        """Return the address for a user of this machine."""
        if self.place.startswith("/"):
            return RedisAddress.of_socket(self.place, user, password).our_url()
        return f"redis://{user}:{password}@{self.place}/0"


def listen_at(run: Path, outside: str | None = None) -> Listen:
    """Return where a server of a home listens: at a socket, where one can be, else at a port.

    Parameters
    ----------
    run : Path
        The folder of the home's servers.
    outside : str, optional
        ``ADDRESS:PORT`` where it listens too, for other hosts.
    """
    socket = run / _SOCKET
    has_socket = len(str(socket).encode(errors="surrogateescape")) <= LONGEST_SOCKET
    has_socket = has_socket and is_utf8(socket) and not socket.is_dir()
    lines = [f"unixsocket {_SOCKET}", "unixsocketperm 700"] if has_socket else []
    if outside is None:
        port = 0 if has_socket else free_port()
        lines += [f"port {port}", "bind 127.0.0.1"]
    else:
        address, _, text = outside.rpartition(":")
        port = int(text)
        inside = "" if address in ("127.0.0.1", "0.0.0.0") else "127.0.0.1 "
        lines += [f"port {port}", f"bind {inside}{address.strip('[]')}"]
    return Listen("\n".join(lines), str(socket) if has_socket else f"127.0.0.1:{port}")


def password_of(run: Path, *, kept: bool) -> str:
    """Return the password of a home's cache.

    Parameters
    ----------
    run : Path
        The folder of the home's servers.
    kept : bool
        Other hosts have it in their settings, so it stays the same after a restart.
    """
    path = run / "cache.password"
    if not kept:
        path.unlink(missing_ok=True)
        return secrets.token_urlsafe(24)
    try:
        known = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        known = ""
    if not known:
        known = secrets.token_urlsafe(24)
        write_private(path, known)
    return known


def primary_configuration(settings: Settings, listen: Listen, password: str) -> str:
    """Return the text of a primary's configuration."""
    replicated = settings.cache_listen is not None
    rights = f"{CACHE_RIGHTS} {_REPLICATION}" if replicated else CACHE_RIGHTS
    return _COMMON.format(listen=listen.lines) + _PRIMARY.format(
        user=USER, password=password, rights=rights, megabytes=settings.cache_mb
    )


def replica_configuration(
    address: RedisAddress,
    primary: tuple[str, int],
    listen: Listen,
    passwords: tuple[str, str | None],
) -> str:
    """Return the text of a replica's configuration.

    Parameters
    ----------
    address : RedisAddress
        Of the cache, with the login.
    primary : pair
        Host and port of its primary.
    listen : Listen
    passwords : pair
        Of readers, and of the keeper, if there is one.
    """
    reader, keeper = passwords
    host, port = primary
    text = _COMMON.format(listen=listen.lines) + _REPLICA.format(
        user=USER, password=reader, rights=_READ_RIGHTS, host=quoted(host), port=port
    )
    login = urlsplit(address.urls[0])
    if login.username:
        text += f"masteruser {quoted(unquote(login.username))}\n"
    if login.password:
        text += f"masterauth {quoted(unquote(login.password))}\n"
    if keeper is not None:
        text += f"user {KEEPER} on >{keeper} {_KEEPER_RIGHTS}\n"
    return text + tls_lines(address)


def tls_lines(address: RedisAddress) -> str:
    """Return the lines with which a replica reaches its primary by TLS; none without TLS."""
    parts = urlsplit(address.urls[0])
    if parts.scheme != "rediss":
        return ""
    options = dict(parse_qsl(parts.query))
    files = {
        "tls-ca-cert-file": options.get("ssl_ca_certs"),
        "tls-ca-cert-dir": options.get("ssl_ca_path"),
        "tls-cert-file": options.get("ssl_certfile"),
        "tls-key-file": options.get("ssl_keyfile"),
    }
    lines = [f"{name} {quoted(path)}" for name, path in files.items() if path]
    return "\n".join(["tls-replication yes", *lines, ""])


def quoted(text: str) -> str:
    """Return a text as one word of a configuration, whatever its characters are."""
    return (
        '"'
        + "".join(
            character
            if (character.isascii() and character.isalnum()) or character in "-._:/"
            else "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogateescape"))
            for character in text
        )
        + '"'
    )
