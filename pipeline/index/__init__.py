"""VP-tree, segments and distance kernels; `VantageIndex`, the engine without images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.index.engine import VantageIndex

__all__ = ["VantageIndex"]


def __getattr__(name: str) -> Any:
    """Import the engine when it is first used: importing one module loads no others."""
    if name == "VantageIndex":
        from pipeline.index.engine import VantageIndex

        return VantageIndex
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
