"""Subsets of an evaluation data set, indexed and matched in memory, for `benchmarks.scoring`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.features import FeatureSet
from benchmarks.scoring_rules import Floats, Matches, Radius
from pipeline.config import IndexConfig
from pipeline.evaluation.dataset import EvaluationQuery
from pipeline.evaluation.measures import average_precision, judge, recall_at
from pipeline.extraction.sift import SiftExtractor
from pipeline.index.kernels import Hits, Queries, k_nearest, range_search
from pipeline.index.model import Model
from pipeline.index.rows import PackedRows, pack_rows, to_unsigned, unpack_rows
from pipeline.index.work import full_work
from pipeline.retrieval.plan import background_radius


@dataclass(frozen=True)
class Subset:
    """A subset of the data set, indexed."""

    name: str
    queries: tuple[EvaluationQuery, ...]
    names: list[list[str]]
    """Paths of each image, images sorted by SHA-256."""
    model: Model
    rows: PackedRows
    image: NDArray[np.int32]
    """Image of each row."""
    cell: NDArray[np.uint32]

    def copies_of(self, image: int) -> list[int]:
        """Return an image and its copies."""
        ending = f" of {image}"
        return [image, *(i for i, n in enumerate(self.names) if n[0].endswith(ending))]


def index_subset(
    features: FeatureSet,
    name: str,
    queries: int,
    distractor_step: int = 1,
    config: IndexConfig | None = None,
) -> tuple[Subset, list[str]]:
    """Index a subset with its distractors; every n-th distractor only, when told."""
    dataset = features.dataset.select([name])
    kept = set(sorted(dataset.distractors)[::distractor_step])
    paths = [p for p in dataset.database if p in kept or p not in dataset.distractors]
    names: dict[str, list[str]] = {}
    for path in sorted(paths, key=features.sha256):
        names.setdefault(features.sha256(path), []).append(path)
    first = [same[0] for same in names.values()]
    model = features.train(first, config or IndexConfig())
    counts = [len(features.image(path)) for path in first]
    native = np.concatenate([features.image(path) for path in first])
    codes = encode(model, native)
    cells = model.tree.assign(codes)
    step = max(1, -(-len(dataset.queries) // queries))
    subset = Subset(
        name,
        dataset.queries[::step],
        list(names.values()),
        model,
        pack_rows(to_unsigned(codes)),
        np.repeat(np.arange(len(first), dtype=np.int32), counts),
        cells,
    )
    return subset, first


def encode(model: Model, native: NDArray[np.generic]) -> NDArray[np.int8]:
    """Return stored rows, in pieces that fit in memory."""
    normalize = SiftExtractor().normalize
    pieces = range(0, len(native), 100_000)
    return np.concatenate(
        [model.quantizer.encode(normalize(native[at : at + 100_000])) for at in pieces]
    )


def match(
    subset: Subset, queries: Queries, rules: Sequence[Radius], background: PackedRows
) -> Matches:
    """Scan everything within the largest radius that a rule asks for."""
    found = k_nearest(background, queries, 64)[0]
    collection, neighbour = k_nearest(subset.rows, queries, 16)
    chosen = background_radius(replace(subset.model, background=background), queries)
    features = np.bincount(subset.image, minlength=len(subset.names))
    nothing = np.empty(0, np.int64)
    m = Matches(
        nothing, nothing, nothing, nothing, found, collection, background.size, chosen, features,
        neighbour,
    )  # fmt: skip
    hits = scan(
        subset, queries, np.max([chosen.astype(np.float64), *(rule(m) for rule in rules)], axis=0)
    )
    return reduce_hits(subset, replace(m, hits=hits), hits)


def scan(subset: Subset, queries: Queries, radius: Floats) -> Hits:
    """Return every pair within a radius."""
    alive = np.ones(subset.rows.size, np.bool_)
    wanted = (radius + 1).astype(np.int32)
    work = full_work(subset.rows.size, len(queries.codes))
    return range_search(subset.rows, alive, queries, wanted, work)


def reduce_hits(subset: Subset, m: Matches, hits: Hits) -> Matches:
    """Keep of each query descriptor and image the nearest row."""
    image = subset.image[hits.row].astype(np.int64)
    key = hits.query.astype(np.int64) * len(subset.names) + image
    order = np.lexsort((hits.row, hits.distance, key))
    order = order[np.diff(key[order], prepend=-1) != 0]
    return replace(
        m,
        query=hits.query[order].astype(np.int64),
        image=image[order],
        row=hits.row[order],
        distance=hits.distance[order].astype(np.int64),
    )


def keep_cells(subset: Subset, hits: Hits, probed: NDArray[np.bool_]) -> Hits:
    """Keep the pairs whose row lies in a cell that the query descriptor probes."""
    kept = probed[hits.query, subset.cell[hits.row]]
    return Hits(hits.query[kept], hits.row[kept], hits.distance[kept], hits.computed)


def precision(subset: Subset, query: EvaluationQuery, scores: Floats) -> tuple[float, float]:
    """Return average precision and recall@1 of one ranking."""
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > 0]
    judged = judge([subset.names[i] for i in order], query.relevant, query.neutral)
    return average_precision(judged, len(query.relevant)), recall_at(judged, 1)


def paper_scores(subset: Subset, queries: Queries) -> Floats:
    """Score by the paper: candidate pairs of the nearest cell below the mean candidate distance."""
    order = np.argsort(subset.cell, kind="stable")
    offsets = np.searchsorted(subset.cell[order], np.arange(subset.model.tree.cells + 1))
    cells = subset.model.tree.probe(queries.codes, 1)[:, 0]
    stored = unpack_rows(subset.rows)[order]
    distances, images = [], []
    for cell in np.unique(cells):
        mine = slice(offsets[cell], offsets[cell + 1])
        rows = (stored[mine].astype(np.float32) - 128).T
        asked = queries.codes[cells == cell].astype(np.float32)
        squared = (asked**2).sum(1)[:, None] + (rows**2).sum(0) - 2 * (asked @ rows)
        distances.append(np.sqrt(np.maximum(squared, 0)).ravel())
        images.append(np.tile(subset.image[order][mine], len(asked)))
    distance, image = np.concatenate(distances), np.concatenate(images)
    below = distance < distance.mean()
    return np.bincount(image[below], minlength=len(subset.names)).astype(np.float64)


def paper_nearest(subset: Subset, m: Matches) -> Floats:
    """Score by the paper, where the candidate pairs are each descriptor's 16 nearest."""
    distance = np.sqrt(m.collection)
    below = distance < distance.mean()
    images = subset.image[m.neighbour[below]]
    return np.bincount(images, minlength=len(subset.names)).astype(np.float64)
