"""What a job is told to do, by its kind: plain values that SQL keeps as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pipeline.errors import StateError


@dataclass(frozen=True, kw_only=True)
class JobParams:
    """Of a kind of job that need not be told anything."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Paths that it needs: where one was missing, the job goes on when all are there again."""
        return ()

    def covers(self, wanted: Self) -> bool:
        """Say whether a job like this does all that another of its kind is to do.

        The other one is not begun then.
        """
        return False

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-serialisable values: inverse of `from_dict`."""
        values = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values.

        Raises
        ------
        StateError
            There is a parameter that this release does not know.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise StateError(
                f"a job has a parameter {unknown[0]!r} that this release does not know"
            )
        lists = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**lists)


@dataclass(frozen=True, kw_only=True)
class IndexParams(JobParams):
    """Folders and files to index, absolute."""

    paths: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[str, ...]:
        """All of them."""
        return self.paths


@dataclass(frozen=True, kw_only=True)
class RebuildParams(JobParams):
    """A rebuild makes everything anew."""

    def covers(self, wanted: Self) -> bool:
        """One rebuild is as good as another."""
        return True


@dataclass(frozen=True, kw_only=True)
class CompactParams(JobParams):
    """Which segments to merge.

    Attributes
    ----------
    everything : bool
        All of a group into one, without the rows of removed images; else small ones alone.
    above : int
        Segments that a group may keep, where not everything is merged.
    """

    everything: bool = True
    above: int = 0

    def covers(self, wanted: Self) -> bool:
        """Say whether this merges all that is wanted."""
        return self.everything or not wanted.everything
