"""Vantage: index folders of photographs, then ask with a photograph where else the thing is.

Examples
--------
>>> from vantage import Collection
>>> with Collection.open("holiday", local=True) as holiday:  # doctest: +SKIP
...     holiday.index("photos")
...     result = holiday.search("query.jpg", top=3)
...     for match in result.matches:
...         print(match.rank, f"{match.score:.3f}", match.locations[0])

With ``local=True`` this process does the work. Without it the workers of ``vantage up`` do:
``index`` then returns at once, with a handle to wait for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import Settings as Settings
    from pipeline.driver import JobHandle as JobHandle
    from pipeline.errors import BrokerUnavailableError as BrokerUnavailableError
    from pipeline.errors import ConfigError as ConfigError
    from pipeline.errors import CorruptFileError as CorruptFileError
    from pipeline.errors import DatabaseUnavailableError as DatabaseUnavailableError
    from pipeline.errors import ImageReadError as ImageReadError
    from pipeline.errors import IndexNotBuiltError as IndexNotBuiltError
    from pipeline.errors import InputError as InputError
    from pipeline.errors import MissingRootError as MissingRootError
    from pipeline.errors import NoFeaturesError as NoFeaturesError
    from pipeline.errors import NoWorkersError as NoWorkersError
    from pipeline.errors import SchemaVersionError as SchemaVersionError
    from pipeline.errors import StateError as StateError
    from pipeline.errors import StorageUnavailableError as StorageUnavailableError
    from pipeline.errors import TransientError as TransientError
    from pipeline.errors import UnknownNameError as UnknownNameError
    from pipeline.errors import VantageError as VantageError
    from pipeline.extraction.surf import surf as surf
    from pipeline.index.engine import VantageIndex as VantageIndex
    from pipeline.records import FoundBy as FoundBy
    from pipeline.records import FusedResult as FusedResult
    from pipeline.records import Match as Match
    from pipeline.records import SearchResult as SearchResult
    from pipeline.request import SearchRequest as SearchRequest
    from workers.collection import Collection as Collection
    from workers.fused_collection import FusedCollection as FusedCollection

__all__ = [
    "BrokerUnavailableError",
    "Collection",
    "ConfigError",
    "CorruptFileError",
    "DatabaseUnavailableError",
    "FoundBy",
    "FusedCollection",
    "FusedResult",
    "ImageReadError",
    "IndexNotBuiltError",
    "InputError",
    "JobHandle",
    "Match",
    "MissingRootError",
    "NoFeaturesError",
    "NoWorkersError",
    "SchemaVersionError",
    "SearchRequest",
    "SearchResult",
    "Settings",
    "StateError",
    "StorageUnavailableError",
    "TransientError",
    "UnknownNameError",
    "VantageError",
    "VantageIndex",
    "surf",
]

_HOMES = {
    "pipeline.config": ["Settings"],
    "pipeline.driver": ["JobHandle"],
    "pipeline.extraction.surf": ["surf"],
    "pipeline.index.engine": ["VantageIndex"],
    "pipeline.records": ["FoundBy", "FusedResult", "Match", "SearchResult"],
    "pipeline.request": ["SearchRequest"],
    "workers.collection": ["Collection"],
    "workers.fused_collection": ["FusedCollection"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; the package itself loads next to nothing."""
    if name == "__version__":
        from importlib.metadata import version

        return version("vantage-cbir")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF.get(name, "pipeline.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
