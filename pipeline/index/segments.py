"""Segments: the immutable rows of one group from one index job or compaction.

`assign_features` (map) turns a container's features into rows sorted by cell, with the range of
rows of each group; `pipeline.index.merge` (reduce, one per group) gathers a group's ranges of all
containers into one segment. Both are pure and do not depend on the order of their inputs: rows are
sorted by (cell, image, position in the image). Images are numbered by their identities
(`pipeline.index.identities`), so that no file depends on a database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import column, file_name, require, require_below, require_offsets
from pipeline.errors import CorruptFileError
from pipeline.index.identities import Identities, Identity, unite
from pipeline.index.model import Model
from pipeline.index.rows import (
    MAX_DIMENSIONS,
    ROW_UNIT,
    PackedRows,
    packed_rows,
    to_unsigned,
)
from pipeline.records import Features

SIZE_STEPS = 16
"""Keypoint sizes are stored in sixteenths of a pixel."""

MOST_CELLS = 1 << 32
"""Cells have numbers of 32 bits."""

Former = Callable[[NDArray[np.uint32]], Identities]
"""Gives the images of database ids, for files written before files had tables."""


@dataclass(frozen=True)
class AssignedRows:
    """Rows of one container, sorted by (cell, image, position in the image).

    Attributes
    ----------
    codes : ndarray of shape (N, W), uint8
        Stored rows.
    cells : ndarray of shape (N,), uint32
    images : ndarray of shape (N,), uint32
        Number of each row's image in the table.
    geometry : ndarray of shape (N, 4), uint16
        Keypoints (`encode_geometry`).
    group_offsets : ndarray of shape (G + 1,), int64
        Group g owns rows ``group_offsets[g]:group_offsets[g + 1]``.
    table : Identities
    """

    codes: NDArray[np.uint8]
    cells: NDArray[np.uint32]
    images: NDArray[np.uint32]
    geometry: NDArray[np.uint16]
    group_offsets: NDArray[np.int64]
    table: Identities

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays for a file of these rows."""
        own = {name: array for name, array in vars(self).items() if name != "table"}
        return {**own, **self.table.to_arrays()}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], former: Former | None = None
    ) -> AssignedRows:
        """Inverse of `to_arrays`; see `Segment.from_arrays`."""
        images, table = _numbered(arrays, former)
        count = len(images)
        codes = column(arrays, "codes", np.uint8, count, None)
        width = codes.shape[1]
        require(
            width % ROW_UNIT == 0 and ROW_UNIT <= width <= MAX_DIMENSIONS,
            arrays,
            f"codes has rows of {width} bytes",
        )
        cells = column(arrays, "cells", np.uint32, count)
        require(bool((cells[1:] >= cells[:-1]).all()), arrays, "cells are not sorted")
        return cls(
            codes,
            cells,
            images,
            column(arrays, "geometry", np.uint16, count, 4),
            require_offsets(arrays, "group_offsets", count),
            table,
        )


def _numbered(
    arrays: Mapping[str, NDArray[Any]], former: Former | None
) -> tuple[NDArray[np.uint32], Identities]:
    """Return each row's image by number, and the table."""
    images = column(arrays, "images", np.uint32, None)
    if "sha256" in arrays:
        table = Identities.from_arrays(arrays)
        require_below(arrays, "images", images, len(table))
        return images, table
    if former is None:
        raise CorruptFileError(file_name(arrays), "its table of images is missing")
    ids, numbers = np.unique(images, return_inverse=True)
    return numbers.astype(np.uint32), former(ids)


def encode_geometry(keypoints: NDArray[np.float32], width: int, height: int) -> NDArray[np.uint16]:
    """Return keypoints as four 16-bit numbers.

    x and y in 65535ths of the longer side, size in sixteenths of a pixel (at most 4,095 px), angle
    in 65536ths of a turn: finer than the error of any detector.

    Parameters
    ----------
    keypoints : ndarray of shape (N, 7), float32
        See `pipeline.records.KEYPOINT_COLUMNS`.
    width, height : int
        Image, pixels.
    """
    out = np.empty((len(keypoints), 4), np.uint16)
    out[:, :2] = np.clip(np.rint(keypoints[:, :2] * (65535 / max(width, height))), 0, 65535)
    out[:, 2] = np.clip(np.rint(keypoints[:, 2] * SIZE_STEPS), 0, 65535)
    out[:, 3] = np.rint(np.mod(keypoints[:, 3], 360) * (65536 / 360)).astype(np.int64) % 65536
    return out


def decode_geometry(geometry: NDArray[np.uint16], width: int, height: int) -> NDArray[np.float32]:
    """Return x, y, size (pixels), angle (degrees), shape (N, 4): inverse of `encode_geometry`."""
    scale = max(width, height) / 65535
    factors = np.array([scale, scale, 1 / SIZE_STEPS, 360 / 65536], np.float32)
    return geometry.astype(np.float32) * factors


def assign_features(
    model: Model, normalized: Sequence[NDArray[np.float32]], features: Sequence[Features],
    identities: Sequence[Identity],
) -> AssignedRows:  # fmt: skip
    """Find cell and stored row of every descriptor of some images (map).

    Parameters
    ----------
    model : Model
    normalized : sequence of ndarray of shape (N_i, D), float32
        The images' descriptors, normalised by their extractor.
    features : sequence of Features
        The same images' keypoints and sizes.
    identities : sequence of (sha256, frame)
        The same images.
    """
    dimensions = len(model.quantizer.mean)
    stacked = np.concatenate([np.empty((0, dimensions), np.float32), *normalized])
    codes = model.quantizer.encode(stacked)
    cells = model.tree.assign(codes)
    given = Identities.of(identities)
    table = unite([given])
    numbers = table.numbers_of(given).astype(np.uint32)
    images = np.repeat(numbers, [len(rows) for rows in normalized])
    geometry = np.concatenate(
        [np.empty((0, 4), np.uint16)]
        + [encode_geometry(f.keypoints, f.width, f.height) for f in features]
    )
    order = np.lexsort((images, cells))
    first_cells = np.arange(model.groups + 1) * model.cells_per_group
    return AssignedRows(
        codes=to_unsigned(codes)[order],
        cells=cells[order],
        images=images[order],
        geometry=geometry[order],
        group_offsets=np.searchsorted(cells[order], first_cells).astype(np.int64),
        table=table,
    )


@dataclass(frozen=True)
class Segment:
    """Rows of one group, sorted by cell, as columns.

    Attributes
    ----------
    rows : PackedRows
    images : ndarray of shape (N,), uint32
        Number of each row's image in the table.
    geometry : ndarray of shape (N, 4), uint16
    cell_offsets : ndarray of shape (C + 1,), int64
        The c-th cell of the group owns rows ``cell_offsets[c]:cell_offsets[c + 1]``.
    first_cell : int
        Number of the group's first cell in the tree.
    table : Identities
        The images that have rows here.
    """

    rows: PackedRows
    images: NDArray[np.uint32]
    geometry: NDArray[np.uint16]
    cell_offsets: NDArray[np.int64]
    first_cell: int
    table: Identities

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays for a file of this segment."""
        return {
            "codes": self.rows.codes,
            "norms": self.rows.norms,
            "heads": self.rows.prefixes,
            "images": self.images,
            "geometry": self.geometry,
            "cell_offsets": self.cell_offsets,
            "first_cell": np.array([self.first_cell], np.int64),
            **self.table.to_arrays(),
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], former: Former | None = None
    ) -> Segment:
        """Inverse of `to_arrays`.

        Parameters
        ----------
        arrays : mapping of str to ndarray
        former : callable, optional
            Needed for files without a table, whose rows have database ids.

        Raises
        ------
        CorruptFileError
            The arrays are not those of a segment, or there is no table and `former` is not given.
        """
        images, table = _numbered(arrays, former)
        count = len(images)
        offsets = require_offsets(arrays, "cell_offsets", count)
        first_cell = int(column(arrays, "first_cell", np.int64, 1)[0])
        cells = len(offsets) - 1
        require(
            cells >= 1 and 0 <= first_cell <= MOST_CELLS - cells,
            arrays,
            f"it has {cells} cells from {first_cell} on",
        )
        return cls(
            packed_rows(arrays, count),
            images,
            column(arrays, "geometry", np.uint16, count, 4),
            # A copy: the kernels follow them, and a mapped file can be changed by others.
            offsets.copy(),
            first_cell,
            table,
        )

    @property
    def image_count(self) -> int:
        """Number of different images."""
        return len(self.table)
