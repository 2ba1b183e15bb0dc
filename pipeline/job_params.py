"""The parameters of each kind of job: plain values that SQL stores as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pipeline.config import ExtractorConfig, IndexConfig
from pipeline.errors import StateError


@dataclass(frozen=True, kw_only=True)
class JobParams:
    """Parameters of a kind of job that needs none."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Paths that it needs: a job paused for a missing one continues when all are back."""
        return ()

    @property
    def extracts(self) -> bool:
        """Whether it extracts images."""
        return False

    def settings(
        self, extractor: ExtractorConfig, index: IndexConfig
    ) -> tuple[ExtractorConfig, IndexConfig]:
        """Return the extractor and index settings of the job, given those of the collection."""
        return extractor, index

    def covers(self, wanted: Self) -> bool:
        """Say whether a job with these parameters does everything that another one would.

        Then the other one is not started.
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
            This release does not know one of the parameters.
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
    """What to index.

    Attributes
    ----------
    paths : tuple of str
        Folders and files, absolute.
    reread : bool
        Read every file, also those that look unchanged.
    emptied : bool
        All drives are mounted: files that are missing in empty folders are gone.
    """

    paths: tuple[str, ...] = ()
    reread: bool = False
    emptied: bool = False

    @property
    def folders(self) -> tuple[str, ...]:
        """All of them."""
        return self.paths

    @property
    def extracts(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, kw_only=True)
class RebuildParams(JobParams):
    """A rebuild makes the whole index again; with another extractor, from new features.

    Attributes
    ----------
    extractor : ExtractorConfig, optional
        The other extractor; all images are extracted with it.
    index : IndexConfig, optional
        Its settings of the index.
    roots : tuple of str
        Folders of the images, absolute; only with another extractor.
    """

    extractor: ExtractorConfig | None = None
    index: IndexConfig | None = None
    roots: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of the images."""
        return self.roots

    @property
    def extracts(self) -> bool:
        """Whether it has another extractor."""
        return self.extractor is not None

    def settings(
        self, extractor: ExtractorConfig, index: IndexConfig
    ) -> tuple[ExtractorConfig, IndexConfig]:
        """Return its own settings, if it has any; else the collection's."""
        return self.extractor or extractor, self.index or index

    def covers(self, wanted: Self) -> bool:
        """All rebuilds do the same, but for the extractor."""
        return wanted.extractor in (None, self.extractor)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values."""
        extractor, index = values.get("extractor"), values.get("index")
        configs = {
            "extractor": extractor and ExtractorConfig.from_dict(extractor),
            "index": index and IndexConfig.from_dict(index),
        }
        return super().from_dict({**values, **configs})


@dataclass(frozen=True, kw_only=True)
class CompactParams(JobParams):
    """Which segments to merge.

    Attributes
    ----------
    everything : bool
        Merge all segments of a group into one, without the rows of removed images; otherwise merge
        only small ones.
    above : int
        Number of segments that a group may keep, if not everything is merged.
    """

    everything: bool = True
    above: int = 0

    def covers(self, wanted: Self) -> bool:
        """Say whether this merges everything that the other would."""
        return self.everything or not wanted.everything
