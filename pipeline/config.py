"""Settings and per-stage configuration.

`Settings.from_env` is the only reader of the environment. The configuration of a *collection*
(`ExtractorConfig`, `IndexConfig`) is stored with it in SQL; the environment only sets the defaults
for new collections. Every configuration is a frozen keyword-only dataclass that refuses unknown
keys. `config_id` makes a short name of it for files and cache keys, so that results of different
settings never mix.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import ipaddress
import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

from platformdirs import user_data_path

from pipeline.addresses import absolute_database, absolute_store, sqlite_address
from pipeline.cores import usable_cores
from pipeline.errors import ConfigError

MAX_GROUPS = 16
"""Most groups a collection can have: every message of a search costs 1.3 to 2 ms."""

DEFAULT_EXTRACTOR = "sift"
"""The extractor of new collections."""

VantageStrategy = Literal["random", "spread", "principal"]
CellKind = Literal["means", "leaves"]
PlanKind = Literal["auto", "probed", "exhaustive"]
EXTRACTOR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
"""Valid extractor names: the name becomes part of file names."""
EXTRACTOR_OPTIONS = re.compile(r"[A-Za-z_]\w*=[^,=]+(,[A-Za-z_]\w*=[^,=]+)*")
"""Options of an extractor, as written after its name and a colon."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GROUP_COUNTS = ("1", "2", "4", "8", "16")


def canonical_json(value: object) -> str:
    """Return the canonical JSON text of a value: sorted keys, no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def model_key(sha256: str) -> str:
    """Return the store name of a model file, by its SHA-256 (hex)."""
    return f"models/{sha256}.onnx"


def digest(*parts: object) -> str:
    """Return 32 hex digits that name the given JSON-serialisable values.

    128 bits of SHA-256, for names of files and cache keys: short, but without accidental
    collisions.
    """
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()[:32]


class Config:
    """Base of the frozen configuration dataclasses."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values: the inverse of `to_dict`.

        Parameters
        ----------
        values : mapping of str to value
            By parameter name; missing ones take their defaults.

        Returns
        -------
        Self

        Raises
        ------
        ConfigError
            There is no such parameter, or its value is out of range.
        """
        names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for key in values:
            if key not in names:
                raise ConfigError(key, values[key], f"not a setting of {cls.__name__}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-serialisable values."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True, kw_only=True)
class ImageLimits(Config):
    """Limits on what an image may cost before it is refused.

    Parameters
    ----------
    max_bytes : int
        Largest file, bytes. 256 MiB holds any camera's file.
    max_pixels : int
        Most pixels, checked from the header before anything is decoded. 200 million pixels is
        above every camera sold.
    decode_memory : int
        Bytes of memory for all images that a process decodes at the same time. How many one takes
        is estimated from its header before anything is decoded
        (`pipeline.pictures.memory_estimate`).
    decode_seconds : float
        Processor time for decoding one image: a file made to waste time (a progressive JPEG of
        thousands of scans) needs minutes, the largest honest camera file about two seconds.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 200_000_000
    decode_memory: int = 2**30
    decode_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "decode_memory"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "must be at least 1")
        if not self.decode_seconds > 0:
            raise ConfigError("decode_seconds", self.decode_seconds, "must be above 0 seconds")


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig(Config):
    """How features are taken from an image; part of the identity of everything made from them.

    Parameters
    ----------
    name : str
        A registered extractor (see `pipeline.extraction.registry`).
    model : str
        SHA-256 (hex) of the extractor's model file; empty if it has none.
    options : mapping of str to plain JSON values
        The extractor's own settings. A copy is kept, which must not be changed.
    max_side : int
        Images are reduced to this longer side, pixels (area filter), before extraction.
    max_features : int
        Most keypoints kept of a collection image, strongest first but spread over the picture.
    query_max_features : int
        The same for a query, which deserves more work: it is one image, matched against all.
    revision : int
        Version of the extraction code: a release raises it if the same settings give different
        features, so that old and new features never mix.
    """

    name: str = DEFAULT_EXTRACTOR
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    max_side: int = 1024
    max_features: int = 500
    query_max_features: int = 1000
    revision: int = 1

    def __post_init__(self) -> None:
        if not EXTRACTOR_NAME.fullmatch(self.name):
            raise ConfigError(
                "name", self.name, "must be 1 to 32 of the characters A-Z a-z 0-9 . _ -"
            )
        if self.model and not _SHA256.fullmatch(self.model):
            raise ConfigError("model", self.model, "must be a SHA-256: 64 hex digits, lower case")
        object.__setattr__(self, "options", _plain_json("options", self.options))
        if self.max_side < 32:
            raise ConfigError("max_side", self.max_side, "must be at least 32 pixels")
        for name in ("max_features", "query_max_features"):
            if not 1 <= getattr(self, name) <= 65535:
                raise ConfigError(name, getattr(self, name), "must be from 1 to 65535")

    def __hash__(self) -> int:
        """Hash by content, because the options are a mapping."""
        return hash(canonical_json(self.to_dict()))

    def same_extractor(self, other: ExtractorConfig) -> bool:
        """Tell whether both are the same extractor: name, model, options and revision.

        Other settings (sizes, counts) are not compared: they come from the caller's environment,
        and a collection keeps its own.
        """
        return _identity(self) == _identity(other)

    def describe(self) -> str:
        """Name the extractor for people: ``sift``, ``cnn (model 3fa9c1d2b00c)``."""
        if self.model:
            return f"{self.name} (model {self.model[:12]})"
        return f"{self.name} {canonical_json(self.options)}" if self.options else self.name

    def config_id(self) -> str:
        """Return a readable name that changes with every setting: ``sift-n500-s1024-3fa9c1d2``."""
        short = digest(self.to_dict())[:8]
        return f"{self.name}-n{self.max_features}-s{self.max_side}-{short}"


def _identity(config: ExtractorConfig) -> tuple[str, str, Mapping[str, Any], int]:
    """Return the fields that identify an extractor."""
    return config.name, config.model, config.options, config.revision


def _plain_json(setting: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a mapping as it comes back from JSON (tuples become lists).

    Raises
    ------
    ConfigError
        It is no mapping, or JSON cannot hold it.
    """
    try:
        copy = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as exc:
        raise ConfigError(setting, value, f"must be a mapping of plain JSON values: {exc}") from exc
    return cast(dict[str, Any], copy)


@dataclass(frozen=True, kw_only=True)
class IndexConfig(Config):
    """How a collection's descriptors are arranged.

    Parameters
    ----------
    cell_size : int
        Target number of descriptors in a cell. Smaller cells fit the descriptors more closely, but
        a search has more of them to choose from (docs/decisions/0014-cells.md).
    groups : int
        Number of groups (subtrees with a queue of their own): a power of two, at most 16.
    vantage : {"random", "spread", "principal"}
        How vantage points are chosen (see `pipeline.index.vptree`).
    cells : {"means", "leaves"}
        ``means``: a row belongs to the leaf of the tree whose mean is nearest; ``leaves``: to the
        leaf that its descent reaches (as in the paper). See `pipeline.index.cells`.
    dimensions : int
        Length of a stored row, bytes: a multiple of 64 from 64 to 4096. Descriptors are rotated by
        PCA and reduced to it. A new collection takes its extractor's `row_bytes` in place of 64.
    sample_size : int
        Descriptors the tree and the rotation are trained on, more where there are many cells
        (`pipeline.index.cells.training_rows`).
    background_size : int
        Descriptors of the fixed sample that tells how near an unrelated descriptor is
        (see `pipeline.retrieval.score`).
    seed : int
        Seed of every random choice, so that the same images give the same tree.
    """

    cell_size: int = 384
    groups: int = 4
    vantage: VantageStrategy = "principal"
    cells: CellKind = "means"
    dimensions: int = 64
    sample_size: int = 262_144
    background_size: int = 32_768
    seed: int = 1

    def __post_init__(self) -> None:
        if str(self.groups) not in _GROUP_COUNTS:
            raise ConfigError("groups", self.groups, "must be 1, 2, 4, 8 or 16")
        if self.vantage not in get_args(VantageStrategy):
            raise ConfigError("vantage", self.vantage, "must be random, spread or principal")
        if self.cells not in get_args(CellKind):
            raise ConfigError("cells", self.cells, "must be means or leaves")
        if not 64 <= self.dimensions <= 4096 or self.dimensions % 64:
            raise ConfigError(
                "dimensions", self.dimensions, "must be a multiple of 64 from 64 to 4096"
            )
        for name in ("cell_size", "sample_size", "background_size"):
            if getattr(self, name) < 16:
                raise ConfigError(name, getattr(self, name), "must be at least 16")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where files and services are, and how this process behaves (see docs/operations.md)."""

    home: Path
    store: str = field(repr=False)
    local: Path
    database_url: str = field(repr=False)
    redis_url: str | None = field(default=None, repr=False)
    redis_listen: str | None = None
    cache_url: str | None = field(default=None, repr=False)
    cache_mb: int = 128
    cache_listen: str | None = None
    image_roots: tuple[str, ...] = ("/",)
    host: str = "localhost"
    serve_groups: tuple[int, ...] = tuple(range(MAX_GROUPS))
    extract_processes: int = 2
    group_threads: int = 2
    batch_size: int = 16
    search_deadline_s: float = 5.0
    heartbeat_s: float = 2.0
    host_timeout_s: float = 10.0
    visibility_timeout_s: int = 300
    compact_above: int = 8
    queued_bytes: int = 2**29
    flower_address: str = "127.0.0.1"
    flower_port: int = 5555
    flower_password: str | None = field(default=None, repr=False)
    image_limits: ImageLimits = field(default_factory=ImageLimits)
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    extractor_text: str = ""
    index: IndexConfig = field(default_factory=IndexConfig)

    @property
    def extractor_spec(self) -> str:
        """The extractor of new collections, as written: ``sift``, ``cnn:FILE``."""
        return self.extractor_text or self.extractor.name

    @property
    def caches(self) -> bool:
        """Whether anything is cached: not with the address ``off``."""
        return self.cache_url != "off"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read every ``VANTAGE_*`` variable.

        Parameters
        ----------
        environ : mapping of str to str, optional
            Default: the process's environment.

        Returns
        -------
        Settings

        Raises
        ------
        ConfigError
            A value is not of its type or range, or a ``VANTAGE_*`` variable is not known.
        """
        env = _Environment(os.environ if environ is None else environ)
        home = (
            Path(env.text("VANTAGE_HOME", str(user_data_path("vantage")))).expanduser().absolute()
        )
        cores = usable_cores()
        # One flat list, in the order of the fields: easier to check than several shorter ones.
        settings = cls(
            home=home,
            store=absolute_store(env.text("VANTAGE_STORE", str(home / "store"))),
            local=Path(env.text("VANTAGE_LOCAL", str(home / "local"))).expanduser().absolute(),
            database_url=absolute_database(
                env.text("VANTAGE_DATABASE_URL", sqlite_address(home / "vantage.sqlite"))
            ),
            redis_url=env.text("VANTAGE_REDIS_URL", "") or None,
            redis_listen=env.place("VANTAGE_REDIS_LISTEN"),
            cache_url=env.text("VANTAGE_CACHE_URL", "") or None,
            cache_mb=env.integer("VANTAGE_CACHE_MB", 128, 1, 2**20),
            cache_listen=env.place("VANTAGE_CACHE_LISTEN"),
            image_roots=env.folders("VANTAGE_IMAGE_ROOTS", "/"),
            host=env.text("VANTAGE_HOST", socket.gethostname()),
            serve_groups=env.groups("VANTAGE_SERVE_GROUPS"),
            extract_processes=env.integer("VANTAGE_EXTRACT_PROCESSES", cores, 1, 1024),
            group_threads=env.integer("VANTAGE_GROUP_THREADS", cores, 1, 1024),
            batch_size=env.integer("VANTAGE_BATCH_SIZE", 16, 1, 1024),
            search_deadline_s=env.number("VANTAGE_SEARCH_DEADLINE_S", 5.0, 0.1, 3600),
            heartbeat_s=env.number("VANTAGE_HEARTBEAT_S", 2.0, 0.1, 60),
            host_timeout_s=env.number("VANTAGE_HOST_TIMEOUT_S", 10.0, 0.5, 3600),
            visibility_timeout_s=env.integer("VANTAGE_VISIBILITY_TIMEOUT_S", 300, 2, 86400),
            compact_above=env.integer("VANTAGE_COMPACT_ABOVE", 8, 0, 100_000),
            queued_bytes=env.integer("VANTAGE_QUEUED_BYTES", 2**29, 1, 2**40),
            flower_address=env.text("VANTAGE_FLOWER_ADDRESS", "127.0.0.1"),
            flower_port=env.integer("VANTAGE_FLOWER_PORT", 5555, 0, 65535),
            flower_password=env.text("VANTAGE_FLOWER_PASSWORD", "") or None,
            image_limits=ImageLimits(
                max_bytes=env.integer("VANTAGE_MAX_BYTES", ImageLimits().max_bytes, 1, 2**40),
                max_pixels=env.integer("VANTAGE_MAX_PIXELS", ImageLimits().max_pixels, 1, 2**40),
                decode_memory=env.integer("VANTAGE_DECODE_MEMORY", 2**30, 2**26, 2**40),
                decode_seconds=env.number("VANTAGE_DECODE_SECONDS", 30.0, 0.1, 3600),
            ),
            extractor_text=env.extractor("VANTAGE_EXTRACTOR")[1],
            extractor=ExtractorConfig(
                name=env.extractor("VANTAGE_EXTRACTOR")[0],
                max_side=env.integer("VANTAGE_MAX_SIDE", 1024, 32, 65535),
                max_features=env.integer("VANTAGE_MAX_FEATURES", 500, 1, 65535),
                query_max_features=env.integer("VANTAGE_QUERY_MAX_FEATURES", 1000, 1, 65535),
            ),
            index=IndexConfig(
                groups=int(env.choice("VANTAGE_GROUP_COUNT", "4", _GROUP_COUNTS)),
                cell_size=env.integer("VANTAGE_CELL_SIZE", 384, 16, 10**6),
                vantage=cast(
                    VantageStrategy,
                    env.choice("VANTAGE_VANTAGE_POINTS", "principal", get_args(VantageStrategy)),
                ),
                cells=cast(CellKind, env.choice("VANTAGE_CELLS", "means", get_args(CellKind))),
            ),
        )
        env.refuse_unknown()
        return settings


class _Environment:
    """Typed readers of environment variables that name the variable and its value in errors."""

    # Read elsewhere on purpose: `vantage up` sets these for its processes.
    _INTERNAL = frozenset({"VANTAGE_UP_PID", "VANTAGE_INSTALLATION", "VANTAGE_COMPLETE"})

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._known: set[str] = set(self._INTERNAL)

    def text(self, name: str, default: str) -> str:
        self._known.add(name)
        return self._environ.get(name, "") or default

    @staticmethod
    def _wrong(name: str, text: str, allowed: str) -> ConfigError:
        """Return the error of a value; an address with a login may have come to a wrong name."""
        return ConfigError(name, "***" if "@" in text or "://" in text else text, allowed)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        text = self.text(name, str(default))
        try:
            value = float(text)
        except ValueError:
            raise self._wrong(name, text, f"must be a number from {low} to {high}") from None
        if not low <= value <= high:
            raise self._wrong(name, text, f"must be a number from {low} to {high}")
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self.text(name, str(default))
        try:
            value = int(text)
        except ValueError:
            raise self._wrong(name, text, f"must be a whole number from {low} to {high}") from None
        if not low <= value <= high:
            raise self._wrong(name, text, f"must be a whole number from {low} to {high}")
        return value

    def choice(self, name: str, default: str, allowed: Sequence[str]) -> str:
        text = self.text(name, default)
        if text not in allowed:
            raise self._wrong(name, text, f"must be one of {', '.join(allowed)}")
        return text

    def folders(self, name: str, default: str) -> tuple[str, ...]:
        text = self.text(name, default)
        parts = (part for part in text.split(os.pathsep) if part)
        folders = tuple(str(Path(part).expanduser()) for part in parts)
        if not folders or not all(Path(folder).is_absolute() for folder in folders):
            raise self._wrong(name, text, f"must be absolute folders with {os.pathsep!r} between")
        return folders

    def place(self, name: str) -> str | None:
        """Read an address and a port; None if there is no such variable."""
        text = self.text(name, "")
        if not text:
            return None
        address, _, port = text.rpartition(":")
        try:
            ipaddress.ip_address(address.strip("[]"))
            known = 0 < int(port) < 65536
        except ValueError:
            known = False
        if not known:
            raise self._wrong(name, text, "must be like 10.0.0.5:6379, an address of this host")
        return text

    def groups(self, name: str) -> tuple[int, ...]:
        text = self.text(name, "all")
        if text == "all":
            return tuple(range(MAX_GROUPS))
        try:
            values = tuple(sorted({int(part) for part in text.split(",")}))
        except ValueError:
            values = (-1,)
        if not all(0 <= value < MAX_GROUPS for value in values):
            raise self._wrong(
                name, text, f"must be 'all' or group numbers from 0 to {MAX_GROUPS - 1}, like 0,1"
            )
        return values

    def extractor(self, name: str) -> tuple[str, str]:
        """Read an extractor: its name, and the whole text if it has more than the name.

        The path of a model file is made absolute. Whether the extractor exists is checked only when
        a new collection needs it: searches do not.
        """
        text = self.text(name, DEFAULT_EXTRACTOR)
        extractor, colon, argument = text.partition(":")
        if not EXTRACTOR_NAME.fullmatch(extractor):
            return DEFAULT_EXTRACTOR, text
        if argument and not EXTRACTOR_OPTIONS.fullmatch(argument):
            argument = str(Path(argument).expanduser().absolute())
        return extractor, f"{extractor}:{argument}" if colon else ""

    def refuse_unknown(self) -> None:
        for name in self._environ:
            # Names such as _VANTAGE_COMPLETE belong to the shell completion.
            if name.startswith("VANTAGE_") and name not in self._known:
                near = difflib.get_close_matches(name, self._known - self._INTERNAL, n=1)
                meant = f"; did you mean {near[0]}?" if near else ""
                # Its value may be a secret, whatever its name.
                raise ConfigError(name, "***", f"not a variable that Vantage knows{meant}")
