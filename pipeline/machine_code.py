"""Compiled loops that are called without their compiler.

numba compiles a loop once for a machine (`pipeline.compiling`); its machine code is kept on disk.
From then on llvmlite, which is a part of numba, loads the code and ctypes calls it. So a process
that only runs loops does not load numba: that saves about a second of processor time and 70 MiB.

The name of a file is a digest of the sources, the packages, the processor and the types of the
arguments. A file that is damaged is made again.
"""

from __future__ import annotations

import array
import ctypes
import functools
import hashlib
import importlib
import importlib.util
import os
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np

from pipeline.machine_code_file import (
    ENTRY,
    MachineCode,
    Result,
    machine_code_folder,
    read_machine_code,
    write_machine_code,
)

__all__ = ["CompiledLoop"]

FORMAT = "1"
"""Changes when a frame or a file is read in another way than before."""

_DISABLED = "NUMBA_DISABLE_JIT"
"""Environment variable for developers of loops: with it, Python runs them."""

_PACKAGE = Path(__file__).parent

_lock = threading.Lock()
_engines: list[Any] = []  # machine code lives as long as its engine


@dataclass(frozen=True)
class _Loaded:
    """Machine code in this process."""

    call: Callable[[int], int]
    result: Result


class CompiledLoop:
    """A loop of a module that numba compiles, callable with NumPy arrays and numbers.

    It runs without the GIL. Arrays must be C-contiguous and aligned; they are read and written in
    place, without a check of their writeability.

    Parameters
    ----------
    module : str
        Module with the loop, which imports numba.
    name : str
        Name of the function there, decorated with ``numba.njit``.
    sources : sequence of str
        Other modules whose constants or functions are compiled into the loop.
    """

    def __init__(self, module: str, name: str, sources: Sequence[str] = ()) -> None:
        self.module, self.name = module, name
        self._sources = (module, *sources)
        self._loaded: dict[tuple[Any, ...], _Loaded] = {}

    def __call__(self, *args: Any) -> Any:
        """Run the loop and return what it returns."""
        if _python_runs_loops():
            return self.dispatcher(*args)
        kinds: list[Any] = []
        slots: list[int] = []
        for value in args:
            _add_argument(value, kinds, slots)
        types = tuple(kinds)
        found = self._loaded.get(types) or self._load(types)
        count = len(slots)
        slots.extend([0] * max(1, len(found.result.kinds)))
        frame = array.array("q", slots)
        status = found.call(frame.buffer_info()[0])
        if status > 0 or status == -1:
            raise RuntimeError(f"the compiled loop {self.name} failed with status {status}")
        return _returned(found.result, frame[count:])

    @property
    def dispatcher(self) -> Any:
        """The function of numba, which imports it."""
        return getattr(importlib.import_module(self.module), self.name)

    @property
    def versions(self) -> int:
        """For how many types of arguments machine code is loaded."""
        return len(self._loaded)

    def _load(self, types: tuple[Any, ...]) -> _Loaded:
        """Load the code from its file, or compile it and write the file."""
        with _lock:
            found = self._loaded.get(types)
            if found is None:
                path = machine_code_folder() / f"{self.name.strip('_')}-{self._digest(types)}.loop"
                kept = read_machine_code(path)
                if kept is None:
                    from pipeline.compiling import compile_loop

                    kept = compile_loop(self.dispatcher, types)
                    write_machine_code(path, kept)
                found = self._loaded[types] = _link(kept)
            return found

    def _digest(self, types: tuple[Any, ...]) -> str:
        """Return the digest of everything that the machine code depends on."""
        parts = [_platform(), repr(types), *map(_source, self._sources)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _add_argument(value: Any, kinds: list[Any], slots: list[int]) -> None:
    """Append the type of an argument, and the 64-bit words that stand for it in a frame."""
    if isinstance(value, np.ndarray):
        flags = value.flags
        if not (flags.c_contiguous and flags.aligned):
            raise TypeError("compiled loops take C-contiguous aligned arrays")
        kinds.append((value.dtype.char, value.ndim))
        slots.append(value.ctypes.data)
        slots.extend(value.shape)
    elif isinstance(value, bool | np.bool_):
        kinds.append("?")
        slots.append(int(value))
    elif isinstance(value, int | np.integer):
        kinds.append("q")
        slots.append(int(value))
    elif isinstance(value, np.float32):
        kinds.append("f")
        slots.append(struct.unpack("<q", struct.pack("<fxxxx", value))[0])
    elif isinstance(value, float):
        kinds.append("d")
        slots.append(struct.unpack("<q", struct.pack("<d", value))[0])
    elif isinstance(value, tuple):
        kinds.append(len(value))
        slots.extend(value)
    else:
        raise TypeError(f"compiled loops take arrays and numbers, not {type(value).__name__}")


def _returned(result: Result, words: array.array[int]) -> Any:
    """Return the values that a loop has written behind its arguments."""
    if not result.kinds:
        return None
    values = [
        word if kind == "q" else struct.unpack("<d", struct.pack("<q", word))[0]
        for kind, word in zip(result.kinds, words, strict=True)
    ]
    return tuple(values) if result.is_tuple else values[0]


@functools.cache
def _python_runs_loops() -> bool:
    """Tell whether a developer wants Python to run the loops."""
    return os.environ.get(_DISABLED, "0") not in ("", "0")


@functools.cache
def _platform() -> str:
    """Return what machine code depends on beside its source and its arguments."""
    numba = importlib.util.find_spec("numba")
    version = Path(str(numba.origin)).with_name("_version.py").read_bytes() if numba else b""
    settings = sorted(f"{name}={value}" for name, value in os.environ.items() if "NUMBA_" in name)
    return "\n".join(
        [
            hashlib.sha256(version).hexdigest(),
            llvmlite.__version__,
            np.__version__,
            llvm.get_default_triple(),
            llvm.get_host_cpu_name(),
            llvm.get_host_cpu_features().flatten(),
            *settings,
            FORMAT,
            _source("pipeline.compiling"),
        ]
    )


@functools.cache
def _source(module: str) -> str:
    """Return a digest of the source of a module of this package, without importing it."""
    path = _PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def _target_machine() -> Any:
    """Return what llvmlite needs to know of this processor to load code."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine()


def _link(made: MachineCode) -> _Loaded:
    """Load machine code into this process."""
    for name in made.needs:
        _require_function(name)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(made.code))
    engine.finalize_object()
    _engines.append(engine)
    function = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)
    return _Loaded(function(engine.get_function_address(ENTRY)), made.result)


@functools.cache
def _require_function(name: str) -> None:
    """Raise unless this process has a function of the C library: LLVM would abort without it."""
    if llvm.address_of_symbol(name) is None:
        import ctypes.util

        llvm.load_library_permanently(ctypes.util.find_library("m") or "libm.so.6")
        if llvm.address_of_symbol(name) is None:
            raise RuntimeError(f"this process has no C function {name}: compiled loops need it")
