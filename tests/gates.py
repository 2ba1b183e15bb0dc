"""A gate before extraction: a test decides how far a job gets, however fast the machine is.

The extractor ``gated`` of tests/packages takes an image when the gate is open or has a ticket left.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.extraction import registry

PACKAGES = Path(__file__).parent / "packages"
EXTRACTOR = "gated"
DEADLY_WIDTH = 666
"""Width in pixels of a picture that kills the process that extracts it."""


class Gate:
    """A folder that the gated extractor looks into; open at first.

    Parameters
    ----------
    folder : Path
        Of this gate alone; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.open()

    def open(self) -> None:
        """Let everything through."""
        (self._folder / "open").touch()

    def close(self, after: int = 0) -> None:
        """Let so many images through and no more, until the gate is opened again."""
        for left in self._folder.glob("ticket-*"):
            left.unlink()
        (self._folder / "open").unlink(missing_ok=True)
        for number in range(after):
            (self._folder / f"ticket-{number}").touch()

    def variables(self) -> dict[str, str]:
        """Return what a process's environment needs to know the extractor and this gate."""
        path = os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))
        return {"PYTHONPATH": path, "TEST_GATE": str(self._folder)}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let this process, and those that it starts meanwhile, know extractor and gate."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.variables().items():
                patch.setenv(name, value)
            patch.setattr(sys, "path", [str(PACKAGES), *sys.path])
            registry._offers.cache_clear()
            yield
        registry._offers.cache_clear()
