"""``--extractor``: from its text to a configuration."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config import EXTRACTOR_OPTIONS, ExtractorConfig
from pipeline.errors import ConfigError
from pipeline.extraction.registry import registration

MODEL_SUFFIX = ".onnx"


def parse_extractor(spec: str, base: ExtractorConfig) -> tuple[ExtractorConfig, Path | None]:
    """Turn ``sift``, ``surf:variant=faithful`` or ``cnn:FILE`` into a configuration.

    Parameters
    ----------
    spec : str
        Name of an extractor. After a colon comes its model file, with options in a TOML file of the
        same stem beside it. For an extractor without a model, options follow: ``name=value``,
        separated by commas, values as in JSON (quotes may be omitted).
    base : ExtractorConfig
        Gives all other settings (sizes, counts).

    Returns
    -------
    config : ExtractorConfig
        With the model's SHA-256 and options.
    model : Path or None
        The model file, for the store.

    Raises
    ------
    UnknownNameError
        No extractor has that name.
    ConfigError
        There is no such file (the sentence names what is there), it cannot be read, the options
        are wrong, a model is given to an extractor that has none, or lacking.
    """
    name, colon, argument = spec.partition(":")
    found = registration(name)
    if found.needs_model and not argument:
        raise ConfigError("extractor", spec, f"needs its model: write {name}:FILE{MODEL_SUFFIX}")
    if not found.needs_model:
        if colon and not EXTRACTOR_OPTIONS.fullmatch(argument):
            raise ConfigError(
                "extractor",
                spec,
                f"{name} works without a model: write {name}, or {name}:OPTION=VALUE,...",
            )
        options = _written_options(spec, argument) if colon else {}
        return replace(base, name=name, model="", options=options), None
    model = Path(argument).expanduser().absolute()
    sha256 = file_sha256(model)
    return replace(base, name=name, model=sha256, options=_options(name, model)), model


def _written_options(spec: str, text: str) -> dict[str, Any]:
    """Return options that are written ``name=value,name=value``, each once."""
    options: dict[str, Any] = {}
    for pair in text.split(","):
        name, _, value = pair.partition("=")
        if name in options:
            raise ConfigError("extractor", spec, f"gives the option {name} twice: give it once")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
        if isinstance(options[name], float) and not math.isfinite(options[name]):
            raise ConfigError("extractor", spec, f"its option {name} must be a finite number")
    return options


def file_sha256(model: Path) -> str:
    """Return the SHA-256 of a model file, hex.

    Raises
    ------
    ConfigError
        There is no such file, or it cannot be read.
    """
    if not model.is_file():
        raise ConfigError("model", str(model), _what_is_there(model))
    try:
        with model.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as exc:
        raise ConfigError("model", str(model), f"cannot be read ({exc.strerror})") from exc


def _what_is_there(model: Path) -> str:
    """Say why a path names no model file, and which ones there are."""
    if model.exists():
        kind, folder = "is a folder" if model.is_dir() else "is no regular file", model
    else:
        kind, folder = "there is no such file", model.parent
    if not folder.is_dir():
        return f"{kind}; name a model file"
    try:
        names = sorted(p.name for p in folder.iterdir() if p.suffix == MODEL_SUFFIX)
    except OSError as exc:
        return f"{kind}, and {str(folder)!r} cannot be read ({exc.strerror})"
    near = difflib.get_close_matches(model.name, names, n=1)
    if near and folder == model.parent:
        return f"{kind}; did you mean {near[0]!r}?"
    listing = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{kind}; {str(folder)!r} holds {listing or f'no {MODEL_SUFFIX} file'}"


def _options(name: str, model: Path) -> Mapping[str, Any]:
    """Return the options that stand beside a model."""
    if name == "cnn":
        from pipeline.extraction.cnn import settings_beside

        return settings_beside(model).to_dict()
    path = model.with_suffix(".toml")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise ConfigError("options", str(path), f"cannot be read as TOML ({exc})") from exc
