"""What Vantage keeps in Redis beside Celery's own: its names, its version, how long it is kept."""

from __future__ import annotations

import time
from dataclasses import dataclass

KEEP_S = 600
"""Time to live of a search's keys in Redis, after its deadline."""

PUT_OFF_KEEP_S = 15
"""Time to live of the note that a job's merge was postponed."""


CLAIM_KEEP_S = 30
"""Time to live of the note which database has an identity; workers write it again before."""

PROTOCOL = 1
"""Version of the messages and of what searches keep in Redis. A release that changes either so that
a former one would misread it has the next number."""

PREFIX = "vantage"
"""What all keys begin with, whoever's they are."""

PROBE = f"{PREFIX}:probe"
"""A key that is written to see whether Redis takes it."""

PROBE_KEEP_S = 60
"""Time to live of a probe."""

INSTALLATIONS = f"{PREFIX}:installations"
"""Hash of the results' database: who uses this Redis, identity -> JSON; for people only."""


@dataclass(frozen=True)
class Keys:
    """Keys of one installation.

    Parameters
    ----------
    identity : str
        Of the installation: several may share a Redis.
    """

    identity: str

    @classmethod
    def of_prefix(cls, prefix: str) -> Keys:
        """Inverse of `prefix`."""
        return cls(prefix.split(":")[1])

    @property
    def prefix(self) -> str:
        """What every key of the installation begins with, those of Celery too."""
        return f"{PREFIX}:{self.identity}:"

    def queue(self, name: str) -> str:
        """The list of a queue, in the broker's database; Celery makes it."""
        return f"{self.prefix}{name}"

    @property
    def claim(self) -> str:
        """The address of the database with this identity; kept `CLAIM_KEEP_S`."""
        return f"{self.prefix}database"

    @property
    def epoch(self) -> str:
        """The broker's epoch; kept until Redis loses its data."""
        return f"{self.prefix}epoch"

    @property
    def in_flight(self) -> str:
        """Sorted set of the enqueued searches: id -> when to check it next.

        It has no time to live: a search is taken out when it ends.
        """
        return f"{self.prefix}searches"

    @property
    def pace(self) -> str:
        """Hash of how long scans take: group -> slowness, wait, when; no time to live."""
        return f"{self.prefix}pace"

    def put_off(self, job_id: str) -> str:
        """Whether a message of a job was sent again lately; kept `PUT_OFF_KEEP_S`."""
        return f"{self.prefix}put-off:{job_id}"

    def request(self, search_id: str) -> str:
        """The request of an enqueued search; kept `keep_s`."""
        return f"{self.prefix}request:{search_id}"

    @property
    def waiting(self) -> str:
        """Hash of the images that wait: search -> bytes and until when; no time to live."""
        return f"{self.prefix}waiting"

    def image(self, search_id: str) -> str:
        """The query image's bytes of an enqueued search; until it is prepared, or `keep_s`."""
        return f"{self.prefix}image:{search_id}"

    def batch(self, search_id: str) -> str:
        """Features and plan of a search; kept `keep_s`."""
        return f"{self.prefix}query:{search_id}"

    def ticket(self, search_id: str) -> str:
        """The ticket of a search; kept `keep_s`."""
        return f"{self.prefix}search:{search_id}"

    def scan(self, search_id: str, group: int) -> str:
        """The scan of a group: what it found, or its error; kept `keep_s`."""
        return f"{self.prefix}scan:{search_id}:{group}"

    def result(self, search_id: str) -> str:
        """The answers, or the error, written once; kept `KEEP_S`."""
        return f"{self.prefix}result:{search_id}"

    def cached(self, kind: str, digest: str) -> str:
        """A value of the cache, in the cache's own Redis; what is used least is evicted."""
        return f"{self.prefix}cache:{kind}:{digest}"

    def reply(self, search_id: str) -> str:
        """List that gets one element when the answer is there; kept `KEEP_S`."""
        return f"{self.prefix}reply:{search_id}"


def keep_s(deadline_at: float) -> int:
    """Return for how many seconds from now what belongs to a search is kept."""
    return KEEP_S + max(0, round(deadline_at - time.time()))
