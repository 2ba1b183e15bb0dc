"""The search engine alone: nearest neighbours of vectors, without images, databases or servers.

::

    from pipeline.index import VantageIndex

    index = VantageIndex.build(vectors)              # float32 (N, D)
    distances, ids = index.search(queries, 10)       # both (Q, 10), as faiss returns them
    index.add(more)                                  # ids go on counting, or give your own
    index.remove([3, 5])
    index.save("vectors.vantage")
    index = VantageIndex.open("vectors.vantage")     # mapped into memory

In the words of FAISS it is an inverted file with a scalar quantiser: vectors are rotated into
their principal axes and stored as 8-bit rows, sorted by the cells of a vantage-point tree.
``effort`` is ``nprobe`` as a share of the cells; ``exact=True`` compares with every row. Distances
are squared Euclidean distances of the stored rows, in the units of the input.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.arrays import ArrayFile, write_arrays
from pipeline.columns import (
    column,
    integer,
    plain_values,
    real,
    require,
    require_below,
    require_offsets,
)
from pipeline.config import IndexConfig
from pipeline.cores import usable_cores
from pipeline.errors import CorruptFileError, DamagedIndexError, InputError, NewerFormatError
from pipeline.index.cells import (
    MeanCells,
    cells_by_default,
    cells_from_arrays,
    cells_to_arrays,
    train_cells,
    training_rows,
)
from pipeline.index.paths import NEVER
from pipeline.index.quantizer import LARGEST, Quantizer, read_quantizer, train_quantizer
from pipeline.index.rows import MAX_DIMENSIONS, ROW_UNIT, packed_rows
from pipeline.index.runs import CHUNK, Run, living_rows, make_run, merge_runs, search_runs
from pipeline.index.vptree import VPTree, levels_for

CELL_SIZE = 192
"""Default number of rows in a cell; see docs/decisions/0014-cells.md."""

EXACT_BELOW = 20_000
"""Rows below which a search without a given effort compares with every row."""

LARGEST_ID = 2**62
"""The largest id: new ids count on from the largest, so some must be left."""

REGROWTH = 4
"""The tree is trained again when there are so many times the rows that it was trained for."""

FORMAT = 1
"""Number of the file format that `VantageIndex.save` writes."""


class VantageIndex:
    """Approximate or exact nearest neighbours of float32 vectors.

    Made by `build` or `open`. One object may be searched by several threads at once; `add` and
    `remove` must not run at the same time as any other call.

    Parameters
    ----------
    dimensions : int
        Numbers D of a vector.
    config : IndexConfig
        ``dimensions`` is the length of a stored row: more than D is rounded up, less than D keeps
        only the leading principal axes. ``groups`` is not used.
    threads : int
        Threads of a call.
    """

    def __init__(self, dimensions: int, config: IndexConfig, threads: int) -> None:
        self.dimensions = dimensions
        self.config = config
        self.threads = threads
        self._quantizer: Quantizer | None = None
        self._tree: VPTree | MeanCells | None = None
        self._trained_for = 0
        self._runs: list[Run] = []
        self._next_id = 0
        self._executor = ThreadPoolExecutor(threads)
        self._process = os.getpid()

    @classmethod
    def build(
        cls,
        vectors: ArrayLike,
        *,
        ids: ArrayLike | None = None,
        config: IndexConfig | None = None,
        threads: int | None = None,
    ) -> Self:
        """Make an index of vectors.

        Parameters
        ----------
        vectors : array_like of shape (N, D), float32
            Finite; N may be 0. Rotation and scale are fitted to the first vectors, which should
            resemble later ones.
        ids : array_like of shape (N,), int64, optional
            Not negative, all different. Default: 0 to N - 1.
        config : IndexConfig, optional
            Default: rows as long as the vectors, cells of `CELL_SIZE`.
        threads : int, optional
            Threads of this and every later call. Default: the processor's cores.

        Returns
        -------
        VantageIndex

        Raises
        ------
        InputError
            Not a matrix, NaN or infinite values, more than 4096 columns, ids that do not fit.
        """
        rows = _as_matrix(vectors)
        width = rows.shape[1]
        if not 1 <= width <= MAX_DIMENSIONS:
            raise InputError(f"vectors of {width} numbers: an index takes 1 to {MAX_DIMENSIONS}")
        length = -(-width // ROW_UNIT) * ROW_UNIT
        config = config or IndexConfig(dimensions=length, cell_size=CELL_SIZE)
        index = cls(width, config, _threads(threads))
        index.add(rows, ids)
        return index

    @property
    def _pool(self) -> ThreadPoolExecutor:
        """The threads; a forked process starts its own."""
        if self._process != os.getpid():
            self._executor, self._process = ThreadPoolExecutor(self.threads), os.getpid()
        return self._executor

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self):,} vectors of {self.dimensions} numbers>"

    def __len__(self) -> int:
        """Return the number of vectors that are not removed."""
        return sum(int(run.alive.sum()) for run in self._runs)

    @property
    def stats(self) -> dict[str, Any]:
        """Numbers of vectors, cells, runs and bytes."""
        rows = sum(len(run.ids) for run in self._runs)
        return {
            "vectors": len(self),
            "removed": rows - len(self),
            "dimensions": self.dimensions,
            "row_bytes": self.config.dimensions,
            "cells": self._tree.cells if self._tree else 0,
            "runs": len(self._runs),
            "bytes": sum(array.nbytes for run in self._runs for array in (*run.rows[:3], run.ids)),
        }

    def add(self, vectors: ArrayLike, ids: ArrayLike | None = None) -> None:
        """Add vectors.

        Parameters
        ----------
        vectors : array_like of shape (N, D), float32
        ids : array_like of shape (N,), int64, optional
            Not negative and not in the index. Default: from the largest id so far plus one.

        Raises
        ------
        InputError
            See `build`.
        """
        rows = _as_matrix(vectors, self.dimensions)
        numbers = self._checked_ids(ids, len(rows))
        if not len(rows):
            return
        if self._quantizer is None:
            _require_finite(rows)
            self._quantizer = train_quantizer(
                self._sample(rows, self.config.sample_size), self.config.dimensions
            )
        codes = self._encode(self._quantizer, rows)
        total = sum(len(run.ids) for run in self._runs) + len(rows)
        if self._tree is None or total > REGROWTH * self._trained_for:
            # The cells would grow too large, so all rows get new ones.
            kept = living_rows(self._runs) if self._runs else (codes[:0], numbers[:0])
            codes = np.concatenate([kept[0], codes])
            numbers = np.concatenate([kept[1], numbers])
            self._tree = self._train_tree(codes)
            self._trained_for = len(codes)
            self._runs = []
        self._runs.append(make_run(codes, numbers, self._tree, self._pool))
        self._runs = merge_runs(self._runs, self._tree, self._pool)
        self._next_id = max(self._next_id, int(numbers.max()) + 1)

    def remove(self, ids: ArrayLike) -> int:
        """Remove vectors. Unknown ids are ignored.

        Parameters
        ----------
        ids : array_like of int

        Returns
        -------
        int
            Number of removed vectors.

        Raises
        ------
        InputError
            An id is not an integer.
        """
        gone = np.asarray(ids).ravel()
        if gone.size and gone.dtype.kind not in "iu":
            raise InputError(f"ids of type {gone.dtype} cannot be removed: give whole numbers")
        removed = 0
        for run in self._runs:
            hit = run.alive & np.isin(run.ids, gone)
            run.alive[hit] = False
            removed += int(hit.sum())
        return removed

    def search(
        self,
        queries: ArrayLike,
        k: int,
        *,
        effort: float | None = None,
        exact: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k nearest vectors of each query.

        Parameters
        ----------
        queries : array_like of shape (Q, D), float32
        k : int
            At least 1.
        effort : float, optional
            Share of the cells to open for each query, above 0 and at most 1: more finds more of the
            true neighbours and takes longer. Default: the square root of the number of cells; below
            `EXACT_BELOW` vectors, every row is compared.
        exact : bool
            Compare with every row.

        Returns
        -------
        distances : ndarray of shape (Q, k), float32
            Squared Euclidean distances of the stored rows, ascending; infinite if there are fewer
            than k.
        ids : ndarray of shape (Q, k), int64
            -1 if there are fewer than k.

        Raises
        ------
        InputError
            Queries of another length, NaN or infinite values, k or effort out of range.
        """
        rows = _as_matrix(queries, self.dimensions)
        if not isinstance(k, int | np.integer) or k < 1:
            raise InputError(f"k is {k!r}: it must be a whole number, at least 1")
        if effort is not None and not 0 < effort <= 1:
            raise InputError(f"effort is {effort}: it must be above 0 and at most 1")
        if self._quantizer is None or self._tree is None:
            _require_finite(rows)
            nothing = np.full((len(rows), k), np.inf, np.float32)
            return nothing, np.full((len(rows), k), -1, np.int64)
        codes = self._quantizer.encode(rows)
        few = sum(len(run.ids) for run in self._runs) < EXACT_BELOW
        everything = exact or effort == 1 or (effort is None and few)
        probes = None if everything else self._probes(self._tree, effort)
        distance, ids = search_runs(
            self._runs, self._tree, codes, k, probes, self._pool, self.threads
        )
        squared = distance.astype(np.float64) / self._quantizer.scale**2
        return np.where(distance == NEVER, np.inf, squared).astype(np.float32), ids

    def _probes(self, tree: VPTree | MeanCells, effort: float | None) -> int:
        """Return the number of cells that are opened for a query."""
        if effort is None:
            return cells_by_default(tree.cells)
        return max(1, round(effort * tree.cells))

    def save(self, path: str | Path) -> None:
        """Write the index to a file; an existing file is replaced as a whole or not at all.

        Parameters
        ----------
        path : str or Path
        """
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
        try:
            with temporary.open("wb") as stream:
                write_arrays(stream, self._arrays(), self._meta())
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True, threads: int | None = None) -> Self:
        """Open a saved index; its rows are mapped into memory, not read.

        Parameters
        ----------
        path : str or Path
        verify : bool
            First compare everything with its checksum, which reads the whole file.
        threads : int, optional
            See `build`.

        Returns
        -------
        VantageIndex

        Raises
        ------
        DamagedIndexError
            The file is truncated, changed, or not a saved index.
        FileNotFoundError, PermissionError
        """
        try:
            file = ArrayFile(Path(path))
            if verify:
                file.verify()
            if file.meta.get("format") != FORMAT:
                found = file.meta.get("format", "none")
                raise DamagedIndexError(str(path), f"format {found} instead of {FORMAT}")
            wide = integer(file, file.meta, "dimensions", 1, MAX_DIMENSIONS)
            with plain_values(file):
                config = IndexConfig.from_dict(file.meta["config"])
            index = cls(wide, config, _threads(threads))
            index._read(file)
        except (DamagedIndexError, NewerFormatError):
            raise
        except CorruptFileError as exc:
            raise DamagedIndexError(str(path), exc.args[1]) from exc
        return index

    def _meta(self) -> dict[str, Any]:
        """Return the plain values of a saved index."""
        return {
            "format": FORMAT,
            "dimensions": self.dimensions,
            "config": self.config.to_dict(),
            "next_id": self._next_id,
            "trained_for": self._trained_for,
            "runs": len(self._runs),
            "scale": self._quantizer.scale if self._quantizer else 0.0,
        }

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of a saved index."""
        if self._quantizer is None or self._tree is None:
            return {}
        arrays: dict[str, NDArray[Any]] = {
            "mean": self._quantizer.mean,
            "rotation": self._quantizer.rotation,
            **cells_to_arrays(self._tree),
        }
        for number, run in enumerate(self._runs):
            columns: dict[str, NDArray[Any]] = {
                "codes": run.rows.codes,
                "norms": run.rows.norms,
                "heads": run.rows.prefixes,
                "ids": run.ids,
                "cell_offsets": run.cell_offsets,
                "alive": run.alive,
            }
            arrays.update({f"{number}.{name}": array for name, array in columns.items()})
        return arrays

    def _read(self, file: ArrayFile) -> None:
        """Inverse of `_arrays` and `_meta`."""
        meta = file.meta
        self._next_id = integer(file, meta, "next_id", 0, LARGEST_ID + 1)
        self._trained_for = integer(file, meta, "trained_for", 0, LARGEST_ID)
        runs, scale = integer(file, meta, "runs", 0, len(file)), real(file, meta, "scale", 0.0)
        if not scale:
            require(not runs, file, f"it has {runs} runs and no scale")
            return
        self._quantizer = read_quantizer(file, scale)
        self._tree = cells_from_arrays(file)
        width = self.config.dimensions
        shape = self._quantizer.rotation.shape
        fits = shape == (self.dimensions, width)
        require(fits, file, f"a rotation {shape} does not fit {self.dimensions} x {width}")
        points = self._tree.points if isinstance(self._tree, VPTree) else self._tree.tree.points
        require(points.shape[1] == width, file, f"points {points.shape} do not fit {width} bytes")
        self._runs = [_read_run(file, f"{i}.", self._tree.cells, width) for i in range(runs)]

    def _checked_ids(self, ids: ArrayLike | None, count: int) -> NDArray[np.int64]:
        """Return the ids of new vectors."""
        if ids is None:
            return np.arange(self._next_id, self._next_id + count, dtype=np.int64)
        numbers = np.asarray(ids)
        if numbers.shape != (count,) or numbers.dtype.kind not in "iu":
            raise InputError(
                f"ids of shape {numbers.shape} and type {numbers.dtype} do not fit {count} "
                "vectors: one whole number each"
            )
        if count and int(numbers.max()) > LARGEST_ID:
            raise InputError(f"the id {numbers.max()} is above {LARGEST_ID}")
        numbers = numbers.astype(np.int64)
        if count and numbers.min() < 0:
            raise InputError(f"the id {numbers.min()} is negative: -1 means no neighbour")
        if len(np.unique(numbers)) != count:
            raise InputError("ids appear more than once")
        for run in self._runs:
            known = run.ids[run.alive & np.isin(run.ids, numbers)]
            if len(known):
                raise InputError(f"the id {known[0]} is in the index already; remove it first")
        return numbers

    def _sample(self, rows: NDArray[Any], count: int) -> NDArray[Any]:
        """Return some rows, at random."""
        if len(rows) <= count:
            return rows
        rng = np.random.default_rng(self.config.seed)
        chosen = rng.choice(len(rows), count, replace=False)
        chosen.sort()
        return rows[chosen]

    def _encode(self, quantizer: Quantizer, rows: NDArray[np.float32]) -> NDArray[np.int8]:
        """Return the stored bytes of vectors."""
        pieces = [rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK)]
        return np.concatenate(list(self._pool.map(quantizer.encode, pieces)))

    def _train_tree(self, codes: NDArray[np.int8]) -> VPTree | MeanCells:
        """Return a tree with cells of the wanted size."""
        levels = levels_for(len(codes), self.config.cell_size, 1)
        config = self.config
        return train_cells(
            self._sample(codes, training_rows(levels, config.sample_size)),
            levels,
            config.cells,
            config.vantage,
            config.seed,
            self._pool.map,
        )


def _read_run(arrays: Mapping[str, NDArray[Any]], prefix: str, cells: int, width: int) -> Run:
    """Return one run of a saved index, whose arrays' names begin with `prefix`."""
    ids = column(arrays, f"{prefix}ids", np.int64, None)
    require_below(arrays, f"{prefix}ids", ids, LARGEST_ID + 1)
    names = (f"{prefix}codes", f"{prefix}norms", f"{prefix}heads")
    rows = packed_rows(arrays, len(ids), names)
    require(rows.dimensions == width, arrays, f"rows have {rows.dimensions} bytes, not {width}")
    offsets = require_offsets(arrays, f"{prefix}cell_offsets", len(ids))
    require(len(offsets) == cells + 1, arrays, f"{len(offsets)} offsets for {cells} cells")
    alive = column(arrays, f"{prefix}alive", np.bool_, len(ids)).view(np.uint8)
    require_below(arrays, f"{prefix}alive", alive, 2)
    return Run(rows, ids, offsets.copy(), alive.view(np.bool_).copy())


def _threads(threads: int | None) -> int:
    """Return the number of threads; by default the cores that this process may use."""
    if threads is None:
        return usable_cores()
    if threads < 1:
        raise InputError(f"threads is {threads}: it must be at least 1")
    return threads


def _as_matrix(vectors: ArrayLike, width: int | None = None) -> NDArray[np.float32]:
    """Return vectors as a float32 matrix."""
    rows = np.asarray(vectors, np.float32)
    if rows.ndim != 2 or (width is not None and rows.shape[1] != width):
        wanted = "any number of" if width is None else width
        raise InputError(
            f"an array of shape {rows.shape} is not a list of vectors of {wanted} numbers"
        )
    return rows


def _require_finite(rows: NDArray[np.float32]) -> None:
    """Refuse NaN, infinite and very large values."""
    if not (np.abs(rows) <= LARGEST).all():
        raise InputError(
            f"vectors hold NaN or infinite values, or values beyond {LARGEST:g}; remove those rows"
        )
