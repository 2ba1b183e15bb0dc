"""Compare rules of scoring on the rankings of real photographs.

    python -m benchmarks.scoring FOLDER [--subsets dvd,instre] [--only radius,score,probes]

FOLDER is an evaluation data set (see `pipeline.evaluation.dataset`). Each subset is indexed with
all distractors as the pipeline does it (model, 8-bit rows), scanned exhaustively, and ranked by
every rule from the same matches. Four tables:

``radius``   how near is near: rules for the background distance of a query descriptor;
``score``    what a near pair is worth, with the pipeline's background distance;
``probes``   mAP when only a share of the cells is probed;
``drift``    what becomes of the right image's score and rank when the collection holds 24 and 40
             re-encoded copies of it (a subset with one right answer a query), or half the
             distractors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.features import CONFIG, FeatureSet, add_options, read_features
from benchmarks.scoring_data import (
    Subset,
    encode,
    index_subset,
    keep_cells,
    match,
    paper_nearest,
    paper_scores,
    precision,
    reduce_hits,
)
from benchmarks.scoring_rules import (
    RADII,
    SCORES,
    Floats,
    Matches,
    Radius,
    Score,
    carried,
    larger,
    once,
)
from pipeline.config import ImageLimits, IndexConfig
from pipeline.errors import InputError
from pipeline.evaluation.dataset import EvaluationQuery
from pipeline.extraction.features import extract_image
from pipeline.extraction.sift import SiftExtractor
from pipeline.files import hash_bytes
from pipeline.index.kernels import prepare_queries
from pipeline.index.rows import pack_rows, to_unsigned, unpack_rows
from pipeline.index.sampling import draw_samples

SHARES = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06)
COPIES = (24, 40)


DRIFTING: dict[str, Radius] = {
    name: RADII[name] for name in ("pipeline", "rank 16 of the collection", "rank 16 to 2e-5")
} | {
    "rank 2 to 2e-5": carried(2, 2e-5),
    "rank 4 to 2e-5": carried(4, 2e-5),
    "rank 2, or 0.8 x rank 16": larger((1, carried(2, 2e-5)), (0.8, carried(16, 2e-5))),
    "rank 2, or rank 16": larger((1, carried(2, 2e-5)), (1.0, carried(16, 2e-5))),
}


def rank_by(subset: Subset, m: Matches, score: Score, radius: Floats) -> Floats:
    image, gain = score(m, radius)
    return np.bincount(image, weights=gain, minlength=len(subset.names)).astype(np.float64)


class Table:
    """Means by rule and subset, printed as Markdown."""

    def __init__(self, title: str, measures: Sequence[str]) -> None:
        self.title, self.measures = title, measures
        self.values: dict[str, dict[str, list[tuple[float, ...]]]] = {}

    def add(self, rule: str, subset: str, *values: float) -> None:
        """Note the measures of one query."""
        self.values.setdefault(rule, {}).setdefault(subset, []).append(values)

    def show(self) -> None:
        """Print the means."""
        if not self.values:
            return
        subsets = list(dict.fromkeys(subset for row in self.values.values() for subset in row))
        columns = [f"{subset} {measure}" for subset in subsets for measure in self.measures]
        print(f"\n| {self.title} | " + " | ".join(columns) + " |")
        print("|---|" + "---:|" * len(columns))
        for rule, row in self.values.items():
            means = [value for subset in subsets for value in np.mean(row[subset], axis=0)]
            print(f"| {rule} | " + " | ".join(f"{value:.4g}" for value in means) + " |")
        sys.stdout.flush()


def tables(subset: Subset, features: FeatureSet, wanted: set[str], made: dict[str, Table]) -> None:
    """Rank every query of a subset by every rule."""
    rules = list(RADII.values()) if "radius" in wanted else []
    shares = [round(share * subset.model.tree.cells) for share in SHARES]
    sizes = np.bincount(subset.cell, minlength=subset.model.tree.cells)
    for query in subset.queries:
        queries = prepare_queries(encode(subset.model, features.query(query.path)))
        m = match(subset, queries, rules, subset.model.background)
        chosen = m.chosen.astype(np.float64)

        def note(
            table: str, rule: str, scores: Floats, *more: float, q: EvaluationQuery = query
        ) -> None:
            made[table].add(rule, subset.name, *precision(subset, q, scores), *more)

        if "radius" in wanted:
            note("radius", "paper: pairs below the mean", paper_scores(subset, queries), np.nan)
            note("radius", "same, of the 16 nearest", paper_nearest(subset, m), np.nan)
            for name, rule in RADII.items():
                radius = np.floor(rule(m))
                note("radius", name, rank_by(subset, m, once, radius), hits_each(m, radius))
        if "score" in wanted:
            for name, score in SCORES.items():
                note("score", name, rank_by(subset, m, score, chosen))
        hits = m.hits
        if "probes" in wanted and hits is not None:
            cells = subset.model.tree.probe(queries.codes, max(shares))
            place = np.full((len(cells), subset.model.tree.cells), max(shares), np.int32)
            np.put_along_axis(place, cells.astype(np.int64), np.arange(max(shares))[None], axis=1)
            note("probes", "exhaustive", rank_by(subset, m, once, chosen), 1.0)
            for share, count in zip(SHARES, shares, strict=True):
                probed = reduce_hits(subset, m, keep_cells(subset, hits, place < count))
                scanned = sizes[cells[:, :count]].sum() / subset.rows.size / len(cells)
                note("probes", f"{share:.1%}", rank_by(subset, probed, once, chosen), scanned)


def drift(
    features: FeatureSet, subset: Subset, first: list[str], queries: int, tables: dict[str, Table]
) -> None:
    """Add copies of the right image, and index half of the distractors."""
    half, _ = index_subset(features, subset.name, len(subset.queries), distractor_step=2)
    step = max(1, -(-len(subset.queries) // queries))
    for query in subset.queries[::step]:
        native = features.query(query.path)
        right = next(i for i, names in enumerate(subset.names) if query.relevant & set(names))
        kept = next(i for i, names in enumerate(half.names) if query.relevant & set(names))
        asked = prepare_queries(encode(subset.model, native))
        alone = match(subset, asked, list(DRIFTING.values()), subset.model.background)
        small = prepare_queries(encode(half.model, native))
        fewer = match(half, small, list(DRIFTING.values()), half.model.background)
        copies = list(reencoded(features, first[right], max(COPIES)))
        more = {
            (count, rebuilt): with_copies(features, subset, first, right, copies[:count], rebuilt)
            for count in COPIES
            for rebuilt in (False, True)
        }
        matched = {
            key: match(copied, asked, list(DRIFTING.values()), copied.model.background)
            for key, copied in more.items()
        }
        for name, rule in DRIFTING.items():
            scores = rank_by(subset, alone, once, np.floor(rule(alone)))
            before = scores[right]
            figures = []
            for key, copied in more.items():
                after = rank_by(copied, matched[key], once, np.floor(rule(matched[key])))
                wrong = np.delete(after, copied.copies_of(right)).max()
                figures += [after[right] / before, float(after[right] > wrong)]
            smaller = rank_by(half, fewer, once, np.floor(rule(fewer)))
            unit = (subset.model.quantizer.scale / half.model.quantizer.scale) ** 2
            tables["drift"].add(name, subset.name, *figures, before / (smaller[kept] * unit))


def with_copies(
    features: FeatureSet,
    subset: Subset,
    first: list[str],
    right: int,
    copies: list[NDArray[np.generic]],
    rebuilt: bool,
) -> Subset:
    """Return the subset with re-encoded copies of an image.

    Rebuilt: the background sample is drawn again, copies among the images; else it is the old one.
    """
    count = len(copies)
    codes = encode(subset.model, np.concatenate(copies))
    stored = np.concatenate([unpack_rows(subset.rows), to_unsigned(codes)])
    owners = len(first) + np.repeat(np.arange(count, dtype=np.int32), [len(c) for c in copies])
    model = subset.model
    if rebuilt:
        images = [(features.sha256(path), features.image(path)) for path in first]
        images += [(hash_bytes(rows.tobytes()), rows) for rows in copies]
        normalize = SiftExtractor().normalize
        background = normalize(draw_samples(images, len(images), IndexConfig())[1])
        rows = pack_rows(to_unsigned(model.quantizer.encode(background)))
        model = replace(model, background=rows)
    return replace(
        subset,
        names=[*subset.names, *([f"copy {i} of {right}"] for i in range(count))],
        model=model,
        rows=pack_rows(stored),
        image=np.concatenate([subset.image, owners]),
    )


def reencoded(features: FeatureSet, path: str, count: int) -> Iterator[NDArray[np.generic]]:
    """Yield the descriptors of an image after scaling it and saving it as JPEG."""
    picture = cv2.imread(str(features.dataset.file(path)))
    if picture is None:
        raise InputError(f"OpenCV cannot read {path!r}")
    for number in range(count):
        scale = 1 - 0.5 * (number % 8) / 8
        resized = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 95 - 2 * (number // 2)]
        data = cv2.imencode(".jpg", resized, quality)[1].tobytes()
        yield extract_image(data, path, CONFIG, ImageLimits()).descriptors


def hits_each(m: Matches, radius: Floats) -> float:
    """Return images near to a query descriptor, on average."""
    return float((m.distance < radius[m.query]).sum() / len(radius))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    add_options(parser)
    parser.add_argument("--subsets", default="dvd,instre,landmarks,boof,oxford_affine")
    parser.add_argument("--only", default="radius,score,probes,drift", help="tables to print")
    parser.add_argument("--queries", type=int, default=60, help="most queries of a subset")
    parser.add_argument(
        "--distractor-step", type=int, default=1, help="index every n-th distractor only"
    )
    parser.add_argument("--cells", default="means", help="means or leaves")
    parser.add_argument("--cell-size", type=int, default=IndexConfig().cell_size)
    parser.add_argument("--drift-queries", type=int, default=15, help="the same, of table drift")
    options = parser.parse_args()
    features = read_features(options.folder, options.features, options.threads)
    wanted = set(options.only.split(","))
    made = {
        "radius": Table("background distance", ("mAP", "r@1", "hits")),
        "score": Table("worth of a pair", ("mAP", "r@1")),
        "drift": Table(
            "right image's score over that without copies; r@1",
            (
                *(
                    f"{n} copies{w}{m}"
                    for n in COPIES
                    for w in ("", ", rebuilt")
                    for m in (" score", " r@1")
                ),
                "all / half the distractors",
            ),
        ),
        "probes": Table("cells probed", ("mAP", "r@1", "scanned")),
    }
    for name in options.subsets.split(","):
        config = IndexConfig(cells=options.cells, cell_size=options.cell_size)
        subset, first = index_subset(
            features, name, options.queries, options.distractor_step, config
        )
        print(
            f"* {name}: {len(subset.queries)} queries, {len(subset.names)} images, "
            f"{subset.rows.size} descriptors, {subset.model.tree.cells} cells",
            flush=True,
        )
        tables(subset, features, wanted, made)
        if "drift" in wanted and all(len(query.relevant) == 1 for query in subset.queries):
            drift(features, subset, first, options.drift_queries, made)
    for table in made.values():
        table.show()


if __name__ == "__main__":
    main()
