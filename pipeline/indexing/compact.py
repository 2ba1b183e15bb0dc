"""Compaction: stages ``merge`` (reduce, one a group) and ``publish`` of a job that merges segments.

There are two ways (`CompactParams`). A requested compaction merges every group into one segment and
drops the rows of removed images. An automatic one, begun because a group has too many segments,
merges only the small ones, so that single additions rewrite each row a logarithmic number of times.
It keeps the rows of removed images: these are in segments of several groups, and the index must
have all rows of an image or none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pipeline.config import digest
from pipeline.index.identities import Identities
from pipeline.index.merge import Merge, SortedRows, segment_rows
from pipeline.index.runs import GROWTH
from pipeline.indexing.merge import GroupMerge, store_segment
from pipeline.indexing.publish import cell_stats
from pipeline.indexing.train import sample_sizes
from pipeline.job_kinds import COMPACT, DONE, REBUILD, Kind, Stage
from pipeline.job_params import CompactParams, JobParams, RebuildParams
from pipeline.metadata import compaction, identities, jobs, parts, trees, versions
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import (
    JobRecord,
    MergedSegments,
    PartRecord,
    PartResult,
    SegmentRecord,
    TreeRecord,
    VersionRecord,
)
from pipeline.resources import Resources

REGROWTH = 4
"""A model is trained again when there are so many times the descriptors that it was trained on."""

REBUILD_AGAIN_S = 3600.0
"""Seconds after a failed rebuild in which no automatic rebuild begins."""


def due_upkeep(resources: Resources, collection_id: int) -> tuple[Kind, JobParams] | None:
    """Return the automatic job that is due because a group has too many segments, if any.

    It is a compaction, or a rebuild if the model was trained on only a few of the present
    descriptors. Otherwise images added one by one would be searched with a model of the first few,
    whose background distances let ten times as many rows vote. A model trained on a full sample
    (`sample_sizes`) is never outgrown, so large collections are never rebuilt unasked; nor is one
    for extractors with one vector an image, which use no background distance.
    """
    above = resources.settings.compact_above
    compaction_due = (COMPACT, CompactParams(everything=False, above=above))
    with session_scope(resources.engine, write=False) as session:
        if not compaction.collections_to_compact(session, above, collection_id=collection_id):
            return None
        version = versions.current_version(session, collection_id)
        since = time.time() - REBUILD_AGAIN_S
        if compaction.last_rebuild_failed(session, collection_id, since):
            return compaction_due
    if _has_outgrown_its_model(resources, version):
        return REBUILD, RebuildParams()
    return compaction_due


def _has_outgrown_its_model(resources: Resources, version: VersionRecord) -> bool:
    """Say whether a model trained now would differ much from that of the first images."""
    rows = sum(segment.descriptor_count for segment in version.segments)
    trained_on = version.tree.trained_on
    if rows <= REGROWTH * trained_on or trained_on >= version.index.sample_size:
        return False
    extractor = resources.extractor(version.extractor)
    sample = sample_sizes(version.index, extractor).sample_size
    return not extractor.one_vector and trained_on < sample


def plan(resources: Resources, job: JobRecord) -> None:
    """Plan a part for each group that has something to merge."""
    merges = _planned(resources, job)
    with session_scope(resources.engine) as session:
        parts.create_parts(session, job.id, job.stage, merges)


def after_merge(resources: Resources, job: JobRecord, stage: Stage) -> str | None:
    """End the job if there was nothing to merge."""
    with session_scope(resources.engine, write=False) as session:
        return None if parts.parts(session, job.id, stage.name) else DONE


def _planned(resources: Resources, job: JobRecord) -> list[dict[str, Any]]:
    """Return the arguments of the merges, for every group that needs one."""
    params = job.params_as(CompactParams)
    everything = params.everything
    with session_scope(resources.engine, write=False) as session:
        # Read before the version, so that all rows of these images are in its segments.
        dropped = compaction.droppable_images(session, job.collection_id) if everything else []
        left = compaction.count_removed(session, job.collection_id) - len(dropped)
        rebuilt = compaction.is_rebuilt(session, job.collection_id)
        current = versions.current_version_id(session, job.collection_id)
        if current is None:
            return []
        version = versions.get_version(session, current)
    if everything:
        told = {"images_left": left, "images_left_to_rebuild": left if rebuilt else 0}
        if left or any(name in job.counters for name in told):
            with session_scope(resources.engine) as session:
                jobs.set_counters(session, job.id, **told)
        return _merges(version, list, dropped)
    return _merges(version, lambda found: small_segments(found, params.above), [])


def _merges(
    version: VersionRecord,
    choose: Callable[[Sequence[SegmentRecord]], Sequence[SegmentRecord]],
    dropped: Sequence[int],
) -> list[dict[str, Any]]:
    """Return what to merge; a single segment is rewritten if rows are dropped from it."""
    chosen = {group: choose(version.group_segments(group)) for group in version.groups}
    return [
        {
            "group": group,
            "tree": version.tree.id,
            "segments": sorted(segment.id for segment in segments),
            "dropped": list(dropped),
        }
        for group, segments in chosen.items()
        if len(segments) > 1 or (segments and dropped)
    ]


def small_segments(segments: Sequence[SegmentRecord], most: int) -> list[SegmentRecord]:
    """Choose the segments of a group to merge: the smallest, until few enough are left.

    Then more, by size, while the next one is less than `GROWTH` times as large as what was chosen.

    Parameters
    ----------
    segments : sequence of SegmentRecord
    most : int
        Segments that a group may have. With no more than these, nothing is chosen.
    """
    if len(segments) <= most:
        return []
    by_size = sorted(segments, key=lambda segment: (segment.descriptor_count, segment.id))
    count = len(by_size) - most + 1
    size = sum(segment.descriptor_count for segment in by_size[:count])
    while count < len(by_size) and by_size[count].descriptor_count < GROWTH * size:
        size += by_size[count].descriptor_count
        count += 1
    return by_size[:count]


def merge(resources: Resources, job: JobRecord, part: PartRecord) -> PartResult:
    """Merge segments of one group into one (reduce)."""
    group = part.args["group"]
    with session_scope(resources.engine, write=False) as session:
        dropped = Identities.of(identities.identities_of(session, part.args["dropped"]))
        tree = trees.get_tree(session, part.args["tree"])
        segments = trees.get_segments(session, part.args["segments"])
    summary = {"segment": _merged(resources, job, tree, group, segments, dropped)}
    with session_scope(resources.engine) as session:
        parts.finish_part(session, job.id, "merge", part.number, summary)
    return summary


def _merged(
    resources: Resources,
    job: JobRecord,
    tree: TreeRecord,
    group: int,
    segments: Sequence[SegmentRecord],
    dropped: Identities,
) -> int | None:
    """Return the segment with the rows of several; None if no rows are left."""
    inputs = [partial(_open_segment, resources, segment, tree) for segment in segments]
    if len(dropped):
        left = int(Merge([open_one() for open_one in inputs], 0, dropped).sizes().sum())
        if left == 0:
            return None
        if [left] == [segment.descriptor_count for segment in segments]:
            return segments[0].id
    # A key names the content: equal inputs give equal output.
    names = sorted(segment.key for segment in segments)
    left_out = [sorted(dropped.pairs())] if len(dropped) else []
    key = f"groups/{group}/{digest(tree.key, group, names, *left_out)}.npz"
    return store_segment(resources, job, GroupMerge(tree, group, key, inputs, dropped))


def _open_segment(resources: Resources, segment: SegmentRecord, tree: TreeRecord) -> SortedRows:
    """Return the rows of a segment from this host's verified copy."""
    return segment_rows(resources.recorded_segment(segment, tree))


def publish(resources: Resources, job: JobRecord, part: PartRecord) -> PartResult:
    """Replace the old segments by the merged ones, in one transaction."""
    with session_scope(resources.engine, write=False) as session:
        merges = parts.parts(session, job.id, "merge")
        tree = trees.get_tree(session, merges[0].args["tree"])
        replaced = {segment for merge in merges for segment in merge.args["segments"]}
        found = [(merge.result or {})["segment"] for merge in merges]
        made = [segment for segment in found if segment is not None]
        current = trees.current_segments(session, job.collection_id)
        fresh = trees.get_segments(session, made)
    kept = [segment for segment in current if segment.id not in replaced]
    stats = cell_stats(resources, tree, [s for s in kept if s.tree_id == tree.id] + fresh)
    dropped = merges[0].args["dropped"]
    merged = MergedSegments(
        tree_id=tree.id,
        segment_ids=made,
        stats=stats,
        replaced=sorted(replaced),
        dropped=dropped,
    )
    counters = {
        "segments_merged": len(replaced - set(made)),
        "segments_made": len(set(made) - replaced),
        "images_dropped": len(dropped),
    }
    with session_scope(resources.engine) as session:
        version = compaction.publish_compaction(session, job.id, merged)
        summary = {
            "published": version is not None,
            "version": version.number if version else None,
        }
        if version is not None:
            jobs.set_counters(session, job.id, **counters)
        parts.finish_part(session, job.id, "publish", part.number, summary)
    return summary
