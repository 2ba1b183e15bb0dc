"""Every compiled loop of SURF, at once."""

from __future__ import annotations

from pipeline.extraction.surf import descriptor, hessian, integral, orientation

__all__ = ["warm_up"]


def warm_up() -> None:
    """Compile every loop, or load it from the cache on disk: paid by ``vantage doctor --warm``."""
    for module in (integral, hessian, orientation, descriptor):
        module.warm_up()
