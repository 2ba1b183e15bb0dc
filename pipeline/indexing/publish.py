"""Stage ``publish``: publish a version with the job's segments, in one transaction."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from pipeline.errors import CorruptFileError, StorageUnavailableError
from pipeline.indexing.assign import assignments
from pipeline.job_kinds import Stage, kind_of
from pipeline.metadata import parts, trees, versions
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import (
    JobRecord,
    NewSegments,
    PartRecord,
    PartResult,
    SegmentRecord,
    TreeRecord,
)
from pipeline.resources import Resources

_log = logging.getLogger(__name__)


def publish(resources: Resources, job: JobRecord, part: PartRecord) -> PartResult:
    """Make the job's segments searchable, in one transaction."""
    with session_scope(resources.engine, write=False) as session:
        results = [p.result or {} for p in parts.parts(session, job.id, "merge")]
        tree = trees.get_tree(session, parts.stage_result(session, job.id, "train")["tree"])
        segment_ids = [r["segment"] for r in results if r.get("segment") is not None]
        fresh = trees.get_segments(session, segment_ids)
        previous = trees.current_segments(session, job.collection_id)
    kept = [] if kind_of(job.kind).replaces else [s for s in previous if s.tree_id == tree.id]
    stats = cell_stats(resources, tree, kept + [s for s in fresh if s not in kept])
    new = NewSegments(tree_id=tree.id, segment_ids=segment_ids, stats=stats)
    with session_scope(resources.engine) as session:
        version = versions.publish_version(session, job.id, new)
        summary = {
            "published": version is not None,
            "version": version.number if version else None,
        }
        parts.finish_part(session, job.id, "publish", part.number, summary)
    if version is not None:
        # No longer needed. If the store does not answer they stay, which wastes space but does no
        # harm.
        with suppress(StorageUnavailableError):
            resources.storage.delete_folder(assignments(job))
    return summary


def after(resources: Resources, job: JobRecord, stage: Stage) -> str | None:
    """Return the stage to go back to, if the publication was refused."""
    with session_scope(resources.engine, write=False) as session:
        published = parts.stage_result(session, job.id, stage.name)["published"]
    return None if published else stage.again


def cell_stats(
    resources: Resources, tree: TreeRecord, segments: Sequence[SegmentRecord]
) -> dict[str, Any]:
    """Return the sizes of the cells that a version will have.

    A segment that is lost or damaged is left out: it must not keep others from being added.
    """
    sizes = np.zeros(tree.cells, np.int64)
    cells = tree.cells // tree.groups
    for segment in segments:
        try:
            offsets = resources.storage.read_array(segment.key, "cell_offsets")
            if offsets.shape != (cells + 1,) or offsets.dtype != np.int64:
                raise CorruptFileError(segment.key, f"cell_offsets have shape {offsets.shape}")
        except CorruptFileError as exc:
            _log.warning("not counted: %s", exc)
            continue
        first = segment.group_number * cells
        sizes[first : first + cells] += np.diff(offsets)
    return {
        "descriptors": int(sizes.sum()),
        "cells": tree.cells,
        "median_cell": float(np.median(sizes)),
        "largest_cell": int(sizes.max()),
        "at": time.time(),
    }
