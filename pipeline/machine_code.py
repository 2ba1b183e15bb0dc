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
import operator
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
    MISMATCH,
    MachineCode,
    Result,
    machine_code_folder,
    read_machine_code,
    write_machine_code,
)

__all__ = ["CompiledLoop"]

FORMAT = "2"
"""Changes when a frame or a file is read in another way than before."""

_DISABLED = "NUMBA_DISABLE_JIT"
"""Environment variable for developers of loops: with it, Python runs them."""

_PACKAGE = Path(__file__).parent

# A fork waits until a loop is compiled: the child would inherit locks, ours and the compiler's, of
# a thread that it does not have. Re-entrant: the compiler itself may fork.
_lock = threading.RLock()
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)

_engines: list[Any] = []  # machine code lives as long as its engine


@dataclass(frozen=True)
class _Version:
    """Machine code in this process, for arguments of certain types.

    Attributes
    ----------
    call : callable
    types : array of int64
        The addresses of the types of the arguments that are arrays.
    numbers : tuple
        Place of each argument that is a number, and what makes a word of it.
    result : Result
    """

    call: Callable[[int, int], int]
    types: array.array[int]
    numbers: tuple[tuple[int, Callable[[Any], int]], ...]
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
        self._versions: dict[tuple[Any, ...], _Version] = {}
        self._latest: dict[Any, _Version] = {}

    def __call__(self, *args: Any) -> Any:
        """Run the loop and return what it returns."""
        # Most calls have the types of the last one with the same marker; the code itself looks.
        last = args[-1] if args else None
        marker = last if type(last) is tuple else None
        version = self._latest.get(marker)
        if version is not None and len(args) == len(version.types):
            try:
                status, words = _run(version, args)
            except TypeError:
                status, words = MISMATCH, None
            if status != MISMATCH:
                return self._returned(version.result, status, words)
        if _python_runs_loops():
            return self.dispatcher(*args)
        args = tuple(map(_in_order, args))
        version = self._latest[marker] = self._version(tuple(map(_kind, args)))
        return self._returned(version.result, *_run(version, args))

    def _returned(self, result: Result, status: int, words: Any) -> Any:
        """Return the values that the loop has written."""
        if status > 0 or status in (-1, MISMATCH):
            raise RuntimeError(f"the compiled loop {self.name} failed with status {status}")
        if not result.kinds:
            return None
        values = [
            word if kind == "q" else struct.unpack("<d", struct.pack("<q", word))[0]
            for kind, word in zip(result.kinds, words, strict=True)
        ]
        return tuple(values) if result.is_tuple else values[0]

    @property
    def dispatcher(self) -> Any:
        """The function of numba, which imports it."""
        return getattr(importlib.import_module(self.module), self.name)

    @property
    def versions(self) -> int:
        """For how many types of arguments machine code is loaded."""
        return len(self._versions)

    def _version(self, types: tuple[Any, ...]) -> _Version:
        """Return loaded code, or load it from its file, or compile it and write the file."""
        with _lock:
            found = self._versions.get(types)
            if found is None:
                path = machine_code_folder() / f"{self.name.strip('_')}-{self._digest(types)}.loop"
                kept = read_machine_code(path)
                if kept is None:
                    from pipeline.compiling import compile_loop

                    kept = compile_loop(self.dispatcher, types)
                    write_machine_code(path, kept)
                found = self._versions[types] = _link(kept, types)
            return found

    def _digest(self, types: tuple[Any, ...]) -> str:
        """Return the digest of everything that the machine code depends on."""
        parts = [_platform(), repr(types), *map(_source, self._sources)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _run(version: _Version, args: tuple[Any, ...]) -> tuple[int, array.array[int]]:
    """Call machine code; return its status, and the words behind the arguments."""
    # An array is handed over as the address of its object, which `args` keeps alive.
    words = list(map(id, args))
    for place, word_of in version.numbers:
        words[place] = word_of(args[place])
    words += [0] * max(1, len(version.result.kinds))
    frame = array.array("q", words)
    status = version.call(frame.buffer_info()[0], version.types.buffer_info()[0])
    return status, frame[len(args) : len(args) + len(version.result.kinds)]


def _kind(value: Any) -> Any:
    """Return the type of an argument, as `pipeline.compiling.compile_loop` takes it."""
    if isinstance(value, np.ndarray):
        return value.dtype.char, value.ndim
    if isinstance(value, tuple):
        return len(value)
    for kind, (types, _) in _NUMBERS.items():
        if isinstance(value, types):
            return kind
    raise TypeError(f"compiled loops take arrays and numbers, not {type(value).__name__}")


def _in_order(value: Any) -> Any:
    """Return an array with the one object that NumPy has for its type; refuse other orders."""
    if not isinstance(value, np.ndarray):
        return value
    if not (value.flags.c_contiguous and value.flags.aligned and value.dtype.isnative):
        raise TypeError("compiled loops take C-contiguous aligned arrays of native numbers")
    return value.view(np.dtype(value.dtype.char))


def _truth(value: Any) -> int:
    """Return the word of a truth value."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError
    return int(value)


def _float32(value: Any) -> int:
    """Return the word of a float32."""
    if not isinstance(value, np.float32):
        raise TypeError
    word: int = struct.unpack("<q", struct.pack("<fxxxx", value))[0]
    return word


def _float64(value: Any) -> int:
    """Return the word of a float64."""
    if not isinstance(value, float):
        raise TypeError
    word: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return word


_NUMBERS: dict[str, tuple[Any, Callable[[Any], int]]] = {
    "?": (bool | np.bool_, _truth),
    "q": (int | np.integer, operator.index),
    "f": (np.float32, _float32),
    "d": (float, _float64),
}
"""Kinds of numbers: their Python types, and what makes a word of one; it refuses other types."""


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
            str(object.__basicsize__),
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


def _link(made: MachineCode, types: tuple[Any, ...]) -> _Version:
    """Load machine code into this process."""
    for name in made.needs:
        _require_function(name)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(made.code))
    engine.finalize_object()
    _engines.append(engine)
    function = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)
    return _Version(
        function(engine.get_function_address(ENTRY)),
        array.array("q", [id(np.dtype(k[0])) if isinstance(k, tuple) else 0 for k in types]),
        tuple((at, _NUMBERS[k][1]) for at, k in enumerate(types) if isinstance(k, str)),
        made.result,
    )


@functools.cache
def _require_function(name: str) -> None:
    """Raise unless this process has a function of the C library: LLVM would abort without it."""
    if llvm.address_of_symbol(name) is None:
        import ctypes.util

        llvm.load_library_permanently(ctypes.util.find_library("m") or "libm.so.6")
        if llvm.address_of_symbol(name) is None:
            raise RuntimeError(f"this process has no C function {name}: compiled loops need it")
