"""Machine code of loops, made by numba and kept by `pipeline.machine_code`.

numba compiles a loop for arrays in C order. A function in LLVM's language, `_entry`, takes the
arguments from a frame in memory, and a few more replace what numba's own library would give
(`_RUNTIME`). So the machine code needs nothing but the C library.

This is the only module that uses private interfaces of numba;
`tests/unit/test_private_interfaces.py` fails when an upgrade takes one of them away.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba.core import types
from numba.core.compiler import Flags, compile_extra
from numba.core.registry import cpu_target
from numba.np.numpy_support import from_dtype

from pipeline.machine_code_file import ENTRY, MISMATCH, MachineCode, Result

__all__ = ["compile_loop"]

_OF_C = ("malloc", "free", "memset", "memcpy", "memmove", "bcmp", "memcmp")
_OF_MATHS = (
    "sqrt", "exp", "log", "pow", "sin", "cos", "tan", "atan", "atan2", "fmod", "hypot",
    "ceil", "floor", "rint", "round", "trunc", "fabs", "nearbyint",
)  # fmt: skip
_KNOWN = {*_OF_C, *_OF_MATHS, *(f"{name}f" for name in _OF_MATHS)}
"""Functions of the C library that machine code may call: a process that loads it has them."""

_IN_ORDER = 0x0101
"""NumPy's flags of an array in C order and aligned."""

_RUNTIME = """
declare ptr @malloc(i64)
declare void @free(ptr)

define linkonce_odr ptr @NRT_MemInfo_alloc_aligned(i64 %size, i32 %align) {
  %alignment = zext i32 %align to i64
  %room = add i64 %alignment, 64
  %total = add i64 %size, %room
  %base = call ptr @malloc(i64 %total)
  %failed = icmp eq ptr %base, null
  br i1 %failed, label %end, label %fill
fill:
  %address = ptrtoint ptr %base to i64
  %first = add i64 %address, 63
  %last = add i64 %first, %alignment
  %mask = sub i64 0, %alignment
  %place = and i64 %last, %mask
  %data = inttoptr i64 %place to ptr
  store i64 1, ptr %base
  %field = getelementptr i8, ptr %base, i64 24
  store ptr %data, ptr %field
  br label %end
end:
  ret ptr %base
}

define linkonce_odr void @NRT_MemInfo_call_dtor(ptr %info) {
  call void @free(ptr %info)
  ret void
}

define linkonce_odr i32 @numba_attempt_nocopy_reshape(
    i64 %nd, ptr %dims, ptr %strides, i64 %new_nd, ptr %new_dims, ptr %new_strides,
    i64 %item, i32 %fortran) {
entry:
  br label %test
test:
  %left = phi i64 [ %new_nd, %entry ], [ %at, %step ]
  %stride = phi i64 [ %item, %entry ], [ %next, %step ]
  %more = icmp sgt i64 %left, 0
  br i1 %more, label %step, label %done
step:
  %at = sub i64 %left, 1
  %to = getelementptr i64, ptr %new_strides, i64 %at
  store i64 %stride, ptr %to
  %from = getelementptr i64, ptr %new_dims, i64 %at
  %length = load i64, ptr %from
  %next = mul i64 %stride, %length
  br label %test
done:
  ret i32 1
}
"""
"""What loops ask of numba's library: memory (a block begins with its number of references; 24 bytes
behind lies the address of the data), and the strides of a reshaped array, always in C order here.
"""


def compile_loop(dispatcher: Any, kinds: tuple[Any, ...]) -> MachineCode:
    """Compile a loop for arguments of certain types.

    Parameters
    ----------
    dispatcher : function decorated with ``numba.njit``
    kinds : tuple
        For each argument ``(dtype's character, dimensions)`` of an array, the character of a number
        (``?``, ``q``, ``f``, ``d``), or the length of a tuple of int64, whose values are lost.

    Returns
    -------
    MachineCode
        With the function `ENTRY`.

    Raises
    ------
    RuntimeError
        The loop returns something else than numbers, or needs a function that is not of the C
        library.
    """
    typing, target = cpu_target.typing_context, cpu_target.target_context
    typing.refresh()
    target.refresh()
    argument_types = tuple(map(_type_of, kinds))
    compiled: Any = compile_extra(  # type: ignore[no-untyped-call]
        typing, target, dispatcher.py_func, argument_types, None, _flags(dispatcher), {}
    )
    result = _result_of(compiled.signature.return_type)
    codegen = target.codegen()
    module = llvm.parse_bitcode(compiled.library._final_module.as_bitcode())
    function = module.get_function(compiled.fndesc.llvm_func_name)
    module.link_in(llvm.parse_assembly(_RUNTIME))
    module.link_in(llvm.parse_assembly(_entry(function, kinds)))
    module.verify()
    needs = _functions_of_c(module, dispatcher.__name__)
    return MachineCode(codegen._tm.emit_object(module), result, needs)


def _flags(dispatcher: Any) -> Any:
    """Return the options of the compiler: those of the decorator, but no wrapper for Python."""
    flags: Any = Flags()  # type: ignore[no-untyped-call]
    cpu_target.options.parse_as_flags(  # type: ignore[no-untyped-call]
        flags, dispatcher.targetoptions
    )
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    return flags


def _type_of(kind: Any) -> Any:
    """Return numba's type of an argument."""
    if isinstance(kind, int):
        return types.UniTuple(types.int64, kind)  # type: ignore[no-untyped-call]
    if isinstance(kind, tuple):
        char, dimensions = kind
        return types.Array(from_dtype(np.dtype(char)), dimensions, "C", aligned=True)
    return {"?": types.boolean, "q": types.int64, "f": types.float32, "d": types.float64}[kind]


def _result_of(returned: Any) -> Result:
    """Return the numbers that a loop returns."""
    if returned == types.none:
        return Result("", False)
    several = isinstance(returned, types.BaseTuple)
    parts = list(returned) if several else [returned]
    known = {types.int64: "q", types.intp: "q", types.float64: "d"}
    try:
        return Result("".join(known[part] for part in parts), several)
    except KeyError:
        raise RuntimeError(f"a loop returns {returned}: only int64 and float64 are read") from None


def _entry(function: Any, kinds: tuple[Any, ...]) -> str:
    """Return a function that reads the arguments from a frame, and writes the results behind them.

    The frame has one word for each argument: a number, or the address of an array's object. If an
    array is not as `kinds` says, `MISMATCH` is returned.

    numba's function takes an array spread: two references that are not used, the number of values,
    the bytes of each, the address of the first, the lengths and the strides of the dimensions.
    """
    wanted = [str(argument.type) for argument in function.arguments]
    checks, loads = _Code("c"), _Code("v")
    given = ["%out", "%raised", *_values(kinds, checks, loads)]
    passed = ", ".join(f"{kind} {value}" for kind, value in zip(wanted, given, strict=True))
    return "\n".join(
        [
            f'declare i32 @"{function.name}"({", ".join(wanted)})',
            f"define i32 @{ENTRY}(ptr %frame, ptr %types) {{",
            *checks.lines,
            f"  br i1 {checks.fit}, label %run, label %refuse",
            "run:",
            *loads.lines,
            f"  %out = getelementptr i64, ptr %frame, i64 {len(kinds)}",
            "  %raised = alloca ptr",
            f'  %status = call i32 @"{function.name}"({passed})',
            "  ret i32 %status",
            "refuse:",
            f"  ret i32 {MISMATCH}",
            "}",
        ]
    )


class _Code:
    """Lines of LLVM's language, each with a name of its own.

    Parameters
    ----------
    prefix : str
        Of the names.

    Attributes
    ----------
    lines : list of str
    fit : str
        Name of the value that tells whether all arrays are of their types.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.lines: list[str] = []
        self.fit = "true"

    def add(self, instruction: str) -> str:
        """Append an instruction; return the name of its value."""
        name = f"%{self._prefix}{len(self.lines)}"
        self.lines.append(f"  {name} = {instruction}")
        return name

    def load(self, kind: str, base: str, offset: int) -> str:
        """Append the loading of a value some bytes behind an address."""
        place = self.add(f"getelementptr i8, ptr {base}, i64 {offset}")
        return self.add(f"load {kind}, ptr {place}")

    def require(self, condition: str) -> None:
        """Append that the arguments fit only if a condition holds."""
        self.fit = self.add(f"and i1 {self.fit}, {self.add(condition)}")


def _values(kinds: tuple[Any, ...], checks: _Code, loads: _Code) -> Iterator[str]:
    """Yield the values of all arguments; append what checks them, and then loads them."""
    for number, kind in enumerate(kinds):
        if isinstance(kind, int):
            yield from ["0"] * kind  # of a tuple of numbers only its length counts
        elif isinstance(kind, tuple):
            char, dimensions = kind
            array = _check_array(number, dimensions, checks)
            yield from _array_values(array, char, dimensions, loads)
        else:
            loaded = {"?": "i8", "q": "i64", "f": "float", "d": "double"}[kind]
            yield loads.load(loaded, "%frame", 8 * number)


_DATA, _DIMENSIONS, _LENGTHS, _TYPE, _FLAGS = (
    object.__basicsize__ + offset for offset in (0, 8, 16, 40, 48)
)
"""Where the object of an array has the address of its first value, the number of its dimensions,
the address of their lengths, that of its type, and its flags: ``PyArrayObject_fields`` in NumPy's
headers, behind the head of every Python object."""


def _check_array(number: int, dimensions: int, code: _Code) -> str:
    """Append the checks of an array's type and return the address of its object."""
    array = code.load("ptr", "%frame", 8 * number)
    code.require(f"icmp eq i32 {code.load('i32', array, _DIMENSIONS)}, {dimensions}")
    found, wanted = code.load("i64", array, _TYPE), code.load("i64", "%types", 8 * number)
    code.require(f"icmp eq i64 {found}, {wanted}")
    flags = code.add(f"and i32 {code.load('i32', array, _FLAGS)}, {_IN_ORDER}")
    code.require(f"icmp eq i32 {flags}, {_IN_ORDER}")
    return array


def _array_values(array: str, char: str, dimensions: int, code: _Code) -> list[str]:
    """Return the values of an array, and append their instructions."""
    data, lengths = code.load("ptr", array, _DATA), code.load("ptr", array, _LENGTHS)
    item = np.dtype(char).itemsize
    shape = [code.load("i64", lengths, 8 * axis) for axis in range(dimensions)]
    strides: list[str] = []
    size = "1"
    for length in reversed(shape):
        strides.insert(0, code.add(f"mul i64 {size}, {item}"))
        size = code.add(f"mul i64 {size}, {length}")
    return ["null", "null", size, str(item), data, *shape, *strides]


def _functions_of_c(module: Any, name: str) -> tuple[str, ...]:
    """Return the functions of the C library that the code calls; raise if it calls others."""
    called = {function.name for function in module.functions if function.is_declaration}
    wanted = {one for one in called if not one.startswith("llvm.")}
    wanted |= {one.name for one in module.global_variables if one.is_declaration}
    if wanted - _KNOWN:
        raise RuntimeError(f"the loop {name} needs {', '.join(sorted(wanted - _KNOWN))}")
    return tuple(sorted(wanted))
