"""Stages ``assign`` (map), ``merge`` (reduce, one a group) and ``publish``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from pipeline.config import digest
from pipeline.errors import StorageUnavailableError
from pipeline.index.merge import SortedRows, assigned_rows, write_segment
from pipeline.index.segments import assign_features
from pipeline.metadata import collections, extraction, parts, trees, versions
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import (
    JobRecord,
    PartRecord,
    PartResult,
    SegmentRecord,
    TreeRecord,
)
from pipeline.resources import Resources


def assign(resources: Resources, job: JobRecord, part: PartRecord) -> PartResult:
    """Find the cells of one container's descriptors (map)."""
    with session_scope(resources.engine, write=False) as session:
        collection = collections.get_collection_by_id(session, job.collection_id)
        tree = trees.get_tree(session, part.args["tree"])
        record = extraction.get_container(session, part.args["container"])
        rows = extraction.container_image_ids(session, record.id)
    key = f"{_assignments(job)}/{digest(tree.key, record.key, rows)}.npz"
    checksum = resources.storage.find(key)
    if checksum is None:
        model = resources.model(tree.key, tree.checksum)
        extractor = resources.extractor(collection.extractor)
        container = resources.container(record.key, record.checksum)
        features = [container.features[row] for row, _ in rows]
        assigned = assign_features(
            model,
            [extractor.normalize(f.descriptors) for f in features],
            features,
            [image_id for _, image_id in rows],
        )
        checksum = resources.storage.write_arrays(key, assigned.to_arrays(), {})
    offsets = resources.storage.read_array(key, "group_offsets")
    summary = {"key": key, "checksum": checksum, "rows": np.diff(offsets).tolist()}
    with session_scope(resources.engine) as session:
        parts.finish_part(session, job.id, "assign", part.number, summary)
    return summary


def _assignments(job: JobRecord) -> str:
    """Return where a job keeps its assignments until it is published."""
    return f"assignments/{job.id}"


def merge(resources: Resources, job: JobRecord, part: PartRecord) -> PartResult:
    """Gather one group's rows of all assignments into a segment (reduce)."""
    group = part.args["group"]
    with session_scope(resources.engine, write=False) as session:
        tree = trees.get_tree(session, part.args["tree"])
        results = [part.result or {} for part in parts.parts(session, job.id, "assign")]
    contents = sorted(PurePosixPath(result["key"]).name for result in results)
    key = f"groups/{group}/{digest(tree.key, group, contents)}.npz"
    full = sorted((r["key"], r["checksum"]) for r in results if r["rows"][group])
    summary: PartResult = {"segment": None}
    if full:  # a group without rows gets no segment
        inputs = [partial(_open_assigned, resources, names, group, tree) for names in full]
        summary["segment"] = store_segment(resources, job, tree, group, key, inputs)
    with session_scope(resources.engine) as session:
        parts.finish_part(session, job.id, "merge", part.number, summary)
    return summary


def _open_assigned(
    resources: Resources, names: tuple[str, str], group: int, tree: TreeRecord
) -> SortedRows:
    """Return one group's rows of an assignment."""
    return assigned_rows(resources.assigned(*names), group, tree.cells // tree.groups)


def store_segment(
    resources: Resources,
    job: JobRecord,
    tree: TreeRecord,
    group: int,
    key: str,
    inputs: Sequence[Callable[[], SortedRows]],
    dropped: frozenset[int] = frozenset(),
) -> int:
    """Merge rows of a group into the segment of that name, if there is none, and record it.

    Parameters
    ----------
    resources : Resources
    job : JobRecord
    tree : TreeRecord
    group : int
    key : str
    inputs : sequence of callable
        Each opens one input (`pipeline.index.merge.write_segment`).
    dropped : frozenset of int
        Image row ids whose rows are left out.

    Returns
    -------
    int
        Id of the segment.
    """
    checksum = resources.storage.find(key)
    if checksum is None:
        first_cell = group * (tree.cells // tree.groups)

        def fill(stream: BinaryIO) -> None:
            scratch = resources.storage.scratch
            write_segment(stream, inputs, first_cell, {"group": group}, dropped, scratch=scratch)

        checksum = resources.storage.write(key, fill)
    segment = resources.open_segment(key, checksum)
    with session_scope(resources.engine) as session:
        return trees.add_segment(
            session,
            job.collection_id,
            tree_id=tree.id,
            group_number=group,
            key=key,
            checksum=checksum,
            descriptor_count=segment.rows.size,
            image_count=segment.image_count,
            byte_count=resources.storage.size(key),
            job_id=job.id,
        ).id


def publish(resources: Resources, job: JobRecord, part: PartRecord) -> PartResult:
    """Make the job's segments searchable, in one transaction."""
    with session_scope(resources.engine, write=False) as session:
        results = [p.result or {} for p in parts.parts(session, job.id, "merge")]
        tree = trees.get_tree(session, parts.stage_result(session, job.id, "train")["tree"])
        segment_ids = [r["segment"] for r in results if r.get("segment") is not None]
        # What was assigned, not what there is now: another job may have published meanwhile.
        assigned = parts.parts(session, job.id, "assign")
        container_ids = [p.args["container"] for p in assigned]
        fresh = trees.get_segments(session, segment_ids)
        previous = trees.current_segments(session, job.collection_id)
    kept = [] if job.kind == "rebuild" else [s for s in previous if s.tree_id == tree.id]
    stats = cell_stats(resources, tree, kept + [s for s in fresh if s not in kept])
    with session_scope(resources.engine) as session:
        version = versions.publish_version(
            session,
            job.collection_id,
            job.id,
            tree.id,
            segment_ids,
            mode="replace" if job.kind == "rebuild" else "append",
            stats=stats,
            container_ids=container_ids,
        )
        summary = {
            "published": version is not None,
            "version": version.number if version else None,
        }
        parts.finish_part(session, job.id, "publish", part.number, summary)
    if version is not None:
        # Nobody needs them again; what a lost store leaves lying is waste, not a fault.
        with suppress(StorageUnavailableError):
            resources.storage.delete_folder(_assignments(job))
    return summary


def cell_stats(
    resources: Resources, tree: TreeRecord, segments: Sequence[SegmentRecord]
) -> dict[str, Any]:
    """Return the sizes of the cells that a version will have."""
    sizes = np.zeros(tree.cells, np.int64)
    for segment in segments:
        offsets = resources.storage.read_array(segment.key, "cell_offsets")
        first = segment.group_number * (tree.cells // tree.groups)
        sizes[first : first + len(offsets) - 1] += np.diff(offsets)
    return {
        "descriptors": int(sizes.sum()),
        "cells": tree.cells,
        "median_cell": float(np.median(sizes)),
        "largest_cell": int(sizes.max()),
        "at": time.time(),
    }
