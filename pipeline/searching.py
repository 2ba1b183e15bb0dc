"""The steps of a search: where extraction, index, retrieval and metadata meet.

``prepare_query`` (features, plan) -> ``scan_group`` for every group of the plan (map) ->
``finish_search`` (reduce). `pipeline.local` calls them in a loop, `workers.tasks` one a message.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.config import ExtractorConfig, SearchConfig, digest
from pipeline.extraction.features import extract_decoded
from pipeline.images import open_query
from pipeline.metadata import images
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import VersionRecord
from pipeline.records import SearchResult
from pipeline.resources import Resources
from pipeline.retrieval.plan import QueryPlan, make_plan
from pipeline.retrieval.scan import DistanceBlock, merge_blocks, scan_segment
from pipeline.retrieval.score import make_matches, rank_blocks

ImageSource = str | Path | bytes | NDArray[Any]
"""A query image: a file, a file's bytes, or pixels."""


@dataclass(frozen=True)
class PreparedQuery:
    """A query, extracted and planned.

    Attributes
    ----------
    plan : QueryPlan
    digest : str
        Names the query's content, its extractor, its plan and the tree: equal digests, equal plans.
    width, height : int
        Query image, pixels.
    timings : dict of str to float
        Milliseconds spent.
    """

    plan: QueryPlan
    digest: str
    width: int
    height: int
    timings: dict[str, float]

    def to_arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return arrays and plain values, as they travel to scans and ranking."""
        own = {"digest": self.digest, "size": [self.width, self.height], "timings": self.timings}
        return self.plan.to_arrays(), {**self.plan.to_meta(), **own}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]
    ) -> PreparedQuery:
        """Inverse of `to_arrays`."""
        plan = QueryPlan.from_arrays(arrays, meta)
        width, height = meta["size"]
        return cls(plan, meta["digest"], width, height, meta["timings"])


def prepare_query(
    resources: Resources, version: VersionRecord, source: ImageSource, config: SearchConfig
) -> PreparedQuery:
    """Extract a query's features and plan its search.

    Raises
    ------
    ImageReadError, NoFeaturesError, InputError
        The image cannot be used.
    """
    started = time.perf_counter()
    wanted: ExtractorConfig = version.extractor
    limits = resources.settings.image_limits
    extractor = resources.extractor(wanted)
    image, content = open_query(
        source, limits=limits, max_side=wanted.max_side, color=extractor.color
    )
    features = extract_decoded(image, extractor, wanted.query_max_features)
    extracted = time.perf_counter()
    model = resources.model(version.tree.key, version.tree.checksum)
    codes = model.quantizer.encode(extractor.normalize(features.descriptors))
    descriptors = sum(segment.descriptor_count for segment in version.segments)
    plan = make_plan(model, codes, descriptors, config, extractor.one_vector)
    planned = time.perf_counter()
    asked = (plan.kind, int(plan.cells.shape[1]), plan.neighbours)
    return PreparedQuery(
        plan,
        digest(content, wanted.to_dict(), version.tree.key, *asked),
        features.width,
        features.height,
        {"extract": (extracted - started) * 1e3, "plan": (planned - extracted) * 1e3},
    )


def scan_group(
    resources: Resources,
    segments: Iterable[tuple[str, str | None]],
    plan: QueryPlan,
    removed: frozenset[int],
    until: float | None = None,
) -> DistanceBlock:
    """Scan a group's segments for a query (map).

    Parameters
    ----------
    resources : Resources
    segments : iterable of (key, checksum)
    plan : QueryPlan
    removed : frozenset of int
        Image row ids that no longer count.
    until : float, optional
        Time (as `time.time`) after which the scan is given up.
    """
    blocks = [
        scan_segment(resources.segment(*segment), plan, removed, until) for segment in segments
    ]
    return merge_blocks(blocks, plan.neighbours)


def segment_keys(version: VersionRecord, group: int) -> list[tuple[str, str | None]]:
    """Return the segments of a group as `scan_group` takes them."""
    return [(segment.key, segment.checksum) for segment in version.group_segments(group)]


def searched_groups(version: VersionRecord, plan: QueryPlan) -> list[int]:
    """Return the groups that a plan needs and that hold anything."""
    return [group for group in plan.groups if version.group_segments(group)]


def finish_search(
    resources: Resources,
    version: VersionRecord,
    query: PreparedQuery,
    blocks: Sequence[DistanceBlock],
    missing: Sequence[int],
    top: int,
    timings: Mapping[str, float],
) -> SearchResult:
    """Rank the images and look their rows up (reduce).

    Parameters
    ----------
    resources : Resources
    version : VersionRecord
    query : PreparedQuery
    blocks : sequence of DistanceBlock
        One for each group that answered; their order does not matter.
    missing : sequence of int
        Groups that did not answer.
    top : int
        Images in the answer.
    timings : mapping of str to float
        Milliseconds spent since the query was prepared.
    """
    started = time.perf_counter()
    ranking = rank_blocks(list(blocks), query.plan.radius)
    with session_scope(resources.engine, write=False) as session:
        rows = images.image_rows(session, [int(image) for image in ranking.candidates(top)])
    matches = make_matches(ranking, rows, top)
    rank_ms = (time.perf_counter() - started) * 1e3
    return SearchResult(
        matches=matches,
        complete=not missing,
        missing_groups=tuple(sorted(missing)),
        plan=_plan_summary(version, query.plan, blocks),
        timings={k: round(v, 2) for k, v in {**query.timings, **timings, "rank": rank_ms}.items()},
        query={
            "descriptors": len(query.plan.codes),
            "width": query.width,
            "height": query.height,
            "digest": query.digest,
        },
        collection=version.collection,
        version=version.number,
        extractor=version.extractor.name,
    )


def _plan_summary(
    version: VersionRecord, plan: QueryPlan, blocks: Sequence[DistanceBlock]
) -> dict[str, Any]:
    """Return what the answer tells of its plan."""
    rows = sum(segment.descriptor_count for segment in version.segments)
    pairs = sum(block.pairs for block in blocks)
    probed = plan.cells.shape[1] if plan.kind == "probed" else version.tree.cells
    return {
        "kind": plan.kind,
        "cells": version.tree.cells,
        "cells_probed": int(probed),
        "groups": searched_groups(version, plan),
        "descriptors": rows,
        "scanned_share": round(pairs / max(1, rows * len(plan.codes)), 6),
    }
