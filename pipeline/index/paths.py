"""The code paths of the kernels: how each kind of processor computes, and which of them are usable.

Everything here is known without the compiler: the loops are in `pipeline.index.simd`, which loads
it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np

BLOCK = 16
"""Rows in a block: the 32-bit lanes of a 512-bit register."""

TILE = 16
"""Queries compared in one pass over the rows of a slice."""

FEW = 4
"""Up to so many queries, tiles have few queries and more rows."""

WIDE = 4
"""Blocks in a wide tile: a bit of a 64-bit number for each of their rows."""

PREFIX = 32
"""Leading bytes of a row, which are compared first. In principal axes they hold most of a distance.
If they alone rule out every pair of a register tile, the rest is not computed."""

SPAN = WIDE * BLOCK
"""Values examined at once when searching for the greatest: those of a wide tile."""

NEVER = np.iinfo(np.int32).max
"""The distance of a missing neighbour."""

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
"""Linux on x86-64: number of the system call, ``ARCH_REQ_XCOMP_PERM``, ``XFEATURE_XTILEDATA``."""


class Shape(NamedTuple):
    """Queries and blocks of a register tile, such that sums and operands stay in registers."""

    queries: int
    blocks: int


class Path(NamedTuple):
    """How one kind of processor computes a tile.

    Attributes
    ----------
    name : str
    marker : tuple of int
        Passed to the compiled loops: numba compiles a version for each length of a tuple, and the
        length selects the path at compile time.
    lanes : int
        32-bit lanes of a register.
    many, few : Shape
        The register tile for many queries, and for at most `FEW`.
    words : int
        32-bit words that a query takes for a step: one of 8-bit numbers, two of 16-bit numbers.
    """

    name: str
    marker: tuple[int, ...]
    lanes: int
    many: Shape
    few: Shape
    words: int


PATHS = {
    path.name: path
    for path in (
        Path("portable", (), 16, Shape(4, 1), Shape(2, 1), 2),
        Path("avx2", (0,), 8, Shape(4, 1), Shape(2, 2), 2),
        Path("vnni256", (0, 0), 8, Shape(4, 1), Shape(2, 2), 1),
        Path("vnni512", (0, 0, 0), 16, Shape(8, 2), Shape(2, 4), 1),
        Path("amx", (0, 0, 0, 0), 16, Shape(16, 4), Shape(2, 4), 1),
    )
}
"""Every path, slowest first."""


@functools.cache
def usable_paths() -> tuple[str, ...]:
    """Return the names of the paths that this processor has, slowest first.

    The first call asks Linux for permission to use the AMX tile registers, for this process and its
    children (https://docs.kernel.org/arch/x86/xstate.html). From then on, an alternate signal stack
    must have room for these registers.
    """
    # Code for another processor may lack what this one has.
    if os.environ.get("NUMBA_CPU_NAME"):
        return ("portable",)
    features = llvm.get_host_cpu_features()
    needs = {
        "portable": (),
        "avx2": ("avx2",),
        "vnni256": ("avxvnni",),
        "vnni512": ("avx512f", "avx512vnni"),
        "amx": ("avx512f", "avx512vnni", "amx-tile", "amx-int8"),
    }
    having = [name for name in PATHS if all(features.get(feature) for feature in needs[name])]
    return tuple(name for name in having if name != "amx" or _tiles_are_granted())


def _tiles_are_granted() -> bool:
    """Ask Linux for the AMX tile registers.

    Old kernels refuse, and so do others if the alternate signal stack is too small.
    """
    if not sys.platform.startswith("linux"):
        return False
    call = ctypes.CDLL(None).syscall
    return bool(call(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)
