"""Input and output settings of a network: the TOML file beside the model (see docs/cnn.md)."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.errors import ConfigError
from pipeline.extraction.cnn.model_file import files_beside

Resize = Literal["shorter", "stretch", "letterbox"]
Channels = Literal["RGB", "BGR", "grey"]
Layout = Literal["NCHW", "NHWC"]
Pooling = Literal["none", "average", "max", "gem"]
Runtime = Literal["onnxruntime", "opencv"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "resize": get_args(Resize),
    "channels": get_args(Channels),
    "layout": get_args(Layout),
    "pooling": get_args(Pooling),
    "runtime": get_args(Runtime),
}
_BOUNDS: dict[str, tuple[int, int]] = {
    "resize_to": (0, 4096),
    "batch": (1, 256),
    "row_bytes": (0, 4096),
}


@dataclass(frozen=True, kw_only=True)
class CnnSettings:
    """How pictures become the input of a network, and how its output becomes a vector.

    A component of the input is ``(pixel * scale - mean) / std``, pixels from 0 to 255.

    Parameters
    ----------
    size : int or (int, int)
        Side, or height and width, of the network's input, pixels.
    resize : {"shorter", "stretch", "letterbox"}
        How a picture gets that size. ``shorter``: its shorter side becomes `resize_to`, then the
        centre is cut out; as most networks were trained. ``stretch``: height and width each.
        ``letterbox``: the whole picture, with margins of value 0 after normalisation.
    resize_to : int
        For ``shorter``, pixels. Default 0: the picture just covers the input.
    channels : {"RGB", "BGR", "grey"}
        Order of the input's channels, and of `mean`, `std` and `scale`.
    mean, std, scale : float, or one for each channel
        See above.
    input : str
        Name of the input. Default "": the only one.
    output : str
        Name of the tensor to read, possibly an intermediate one. Default "": the only output.
    layout : {"NCHW", "NHWC"}
        Order of the axes of input and output.
    pooling : {"none", "average", "max", "gem"}
        How the positions of an output with height and width become one vector. ``none``: no
        pooling, all values in memory order. ``gem``: generalised mean, the `gem_power`-th root of
        the mean `gem_power`-th power (Radenovic, Tolias, Chum, "Fine-tuning CNN image retrieval
        with no human annotation", PAMI 2019); negative values count as 0.
    gem_power : float
        1 is the average, infinity the maximum. Default 3, where that paper's networks settle.
    normalize : bool
        Store vectors of unit length. Either way, they are compared by the angle between them.
    whiten : bool
        PCA whitening, trained on the collection: see docs/cnn.md for when it helps.
    row_bytes : int
        Bytes of a stored row: components kept by the PCA. A multiple of 64; default 0: a quarter of
        the vector's length, but 128 where it has them, and at most 512 (measured in
        docs/decisions/0007-cnn-runtime.md).
    batch : int
        Images that go through the network at once (see docs/decisions/0007-cnn-runtime.md).
    runtime : {"onnxruntime", "opencv"}
        What computes the network.

    Raises
    ------
    ConfigError
        A value is not of its type or range.
    """

    size: int | tuple[int, int]
    resize: Resize = "shorter"
    resize_to: int = 0
    channels: Channels = "RGB"
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    scale: float | tuple[float, ...] = 1.0
    input: str = ""
    output: str = ""
    layout: Layout = "NCHW"
    pooling: Pooling = "none"
    gem_power: float = 3.0
    normalize: bool = True
    whiten: bool = False
    row_bytes: int = 0
    batch: int = 4
    runtime: Runtime = "onnxruntime"

    def __post_init__(self) -> None:
        self._check_types()
        self._check_sizes()
        for name in ("mean", "std", "scale"):
            object.__setattr__(self, name, self._per_channel(name))
        if not all(self.channel_values("std")):
            raise ConfigError("std", self.std, "must not be 0: the input is divided by it")
        power = _number("gem_power", self.gem_power)
        if not 1 <= power <= 100:
            raise ConfigError("gem_power", power, "must be from 1 to 100")
        object.__setattr__(self, "gem_power", power)

    @classmethod
    def from_toml(cls, path: Path) -> CnnSettings:
        """Read a settings file.

        Raises
        ------
        ConfigError
            It is missing, not TOML, or a key or value is wrong; the file is named.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as exc:
            there = files_beside(path, ".toml")
            raise ConfigError(
                "settings of the network",
                str(path),
                f"there is no such file; its folder holds {there}. It says how the network is fed "
                "and read (docs/cnn.md)",
            ) from exc
        except OSError as exc:
            raise ConfigError(
                "settings of the network", str(path), f"cannot be read ({exc.strerror})"
            ) from exc
        except ValueError as exc:
            raise ConfigError("settings of the network", str(path), f"not TOML: {exc}") from exc
        try:
            return cls.from_dict(values)
        except ConfigError as exc:
            setting, value, allowed = exc.args
            raise ConfigError(f"{setting} in {str(path)!r}", value, allowed) from exc

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CnnSettings:
        """Build from plain values (lists for tuples), refusing keys that do not exist."""
        names = [field.name for field in dataclasses.fields(cls)]
        for key, value in values.items():
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
                raise ConfigError(key, value, f"there is no such setting of a network; {hint}")
        if "size" not in values:
            raise ConfigError("size", None, "is missing: side of the network's input, pixels")
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-serialisable values, defaults too: inverse of `from_dict`."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @property
    def height(self) -> int:
        """Of the network's input, pixels."""
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        """Of the network's input, pixels."""
        return self.size if isinstance(self.size, int) else self.size[1]

    @property
    def channel_count(self) -> int:
        """Channels of the network's input."""
        return 1 if self.channels == "grey" else 3

    def channel_values(self, name: Literal["mean", "std", "scale"]) -> tuple[float, ...]:
        """Return a value for each channel."""
        value: float | tuple[float, ...] = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * self.channel_count

    def _check_types(self) -> None:
        """Refuse values of a wrong type, and choices and numbers out of range."""
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(name, getattr(self, name), f"must be one of {', '.join(allowed)}")
        for name, (low, high) in _BOUNDS.items():
            _integer(name, getattr(self, name), low, high)
        for name in ("normalize", "whiten"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(name, getattr(self, name), "must be true or false")
        for name in ("input", "output"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(name, getattr(self, name), "must be the name of a tensor")
        if self.row_bytes % 64:
            raise ConfigError("row_bytes", self.row_bytes, "must be a multiple of 64, at most 4096")

    def _check_sizes(self) -> None:
        """Refuse input sizes that cannot be."""
        sides = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if len(sides) != 2:
            raise ConfigError("size", self.size, "must be one number, or height and width")
        for side in sides:
            _integer("size", side, 1, 4096)
        if self.resize_to and self.resize != "shorter":
            raise ConfigError("resize_to", self.resize_to, f"has no meaning to {self.resize!r}")
        if self.resize_to and self.resize_to < max(sides):
            raise ConfigError(
                "resize_to", self.resize_to, f"must be at least the size, {max(sides)}"
            )

    def _per_channel(self, name: str) -> float | tuple[float, ...]:
        """Check a number, or a list of one for each channel."""
        value = getattr(self, name)
        if not isinstance(value, tuple):
            return _number(name, value)
        if len(value) != self.channel_count:
            raise ConfigError(
                name, value, f"must be one number, or {self.channel_count} for {self.channels!r}"
            )
        return tuple(_number(name, item) for item in value)


def settings_beside(model: Path) -> CnnSettings:
    """Read the settings of a model file: the TOML file with its name beside it.

    Raises
    ------
    ConfigError
        See `CnnSettings.from_toml`.
    """
    return CnnSettings.from_toml(model.with_suffix(".toml"))


def _number(name: str, value: object) -> float:
    """Check a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(name, value, "must be a finite number")
    return float(value)


def _integer(name: str, value: object, low: int, high: int) -> int:
    """Check a whole number in a range."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(name, value, f"must be a whole number from {low} to {high}")
    return value
