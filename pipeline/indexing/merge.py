"""Stage ``merge``: merge a group's rows of all assignments (reduce, one part a group)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pipeline.arrays import ArrayFile
from pipeline.config import digest
from pipeline.errors import CorruptFileError
from pipeline.index.filled_cells import pack_filled
from pipeline.index.identities import NO_IMAGES, Identities
from pipeline.index.merge import SortedRows, assigned_rows, write_segment
from pipeline.metadata import parts, trees
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import JobRecord, PartRecord, PartResult, SegmentInfo, TreeRecord
from pipeline.resources import Resources, require_group


def plan(resources: Resources, job: JobRecord) -> None:
    """Plan a part for each group of the job's tree."""
    with session_scope(resources.engine) as session:
        tree_id = parts.stage_result(session, job.id, "train")["tree"]
        groups = range(trees.get_tree(session, tree_id).groups)
        args = [{"group": group, "tree": tree_id} for group in groups]
        parts.create_parts(session, job.id, job.stage, args)


def merge(resources: Resources, job: JobRecord, part: PartRecord) -> PartResult:
    """Merge one group's rows of all assignments into a segment (reduce)."""
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
        summary["segment"] = store_segment(resources, job, GroupMerge(tree, group, key, inputs))
    with session_scope(resources.engine) as session:
        parts.finish_part(session, job.id, "merge", part.number, summary)
    return summary


def _open_assigned(
    resources: Resources, names: tuple[str, str], group: int, tree: TreeRecord
) -> SortedRows:
    """Return one group's rows of an assignment."""
    key, checksum = names
    assigned, cells = resources.assigned(key, checksum), tree.cells // tree.groups
    if len(assigned.group_offsets) != tree.groups + 1:
        raise CorruptFileError(key, f"it has not the {tree.groups} groups of the tree")
    rows = assigned_rows(assigned, group, cells)
    start, stop = assigned.group_offsets[group : group + 2]
    if (rows.cell_offsets[0], rows.cell_offsets[-1]) != (start, stop):
        raise CorruptFileError(key, f"rows of group {group} are in cells of another group")
    return rows


@dataclass(frozen=True)
class GroupMerge:
    """A merge of rows of a group into one segment.

    Attributes
    ----------
    tree : TreeRecord
        The tree of the rows.
    group : int
    key : str
        Name of the segment.
    inputs : sequence of callable
        Each opens one input (`pipeline.index.merge.write_segment`).
    dropped : Identities
        Images whose rows are dropped.
    """

    tree: TreeRecord
    group: int
    key: str
    inputs: Sequence[Callable[[], SortedRows]]
    dropped: Identities = NO_IMAGES

    def write(self, stream: BinaryIO, scratch: Path) -> None:
        """Write the segment's file."""
        first_cell = self.group * (self.tree.cells // self.tree.groups)
        meta = {"group": self.group}
        write_segment(stream, self.inputs, first_cell, meta, self.dropped, scratch=scratch)


def store_segment(resources: Resources, job: JobRecord, wanted: GroupMerge) -> int:
    """Merge rows of a group into a segment, unless it exists, and record it; return its id."""
    storage, key = resources.storage, wanted.key

    def read(file: ArrayFile) -> None:
        require_group(resources.read_segment(file), key, wanted.group, wanted.tree)

    checksum = storage.find(key, read)
    if checksum is None:
        checksum = storage.write(key, partial(wanted.write, scratch=storage.scratch))
    segment = resources.open_segment(key, checksum)
    info = SegmentInfo(
        tree_id=wanted.tree.id,
        group_number=wanted.group,
        key=key,
        checksum=checksum,
        descriptor_count=segment.rows.size,
        image_count=segment.image_count,
        byte_count=storage.size(key),
        filled_cells=pack_filled(segment.cell_offsets),
    )
    with session_scope(resources.engine) as session:
        return trees.add_segment(session, job.collection_id, info, job.id).id
