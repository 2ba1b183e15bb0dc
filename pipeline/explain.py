"""What a search did and why: the plan, what each group visited, predicted against actual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pipeline.index.paths import BLOCK, PATHS
from pipeline.metadata.records import VersionRecord
from pipeline.retrieval.batch import Batch
from pipeline.retrieval.blocks import GroupScan, ScanCounts
from pipeline.retrieval.cost import (
    EXHAUSTIVE_WITHIN_BYTES,
    EXHAUSTIVE_WITHIN_MS,
    REFERENCE,
    exhaustive_cost,
    probed_cost,
)
from pipeline.retrieval.plan import cells_to_open

_MIB = 2**20


def explain(version: VersionRecord, batch: Batch, scans: Sequence[GroupScan]) -> dict[str, Any]:
    """Return the explanation of a pass, as plain values.

    Parameters
    ----------
    version : VersionRecord
    batch : Batch
    scans : sequence of GroupScan
        Of the groups that answered.

    Returns
    -------
    dict
        ``plan``, ``why`` (a sentence), ``effort`` (None for the exhaustive plan), ``images`` and
        ``queries`` (query images and descriptors of the pass), ``machine`` (code path, threads and
        tile that the prediction is for), ``tree`` (levels, cells, groups, rows), ``groups`` (of
        each: cells wanted and the different ones among them, and what its scan counted, see
        `pipeline.retrieval.blocks.ScanCounts`, matches, ms, code path), ``predicted``, ``actual``
        and ``other`` (what the other plan was predicted to cost).
    """
    found = sorted(scans, key=lambda scan: scan.group)
    return {
        "plan": batch.plan.kind,
        "why": why(batch),
        "effort": _effort(version, batch),
        "images": len(batch.images),
        "queries": batch.workload.queries,
        "machine": {**asdict(batch.machine), "tile": _tile(batch.machine.path)},
        "tree": {
            "levels": version.tree.levels,
            "cells": version.tree.cells,
            "groups": version.tree.groups,
            "rows": batch.workload.rows,
        },
        "groups": [_group(version, batch, scan) for scan in found],
        "predicted": batch.predicted().to_dict(),
        "actual": _actual(found),
        "other": _other(batch),
    }


def _effort(version: VersionRecord, batch: Batch) -> float | None:
    """Return the share of the cells that were opened for a query descriptor."""
    if batch.plan.kind == "exhaustive":
        return None
    return float(round(batch.plan.cells.shape[1] / version.tree.cells, 4))


def why(batch: Batch) -> str:
    """Say in a sentence why this plan was taken."""
    kind = batch.plan.kind
    if batch.request.kind != "auto":
        return "it was asked for"
    # The image that was nearest to the bound; of one image, itself.
    counts = [image.descriptors for image in batch.images]
    most = kind == "exhaustive"
    count = max(counts) if most else min(counts)
    workload = replace(batch.workload, queries=count)
    cost = exhaustive_cost(workload, REFERENCE)
    reference = f"the reference ({REFERENCE.threads} threads, {REFERENCE.path})"
    return (
        f"comparing {count:,} query descriptors with all {workload.rows:,} rows is predicted to "
        f"take {reference} {cost.wait_ms:,.3g} ms and to visit {cost.bytes / _MIB:,.1f} MiB; "
        f"auto allows {EXHAUSTIVE_WITHIN_MS:,.0f} ms and {EXHAUSTIVE_WITHIN_BYTES / _MIB:,.0f} MiB"
    )


def _tile(path: str) -> str:
    """Return the shape of a register tile: query descriptors x rows."""
    shape = PATHS[path].many
    return f"{shape.queries} x {shape.blocks * BLOCK}"


def _group(version: VersionRecord, batch: Batch, scan: GroupScan) -> dict[str, Any]:
    """Return what one group's scan did."""
    plan, per_group = batch.plan, version.tree.cells // version.tree.groups
    if plan.kind == "probed":
        mine = plan.cells[plan.cells // per_group == scan.group]
        wanted, distinct = len(mine), len(np.unique(mine))
    else:
        wanted, distinct = per_group * len(plan.codes), per_group
    return {
        "group": scan.group,
        "wanted": wanted,
        "distinct": distinct,
        **asdict(scan.block.counts),
        "matches": len(scan.block.query),
        "ms": round(scan.ms, 2),
        "path": scan.path,
    }


def _actual(scans: Sequence[GroupScan]) -> dict[str, Any]:
    """Return what all scans together cost."""
    total = sum((scan.block.counts for scan in scans), ScanCounts())
    return {
        "pairs": total.pairs,
        "computed": total.computed,
        "bytes": total.bytes,
        "scan_ms": round(sum(scan.ms for scan in scans), 2),
    }


def _other(batch: Batch) -> dict[str, Any]:
    """Return what the plan that was not taken is predicted to cost."""
    if batch.plan.kind == "probed":
        kind, cost = "exhaustive", exhaustive_cost(batch.workload, batch.machine)
    else:
        workload = batch.workload
        opened = cells_to_open(
            workload.cells, workload.rows, batch.request.effort, workload.one_vector
        )
        kind, cost = "probed", probed_cost(workload, batch.machine, opened)
    return {"plan": kind, **cost.to_dict()}
