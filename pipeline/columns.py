"""Checks of arrays that were read: compiled code follows them without checks of its own.

A file may have the right checksums and still hold anything, and so may a message. Everyone who
makes an object of arrays (`from_arrays`) takes them by these functions, which raise a
`CorruptFileError` that names the file and what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, CorruptFileError, InputError

__all__ = [
    "column",
    "file_name",
    "integer",
    "plain_values",
    "real",
    "require",
    "require_below",
    "require_finite",
    "require_offsets",
    "require_types",
]

Number = TypeVar("Number", bound=np.generic)
Arrays = Mapping[str, NDArray[Any]]


def file_name(arrays: Arrays) -> str:
    """Return the name of the file that arrays were read from."""
    return str(getattr(arrays, "name", "<arrays>"))


def require(ok: object, arrays: Arrays, reason: str) -> None:
    """Raise a `CorruptFileError` that names the file, unless all is well."""
    if not ok:
        raise CorruptFileError(file_name(arrays), reason)


def column(arrays: Arrays, name: str, dtype: type[Number], *shape: int | None) -> NDArray[Number]:
    """Return an array after comparing its type and shape.

    Parameters
    ----------
    arrays : mapping of str to ndarray
    name : str
    dtype : type
    *shape : int or None
        None: any length.
    """
    require(name in arrays, arrays, f"it has no array {name}")
    array = arrays[name]
    fits = array.dtype == np.dtype(dtype) and array.ndim == len(shape)
    fits = fits and all(
        side is None or side == given for side, given in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if side is None else str(side) for side in shape)
        found = f"{array.dtype} of shape {array.shape}"
        require(False, arrays, f"{name} is {found}, not {np.dtype(dtype)} of shape ({wanted})")
    return array


def require_offsets(arrays: Arrays, name: str, rows: int) -> NDArray[np.int64]:
    """Return offsets that rise from 0 to the number of rows."""
    offsets = column(arrays, name, np.int64, None)
    ok = len(offsets) and offsets[0] == 0 and offsets[-1] == rows
    ok = ok and bool((offsets[1:] >= offsets[:-1]).all())
    require(ok, arrays, f"{name} do not rise from 0 to {rows}")
    return offsets


def require_below(arrays: Arrays, name: str, values: NDArray[Any], limit: int) -> None:
    """Refuse numbers that are not below a limit; they are unsigned, or 0 at least."""
    if len(values):
        high, low = int(values.max()), int(values.min()) if values.dtype.kind == "i" else 0
        found = f"{name} hold {high if high >= limit else low}, not numbers below {limit}"
        require(low >= 0 and high < limit, arrays, found)


def require_finite(arrays: Arrays, name: str, values: NDArray[Any]) -> None:
    """Refuse NaN and infinity."""
    # A sum is finite if all are, but may overflow: then look at each.
    with np.errstate(all="ignore"):
        finite = bool(np.isfinite(values.sum(dtype=np.float64)))
    require(finite or bool(np.isfinite(values).all()), arrays, f"{name} are not all finite")


def integer(arrays: Arrays, values: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """Return a whole number of the plain values, from `low` to `high`."""
    value = values.get(name)
    ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    require(ok, arrays, f"{name} is {value!r}, not a whole number from {low} to {high}")
    return int(values[name])


def real(arrays: Arrays, values: Mapping[str, Any], name: str, low: float = -math.inf) -> float:
    """Return a finite number of the plain values, at least `low`."""
    value: Any = values.get(name)
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    ok = ok and math.isfinite(value) and value >= low
    require(ok, arrays, f"{name} is {value!r}, not a finite number of at least {low}")
    return float(values[name])


def _are(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    """Return a test of one value; True and False are no numbers."""
    return lambda value: isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _all(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, tuple) and all(map(test, values))


def _is_number(value: Any) -> bool:
    return _are((int, float))(value) and math.isfinite(value)


_TESTS: dict[str, Callable[[Any], bool]] = {
    "int": _are(int),
    "float": _is_number,
    "str": _are(str),
    "bool": _are(bool),
    "tuple[int, ...]": _all(_are(int)),
    "tuple[str, ...]": _all(_are(str)),
    "dict[str, Any]": _are(dict),
    "dict[str, float]": lambda value: (
        isinstance(value, dict) and all(map(_is_number, value.values()))
    ),
}
"""By the annotation of a field; fields with others are not tested."""


def require_types(record: Any, name: str) -> None:
    """Refuse a dataclass of plain values of which one is not of its field's type.

    Parameters
    ----------
    record : dataclass instance
    name : str
        What it was read from.

    Raises
    ------
    CorruptFileError
    """
    for one in fields(record):
        test = _TESTS.get(str(one.type))
        if test is not None and not test(getattr(record, one.name)):
            reason = f"{one.name} is {getattr(record, one.name)!r}"
            raise CorruptFileError(name, reason[:200])


@contextmanager
def plain_values(arrays: Arrays) -> Iterator[None]:
    """Turn the errors of making objects of plain values of any kind into a `CorruptFileError`."""
    try:
        yield
    except CorruptFileError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError, IndexError, OverflowError) as exc:
        reason = str(exc) if isinstance(exc, ConfigError | InputError) else repr(exc)
        raise CorruptFileError(file_name(arrays), reason[:200]) from exc
