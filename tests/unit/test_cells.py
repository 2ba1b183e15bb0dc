"""Cells around means, and the tree that leads to them."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import CellKind, IndexConfig
from pipeline.extraction.sift import SiftExtractor
from pipeline.index import cells as module
from pipeline.index import simd
from pipeline.index.cells import (
    MeanCells,
    cells_from_arrays,
    cells_to_arrays,
    train_cells,
    training_rows,
)
from pipeline.index.kernels import k_nearest, prepare_queries
from pipeline.index.model import train_model
from pipeline.index.rows import pack_rows, to_signed, unpack_rows
from pipeline.index.vptree import VPTree, train_tree


def clustered(seed: int, count: int, width: int = 64) -> NDArray[np.int8]:
    """Rows about some centres, as descriptors are; the same centres for every seed."""
    centres = np.random.default_rng(0).normal(0, 40, (30, width))
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(0, len(centres), count)] + rng.normal(0, 12, (count, width))
    return np.clip(np.rint(rows), -127, 127).astype(np.int8)


def mean_rows(cells: MeanCells) -> NDArray[np.int64]:
    return to_signed(unpack_rows(cells.means)).astype(np.int64)


def by_distance(cells: MeanCells, rows: NDArray[np.int8]) -> NDArray[np.intp]:
    """Every cell, by the distance of its mean, in plain numpy."""
    away = rows.astype(np.int64)[:, None, :] - mean_rows(cells)[None, :, :]
    return np.argsort((away * away).sum(axis=2), axis=1, kind="stable")


def trained(sample: NDArray[np.int8], levels: int) -> MeanCells:
    cells = train_cells(sample, levels)
    assert isinstance(cells, MeanCells)
    return cells


@pytest.mark.parametrize("width", [64, 128, 512])
@pytest.mark.parametrize("levels", [0, 1, 3, 6])
def test_a_row_belongs_to_the_nearest_mean_and_probes_the_next_ones(
    levels: int, width: int
) -> None:
    cells, rows = trained(clustered(1, 900, width), levels), clustered(2, 70, width)
    order = by_distance(cells, rows)
    assert (cells.levels, cells.cells) == (levels, 2**levels)
    assert np.array_equal(cells.assign(rows), order[:, 0])
    for count in {1, 2, 7, 2**levels}:
        wanted = min(count, cells.cells)
        assert np.array_equal(cells.probe(rows, count), order[:, :wanted])
    assert cells.probe(rows, 10**6).shape == (70, 2**levels)


def test_means_are_those_of_the_leaves_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 1)
    sample = clustered(3, 500)
    cells = trained(sample, 3)
    leaf = cells.tree.assign(sample)
    for number, mean in enumerate(mean_rows(cells)):
        exact = sample[leaf == number].astype(np.float64).mean(axis=0)
        assert np.abs(mean - exact).max() <= 0.5


def test_steps_bring_the_rows_nearer_to_their_means(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = clustered(3, 3000)
    away = []
    for steps in (1, 2, 4):
        monkeypatch.setattr(module, "STEPS", steps)
        cells = trained(sample, 5)
        difference = sample.astype(np.int64) - mean_rows(cells)[cells.assign(sample)]
        away.append(int((difference * difference).sum()))
    assert away == sorted(away, reverse=True)
    assert away[2] < 0.9 * away[0]


def test_steps_end_when_few_rows_change_their_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    sample, asked = clustered(3, 3000), []
    real = MeanCells.roughly

    def counting(cells: MeanCells, rows: NDArray[np.int8]) -> NDArray[np.int64]:
        asked.append(real(cells, rows))
        return asked[-1]

    monkeypatch.setattr(MeanCells, "roughly", counting)
    trained(sample, 5)
    changed = [(a != b).mean() for a, b in itertools.pairwise(asked)]
    assert 1 < len(changed) < module.STEPS - 2
    assert changed[-1] < module.MOVING <= min(changed[:-1])


def test_many_cells_are_sorted_as_few_are() -> None:
    cells, rows = trained(clustered(1, 4000), 9), clustered(2, 9)
    order = by_distance(cells, rows)
    assert simd.COUNTED < 300
    assert np.array_equal(cells.probe(rows, 300), order[:, :300])


def test_the_tree_leads_to_nearly_all_nearest_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a great number of cells only some subtrees are looked into."""
    monkeypatch.setattr(module, "EVERY", 1)
    monkeypatch.setattr(module, "ASSIGNING_SUBTREES", 6)
    monkeypatch.setattr(module, "FEWEST_SUBTREES", 6)
    monkeypatch.setattr(module, "BREADTH", 8)
    rng = np.random.default_rng(4)
    sample = np.clip(rng.normal(0, np.geomspace(60, 5, 64), (6000, 64)), -127, 127).astype(np.int8)
    rows = np.clip(rng.normal(0, np.geomspace(60, 5, 64), (500, 64)), -127, 127).astype(np.int8)
    cells = trained(sample, 10)
    work = cells._candidates(rows, max(6, cells._subtrees_for(3)))
    assert work.pairs == 500 * 6 * 32  # six subtrees of thirty-two means each
    order = by_distance(cells, rows)
    assert (cells.assign(rows) == order[:, 0]).mean() > 0.85
    found = cells.probe(rows, 3)
    assert np.mean([len(set(a) & set(b)) for a, b in zip(found, order[:, :3], strict=True)]) > 2.4
    assert all(len(set(line)) == 3 for line in found.tolist())


def test_cells_of_means_find_neighbours_in_fewer_rows_than_leaves() -> None:
    """The reason that there are such cells; see docs/decisions/0014-cells.md."""
    rng = np.random.default_rng(5)
    centres = rng.normal(0, np.geomspace(40, 10, 64), (2000, 64))
    rows, queries = (
        np.clip(np.rint(centres[rng.integers(0, 2000, n)] + rng.normal(0, 9, (n, 64))), -127, 127)
        for n in (20_000, 400)
    )
    packed = pack_rows((rows + 128).astype(np.uint8))
    rows, queries = rows.astype(np.int8), queries.astype(np.int8)
    neighbour = k_nearest(packed, prepare_queries(queries), 1)[1][:, 0]
    found, scanned = {}, {}
    for kind in ("leaves", "means"):
        cells = train_cells(rows, 7, kind)
        own = cells.assign(rows)
        probed = cells.probe(queries, 8)
        found[kind] = (probed == own[neighbour][:, None]).any(axis=1).mean()
        scanned[kind] = np.bincount(own, minlength=128)[probed].sum(axis=1).mean()
    assert 1 - found["means"] < 0.7 * (1 - found["leaves"])
    assert scanned["means"] < 1.2 * scanned["leaves"]


@pytest.mark.parametrize("count", [1, 2, 40])
def test_equal_rows_and_few_rows_have_cells_too(count: int) -> None:
    rows = np.full((count, 64), 3, np.int8)
    cells = trained(rows, 6)
    assert cells.assign(rows).tolist() == [0] * count
    assert (mean_rows(cells) == 3).all()
    assert np.array_equal(cells.probe(rows, 64), np.tile(np.arange(64), (count, 1)))


def test_a_leaf_without_rows_takes_the_mean_of_the_nearest_subtree_that_has_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STEPS", 1)
    sample = clustered(6, 3)
    cells = trained(sample, 4)
    leaf = cells.tree.assign(sample)
    means = mean_rows(cells)
    for row, number in zip(sample, leaf, strict=True):
        assert np.array_equal(means[number], row) or (leaf == number).sum() > 1
    # The two halves of the tree keep apart what the root told apart.
    left = sample[leaf < 8].astype(np.float64).mean(axis=0)
    empty = [n for n in range(8) if n not in leaf]
    assert any(np.abs(means[n] - left).max() <= 0.5 for n in empty)


def test_leaves_are_the_cells_when_they_are_asked_for() -> None:
    sample = clustered(1, 300)
    cells = train_cells(sample, 3, "leaves", "random", 7)
    assert isinstance(cells, VPTree)
    expected = train_tree(sample, 3, "random", 7)
    assert cells.points.tobytes() == expected.points.tobytes()


@pytest.mark.parametrize("kind", ["means", "leaves"])
def test_cells_come_back_from_their_arrays(kind: CellKind) -> None:
    cells, rows = train_cells(clustered(1, 900), 5, kind), clustered(2, 50)
    again = cells_from_arrays(cells_to_arrays(cells))
    assert type(again) is type(cells)
    assert np.array_equal(again.assign(rows), cells.assign(rows))
    assert np.array_equal(again.probe(rows, 9), cells.probe(rows, 9))


def test_a_model_is_the_same_whatever_the_threads_and_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = np.random.default_rng(1).integers(0, 256, (3000, 128)).astype(np.uint8)
    config = IndexConfig(cell_size=100, groups=2)
    normalize = SiftExtractor().normalize
    alone = train_model(normalize(rows), normalize(rows[:50]), 3000, config).to_arrays()
    monkeypatch.setattr("pipeline.index.model.PIECE", 700)
    monkeypatch.setattr(module, "PIECE", 700)
    with ThreadPoolExecutor(3) as pool:
        trained = train_model(
            rows, rows[:50], 3000, config, normalize=normalize, spread=pool.map
        ).to_arrays()
    assert trained.keys() == alone.keys()
    for name, values in alone.items():
        assert np.array_equal(values, trained[name]), name


def test_many_cells_are_trained_on_more_rows_than_a_fixed_sample() -> None:
    assert training_rows(12, 131_072) == 131_072
    assert training_rows(13, 131_072) == 262_144
    assert training_rows(1, 500) == 500


def test_no_rows_have_no_cells() -> None:
    cells = trained(clustered(1, 100), 4)
    nothing = np.empty((0, 64), np.int8)
    assert cells.assign(nothing).shape == (0,)
    assert cells.probe(nothing, 3).shape == (0, 3)
