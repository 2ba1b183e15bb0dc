"""Merge rows that are sorted by cell into one segment, in bounded memory.

The inputs are rows of one group: from assignments (the reduce of an index job) or from segments
(compaction). All are sorted by (cell, image, position in the image). So the merge processes ranges
of cells with few enough rows: it gathers each range from every input, sorts it, packs it, and
appends the columns. Inputs are mapped files; in memory are one range, 16 bytes a cell, and the
tables of images. Every input has its own numbers for its images; the merged rows get new ones.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import psutil
from numpy.typing import NDArray

from pipeline.arrays import ArrayFile, ArrayWriter
from pipeline.errors import StateError
from pipeline.index.identities import NO_IMAGES, Identities, unite
from pipeline.index.paths import BLOCK
from pipeline.index.rows import PackedRows, pack_rows, unpack_rows
from pipeline.index.segments import AssignedRows, Segment
from pipeline.private_files import make_folder

MERGE_BYTES = 8 * 2**20
"""Bytes of rows merged at a time; merging uses about ten times as much memory."""

FAN_IN = 128
"""Inputs merged at once, each an open file; more are merged in rounds."""

_ROW_BYTES = 20  # bytes of a row besides its codes: norm, prefix, image, geometry

RowRange = tuple[int, int]
"""First row and the row after the last."""


@dataclass(frozen=True)
class SortedRows:
    """Rows of one group, sorted by (cell, image, position in the image).

    Attributes
    ----------
    cell_offsets : ndarray of shape (C + 1,), int64
        The c-th cell of the group owns rows ``cell_offsets[c]:cell_offsets[c + 1]``; the first need
        not be row 0.
    images : ndarray of shape (N,), uint32
        Numbers in the table.
    geometry : ndarray of shape (N, 4), uint16
    codes : callable
        Returns the stored rows of a range of rows, shape (n, W), uint8.
    table : Identities
        All images with rows here, and perhaps others.
    """

    cell_offsets: NDArray[np.int64]
    images: NDArray[np.uint32]
    geometry: NDArray[np.uint16]
    codes: Callable[[int, int], NDArray[np.uint8]]
    table: Identities

    def present(self, step: int) -> Identities:
        """Return the table of the images with rows here, reading `step` rows at a time."""
        known = np.zeros(len(self.table), np.bool_)
        first, end = int(self.cell_offsets[0]), int(self.cell_offsets[-1])
        for at in range(first, end, step):
            known[self.images[at : min(at + step, end)]] = True
        return self.table.some(known)


def assigned_rows(assigned: AssignedRows, group: int, cells: int) -> SortedRows:
    """Return the rows of one group of an assignment.

    Parameters
    ----------
    assigned : AssignedRows
    group : int
    cells : int
        Cells of a group.
    """
    start, stop = (int(row) for row in assigned.group_offsets[group : group + 2])
    bounds = np.arange(group * cells, (group + 1) * cells + 1)
    offsets = start + np.searchsorted(assigned.cells[start:stop], bounds).astype(np.int64)
    return SortedRows(
        offsets,
        assigned.images,
        assigned.geometry,
        lambda first, end: assigned.codes[first:end],
        assigned.table,
    )


def segment_rows(segment: Segment) -> SortedRows:
    """Return the rows of a segment."""

    def codes(start: int, stop: int) -> NDArray[np.uint8]:
        first, end = start // BLOCK, -(-stop // BLOCK)
        size = min(stop, segment.rows.size) - first * BLOCK
        blocks = PackedRows(segment.rows.codes[first:end], *segment.rows[1:3], size)
        return unpack_rows(blocks)[start - first * BLOCK :]

    return SortedRows(segment.cell_offsets, segment.images, segment.geometry, codes, segment.table)


@dataclass(frozen=True)
class Merge:
    """Rows of several inputs, to be merged into one segment.

    Attributes
    ----------
    inputs : sequence of SortedRows
        All rows of an image are in one input. (If in two, the first input wins.)
    first_cell : int
        Number of the group's first cell in the tree.
    dropped : Identities
        Images whose rows are dropped.
    piece_bytes : int
        Bytes of rows merged at a time; only changes memory and speed.
    """

    inputs: Sequence[SortedRows]
    first_cell: int
    dropped: Identities = NO_IMAGES
    piece_bytes: int = MERGE_BYTES

    @functools.cached_property
    def table(self) -> Identities:
        """The images of the merged segment."""
        step = max(1, self.piece_bytes // 4)
        found = unite(rows.present(step) for rows in self.inputs)
        return found.some(~self.dropped.holds(found)) if len(self.dropped) else found

    @functools.cached_property
    def _numbers(self) -> list[NDArray[np.uint32]]:
        """For each input, the new numbers of its images."""
        return [self.table.numbers_of(rows.table).astype(np.uint32) for rows in self.inputs]

    @functools.cached_property
    def _dropped(self) -> list[NDArray[np.bool_]]:
        """For each input, which of its images are dropped."""
        return [self.dropped.holds(rows.table) for rows in self.inputs]

    def sizes(self) -> NDArray[np.int64]:
        """Return the number of rows of every cell, without dropped ones."""
        first = self.inputs[0].cell_offsets
        total = np.zeros(len(first) - 1, np.int64)
        for rows, dropped in zip(self.inputs, self._dropped, strict=True):
            total += np.diff(rows.cell_offsets)
            if dropped.any():
                gone = self._gone(rows, dropped)
                total -= np.diff(np.searchsorted(gone, rows.cell_offsets))
        return total

    def write(self, stream: BinaryIO, meta: Mapping[str, Any]) -> None:
        """Write the segment's file; equal rows give equal bytes, whatever the ranges.

        Parameters
        ----------
        stream : seekable binary file
        meta : mapping of str to JSON-serialisable values
        """
        sizes = self.sizes()
        count, width = int(sizes.sum()), self.inputs[0].codes(0, 0).shape[1]
        blocks = -(-count // BLOCK)
        shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "codes": ((blocks, width // 4, BLOCK, 4), np.dtype(np.uint8)),
            "norms": ((blocks * BLOCK,), np.dtype(np.int32)),
            "heads": ((blocks * BLOCK,), np.dtype(np.int32)),
            "images": ((count,), np.dtype(np.uint32)),
            "geometry": ((count, 4), np.dtype(np.uint16)),
            "cell_offsets": ((len(sizes) + 1,), np.dtype(np.int64)),
            "first_cell": ((1,), np.dtype(np.int64)),
            "sha256": (self.table.sha256.shape, np.dtype(np.uint8)),
            "frames": (self.table.frames.shape, np.dtype(np.uint32)),
        }
        with ArrayWriter(stream, shapes, meta) as writer:
            rest = np.empty((0, width), np.uint8)
            for codes, images, geometry in self._pieces(max(1, self.piece_bytes // width)):
                writer.write("images", images)
                writer.write("geometry", geometry)
                rest = _write_blocks(writer, np.concatenate([rest, codes]))
            _write_packed(writer, rest)
            offsets = np.concatenate([[0], np.cumsum(sizes)])
            writer.write("cell_offsets", offsets.astype(np.int64))
            writer.write("first_cell", np.array([self.first_cell], np.int64))
            for name, array in self.table.to_arrays().items():
                writer.write(name, array)

    def in_memory(self) -> Segment:
        """Return the segment in memory, for small inputs."""
        width = self.inputs[0].codes(0, 0).shape[1]
        pieces = list(self._pieces(max(1, self.piece_bytes // width)))
        codes = np.concatenate([np.empty((0, width), np.uint8), *(piece[0] for piece in pieces)])
        images = np.concatenate([np.empty(0, np.uint32), *(piece[1] for piece in pieces)])
        geometry = np.concatenate([np.empty((0, 4), np.uint16), *(piece[2] for piece in pieces)])
        offsets = np.concatenate([[0], np.cumsum(self.sizes())]).astype(np.int64)
        return Segment(pack_rows(codes), images, geometry, offsets, self.first_cell, self.table)

    def _gone(self, rows: SortedRows, dropped: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return which of an input's rows are dropped, ascending."""
        start, stop = int(rows.cell_offsets[0]), int(rows.cell_offsets[-1])
        step = max(1, self.piece_bytes // 8)
        found = [
            at + np.flatnonzero(dropped[rows.images[at : min(at + step, stop)]])
            for at in range(start, stop, step)
        ]
        return np.concatenate([np.empty(0, np.int64), *found])

    def _pieces(
        self, most: int
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.uint16]]]:
        """Yield codes, images and geometry in the order of the segment."""
        for ranges in self._ranges(most):
            held = [(i, start, stop) for i, (start, stop) in enumerate(ranges) if start < stop]
            if not held:
                continue
            inputs, numbers = self.inputs, self._numbers
            cells = np.concatenate([_cells(inputs[i], (a, b)) for i, a, b in held])
            images = np.concatenate([numbers[i][inputs[i].images[a:b]] for i, a, b in held])
            # Stable: the rows of an image keep the order of the assignment and its container.
            order = np.lexsort((images, cells))
            if len(self.dropped):
                gone = [self._dropped[i][inputs[i].images[a:b]] for i, a, b in held]
                order = order[~np.concatenate(gone)[order]]
            codes = np.concatenate([inputs[i].codes(a, b) for i, a, b in held])
            geometry = np.concatenate([inputs[i].geometry[a:b] for i, a, b in held])
            yield codes[order], images[order], geometry[order]

    def _ranges(self, most: int) -> Iterator[list[RowRange]]:
        """Yield the ranges of all inputs to merge together, few rows at a time."""
        counts = np.sum([np.diff(rows.cell_offsets) for rows in self.inputs], axis=0)
        ends = np.concatenate([[0], np.cumsum(counts)])
        cell = 0
        while cell < len(counts) and ends[cell] < ends[-1]:
            stop = int(np.searchsorted(ends, ends[cell] + most, "right")) - 1
            if stop == cell:
                yield from self._slices_of_cell(cell, most)
                cell += 1
                continue
            yield [
                (int(rows.cell_offsets[cell]), int(rows.cell_offsets[stop])) for rows in self.inputs
            ]
            cell = stop

    def _slices_of_cell(self, cell: int, most: int) -> Iterator[list[RowRange]]:
        """Divide a cell that is too large (with equal descriptors, for instance) between images."""
        ranges = [(int(r.cell_offsets[cell]), int(r.cell_offsets[cell + 1])) for r in self.inputs]
        if not all(rows.table.sorted for rows in self.inputs):
            yield ranges  # rows of an old file are in the order of database ids
            return
        mine = [
            numbers[rows.images[a:b]]
            for rows, numbers, (a, b) in zip(self.inputs, self._numbers, ranges, strict=True)
        ]
        cuts = np.unique(np.sort(np.concatenate(mine))[most::most])
        bounds = [
            [a, *(a + np.searchsorted(images, cuts)).tolist(), b]
            for images, (a, b) in zip(mine, ranges, strict=True)
        ]
        for number in range(len(cuts) + 1):
            yield [(bound[number], bound[number + 1]) for bound in bounds]


def _cells(rows: SortedRows, within: RowRange) -> NDArray[np.uint32]:
    """Return the cell of every row of a range of rows."""
    first, last = np.searchsorted(rows.cell_offsets, [within[0], within[1] - 1], "right") - 1
    inside = np.clip(rows.cell_offsets[first : last + 2], *within)
    return np.repeat(np.arange(first, last + 1, dtype=np.uint32), np.diff(inside))


def _write_blocks(writer: ArrayWriter, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Write the full blocks of some rows; return the remaining rows."""
    full = len(codes) // BLOCK * BLOCK
    _write_packed(writer, codes[:full])
    return codes[full:]


def _write_packed(writer: ArrayWriter, codes: NDArray[np.uint8]) -> None:
    """Write rows, padded to whole blocks."""
    packed = pack_rows(codes)
    writer.write("codes", packed.codes)
    writer.write("norms", packed.norms)
    writer.write("heads", packed.prefixes)


def write_segment(
    stream: BinaryIO,
    inputs: Sequence[Callable[[], SortedRows]],
    first_cell: int,
    meta: Mapping[str, Any],
    dropped: Identities = NO_IMAGES,
    fan_in: int = FAN_IN,
    scratch: Path | None = None,
) -> None:
    """Merge inputs, however many, into a segment's file.

    Parameters
    ----------
    stream : seekable binary file
    inputs : sequence of callable
        Each opens one input; at least one.
    first_cell : int
        Number of the group's first cell in the tree.
    meta : mapping of str to JSON-serialisable values
    dropped : Identities
        Images whose rows are left out.
    fan_in : int
        Inputs open at once; more are first merged into temporary files.
    scratch : Path, optional
        Folder for these, made when needed. A round has all rows, and two rounds may exist at once.
        Default: the system's folder for temporary files.

    Raises
    ------
    StateError
        The temporary files cannot be written (the disk may be full).
    """
    with ExitStack() as former:
        while len(inputs) > fan_in:
            with ExitStack() as stack:
                folder = _temporary_folder(stack, scratch)
                inputs = _merged_files(folder, inputs, first_cell, fan_in)
                former.close()
                former.push(stack.pop_all())
        Merge([open_one() for open_one in inputs], first_cell, dropped).write(stream, meta)


def join_segments(segments: Sequence[Segment]) -> Segment:
    """Merge segments of one group in memory, to scan them as one.

    Parameters
    ----------
    segments : sequence of Segment
        At least one; their rows are copied.
    """
    return Merge(
        [segment_rows(segment) for segment in segments], segments[0].first_cell
    ).in_memory()


def _temporary_folder(stack: ExitStack, parent: Path | None) -> Path:
    """Make a folder for one round; remove folders of killed processes."""
    made = tempfile.TemporaryDirectory
    try:
        if parent is None:
            return Path(stack.enter_context(made(prefix="vantage-merge-")))
        make_folder(parent)
        for left in parent.iterdir():
            owner = left.name.partition("-")[0]
            if owner.isdigit() and not psutil.pid_exists(int(owner)):
                shutil.rmtree(left, ignore_errors=True)
        return Path(stack.enter_context(made(prefix=f"{os.getpid()}-", dir=parent)))
    except OSError as exc:
        raise StateError(_cannot_write(parent, 0, exc)) from exc


def _merged_files(
    folder: Path, inputs: Sequence[Callable[[], SortedRows]], first_cell: int, fan_in: int
) -> list[Callable[[], SortedRows]]:
    """Merge groups of a few inputs into a file each; return functions that open these."""
    try:
        return [
            _merged_file(folder / f"{at}.npz", inputs[at : at + fan_in], first_cell)
            for at in range(0, len(inputs), fan_in)
        ]
    except OSError as exc:
        needed = sum(_byte_count(open_one()) for open_one in inputs)
        raise StateError(_cannot_write(folder.parent, needed, exc)) from exc


def _merged_file(
    path: Path, inputs: Sequence[Callable[[], SortedRows]], first_cell: int
) -> Callable[[], SortedRows]:
    """Merge some inputs into a file; return a function that opens it."""
    with path.open("w+b") as stream:
        Merge([open_one() for open_one in inputs], first_cell).write(stream, {})
    return lambda: segment_rows(Segment.from_arrays(ArrayFile(path)))


def _byte_count(rows: SortedRows) -> int:
    """Return the approximate size of rows in a file, bytes."""
    count = int(rows.cell_offsets[-1] - rows.cell_offsets[0])
    width: int = rows.codes(0, 0).shape[1] + _ROW_BYTES
    return count * width + rows.cell_offsets.nbytes


def _cannot_write(folder: Path | None, needed: int, error: OSError) -> str:
    """Return the error about the folder for temporary files, with the remedy."""
    place = tempfile.gettempdir() if folder is None else folder
    wanted = f"{-(-needed // 2**20):,} MiB" if needed else "its files"
    return (
        f"merging many segments needs {wanted} for a while in {str(place)!r}, which cannot be "
        f"written ({error.strerror or error}); make room there, or let VANTAGE_LOCAL name a folder "
        "on another disk, then do the same again"
    )
