"""Compare rules of keypoint selection by what they do to the ranking of real photographs.

    python benchmarks/selection.py FOLDER [--rules "strongest;grid 8"] [--contrast 0.04]
    python benchmarks/selection.py FOLDER --surf '{"hessian_threshold": 300}'

FOLDER is an evaluation data set (see `pipeline.evaluation.dataset`). Every image's keypoints are
found once; each rule then keeps 500 of a collection image and 1000 of a query, and an exhaustive
matcher (RootSIFT, reduced to 64 dimensions by PCA) ranks the images: every query descriptor votes
once for each image, with how much nearer its best match there is than its 16th best image.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import ImageLimits
from pipeline.evaluation.dataset import Dataset, read_dataset
from pipeline.evaluation.measures import average_precision, judge, recall_at
from pipeline.extraction.base import Extractor
from pipeline.extraction.selection import select_strongest
from pipeline.extraction.sift import SiftExtractor
from pipeline.extraction.surf import SurfExtractor
from pipeline.images import decode_image
from pipeline.records import Features

COLLECTION_FEATURES, QUERY_FEATURES = 500, 1000
DIMENSIONS = 64
BACKGROUND_RANK = 16
ALL = 65535

T = TypeVar("T")
Floats = NDArray[np.float32]
Rule = Callable[[Features, int], NDArray[np.intp]]


def strongest(features: Features, count: int) -> NDArray[np.intp]:
    return np.argsort(-features.keypoints[:, 4], kind="stable")[:count]


def size_weighted(features: Features, count: int) -> NDArray[np.intp]:
    """Choose as the pipeline does."""
    return select_strongest(features.keypoints, count)


def largest(features: Features, count: int) -> NDArray[np.intp]:
    return np.argsort(-features.keypoints[:, 2], kind="stable")[:count]


def at_random(features: Features, count: int) -> NDArray[np.intp]:
    return np.random.default_rng(1).permutation(len(features))[:count]


def grid(cells: int) -> Rule:
    """Take turns among the cells of a grid: the strongest of each, then the second, ..."""

    def rule(features: Features, count: int) -> NDArray[np.intp]:
        x, y, response = features.keypoints[:, [0, 1, 4]].T
        cell = cells_of(features, cells)
        order = np.lexsort((x, y, -response, cell))
        starts = np.flatnonzero(np.diff(cell[order], prepend=-1))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        return np.lexsort((x, y, -response, rank))[:count]

    return rule


def cells_of(features: Features, cells: int) -> NDArray[np.int64]:
    """Return each keypoint's cell of a grid with so many cells along the longer side."""
    side = max(features.width, features.height) / cells
    column, row = np.clip(features.keypoints[:, :2] // side, 0, cells - 1).astype(np.int64).T
    joined: NDArray[np.int64] = row * cells + column
    return joined


def weighted(rule: Rule, power: float) -> Rule:
    """Favour large keypoints: response times a power of the size."""

    def weighted_rule(features: Features, count: int) -> NDArray[np.intp]:
        keypoints = features.keypoints.copy()
        keypoints[:, 4] *= keypoints[:, 2] ** power
        changed = Features(keypoints, features.descriptors, features.width, features.height)
        return rule(changed, count)

    return weighted_rule


def half(rule: Rule) -> Rule:
    """Half the places to the strongest, the others by the rule."""

    def half_rule(features: Features, count: int) -> NDArray[np.intp]:
        order = np.r_[strongest(features, count // 2), rule(features, ALL)]
        _, first = np.unique(order, return_index=True)
        merged: NDArray[np.intp] = order[np.sort(first)]
        return merged[:count]

    return half_rule


def suppression(features: Features, count: int) -> NDArray[np.intp]:
    """Adaptive non-maximal suppression (Brown, Szeliski and Winder, CVPR 2005)."""
    order = strongest(features, 4000)
    x, y, response = features.keypoints[order][:, [0, 1, 4]].T
    distance = (x[:, None] - x) ** 2 + (y[:, None] - y) ** 2
    distance[response * 0.9 <= response[:, None]] = np.inf
    return order[np.argsort(-distance.min(axis=1), kind="stable")[:count]]


RULES: dict[str, Rule] = {
    "strongest": strongest,
    "random": at_random,
    "largest": largest,
    "strongest, size^0.5": weighted(strongest, 0.5),
    "strongest, size^1": size_weighted,
    "strongest, size^1.5": weighted(strongest, 1.5),
    "grid 4": grid(4),
    "grid 8": grid(8),
    "grid 16": grid(16),
    "grid 4, size^1": weighted(grid(4), 1.0),
    "grid 8, size^0.5": weighted(grid(8), 0.5),
    "grid 8, size^1": weighted(grid(8), 1.0),
    "half grid 8": half(grid(8)),
    "half grid 8, size^1": weighted(half(grid(8)), 1.0),
    "suppression": suppression,
}


@dataclass(frozen=True)
class Task:
    """One subset of the data set: a collection and its queries."""

    subset: str
    dataset: Dataset


def tasks(dataset: Dataset, subsets: Sequence[str], queries: int, distractors: int) -> list[Task]:
    """Thin the subsets out, evenly, to what can be measured in minutes."""
    kept = set(_every(sorted(dataset.distractors), distractors))
    made = []
    for subset in subsets:
        chosen = dataset.select([subset])
        database = [p for p in chosen.database if p in kept or p not in dataset.distractors]
        thinned = tuple(_every(chosen.queries, queries))
        made.append(Task(subset, Dataset(dataset.root, tuple(database), thinned, frozenset(kept))))
    return made


def _every(items: Sequence[T], count: int) -> list[T]:
    """Take at most `count` items, evenly spaced."""
    step = max(1, -(-len(items) // count))
    return list(items[::step])


def extract(
    dataset: Dataset, paths: Sequence[str], extractor: Extractor, side: int
) -> dict[str, Features]:
    """Take every keypoint of some images."""
    found = {}
    for path in paths:
        data = dataset.file(path).read_bytes()
        image = decode_image(data, name=path, limits=ImageLimits(), max_side=side)
        found[path] = extractor.extract(image, ALL)
    return found


def rotation(rows: Floats) -> Floats:
    """Return the principal axes (D, 64) of a sample of rows."""
    sample = rows[:: max(1, len(rows) // 50_000)]
    _, axes = np.linalg.eigh(np.cov(sample.T))
    return axes[:, ::-1][:, :DIMENSIONS].astype(np.float32)


def measure(
    task: Task, features: dict[str, Features], extractor: Extractor, rule: Rule
) -> tuple[float, float]:
    """Return mAP and recall@1 of one rule on one subset."""

    def rows(path: str, count: int) -> Floats:
        image = features[path]
        return extractor.normalize(image.descriptors[rule(image, count)])

    images = [p for p in task.dataset.database if len(features[p])]
    blocks = [rows(path, COLLECTION_FEATURES) for path in images]
    axes = rotation(np.concatenate(blocks))
    stored = [with_norms(block @ axes) for block in blocks]
    precisions, recalls = [], []
    for query in task.dataset.queries:
        scores = vote(rows(query.path, QUERY_FEATURES) @ axes, stored)
        ranking = [[images[i]] for i in np.argsort(-scores, kind="stable")]
        judged = judge(ranking, query.relevant, query.neutral)
        precisions.append(average_precision(judged, len(query.relevant)))
        recalls.append(recall_at(judged, 1))
    return float(np.mean(precisions)), float(np.mean(recalls))


def with_norms(rows: Floats) -> Floats:
    """Return columns (D + 1, N) whose product with a query row and a 1 is how near they are.

    Nearness is minus the squared distance, but for the query's own length.
    """
    return np.concatenate([2 * rows, -(rows**2).sum(axis=1, keepdims=True)], axis=1).T.copy()


def vote(asked: Floats, stored: Sequence[Floats]) -> Floats:
    """Return each image's score."""
    asked = np.concatenate([asked, np.ones((len(asked), 1), np.float32)], axis=1)
    nearness = np.stack([(asked @ block).max(axis=1) for block in stored], axis=1)
    place = len(stored) - BACKGROUND_RANK
    background = np.partition(nearness, place, axis=1)[:, place, None]
    scores: Floats = np.maximum(nearness - background, 0).sum(axis=0)
    return scores


def coverage(task: Task, features: dict[str, Features], rule: Rule) -> float:
    """Return the mean share of an 8 x 8 grid's cells with a keypoint that keep one."""
    shares = []
    for path in task.dataset.database:
        if len(features[path]):
            cells = cells_of(features[path], 8)
            kept = cells[rule(features[path], COLLECTION_FEATURES)]
            shares.append(len(np.unique(kept)) / len(np.unique(cells)))
    return float(np.mean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="evaluation data set with a groundtruth.json")
    parser.add_argument("--rules", default=";".join(RULES), help="names, separated by semicolons")
    parser.add_argument("--subsets", default="dvd,instre,landmarks")
    parser.add_argument("--contrast", type=float, default=0.04, help="SIFT's contrast threshold")
    parser.add_argument("--surf", type=json.loads, help="SURF with these options, JSON, not SIFT")
    parser.add_argument(
        "--side", type=int, default=1024, help="longer side of the pictures, pixels"
    )
    parser.add_argument("--queries", type=int, default=70, help="most queries of a subset")
    parser.add_argument("--distractors", type=int, default=300)
    options = parser.parse_args()
    dataset = read_dataset(options.folder)
    work = tasks(dataset, options.subsets.split(","), options.queries, options.distractors)
    paths = sorted({p for t in work for p in t.dataset.database} | _query_paths(work))
    extractor: Extractor = SiftExtractor(contrast_threshold=options.contrast)
    if options.surf is not None:
        extractor = SurfExtractor.from_options(options.surf)
        extractor.warm_up()
    started = time.process_time()
    features = extract(dataset, paths, extractor, options.side)
    spent = (time.process_time() - started) / len(paths)
    count = np.mean([len(image) for image in features.values()])
    what = f"contrast {options.contrast}" if options.surf is None else f"SURF {options.surf}"
    print(f"{what}, side {options.side}, {len(paths)} images; each on average:")
    print(f"{count:.0f} keypoints, {1000 * spent:.0f} ms of CPU time to decode and describe all\n")
    for task in work:
        sizes = f"{len(task.dataset.queries)} queries, {len(task.dataset.database)} images"
        print(f"* {task.subset}: {sizes}")
    print("\n| rule | " + " | ".join(f"{t.subset} mAP | recall@1 | cover" for t in work) + " |")
    print("|---|" + "---:|" * 3 * len(work))
    for name in options.rules.split(";"):
        cells = []
        for task in work:
            figures = (
                *measure(task, features, extractor, RULES[name]),
                coverage(task, features, RULES[name]),
            )
            cells += [f"{figure:.3f}" for figure in figures]
        print(f"| {name} | " + " | ".join(cells) + " |")
        sys.stdout.flush()


def _query_paths(work: Sequence[Task]) -> set[str]:
    return {query.path for task in work for query in task.dataset.queries}


if __name__ == "__main__":
    cv2.setNumThreads(1)
    main()
