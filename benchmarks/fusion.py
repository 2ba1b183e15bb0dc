"""Compare rules of rank fusion on the rankings of real photographs.

    python -m benchmarks.fusion FOLDER --extractor sift --extractor cnn:FILE [--cache FOLDER]

FOLDER is an evaluation data set (see `pipeline.evaluation.dataset`). Its images are indexed once by
each extractor, every query is searched as deep as there are images (SIFT and SURF by the probed
plan), and each subset is judged on its own answers and all distractors. Four tables of mAP:

``rules``    the rules of fusion, and each extractor alone;
``depth``    the pipeline's rule by the number of matches asked of each collection;
``lacking``  a tenth, or half, of the images taken out of one collection;
``small``    collections of few images: the right answers of a query and some others.

With --cache the index and the rankings are kept there, and a second run takes seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import show
from benchmarks.fusion_rules import RULES, Ranking, Rule
from pipeline.config import PlanKind, Settings
from pipeline.errors import NoFeaturesError
from pipeline.evaluation import Dataset, read_dataset
from pipeline.evaluation.dataset import EvaluationQuery
from pipeline.evaluation.measures import average_precision, judge
from pipeline.records import Match, SearchResult
from pipeline.retrieval.fuse import DEPTH, fuse
from vantage import Collection

RRF = RULES["RRF, k = 60"]

JUDGED = 200
"""Matches of a fused ranking that are judged."""


@dataclass(frozen=True)
class Asked:
    """A query and what every extractor ranks for it, images of its subset only."""

    query: EvaluationQuery
    rankings: tuple[Ranking, ...]


class Photographs:
    """A data set, its images' contents, and the rankings of its queries."""

    def __init__(self, dataset: Dataset, rankings: Sequence[dict[str, Ranking]]) -> None:
        self.dataset = dataset
        self.sha256 = {
            path: hashlib.sha256(dataset.file(path).read_bytes()).hexdigest()
            for path in dataset.database
        }
        self.names: dict[str, set[str]] = {}
        for path, sha256 in self.sha256.items():
            self.names.setdefault(sha256, set()).add(path)
        self.subsets = {name: list(self._of_subset(name, rankings)) for name in dataset.subsets}

    def _of_subset(self, name: str, rankings: Sequence[dict[str, Ranking]]) -> Iterator[Asked]:
        selected = self.dataset.select([name])
        images = {self.sha256[path] for path in selected.database}
        for query in selected.queries:
            yield Asked(query, tuple(keep(found[query.path], images) for found in rankings))

    def precision(self, query: EvaluationQuery, ranking: Sequence[str]) -> float:
        """Return the average precision of one ranking."""
        judged = judge((self.names[i] for i in ranking[:JUDGED]), query.relevant, query.neutral)
        return average_precision(judged, len(query.relevant))

    def relevant(self, query: EvaluationQuery) -> set[str]:
        """Return the contents that are right."""
        return {self.sha256[path] for path in query.relevant}

    def row(self, name: str, rank: Any) -> dict[str, Any]:
        """Return a line of a table: mAP by subset of what `rank` makes of an `Asked`."""
        values = {
            subset: np.mean([self.precision(asked.query, rank(asked)) for asked in every])
            for subset, every in self.subsets.items()
        }
        return {"rule": name, **{subset: f"{value:.3f}" for subset, value in values.items()}}


def keep(ranking: Ranking, images: AbstractSet[str]) -> Ranking:
    """Return what a ranking says of some images."""
    return [(image, score) for image, score in ranking if image in images]


def names(ranking: Ranking) -> list[str]:
    """Return a ranking's images."""
    return [image for image, _ in ranking]


def fused(
    rankings: Sequence[Ranking], lacking: Sequence[AbstractSet[str]] | None = None
) -> list[str]:
    """Rank as the pipeline does."""
    answers = [
        SearchResult(
            tuple(Match(i, s, (), score, 1, 0, 0) for i, (s, score) in enumerate(ranking, 1)),
            True, (), {}, {}, collection=str(number),
        )
        for number, ranking in enumerate(rankings)
    ]  # fmt: skip
    return [match.image for match in fuse(answers, JUDGED, lacking).matches]


def read_rankings(folder: Path, dataset: Dataset, spec: str) -> dict[str, Ranking]:
    """Index the data set by one extractor and search with every query, or read it from the cache.

    A query without keypoints has an empty ranking.
    """
    name = "".join(c if c.isalnum() else "-" for c in spec)[-40:].strip("-")
    cache = folder / f"{name}.json"
    if cache.exists():
        found: dict[str, Ranking] = json.loads(cache.read_text())
        return found
    settings = Settings.from_env({"VANTAGE_HOME": str(folder / "home")})
    rankings: dict[str, Ranking] = {}
    # As good as exhaustive for local features, and quick; one vector is soon compared with all.
    plan: PlanKind = "probed" if spec in ("sift", "surf") else "exhaustive"
    with Collection.open(name, settings, local=True, extractor=spec) as collection:
        print(f"{spec}: indexing {len(dataset.database)} images", file=sys.stderr)
        collection.index(dataset.database_files())
        print(f"{spec}: searching with {len(dataset.queries)} images", file=sys.stderr)
        for query in dataset.queries:
            try:
                result = collection.search(
                    dataset.file(query.path), top=len(dataset.database), plan=plan
                )
                rankings[query.path] = [(match.image, match.score) for match in result.matches]
            except NoFeaturesError:
                rankings[query.path] = []
    cache.write_text(json.dumps(rankings))
    return rankings


def rules(photographs: Photographs, specs: Sequence[str], depth: int) -> list[dict[str, Any]]:
    """Each extractor alone and every rule."""
    rows = [
        photographs.row(spec.partition(":")[0], lambda a, i=i: names(a.rankings[i]))
        for i, spec in enumerate(specs)
    ]

    def by(rule: Rule) -> Any:
        return lambda asked: rule([ranking[:depth] for ranking in asked.rankings])

    rows += [photographs.row(name, by(rule)) for name, rule in RULES.items()]
    return [*rows, photographs.row("pipeline", by(fused))]


def depths(photographs: Photographs) -> list[dict[str, Any]]:
    """The pipeline's rule by depth; where deeper than its own, noise is still measured on that."""
    return [
        photographs.row(f"depth {n}", lambda a, n=n: fused([r[:n] for r in a.rankings]))
        for n in (25, 50, 100, DEPTH, 500, 1000)
    ]


def lacks(photographs: Photographs, specs: Sequence[str]) -> list[dict[str, Any]]:
    """Images that one collection does not hold: told to the rule, or taken for not found."""
    rows = []
    for share in (0.1, 0.5):
        for i, spec in enumerate(specs):
            chance = random.Random(5)
            gone = {image for image in sorted(photographs.names) if chance.random() < share}
            told = [gone if i == j else set[str]() for j in range(len(specs))]

            def cut(asked: Asked, told: list[set[str]] = told) -> list[Ranking]:
                return [
                    [entry for entry in ranking if entry[0] not in out][:DEPTH]
                    for ranking, out in zip(asked.rankings, told, strict=True)
                ]

            title = f"{share:.0%} not in {spec.partition(':')[0]}"
            rows += [
                photographs.row(f"{title}: RRF, k = 60", lambda a, cut=cut: RRF(cut(a))),
                photographs.row(f"{title}: as if not found", lambda a, cut=cut: fused(cut(a))),
                photographs.row(
                    f"{title}: told", lambda a, cut=cut, told=told: fused(cut(a), told)
                ),
            ]
    return rows


def small(photographs: Photographs, specs: Sequence[str]) -> list[dict[str, Any]]:
    """Collections of few images."""
    rows = []
    for size in (3, 6, 20, 50, 200):

        def few(asked: Asked, size: int = size) -> list[Ranking]:
            right = photographs.relevant(asked.query)
            others = sorted({i for r in asked.rankings for i in names(r)} - right)
            # One choice a query, whatever rule asks.
            chance = random.Random(f"{size} {asked.query.path}")
            wanted = right.union(chance.sample(others, max(0, min(len(others), size - len(right)))))
            return [keep(ranking, wanted) for ranking in asked.rankings]

        rows += [
            photographs.row(
                f"{size} images: {spec.partition(':')[0]}",
                lambda a, few=few, i=i: names(few(a)[i]),
            )
            for i, spec in enumerate(specs)
        ]
        rows += [
            photographs.row(f"{size} images: RRF, k = 60", lambda a, few=few: RRF(few(a))),
            photographs.row(f"{size} images: pipeline", lambda a, few=few: fused(few(a))),
        ]
    return rows


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """Give a folder for index and rankings, kept only when named."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="vantage-bench-") as folder:
        yield Path(folder)


def main() -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("photos", type=Path, help="an evaluation data set")
    options.add_argument("--extractor", action="append", required=True, help="as for `vantage`")
    options.add_argument("--cache", type=Path, help="keep index and rankings in this folder")
    options.add_argument("--only", default="rules,depth,lacking,small", help="tables to print")
    options.add_argument("--json", action="store_true", help="print JSON")
    given = options.parse_args()
    dataset = read_dataset(given.photos)
    with _folder(given.cache) as folder:
        found = [read_rankings(folder, dataset, spec) for spec in given.extractor]
    photographs = Photographs(dataset, found)
    for table in given.only.split(","):
        if table == "rules":
            for depth in (100, DEPTH, 500):
                rows = rules(photographs, given.extractor, depth)
                show(f"rules, {depth} matches of each", rows, given.json)
        elif table == "depth":
            show("depth", depths(photographs), given.json)
        elif table == "lacking":
            show("lacking", lacks(photographs, given.extractor), given.json)
        elif table == "small":
            show("small", small(photographs, given.extractor), given.json)


if __name__ == "__main__":
    main()
