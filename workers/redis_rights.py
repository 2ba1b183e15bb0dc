"""What each user of a Redis may do; a password for each.

Celery needs scripts for its chords. A script may call no command that its user may not.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

__all__ = ["REPLICA", "RIGHTS", "USER", "Passwords"]

USER = "vantage"
"""User of every process of Vantage."""

REPLICA = "replica"
"""User of servers that replicate ours."""

RIGHTS = (
    "-@all +@read +@write +@pubsub +@transaction +@connection +@scripting -@admin -@dangerous "
    "+select +time +info"
)
"""Rules of Redis' ACL that suffice: no MODULE, CONFIG, SAVE, DEBUG, SHUTDOWN, REPLICAOF, FLUSHALL,
KEYS or MONITOR."""

_REPLICATION = "-@all +psync +sync +replconf +ping"


@dataclass(frozen=True)
class Passwords:
    """Passwords of one start of a server.

    Attributes
    ----------
    user : str
    replica : str or None
        None where nobody may replicate it.
    """

    user: str
    replica: str | None = None

    @classmethod
    def new(cls, *, replicated: bool) -> Passwords:
        """Return passwords that nobody has had before."""
        replica = secrets.token_urlsafe(24) if replicated else None
        return cls(secrets.token_urlsafe(24), replica)

    def users(self) -> str:
        """Return the lines of a server's configuration that make its users."""
        lines = ["user default off", f"user {USER} on >{self.user} ~* &* {RIGHTS}"]
        if self.replica is not None:
            lines.append(f"user {REPLICA} on >{self.replica} {_REPLICATION}")
        return "\n".join(lines)
