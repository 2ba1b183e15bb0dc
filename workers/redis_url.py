"""Redis addresses: one URL from the user, the several forms that Celery and redis-py want."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from pipeline.errors import ConfigError

__all__ = ["NO_BROKER_URL", "RedisAddress", "without_password"]

NO_BROKER_URL = "redis://127.0.0.1:1/0"
"""Used if no broker is known: nothing listens on port 1, so every use fails at once. Celery's
default would be a RabbitMQ server, and port 6379 might be another program's Redis.
"""

_SCHEMES = ("redis", "rediss", "sentinel")
_ALLOWED = (
    "must be like redis://[:PASSWORD@]HOST[:PORT][/DB], rediss://... or "
    "sentinel://HOST:26379;sentinel://HOST:26379?master_name=NAME"
)
_CREDENTIALS = re.compile(r"(?<=://)[^/@;\s]*@")


def without_password(url: str) -> str:
    """Return a URL (or several, joined by ``;``) fit for logs and error messages."""
    return _CREDENTIALS.sub("***@", url)


@dataclass(frozen=True)
class RedisAddress:
    """A parsed ``VANTAGE_REDIS_URL``.

    The number after the slash (default 0) is the broker's database; results, query features and
    distance blocks are in the next one, so that flushing one does not affect the other.

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
    def parse(cls, url: str) -> RedisAddress:
        """Read a URL.

        Raises
        ------
        ConfigError
            The scheme is not redis, rediss or sentinel, or the database is not a number.
        """
        safe = without_password(url)
        parts = [urlsplit(part) for part in url.split(";") if part]
        if not parts or any(part.scheme not in _SCHEMES or not part.hostname for part in parts):
            raise ConfigError("VANTAGE_REDIS_URL", safe, _ALLOWED)
        sentinel = parts[0].scheme == "sentinel"
        if len({part.scheme for part in parts}) > 1 or (len(parts) > 1 and not sentinel):
            raise ConfigError("VANTAGE_REDIS_URL", safe, _ALLOWED)
        database, master, urls = 0, "mymaster", []
        for part in parts:
            text = part.path.strip("/")
            if not re.fullmatch(r"\d{0,6}", text):
                raise ConfigError(
                    "VANTAGE_REDIS_URL", safe, "the database after / must be a number"
                )
            database = int(text) if text else database
            query = dict(parse_qsl(part.query))
            master = query.pop("master_name", master)
            if part.scheme == "rediss":
                # Celery requires an option about certificates for TLS; checking them is the safe
                # choice.
                query.setdefault("ssl_cert_reqs", "required")
            urls.append(urlunsplit(part._replace(path="", query=urlencode(query), fragment="")))
        return cls(tuple(urls), database, master if sentinel else None)

    def url(self, database: int) -> str:
        """Return the URL form of Celery for one database."""
        parts = (urlsplit(url)._replace(path=f"/{database}") for url in self.urls)
        return ";".join(urlunsplit(part) for part in parts)

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
        return without_password(self.broker_url)

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
            return redis.Redis.from_url(self.url(number), **options)
        parts = [urlsplit(url) for url in self.urls]
        if parts[0].password:
            options["password"] = unquote(parts[0].password)
        if parts[0].username:
            options["username"] = unquote(parts[0].username)
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            [(part.hostname, part.port or 26379) for part in parts],
            sentinel_kwargs=self.transport_options["sentinel_kwargs"],
        )
        client: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
            self.master_name, db=number, **options
        )
        return client
