"""Descriptions of all extractors, for users who choose one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import ExtractorConfig
from pipeline.errors import VantageError
from pipeline.extraction.registry import (
    Registration,
    extractor_names,
    get_extractor,
    registration,
    shadowed_names,
)
from pipeline.extraction.spec import parse_extractor


@dataclass(frozen=True)
class ExtractorInfo:
    """One extractor.

    Attributes
    ----------
    name : str
        As written after ``--extractor``.
    dimensions, row_bytes : int or None
        Length of a descriptor, and of its stored row in bytes; None if it depends on the model.
    one_vector : bool or None
        One descriptor an image.
    licence, patents : str
    origin : str
        The distribution it comes from.
    usable : bool
    reason : str
        Why it cannot be used, or what it needs.
    """

    name: str
    origin: str
    dimensions: int | None = None
    row_bytes: int | None = None
    one_vector: bool | None = None
    licence: str = ""
    patents: str = ""
    usable: bool = True
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-serialisable values."""
        return asdict(self)


def list_extractors(specs: Sequence[str] = ()) -> list[ExtractorInfo]:
    """Describe every extractor, ours and those of other packages; one that is broken says why.

    Parameters
    ----------
    specs : sequence of str
        Only these: names, or ``NAME:FILE`` to check a model. Default: all names.

    Raises
    ------
    UnknownNameError, ConfigError
        One of `specs` is not an extractor, or its file does not exist.
    """
    if specs:
        return [_describe(spec, *parse_extractor(spec, ExtractorConfig())) for spec in specs]
    found = [_describe_name(name) for name in extractor_names()]
    reason = "not used: Vantage has an extractor of this name"
    hidden = [
        ExtractorInfo(name, "another package", usable=False, reason=reason)
        for name in shadowed_names()
    ]
    return found + hidden


def _describe_name(name: str) -> ExtractorInfo:
    """Describe an extractor without a model."""
    try:
        known = registration(name)
    except VantageError as error:
        return ExtractorInfo(name, "another package", usable=False, reason=str(error))
    if not known.needs_model:
        return _describe(name, ExtractorConfig(name=name), None)
    info = _note(known, ExtractorInfo(name, known.origin))
    return replace(info, reason=f"needs a model: {name}:FILE")


def _describe(spec: str, config: ExtractorConfig, model: Path | None) -> ExtractorInfo:
    """Make an extractor and describe it."""
    known = registration(config.name)
    try:
        if model is not None:
            from pipeline.extraction.trial import try_model

            try_model(config, model)
        made = get_extractor(config, lambda _sha256: model or Path())
        info = ExtractorInfo(
            spec,
            known.origin,
            made.dimensions,
            made.row_bytes,
            made.one_vector,
            made.licence,
            made.patents,
        )
    except (VantageError, ImportError) as error:
        info = ExtractorInfo(spec, known.origin, usable=False, reason=str(error))
    return _note(known, info)


def _note(known: Registration, info: ExtractorInfo) -> ExtractorInfo:
    """Add what was given when the extractor was registered."""
    return replace(
        info, licence=known.licence or info.licence, patents=known.patents or info.patents
    )
