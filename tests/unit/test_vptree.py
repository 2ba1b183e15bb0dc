from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import VantageStrategy
from pipeline.index import vptree
from pipeline.index.vptree import VPTree, levels_for, train_tree

STRATEGIES: list[VantageStrategy] = ["random", "spread", "principal"]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def clustered(seed: int, count: int) -> NDArray[np.int8]:
    """Rows about a few centres, as descriptors are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 40, (5, 64))
    rows = centres[rng.integers(0, 5, count)] + rng.normal(0, 15, (count, 64))
    return np.clip(np.rint(rows), -127, 127).astype(np.int8)


def same_bytes(one: VPTree, other: VPTree) -> bool:
    pairs = [(getattr(one, n), getattr(other, n)) for n in VPTree.__dataclass_fields__]
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


@every_strategy
@pytest.mark.parametrize("levels", [0, 1, 5])
def test_probing_every_cell_gives_each_once_and_the_own_cell_first(
    strategy: VantageStrategy, levels: int
) -> None:
    tree = train_tree(clustered(1, 600), levels, strategy)
    rows = clustered(2, 300)
    cells = tree.assign(rows)
    probed = tree.probe(rows, tree.cells + 5)
    assert tree.cells == 2**levels
    assert probed.shape == (300, tree.cells)
    assert (np.sort(probed, axis=1) == np.arange(tree.cells)).all()
    assert np.array_equal(probed[:, 0], cells)


@every_strategy
def test_fewer_probes_are_the_beginning_of_more(strategy: VantageStrategy) -> None:
    tree = train_tree(clustered(1, 600), 5, strategy)
    rows = clustered(2, 50)
    everything = tree.probe(rows, 32)
    for count in (1, 3, 31):
        assert np.array_equal(tree.probe(rows, count), everything[:, :count])


@every_strategy
def test_cells_of_the_training_rows_are_balanced(strategy: VantageStrategy) -> None:
    rows = clustered(1, 1600)
    cells = train_tree(rows, 4, strategy).assign(rows)
    sizes = np.bincount(cells, minlength=16)
    assert sizes.min() >= 80
    assert sizes.max() <= 120


@every_strategy
@pytest.mark.parametrize("count", [1, 2, 50])
def test_equal_rows_and_few_rows_end(strategy: VantageStrategy, count: int) -> None:
    rows = np.full((count, 64), 3, np.int8)
    tree = train_tree(rows, 6, strategy)
    cells = tree.assign(rows)
    assert len(np.unique(cells)) == 1
    assert np.array_equal(tree.probe(rows, 1)[:, 0], cells)
    assert all(np.isfinite(getattr(tree, n)).all() for n in VPTree.__dataclass_fields__)


@every_strategy
def test_equal_seeds_give_equal_bytes(strategy: VantageStrategy) -> None:
    rows = clustered(1, 500)
    tree = train_tree(rows, 4, strategy, seed=7)
    assert same_bytes(tree, train_tree(rows, 4, strategy, seed=7))
    if strategy != "principal":  # which draws nothing from so few rows
        assert not same_bytes(tree, train_tree(rows, 4, strategy, seed=8))


@every_strategy
@pytest.mark.parametrize("width", [128, 512])
def test_trees_of_wider_rows_are_balanced(strategy: VantageStrategy, width: int) -> None:
    rng = np.random.default_rng(width)
    rows = np.clip(rng.normal(0, 40, (800, width)), -127, 127).astype(np.int8)
    tree = train_tree(rows, 3, strategy)
    cells = tree.assign(rows)
    assert np.bincount(cells, minlength=8).max() <= 120
    assert np.array_equal(tree.probe(rows, 8)[:, 0], cells)


@every_strategy
def test_threads_build_the_same_tree(strategy: VantageStrategy) -> None:
    rows = clustered(3, 700)
    alone = train_tree(rows, 6, strategy)
    with ThreadPoolExecutor(3) as pool:
        together = train_tree(rows, 6, strategy, spread=pool.map)
    assert same_bytes(alone, together)


def test_the_axis_of_wide_rows_is_the_one_of_the_greatest_variance() -> None:
    rng = np.random.default_rng(5)
    wide = rng.normal(0, 10, (3000, 300))
    direction = rng.normal(0, 1, 300)
    direction /= np.linalg.norm(direction)
    wide += rng.normal(0, 60, (3000, 1)) * direction + rng.integers(-20, 20, 300)
    rows = np.clip(np.rint(wide), -127, 127).astype(np.int8)
    variance, axis = vptree._leading_axis(rows, rows.mean(axis=0))
    assert abs(axis @ direction) > 0.99
    assert variance == pytest.approx(3700, rel=0.1)
    variance, axis = vptree._leading_axis(np.full((4, 300), 7, np.int8), np.full(300, 7.0))
    assert variance == 0
    assert np.linalg.norm(axis) == 1


@pytest.mark.parametrize(
    ("descriptors", "cell_size", "groups", "levels"),
    [
        (0, 1500, 1, 0),
        (1500, 1500, 1, 0),
        (0, 1500, 16, 4),
        (12_000, 1500, 4, 3),
        (1_500_000, 1500, 4, 10),
        (2200, 1500, 1, 1),
        (2000, 1500, 1, 0),
    ],
)
def test_levels_make_cells_of_about_the_wanted_size(
    descriptors: int, cell_size: int, groups: int, levels: int
) -> None:
    assert levels_for(descriptors, cell_size, groups) == levels


def leaf_costs(tree: VPTree, queries: NDArray[np.int8]) -> NDArray[np.float64]:
    """Return the cost of every cell for every query, shape (Q, cells), in plain numpy."""
    rows = queries.astype(np.float64)
    costs = np.zeros((len(queries), 1))
    for level in range(tree.levels):
        nodes = np.arange(2**level - 1, 2 ** (level + 1) - 1)
        points = tree.points[nodes].astype(np.float64)
        distances = np.sqrt(((rows[:, None, :] - points) ** 2).sum(axis=2))
        margins = distances - tree.radii[nodes]
        left = costs + np.where(margins < 0, 0.0, margins)
        right = costs + np.where(margins < 0, -margins, 0.0)
        costs = np.stack([left, right], axis=2).reshape(len(queries), -1)
    return costs


@every_strategy
def test_cells_come_in_the_order_of_their_costs_in_numpy(strategy: VantageStrategy) -> None:
    random = np.random.default_rng(11)
    rows = np.clip(random.normal(0, 30, (900, 64)), -127, 127).astype(np.int8)
    queries = np.clip(random.normal(0, 30, (25, 64)), -127, 127).astype(np.int8)
    tree = train_tree(rows, levels=5, strategy=strategy)
    costs = leaf_costs(tree, queries)
    found = tree.probe(queries, 12)
    in_order = np.take_along_axis(costs, found.astype(np.int64), axis=1)
    np.testing.assert_allclose(in_order, np.sort(costs, axis=1)[:, :12], atol=2e-2)
    assigned = tree.assign(queries)
    assert np.array_equal(assigned, costs.argmin(axis=1))
