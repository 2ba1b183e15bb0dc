"""Tells whether the kernels are compiled on this machine, without loading the compiler.

A note is kept beside the compiled kernels (and deleted with them when the cache is cleared). It is
a digest of everything that they depend on: sources, packages, processor, settings of numba.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import sysconfig
from pathlib import Path

import pipeline
from pipeline.machine_code_file import machine_code_folder

__all__ = ["are_compiled", "note_compiled"]

_SOURCES = Path(pipeline.__file__).parent
_CPU_LINES = ("model name", "flags", "Features", "CPU part")


def are_compiled() -> bool:
    """Tell whether `note_compiled` was called for the present sources, packages and processor."""
    try:
        return _note().read_text(encoding="utf-8") == _state()
    except OSError:
        return False


def note_compiled() -> None:
    """Note that every kernel is compiled; do nothing if the note cannot be written."""
    with contextlib.suppress(OSError):
        _note().write_text(_state(), encoding="utf-8")


def _note() -> Path:
    """Return the path of the note, beside the kernels."""
    return machine_code_folder() / "vantage-compiled"


def _state() -> str:
    """Return a digest of what the compiled kernels depend on."""
    packages = Path(sysconfig.get_path("purelib")).glob("*.dist-info")
    sources = ((path, path.stat()) for path in sorted(_SOURCES.rglob("*.py")))
    parts = [
        sys.version,
        *_processor(),
        *sorted(f"{name}={value}" for name, value in os.environ.items() if "NUMBA" in name),
        *sorted(path.name for path in packages),
        *(f"{path} {stat.st_mtime_ns} {stat.st_size}" for path, stat in sources),
    ]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()


def _processor() -> list[str]:
    """Return the lines that identify the processor (Linux)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return sorted({line for line in lines if line.startswith(_CPU_LINES)})
