"""Compare ways to choose vantage points, and to order the cells, by the neighbours they find.

    python -m benchmarks.vantage_points FOLDER [--subset dvd] [--queries 6000]

FOLDER is an evaluation data set (see `pipeline.evaluation.dataset`). A subset and all distractors
are indexed as the pipeline does it; the query descriptors are those of the subset's queries, which
are other photographs. Cells are opened best first until a share of the collection's rows is
scanned; *recall* is the share of the query descriptors whose nearest 8-bit row, by exhaustive scan,
is then among them. *means* are the pipeline's cells (`pipeline.index.cells`); k-means cells, which
know no tree and begin with random rows, are the yardstick. Both are trained with three seeds; the
rows of the table are the averages, and the last column of the greatest difference that a seed
makes. Last, cells of which so many that a search compares only those to which the tree leads.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.features import FeatureSet, add_options, read_features
from pipeline.config import IndexConfig, VantageStrategy
from pipeline.extraction.sift import SiftExtractor
from pipeline.index import cells as cells_module
from pipeline.index import vptree
from pipeline.index.cells import STEPS, train_cells
from pipeline.index.kernels import k_nearest, prepare_queries
from pipeline.index.rows import pack_rows, to_unsigned
from pipeline.index.sampling import draw_samples
from pipeline.index.vptree import VPTree, train_tree

SHARES = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1)
KMEANS_ROUNDS = 25
SEEDS = (1, 2, 3)
OPENED = (16, 32, 64, 128)
LED = (5, 6)
"""Levels beyond the pipeline's, of cells that are too many to compare all."""

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]
Order = NDArray[np.intp]


def over_spread(power: float) -> Callable[[Floats, Floats], Floats]:
    """Return squared margins over a power of the standard deviation of the node's distances."""
    return lambda margin, spread: (margin * margin / spread**power).astype(np.float32)


def powered(power: float) -> Callable[[Floats, Floats], Floats]:
    return lambda margin, spread: (np.abs(margin) ** power).astype(np.float32)


ORDERS: dict[str, tuple[Callable[[Floats, Floats], Floats], bool]] = {
    "margin^0.5": (powered(0.5), False),
    "margin (as built)": (powered(1), False),
    "margin^1.5": (powered(1.5), False),
    "margin^2": (powered(2), False),
    "margin^3": (powered(3), False),
    "largest margin": (powered(1), True),
    "margin^2 / spread": (over_spread(1), False),
    "margin^2 / spread^2": (over_spread(2), False),
}
"""What crossing a sphere costs, and whether the largest counts instead of the sum."""


def tree_order(
    tree: VPTree,
    queries: Codes,
    sample: Codes,
    cost: Callable[[Floats, Floats], Floats],
    largest: bool,
) -> Order:
    """Return every cell of every query, best first, by the cost of the spheres crossed."""
    asked = queries.astype(np.float32)
    spread = node_spread(tree, sample)
    costs = np.zeros((len(queries), 1), np.float32)
    for level in range(tree.levels):
        nodes = np.arange(2**level - 1, 2 ** (level + 1) - 1)
        margin = distances(asked, tree.points[nodes]) - tree.radii[nodes]
        crossing = cost(margin, spread[nodes])
        left = np.where(margin < 0, 0, crossing)
        right = np.where(margin < 0, crossing, 0)
        both = np.stack([left, right], axis=2)
        join = np.maximum if largest else np.add
        costs = join(costs[:, :, None], both).reshape(len(queries), -1)
    return np.argsort(costs, axis=1, kind="stable")


def node_spread(tree: VPTree, sample: Codes) -> Floats:
    """Return the standard deviation of the distances of a node's rows to its vantage point."""
    cells = tree.assign(sample)
    rows = sample.astype(np.float32)
    spread = np.ones(len(tree.points), np.float32)
    for level in range(tree.levels):
        nodes = (cells >> (tree.levels - level)).astype(np.int64) + 2**level - 1
        away = np.sqrt(((rows - tree.points[nodes]) ** 2).sum(axis=1)).astype(np.float64)
        count = np.maximum(np.bincount(nodes, minlength=len(spread)), 1)
        mean = np.bincount(nodes, weights=away, minlength=len(spread)) / count
        square = np.bincount(nodes, weights=(away - mean[nodes]) ** 2, minlength=len(spread))
        used = square > 0
        spread[used] = np.sqrt(square / count)[used]
    return spread


def cell_means(sample: Codes, tree: VPTree) -> Floats:
    """Return the mean row of each cell; of an empty one, zero."""
    cells = tree.assign(sample)
    sums = np.zeros((tree.cells, sample.shape[1]))
    np.add.at(sums, cells, sample)
    return (sums / np.maximum(np.bincount(cells, minlength=tree.cells), 1)[:, None]).astype(
        np.float32
    )


def distances(rows: Floats, points: Floats) -> Floats:
    """Return Euclidean distances (N, V), in double precision: principal points lie far away."""
    wide, far = rows.astype(np.float64), points.astype(np.float64)
    squared: NDArray[np.float64] = (
        (wide**2).sum(axis=1)[:, None] + (far**2).sum(axis=1) - 2 * (wide @ far.T)
    )
    return np.sqrt(np.maximum(squared, 0)).astype(np.float32)


def centroid_order(queries: Codes, centroids: Floats) -> Order:
    """Return every cell of every query by the distance of its centroid."""
    return np.argsort(distances(queries.astype(np.float32), centroids), axis=1, kind="stable")


def kmeans(sample: Codes, cells: int, seed: int) -> Floats:
    """Return the centroids of Lloyd's algorithm."""
    rng = np.random.default_rng(seed)
    rows = sample.astype(np.float32)
    centroids = rows[rng.choice(len(rows), cells, replace=False)]
    for _ in range(KMEANS_ROUNDS):
        mine = nearest_centroid(rows, centroids)
        count = np.bincount(mine, minlength=cells)
        order = np.argsort(mine, kind="stable")
        used = np.flatnonzero(count)
        starts = (np.cumsum(count) - count)[used]
        centroids[used] = np.add.reduceat(rows[order], starts) / count[used, None]
    return centroids


def nearest_centroid(rows: Floats, centroids: Floats) -> Order:
    """Return the nearest centroid of each row."""
    half = (centroids**2).sum(axis=1) / 2
    pieces = [rows[at : at + 20_000] @ centroids.T - half for at in range(0, len(rows), 20_000)]
    return np.concatenate([piece.argmax(axis=1) for piece in pieces])


def recalls(order: Order, home: Order, cells: NDArray[np.uint32]) -> list[float]:
    """Return the share of queries whose nearest row's cell is reached within each share of rows.

    Parameters
    ----------
    order : ndarray of shape (Q, cells)
        Best first.
    home : ndarray of shape (Q,)
        Cell of each query's nearest row.
    cells : ndarray of shape (N,)
        Cell of each row.
    """
    sizes = np.bincount(cells, minlength=order.shape[1])
    scanned = np.cumsum(sizes[order], axis=1) / len(cells)
    reached = scanned[np.arange(len(order)), (order == home[:, None]).argmax(axis=1)]
    return [float((reached <= share).mean()) for share in SHARES]


BASE_CELL = 1500
"""Descriptors in a cell of the trees that others are compared with."""


class Collection:
    """Rows, training sample, queries and their nearest rows."""

    def __init__(self, features: FeatureSet, subset: str, queries: int) -> None:
        dataset = features.dataset.select([subset])
        images = [(features.sha256(path), features.image(path)) for path in dataset.database]
        normalize = SiftExtractor().normalize
        config = IndexConfig(cell_size=BASE_CELL)
        training = normalize(draw_samples(images, len(images), config)[0])
        model = features.train(dataset.database, replace(config, vantage="random"))
        encode = model.quantizer.encode
        self.levels = model.tree.levels
        self.sample = encode(training)
        self.rows = np.concatenate([encode(normalize(rows)) for _, rows in images])
        asked = np.concatenate([features.query(query.path) for query in dataset.queries])
        chosen = np.random.default_rng(1).choice(len(asked), queries, replace=False)
        self.queries = encode(normalize(asked[chosen]))
        packed = pack_rows(to_unsigned(self.rows))
        self.nearest = k_nearest(packed, prepare_queries(self.queries), 1)[1][:, 0]

    def tree(
        self,
        strategy: VantageStrategy,
        reach: float = vptree.PRINCIPAL_REACH,
        more: int = 0,
    ) -> VPTree:
        """Train a tree, of `more` levels than the pipeline's."""
        with patch.object(vptree, "PRINCIPAL_REACH", reach):
            return train_tree(self.sample, self.levels + more, strategy)

    def show_means(
        self, name: str, strategy: VantageStrategy, more: int = 0, steps: int = STEPS
    ) -> None:
        """Print the means of a tree's leaves, after at most some steps of Lloyd's algorithm."""
        lines = []
        with patch.object(cells_module, "STEPS", steps):
            for seed in SEEDS:
                cells = train_cells(self.sample, self.levels + more, "means", strategy, seed)
                order = cells.probe(self.queries, cells.cells).astype(np.intp)
                lines.append(self.line(order, cells.assign(self.rows)))
        show(name, lines)

    def show_kmeans(self, name: str, count: int) -> None:
        """Print k-means cells; each query is compared with all centroids."""
        lines = []
        for seed in SEEDS:
            centroids = kmeans(self.sample, count, seed)
            cells = nearest_centroid(self.rows.astype(np.float32), centroids).astype(np.uint32)
            lines.append(self.line(centroid_order(self.queries, centroids), cells))
        show(name, lines)

    def show_led(self, more: int) -> None:
        """Print what is found in the nearest cells, all compared and as the tree leads to them."""
        cells = train_cells(self.sample, self.levels + more)
        home = cells.assign(self.rows)[self.nearest]
        print(f"\n{cells.cells} cells\n\n| cells opened | all means compared | led by the tree |")
        print("|---:|---:|---:|")
        for count in OPENED:
            led = cells.probe(self.queries, count)
            with patch.object(cells_module, "EVERY", cells.cells):
                best = cells.probe(self.queries, count)
            shares = (f"{(some == home[:, None]).any(axis=1).mean():.3f}" for some in (best, led))
            print(f"| {count} | {' | '.join(shares)} |", flush=True)

    def show_tree(self, name: str, tree: VPTree) -> None:
        """Print a tree, probed as the pipeline does."""
        order = tree.probe(self.queries, tree.cells).astype(np.intp)
        show(name, [self.line(order, tree.assign(self.rows))])

    def line(self, order: Order, cells: NDArray[np.uint32]) -> list[float]:
        """Return the recall at each share, and how many times the mean the largest cell is."""
        found = recalls(order, cells[self.nearest].astype(np.intp), cells)
        sizes = np.bincount(cells, minlength=order.shape[1])
        return [*found, float(sizes.max() / sizes.mean())]


def show(name: str, lines: Sequence[Sequence[float]]) -> None:
    """Print a row of the table: the average of some lines."""
    *found, largest = np.mean(lines, axis=0)
    apart = f"{np.ptp(lines, axis=0)[:-1].max():.3f}" if len(lines) > 1 else ""
    figures = " | ".join(f"{value:.3f}" for value in found)
    print(f"| {name} | {figures} | {largest:.1f} | {apart} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    add_options(parser)
    parser.add_argument("--subset", default="dvd")
    parser.add_argument("--queries", type=int, default=6000, help="query descriptors, at random")
    options = parser.parse_args()
    features = read_features(options.folder, options.features, options.threads)
    c = Collection(features, options.subset, options.queries)
    print(f"{len(c.rows)} rows, {2**c.levels} cells, {len(c.queries)} query descriptors\n")
    shares = " | ".join(f"{share:.1%}" for share in SHARES)
    print(f"| share of rows scanned | {shares} | largest cell | seeds differ by |")
    print("|---|" + "---:|" * (len(SHARES) + 2))
    for strategy in ("random", "spread"):
        c.show_tree(strategy, c.tree(strategy))
    for reach in (1, 2, 5, 10, 20, 50, 200):
        c.show_tree(f"principal, reach {reach}", c.tree("principal", reach))
    for more in (1, 2, 3):
        c.show_tree(f"principal, {2 ** (c.levels + more)} cells", c.tree("principal", more=more))
    tree = c.tree("principal")
    cells = tree.assign(c.rows)
    for name, (cost, largest) in ORDERS.items():
        order = tree_order(tree, c.queries, c.sample, cost, largest)
        show(f"principal, {name}", [c.line(order, cells)])
    means = cell_means(c.sample, tree)
    order = centroid_order(c.queries, means)
    show("principal, nearest mean of a cell", [c.line(order, cells)])
    c.show_means("means, of random's leaves", "random")
    for more in range(4):
        count = 2 ** (c.levels + more)
        c.show_means(f"means, {count} cells, one step", "principal", more, 1)
        c.show_means(f"means, {count} cells", "principal", more)
        c.show_kmeans(f"k-means, {count} cells", count)
    for more in LED:
        c.show_led(more)


if __name__ == "__main__":
    main()
