"""Extractors by name: our own, and those that other packages register as entry points.

An entry point of group `ENTRY_POINTS` gives a name and a factory. One that cannot be loaded breaks
nothing: the error appears only when the extractor is used or listed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from pipeline.config import EXTRACTOR_NAME, ExtractorConfig
from pipeline.errors import ConfigError, UnknownNameError, VantageError
from pipeline.extraction.base import Extractor

ENTRY_POINTS = "vantage.extractors"
"""Entry point group: extractor name -> factory."""

OpenModel = Callable[[str], Path]
"""Returns the local file of a model, given its SHA-256."""

Factory = Callable[[ExtractorConfig, OpenModel], Extractor]
"""Makes the extractor of a configuration; its `model` and `options` say which."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registration:
    """Facts about an extractor before it is made.

    Attributes
    ----------
    name : str
    factory : callable
    needs_model : bool
        It needs a model file.
    licence, patents : str
        As in `Extractor`; if given, they replace its values.
    origin : str
        The distribution that offers it.
    """

    name: str
    factory: Factory
    needs_model: bool = False
    licence: str = ""
    patents: str = ""
    origin: str = "vantage"


_REGISTERED: dict[str, Registration] = {}
_made: dict[tuple[int, str], Extractor] = {}
_making = threading.RLock()


def _renew_lock() -> None:
    """Reset the lock in a forked process, where its owner's thread does not exist."""
    global _making
    _making = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def register(
    name: str,
    factory: Factory,
    *,
    needs_model: bool = False,
    licence: str = "",
    patents: str = "",
) -> None:
    """Make an extractor known to this process.

    Parameters
    ----------
    name : str
        As in `ExtractorConfig.name`.
    factory : callable
        Called with (config, open_model) when the extractor is first used, once per process and
        configuration.
    needs_model, licence, patents
        See `Registration`.

    Raises
    ------
    ValueError
        The name is taken.
    """
    if name in _REGISTERED:
        raise ValueError(f"an extractor named {name!r} is registered already")
    _REGISTERED[name] = Registration(name, factory, needs_model, licence, patents)


def registration(name: str) -> Registration:
    """Return what is registered under a name.

    Raises
    ------
    UnknownNameError There is none. ConfigError
        Another package offers it and cannot be loaded.
    """
    # Entry points are read only if a name is not built in: that reads every distribution.
    if name in _REGISTERED:
        return _REGISTERED[name]
    offers = _offers().get(name)
    if offers is None:
        raise UnknownNameError("extractor", name, extractor_names())
    return _load(offers)


def extractor_names() -> list[str]:
    """Return the names that are registered or offered, sorted."""
    return sorted({*_REGISTERED, *_offers()})


def shadowed_names() -> list[str]:
    """Return offered names that are not used because an extractor of ours has them."""
    return sorted(set(_REGISTERED) & set(_offers()))


def get_extractor(config: ExtractorConfig, open_model: OpenModel | None = None) -> Extractor:
    """Return the extractor of a configuration; one object per process and configuration.

    Parameters
    ----------
    config : ExtractorConfig
    open_model : callable, optional
        Gives the local file of a model by its SHA-256 (see `pipeline.resources`).

    Raises
    ------
    UnknownNameError
        No extractor has that name.
    ConfigError
        It cannot be made: its package, its model or its options are not right.
    """
    found = registration(config.name)
    # Not an object made before a fork: networks have threads, which a fork does not copy.
    key = (os.getpid(), config.config_id())
    with _making:
        if key not in _made:
            _made[key] = _make(found, config, open_model or _no_store)
        return _made[key]


def _make(found: Registration, config: ExtractorConfig, open_model: OpenModel) -> Extractor:
    """Call a factory and check its result."""
    if found.needs_model and not config.model:
        raise ConfigError(
            "extractor", found.name, f"needs its model: write {found.name}:FILE with a model file"
        )
    if config.model and not found.needs_model:
        raise ConfigError("model", config.model, f"extractor {found.name} works without a model")
    try:
        made = found.factory(config, open_model)
    except VantageError:
        raise
    except Exception as exc:
        if found.origin == "vantage":
            raise
        raise _unusable(found.name, found.origin, exc) from exc
    if not isinstance(made, Extractor) or made.name != config.name:
        what = f"named {made.name!r}" if isinstance(made, Extractor) else f"the object {made!r}"
        raise ConfigError(
            "extractor",
            config.name,
            f"its factory (of {found.origin}) made {what}; it must make a "
            "pipeline.extraction.base.Extractor of that name",
        )
    return made


def _no_store(model: str) -> Path:
    raise ConfigError("model", model, "no store is open to fetch it from; use Resources.extractor")


def warm_up(config: ExtractorConfig, open_model: OpenModel | None = None) -> None:
    """Compile or load what the extractor of a configuration needs, before it is used."""
    get_extractor(config, open_model).warm_up()


def warm_up_all() -> None:
    """Warm every extractor that works without a model; one that cannot is logged, not raised."""
    for name in extractor_names():
        try:
            if not registration(name).needs_model:
                warm_up(ExtractorConfig(name=name))
        except Exception as exc:
            # From another package: its errors must not keep a worker from starting.
            if name in _REGISTERED:
                raise
            _log.warning("extractor %s is left out: %s", name, exc)


@cache
def _offers() -> dict[str, tuple[metadata.EntryPoint, ...]]:
    """Return the entry points of other packages by name; nothing of theirs is imported."""
    found: dict[str, list[metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=ENTRY_POINTS):
        found.setdefault(point.name, []).append(point)
    return {name: tuple(points) for name, points in found.items()}


@cache
def _load(offers: tuple[metadata.EntryPoint, ...]) -> Registration:
    """Import the factory of an entry point."""
    point = offers[0]
    if len(offers) > 1:
        places = " and ".join(sorted(_origin(offer) for offer in offers))
        raise ConfigError(
            "extractor", point.name, f"is offered by {places}; uninstall all but one of them"
        )
    if not EXTRACTOR_NAME.fullmatch(point.name):
        wrong = ValueError("an extractor's name is 1 to 32 of the characters A-Z a-z 0-9 . _ -")
        raise _unusable(point.name, _origin(point), wrong)
    try:
        factory = point.load()
    except Exception as exc:
        raise _unusable(point.name, _origin(point), exc) from exc
    if not callable(factory):
        uncallable = TypeError(f"{point.value} cannot be called")
        raise _unusable(point.name, _origin(point), uncallable)
    return Registration(
        point.name,
        factory,
        bool(getattr(factory, "needs_model", False)),
        str(getattr(factory, "licence", "")),
        str(getattr(factory, "patents", "")),
        _origin(point),
    )


def _origin(point: metadata.EntryPoint) -> str:
    """Return the distribution of an entry point, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def _unusable(name: str, origin: str, error: Exception) -> ConfigError:
    """Say that an extractor of another package cannot be used."""
    reason = f"{type(error).__name__}: {error}"
    return ConfigError("extractor", name, f"cannot be used, {origin} is broken ({reason})")


def _make_sift(config: ExtractorConfig, _open_model: OpenModel) -> Extractor:
    from pipeline.extraction.sift import SiftExtractor

    for name in config.options:
        raise ConfigError("options", name, "sift has no options")
    return SiftExtractor()


def _make_surf(config: ExtractorConfig, _open_model: OpenModel) -> Extractor:
    from pipeline.extraction.surf import SurfExtractor

    try:
        return SurfExtractor.from_options(config.options)
    except TypeError as exc:
        raise ConfigError("options", config.options, f"not what surf understands ({exc})") from exc


def _make_cnn(config: ExtractorConfig, open_model: OpenModel) -> Extractor:
    from pipeline.extraction.cnn import make_cnn

    return make_cnn(config, open_model)


register("sift", _make_sift)
register("surf", _make_surf)
register(
    "cnn",
    _make_cnn,
    needs_model=True,
    licence="of the model file",
    patents="none known on the method; ask of the model",
)
