"""What the plans of a search cost, against what `pipeline.retrieval.cost` predicts, and batches.

    python -m benchmarks.plan FOLDER --features CACHE [--rounds 3] [--json]

Rows are SIFT descriptors of the photographs of an evaluation data set (`benchmarks.engine_data`),
as a collection stores them: 64 bytes, cells of 384, four groups. Queries are photographs of it
that are not among them. Milliseconds of this thread's processor time for the scans of all groups,
medians of rounds in which all take turns:

``constants``  of the model, by least squares of the relative error over all cases together: sizes
               of collection and query, both plans, every code path that this processor has
``predicted``  over actual milliseconds of each case on the fastest path, the range on the others
``together``   8 passes over one pass for 8 photographs: scans alone, and with the ranking
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import show
from benchmarks.engine_data import numbered_images, read_data
from pipeline.config import IndexConfig, PlanKind
from pipeline.evaluation.dataset import read_dataset
from pipeline.extraction.sift import SiftExtractor
from pipeline.index.kernels import PATH
from pipeline.index.merge import Merge, assigned_rows
from pipeline.index.model import Model, train_model
from pipeline.index.paths import usable_paths
from pipeline.index.rows import ROW_UNIT, to_unsigned
from pipeline.index.segments import AssignedRows
from pipeline.index.warm import warm_up
from pipeline.request import SearchRequest
from pipeline.retrieval.batch import Batch, join_batches
from pipeline.retrieval.blocks import ScanCounts, merge_blocks
from pipeline.retrieval.cost import Machine, Workload, probed_cost, tile_places
from pipeline.retrieval.open_segments import OpenSegment
from pipeline.retrieval.plan import make_plan, plan_work
from pipeline.retrieval.scan import scan_opened
from pipeline.retrieval.score import rank_images

SIZES = (100_000, 300_000, 1_000_000)
QUERIES = (100, 300, 1000, 4000)
IMAGES = 8
PER_IMAGE = 1000
EFFORTS: dict[PlanKind, tuple[float, ...]] = {"probed": (0.02, 0.06), "exhaustive": (1.0,)}
PLANS = tuple(EFFORTS)
VECTORS = (100_000, 512, 8)
"""Whole-picture vectors: rows, their length, queries."""


@dataclass(frozen=True)
class Collection:
    """An index in memory."""

    model: Model
    segments: tuple[OpenSegment, ...]
    rows: int


def build(native: NDArray[np.generic], images: NDArray[np.uint32]) -> Collection:
    """Index descriptors (N, 128), uint8, of the images with these numbers."""
    normalize = SiftExtractor().normalize
    config = IndexConfig()
    rng = np.random.default_rng(config.seed)
    chosen = np.sort(rng.choice(len(native), min(len(native), 100_000), replace=False))
    behind = np.sort(rng.choice(len(native), min(len(native), config.background_size), False))
    model = train_model(normalize(native[chosen]), normalize(native[behind]), len(native), config)
    step = 100_000
    table = numbered_images(int(images.max()) + 1)
    assignments = []
    for at in range(0, len(native), step):
        codes = model.quantizer.encode(normalize(native[at : at + step]))
        cells = model.tree.assign(codes)
        order = np.lexsort((images[at : at + step], cells))
        firsts = np.arange(model.groups + 1) * model.cells_per_group
        geometry = np.zeros((len(codes), 4), np.uint16)
        geometry[:, 0] = np.arange(len(codes)) % 65_536
        assignments.append(
            AssignedRows(
                to_unsigned(codes)[order],
                cells[order],
                images[at : at + step][order],
                geometry[order],
                np.searchsorted(cells[order], firsts).astype(np.int64),
                table,
            )
        )
    segments = tuple(_group(model, group, assignments) for group in range(model.groups))
    return Collection(model, segments, len(native))


def prepare(
    collection: Collection, native: NDArray[np.generic], plan: PlanKind, effort: float, path: str
) -> Batch:
    """Plan a search with descriptors (Q, 128), uint8."""
    model = collection.model
    codes = model.quantizer.encode(SiftExtractor().normalize(native))
    request = SearchRequest(plan=plan, effort=effort)
    made = make_plan(model, codes, collection.rows, request)
    workload = Workload(len(codes), collection.rows, codes.shape[1], model.tree.cells)
    return Batch(made, (), workload, request, Machine(path, 1))


def scan(collection: Collection, batch: Batch, path: str) -> None:
    """Scan all groups one after the other, with a plan without cached values."""
    plan = replace(batch.plan)
    for segment in collection.segments:
        scan_opened(segment, plan, path=path)


def spent_ms(step: Callable[[], object]) -> float:
    """Return milliseconds of this thread's processor time."""
    started = time.thread_time()
    step()
    return (time.thread_time() - started) * 1e3


def rounds_of(steps: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Return the median milliseconds of each step; all take turns."""
    for step in steps:
        step()
    times = [[spent_ms(step) for step in steps] for _ in range(rounds)]
    return [median(column) for column in zip(*times, strict=True)]


def vector_collection(rows: int, width: int, images: int) -> tuple[Collection, NDArray[np.int8]]:
    """Return whole-picture vectors without structure, whose prefixes say nothing."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(rows + images, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    config = IndexConfig(dimensions=width, groups=4, background_size=16)
    model = train_model(vectors[:20_000], vectors[:16], rows, config, unit=True)
    codes = model.quantizer.encode(vectors)
    cells = model.tree.assign(codes[:rows])
    order = np.argsort(cells, kind="stable")
    firsts = np.arange(model.groups + 1) * model.cells_per_group
    assigned = AssignedRows(
        to_unsigned(codes[:rows])[order],
        cells[order],
        np.arange(rows, dtype=np.uint32)[order],
        np.zeros((rows, 4), np.uint16),
        np.searchsorted(cells[order], firsts).astype(np.int64),
        numbered_images(rows),
    )
    segments = tuple(_group(model, group, [assigned]) for group in range(model.groups))
    return Collection(model, segments, rows), codes[rows:]


class Case(NamedTuple):
    """A pass to be measured."""

    path: str
    effort: float
    collection: Collection
    batch: Batch


class Measured(NamedTuple):
    """A pass and what it took."""

    path: str
    effort: float
    batch: Batch
    counts: ScanCounts
    ms: float

    @property
    def ratio(self) -> float:
        """Predicted over actual milliseconds."""
        return self.batch.predicted().scan_ms / self.ms


def local_cases(
    collections: Sequence[Collection], native: NDArray[np.generic], path: str
) -> list[Case]:
    """Return passes for local features on one path."""
    return [
        Case(path, effort, made, prepare(made, native[:count], plan, effort, path))
        for made in collections
        for plan, efforts in EFFORTS.items()
        for effort in efforts
        for count in QUERIES
    ]


def vector_cases(made: Collection, asked: NDArray[np.int8], path: str) -> list[Case]:
    """Return passes for whole-picture vectors on one path."""
    request = SearchRequest(plan="exhaustive")
    found = []
    for count in (1, len(asked)):
        plan = make_plan(made.model, asked[:count], made.rows, request, one_vector=True)
        workload = Workload(
            count, made.rows, asked.shape[1], made.model.tree.cells, one_vector=True
        )
        batch = Batch(plan, (), workload, request, Machine(path, 1))
        found.append(Case(path, 1.0, made, batch))
    return found


def measure(cases: Sequence[Case], rounds: int) -> list[Measured]:
    """Scan all cases; paths, collections and plans take turns."""
    times = rounds_of([partial(scan, c.collection, c.batch, c.path) for c in cases], rounds)
    return [
        Measured(case.path, case.effort, case.batch, _counts(case.collection, case.batch), ms)
        for case, ms in zip(cases, times, strict=True)
    ]


def fitted(cases: Sequence[Measured], listing_ns: float) -> list[dict[str, object]]:
    """Return the constants that make the relative error of all cases least."""
    paths = list(dict.fromkeys(case.path for case in cases))
    rates = [f"{path}, {kind}" for path in paths for kind in (*PLANS, "vector")]
    names = ["PASS_NS", "BYTE_NS", "NEAR_NS", *rates]
    lines, wanted = [], []
    for case in cases:
        workload, plan = case.batch.workload, case.batch.plan
        kind = "vector" if workload.one_vector else plan.kind
        line = dict.fromkeys(names, 0.0)
        line["PASS_NS"] = 1.0
        line["BYTE_NS"] = case.counts.bytes
        line["NEAR_NS"] = 0.0 if workload.one_vector else workload.queries * workload.rows
        line[f"{case.path}, {kind}"] = places(case.batch) * workload.row_bytes / ROW_UNIT
        lines.append(list(line.values()))
        wanted.append(case.ms * 1e6 - listing_ns * plan.cells.size)
    weights = 1 / np.array(wanted)
    found, *_ = np.linalg.lstsq(np.array(lines) * weights[:, None], np.ones(len(lines)))
    return [
        {"constant": name, "": f"{value:,.4g}"} for name, value in zip(names, found, strict=True)
    ]


def places(batch: Batch) -> float:
    """Return the places of tiles, times rows, that a pass compares."""
    workload, path = batch.workload, batch.machine.path
    if batch.plan.kind == "exhaustive":
        return float(tile_places(workload.queries, path) * workload.rows)
    wanting = np.unique(batch.plan.cells, return_counts=True)[1]
    rows = workload.rows / workload.cells
    return sum(tile_places(int(count), path) for count in wanting) * rows


def listing(collection: Collection, native: NDArray[np.generic], rounds: int) -> float:
    """Return the nanoseconds to list one (query descriptor, cell)."""
    batch = prepare(collection, native[:PER_IMAGE], "probed", 0.06, PATH)

    def listed() -> None:
        plan = replace(batch.plan)
        for segment in collection.segments:
            plan_work(plan, segment.segment)

    (ms,) = rounds_of([listed], rounds)
    return ms * 1e6 / batch.plan.cells.size


def case_row(case: Measured) -> dict[str, object]:
    """Return predicted beside actual of one case."""
    cost, workload = case.batch.predicted(), case.batch.workload
    opened = int(case.batch.plan.cells.shape[1])
    before = probed_cost(workload, case.batch.machine, opened) if opened else cost
    return {
        "rows": workload.rows,
        "descriptors": workload.queries,
        "plan": f"probed {case.effort:g}" if opened else "exhaustive",
        "ms": round(case.ms, 2),
        "predicted / actual": round(case.ratio, 2),
        "pairs": round(cost.pairs / case.counts.pairs, 2),
        "bytes": round(cost.bytes / case.counts.bytes, 2),
        "bytes before the cells are known": round(before.bytes / case.counts.bytes, 2),
    }


def path_row(path: str, cases: Sequence[Measured]) -> dict[str, object]:
    """Return the range of predicted over actual of a path."""
    row: dict[str, object] = {"path": path}
    for kind in PLANS:
        ratios = [case.ratio for case in cases if case.batch.plan.kind == kind]
        low, middle, high = np.percentile(ratios, [0, 50, 100])
        row[kind] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    return row


def together(
    collection: Collection, photographs: Sequence[NDArray[np.generic]], rounds: int
) -> list[dict[str, object]]:
    """Return what one pass for all photographs costs, over a pass for each."""
    found: list[dict[str, object]] = []
    for plan in PLANS:
        batches = [prepare(collection, rows, plan, 0.06, PATH) for rows in photographs]
        joined = join_batches(batches)
        offsets = np.cumsum([0, *(len(rows) for rows in photographs)]).tolist()

        def one_by_one(batches: list[Batch] = batches) -> None:
            for batch in batches:
                _answer(collection, batch, [0, batch.workload.queries])

        def in_one(joined: Batch = joined, offsets: list[int] = offsets) -> None:
            _answer(collection, joined, offsets)

        def scans(batches: list[Batch] = batches) -> None:
            for batch in batches:
                scan(collection, batch, PATH)

        steps: list[Callable[[], object]] = [
            scans,
            partial(scan, collection, joined, PATH),
            one_by_one,
            in_one,
        ]
        each, pass_ms, answers, pass_answers = rounds_of(steps, rounds)
        apart = [_counts(collection, batch) for batch in batches]
        at_once = _counts(collection, joined)
        found.append(
            {
                "plan": plan,
                "images": len(batches),
                "cells opened": round(sum(c.cells for c in apart) / at_once.cells, 2),
                "bytes visited": round(sum(c.bytes for c in apart) / at_once.bytes, 2),
                "scans apart ms": round(each, 1),
                "scans": round(each / pass_ms, 2),
                "scans and ranking": round(answers / pass_answers, 2),
            }
        )
    return found


def _group(model: Model, group: int, assignments: Sequence[AssignedRows]) -> OpenSegment:
    """Return the segment of a group."""
    cells = model.cells_per_group
    inputs = [assigned_rows(assigned, group, cells) for assigned in assignments]
    segment = Merge(inputs, group * cells).in_memory()
    ids = segment.table.sha256[:, -4:].copy().view(">u4")[:, 0].astype(np.uint32) + 1
    return OpenSegment(f"group {group}", segment, ids)


def _counts(collection: Collection, batch: Batch) -> ScanCounts:
    """Return what a pass visits."""
    blocks = [scan_opened(segment, batch.plan) for segment in collection.segments]
    return merge_blocks(blocks).counts


def _answer(collection: Collection, batch: Batch, offsets: Sequence[int]) -> None:
    """Scan, and rank for every image."""
    blocks = [scan_opened(segment, batch.plan) for segment in collection.segments]
    rank_images(blocks, batch.plan.radius, offsets)


def read_photographs(
    folder: str, cache: Path
) -> tuple[NDArray[np.generic], NDArray[np.uint32], list[NDArray[np.generic]]]:
    """Return rows (N, 128) of the database, their images' numbers, and rows of other photographs.

    The database's images are in the order of their SHA-256, which mixes the subsets of the data
    set.
    """
    descriptors = read_data(folder, cache, 1, 1, 250, 2).descriptors
    dataset = read_dataset(folder)
    indexed = sorted(dataset.database, key=descriptors.sha256)
    rows = [descriptors.rows(path) for path in indexed]
    known = set(indexed)
    asked = [descriptors.rows(query.path) for query in dataset.queries if query.path not in known]
    numbers = np.repeat(np.arange(len(rows), dtype=np.uint32), [len(some) for some in rows])
    return np.concatenate(rows), numbers, [some for some in asked if len(some) == PER_IMAGE]


def main() -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("folder", metavar="FOLDER", help="evaluation data set")
    options.add_argument("--features", type=Path, required=True, help="cache of the descriptors")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", action="store_true", help="print JSON")
    arguments = options.parse_args()
    warm_up()
    native, numbers, photographs = read_photographs(arguments.folder, arguments.features)
    step = max(1, len(photographs) // IMAGES)
    chosen = photographs[::step][:IMAGES]
    asked = np.concatenate(chosen)
    made = [build(native[:size], numbers[:size]) for size in SIZES if size <= len(native)]
    whole = made[-1]
    listing_ns = listing(whole, asked, arguments.rounds)
    vectors, vector_queries = vector_collection(*VECTORS)
    cases = [case for path in usable_paths() for case in local_cases(made, asked, path)]
    cases += [c for path in usable_paths() for c in vector_cases(vectors, vector_queries, path)]
    measured = measure(cases, arguments.rounds)
    constants: list[dict[str, object]] = [
        {"constant": "LIST_NS", "": f"{listing_ns:,.4g}"},
        *fitted(measured, listing_ns),
    ]
    show("constants", constants, arguments.json)
    fastest = [case_row(case) for case in measured if case.path == PATH]
    show(f"predicted over actual, {PATH}; last: whole-picture vectors", fastest, arguments.json)
    ranges = [path_row(path, [c for c in measured if c.path == path]) for path in usable_paths()]
    show("predicted over actual milliseconds: median (least to most)", ranges, arguments.json)
    gains = together(whole, chosen, arguments.rounds)
    show("a pass each over one pass for all", gains, arguments.json)


if __name__ == "__main__":
    main()
