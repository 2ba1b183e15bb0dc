"""Redis addresses: one URL from the user, the several forms that Celery and redis-py want."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from pipeline.errors import ConfigError
from pipeline.redaction import without_secrets
from workers.io_deadline import keep_in_time
from workers.keys import PROBE, PROBE_KEEP_S

__all__ = ["NO_BROKER_URL", "RedisAddress", "reason", "try_to_write"]

NO_BROKER_URL = "redis://127.0.0.1:1/0"
"""Used if no broker is known: nothing listens on port 1, so every use fails at once. Celery's
default would be a RabbitMQ server, and port 6379 might be another program's Redis.
"""

_NETWORK = ("redis", "rediss", "sentinel")
_SOCKET = ("unix", "redis+socket")
_ALLOWED = (
    "must be like redis://[[USER]:PASSWORD@]HOST[:PORT][/DB], rediss://..., "
    "unix://[[USER]:PASSWORD@]/PATH/OF/A/SOCKET[?db=DB] or "
    "sentinel://HOST:26379;sentinel://HOST:26379?master_name=NAME; characters other than letters, "
    "digits and -._~ of a password are written as %XX"
)


@dataclass(frozen=True)
class RedisAddress:
    """A parsed ``VANTAGE_REDIS_URL``.

    Its database (default 0) is the broker's; results, query features and distance blocks are in
    the next one, so that flushing one does not affect the other.

    Attributes
    ----------
    urls : tuple of str
        One URL, or one per Sentinel, without the database and our own query keys.
    broker_db : int
    master_name : str or None
        Name of the Sentinel group; None without Sentinel.
    """

    urls: tuple[str, ...] = field(repr=False)
    broker_db: int = 0
    master_name: str | None = None

    @classmethod
    def parse(cls, url: str, variable: str = "VANTAGE_REDIS_URL") -> RedisAddress:
        """Read a URL.

        Parameters
        ----------
        url : str
        variable : str
            Where it comes from.

        Raises
        ------
        ConfigError
            The URL has not one of the forms that are known, or an option that nobody knows.
        """
        try:
            address = cls._parse(url)
            address._try_options()
            return address
        except ValueError as error:
            told = str(error) if isinstance(error, _WrongError) else _ALLOWED
            raise ConfigError(variable, without_secrets(url), told) from None

    @classmethod
    def _parse(cls, url: str) -> RedisAddress:
        """Read a URL; a ValueError says that it has another form."""
        parts = [urlsplit(part) for part in url.split(";") if part]
        if not parts:
            raise _WrongError(_ALLOWED)
        if parts[0].scheme in _SOCKET:
            return cls._of_socket(parts)
        sentinel = parts[0].scheme == "sentinel"
        if len({part.scheme for part in parts}) > 1 or (len(parts) > 1 and not sentinel):
            raise _WrongError(_ALLOWED)
        database, master, urls = 0, "mymaster", list[str]()
        for part in parts:
            if part.scheme not in _NETWORK or not part.hostname or part.port == 0:
                raise _WrongError(_ALLOWED)
            text = part.path.strip("/")
            query = dict(parse_qsl(part.query))
            master = query.pop("master_name", master)
            text = query.pop("db", query.pop("virtual_host", text))
            database = _database(text) if text else database
            if part.scheme == "rediss":
                # Celery requires an option about certificates for TLS; checking them is the safe
                # choice.
                query.setdefault("ssl_cert_reqs", "required")
            # The first one's login is that of the server. Celery's own masking of addresses knows
            # of no further one.
            part = _with_login(part, query)
            if sentinel:
                _refuse_options(query)
            place = part.netloc if not urls else part.netloc.rpartition("@")[2]
            urls.append(urlunsplit(part._replace(netloc=place, path="", fragment="")))
        return cls(tuple(urls), database, master if sentinel else None)

    def _try_options(self) -> None:
        """Make a connection without opening it; a ValueError says that an option is wrong."""
        if self.master_name is not None:
            return
        try:
            self.client().connection_pool.make_connection()
        except Exception as error:  # of every kind, by the option
            # A name that it does not know is the argument of a function for redis-py.
            told = str(error).rpartition("unexpected keyword argument ")[2]
            raise _WrongError(f"an option after ? is wrong or not known: {told}") from None

    @classmethod
    def _of_socket(cls, parts: list[SplitResult]) -> RedisAddress:
        """Return the address of a Unix socket."""
        (part, *others) = parts
        query = dict(parse_qsl(part.query))
        text = query.pop("db", query.pop("virtual_host", ""))
        if others or part.hostname or part.fragment or part.path in ("", "/"):
            raise _WrongError(_ALLOWED)
        part = _with_login(part, query)
        _refuse_options(query)
        return cls((f"unix://{part.netloc}{part.path}",), _database(text) if text else 0)

    @classmethod
    def of_socket(cls, path: str, user: str, password: str) -> RedisAddress:
        """Return the address of a server that listens at a Unix socket."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return cls((f"unix://{login}@{quote(path)}",))

    @property
    def is_socket(self) -> bool:
        """Whether it names a Unix socket."""
        return self.urls[0].startswith("unix:")

    def url(self, database: int) -> str:
        """Return the URL form of Celery for one database."""
        if self.is_socket:
            part = urlsplit(self.urls[0])
            return f"redis+socket://{part.netloc}{part.path}?virtual_host={database}"
        parts = (urlsplit(url)._replace(path=f"/{database}") for url in self.urls)
        return ";".join(urlunsplit(part) for part in parts)

    def client_url(self, database: int) -> str:
        """Return the URL form of redis-py for one database; not for Sentinels."""
        return f"{self.urls[0]}?db={database}" if self.is_socket else self.url(database)

    def our_url(self) -> str:
        """Return the URL as a user writes it."""
        return self.client_url(self.broker_db)

    @property
    def broker_url(self) -> str:
        """URL for ``broker_url``."""
        return self.url(self.broker_db)

    @property
    def result_url(self) -> str:
        """URL for ``result_backend``."""
        return self.url(self.broker_db + 1)

    @property
    def passwords(self) -> tuple[str, ...]:
        """The secrets in the URL, as written and decoded, to be kept out of logs."""
        found = {urlsplit(url).password or "" for url in self.urls}
        return tuple(sorted({*found, *map(unquote, found)} - {""}))

    @property
    def transport_options(self) -> dict[str, Any]:
        """Options for Celery besides the URL."""
        if self.master_name is None:
            return {}
        return {"master_name": self.master_name, "sentinel_kwargs": {"socket_timeout": 2.0}}

    def __str__(self) -> str:
        return without_secrets(self.our_url())

    def client(
        self,
        database: int | None = None,
        *,
        timeout_s: float | None = 5.0,
        connect_timeout_s: float = 2.0,
        retries: int = 0,
    ) -> redis.Redis:
        """Return a client that answers bytes.

        Parameters
        ----------
        database : int, optional
            Default: the results' database.
        timeout_s : float or None
            Seconds to wait for an answer; None for clients that block on purpose.
        connect_timeout_s : float
            Seconds to wait for a connection.
        retries : int
            Times a command is sent again after a lost connection. redis-py's default of 3 may
            repeat a write that is not safe to repeat (RPUSH), so it is 0 here.
        """
        number = self.broker_db + 1 if database is None else database
        options: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": connect_timeout_s,
            "retry": Retry(ExponentialBackoff(cap=0.5, base=0.01), retries),
            "health_check_interval": 10,
        }
        if self.master_name is None:
            return keep_in_time(redis.Redis.from_url(self.client_url(number), **options))
        return keep_in_time(self._sentinel_client(number, options))

    def server(self) -> tuple[str, int] | None:
        """Return host and port of the server, asking the Sentinels; None for a socket.

        Raises
        ------
        RedisError
            The Sentinels do not answer, or know of no primary.
        """
        if self.is_socket:
            return None
        if self.master_name is None:
            part = urlsplit(self.urls[0])
            return str(part.hostname), part.port or 6379
        options = {"socket_connect_timeout": 2.0, "retry": Retry(ExponentialBackoff(), 0)}
        host, port = self._sentinel(options).discover_master(  # type: ignore[no-untyped-call]
            self.master_name
        )
        return str(host), int(port)

    def at(self, host: str, port: int) -> RedisAddress:
        """Return the address of a server that the Sentinels name, with the same login."""
        login = urlsplit(self.urls[0]).netloc.rpartition("@")
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return RedisAddress((f"redis://{login[0]}{login[1]}{place}",), self.broker_db)

    def _sentinel(self, options: dict[str, Any]) -> Sentinel:
        """Return a client of the Sentinels."""
        parts = [urlsplit(url) for url in self.urls]
        # Without these, asking two Sentinels that are away takes nine seconds.
        asking = {name: options[name] for name in ("socket_connect_timeout", "retry")}
        return Sentinel(  # type: ignore[no-untyped-call]
            [(part.hostname, part.port or 26379) for part in parts],
            sentinel_kwargs={**self.transport_options["sentinel_kwargs"], **asking},
        )

    def _sentinel_client(self, database: int, options: dict[str, Any]) -> redis.Redis:
        """Return a client of the server that the Sentinels name."""
        first = urlsplit(self.urls[0])
        sentinel = self._sentinel(options)
        if first.password:
            options["password"] = unquote(first.password)
        if first.username:
            options["username"] = unquote(first.username)
        client: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
            self.master_name, db=database, **options
        )
        return client


def reason(error: Exception) -> str:
    """Return what Redis or its library said; of Sentinels, without the whole configuration."""
    return str(error).partition(" : <redis.")[0]


def try_to_write(client: redis.Redis) -> None:
    """Raise what Redis answers to one who writes; a replica answers to a ping as well."""
    client.set(PROBE, b"1", ex=PROBE_KEEP_S)


class _WrongError(ValueError):
    """What is wrong with a URL, for users."""


def _database(text: str) -> int:
    """Return the number of a database."""
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise _WrongError("the database after / must be a number")
    return int(text)


def _refuse_options(query: dict[str, str]) -> None:
    """Refuse what is left of an address whose options nobody would read."""
    if query:
        raise _WrongError(
            "an option after ? is not known: known are db, username, password and, of Sentinels, "
            "master_name"
        )


def _with_login(part: SplitResult, query: dict[str, str]) -> SplitResult:
    """Move user and password of the query, where redis-py takes them too, before the host."""
    user = query.pop("username", unquote(part.username or ""))
    password = query.pop("password", unquote(part.password or ""))
    place = part.netloc.rpartition("@")[2]
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    return part._replace(netloc=login + place, query=urlencode(query))
