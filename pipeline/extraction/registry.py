"""Extractors by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from pipeline.config import ExtractorConfig
from pipeline.errors import UnknownNameError
from pipeline.extraction.base import Extractor
from pipeline.extraction.sift import SiftExtractor

_FACTORIES: dict[str, Callable[[], Extractor]] = {}


def register(name: str, factory: Callable[[], Extractor]) -> None:
    """Make an extractor known.

    Parameters
    ----------
    name : str
        As in `ExtractorConfig.name`.
    factory : callable
        Called once per process, when the extractor is first asked for.

    Raises
    ------
    ValueError
        The name is taken.
    """
    if name in _FACTORIES:
        raise ValueError(f"an extractor named {name!r} is registered already")
    _FACTORIES[name] = factory


def get_extractor(config: ExtractorConfig) -> Extractor:
    """Return the extractor that a configuration names; one object per process and name.

    Raises
    ------
    UnknownNameError
        No extractor has that name.
    """
    if config.name not in _FACTORIES:
        raise UnknownNameError("extractor", config.name, extractor_names())
    return _extractor(config.name)


@cache
def _extractor(name: str) -> Extractor:
    """Make an extractor on first use: some load a model."""
    return _FACTORIES[name]()


def extractor_names() -> list[str]:
    """Return the names that are registered, sorted."""
    return sorted(_FACTORIES)


register("sift", SiftExtractor)
