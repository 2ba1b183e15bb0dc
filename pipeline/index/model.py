"""The trained model of a version: rotation, tree, background sample, groups.

One file a model. It is trained once on a sample (reduce), then read by every assignment (map) and
by every query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import column, require
from pipeline.config import MAX_GROUPS, IndexConfig
from pipeline.index.cells import PIECE, MeanCells, cells_from_arrays, cells_to_arrays, train_cells
from pipeline.index.quantizer import Quantizer, read_quantizer, thinned, train_quantizer
from pipeline.index.rows import PackedRows, pack_rows, packed_rows, to_unsigned
from pipeline.index.vptree import VPTree, levels_for


@dataclass(frozen=True)
class Model:
    """Rotation, tree and background sample.

    Attributes
    ----------
    quantizer : Quantizer
    tree : VPTree or MeanCells
    background : PackedRows
        A fixed random sample of the collection, spread over its images. It tells how near an
        unrelated descriptor comes to a query (see `pipeline.retrieval.score`).
    groups : int
        Number of groups; a group is a subtree, cells of one group are consecutive.
    """

    quantizer: Quantizer
    tree: VPTree | MeanCells
    background: PackedRows
    groups: int

    @property
    def cells_per_group(self) -> int:
        """Cells of one group."""
        return self.tree.cells // self.groups

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays for a file of this model."""
        return {
            "mean": self.quantizer.mean,
            "rotation": self.quantizer.rotation,
            "scale": np.array([self.quantizer.scale]),
            "unit": np.array([self.quantizer.unit], np.uint8),
            **cells_to_arrays(self.tree),
            "background_codes": self.background.codes,
            "background_norms": self.background.norms,
            "background_heads": self.background.prefixes,
            "counts": np.array([self.background.size, self.groups], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Model:
        """Inverse of `to_arrays`.

        Raises
        ------
        CorruptFileError
            The arrays are not those of a model.
        """
        count, groups = (int(value) for value in column(arrays, "counts", np.int64, 2))
        scale = float(column(arrays, "scale", np.float64, 1)[0])
        quantizer = read_quantizer(arrays, scale, bool(column(arrays, "unit", np.uint8, 1)[0]))
        tree = cells_from_arrays(arrays)
        require(count >= 1, arrays, f"its background sample has {count} rows")
        names = ("background_codes", "background_norms", "background_heads")
        background = packed_rows(arrays, count, names)
        divides = 1 <= groups <= min(MAX_GROUPS, tree.cells) and tree.cells % groups == 0
        require(divides, arrays, f"{groups} groups do not divide {tree.cells} cells")
        points = tree.points if isinstance(tree, VPTree) else tree.tree.points
        widths = {quantizer.rotation.shape[1], background.dimensions, points.shape[1]}
        require(len(widths) == 1, arrays, f"its rows have lengths of {sorted(widths)} bytes")
        return cls(quantizer, tree, background, groups)


def train_model(
    sample: NDArray[Any],
    background: NDArray[Any],
    descriptors: int,
    config: IndexConfig,
    unit: bool = False,
    whiten: bool = False,
    normalize: Callable[[NDArray[Any]], NDArray[np.float32]] = np.asarray,
    spread: Callable[..., Iterable[Any]] = map,
) -> Model:
    """Train rotation and tree.

    Parameters
    ----------
    sample : ndarray of shape (N, D)
        Descriptors the rotation and the tree are fitted to; N >= 1.
    background : ndarray of shape (S, D)
        Descriptors of the background sample; S >= 1.
    descriptors : int
        Descriptors that the index will hold: sets the number of levels.
    config : IndexConfig
    unit, whiten : bool
        See `pipeline.index.quantizer.train_quantizer`.
    normalize : callable
        The extractor's normalisation, applied piece by piece. Default: the descriptors are already
        normalised.
    spread : callable
        ``map``, or that of an executor of threads. The model is the same.
    """
    quantizer = train_quantizer(normalize(thinned(sample)), config.dimensions, unit, whiten)
    levels = levels_for(descriptors, config.cell_size, config.groups)

    def encode(piece: NDArray[Any]) -> NDArray[np.int8]:
        return quantizer.encode(normalize(piece))

    pieces = [sample[at : at + PIECE] for at in range(0, len(sample), PIECE)]
    coded = np.concatenate(list(spread(encode, pieces)))
    tree = train_cells(coded, levels, config.cells, config.vantage, config.seed, spread)
    rows = pack_rows(to_unsigned(encode(background)))
    return Model(quantizer, tree, rows, config.groups)
