"""Stage ``assign``: find the cell of every descriptor (map, one part a container)."""

from __future__ import annotations

import numpy as np

from pipeline.config import ExtractorConfig, digest
from pipeline.errors import StateError
from pipeline.index.segments import AssignedRows, assign_features
from pipeline.indexing.stored_features import open_container
from pipeline.job_kinds import kind_of
from pipeline.metadata import assignment, collections, containers, parts, trees
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import CollectionRecord, JobRecord, PartRecord, PartResult
from pipeline.resources import Resources


def plan(resources: Resources, job: JobRecord) -> None:
    """Plan a part for each container that the job indexes.

    Raises
    ------
    StateError
        It makes all anew, and the collection has another extractor now than its tree was made for.
    """
    with session_scope(resources.engine) as session:
        collection = collections.get_collection_by_id(session, job.collection_id)
        trained = parts.stage_result(session, job.id, "train")
        wanted, _ = job.params.settings(collection.extractor, collection.index)
        if kind_of(job.kind).replaces and _extractor(trained, collection) != wanted:
            raise StateError("the collection has got another extractor meanwhile; rebuild it again")
        assignment.plan_assignment(session, job.id, trained["tree"])


def _extractor(trained: PartResult, collection: CollectionRecord) -> ExtractorConfig:
    """Return the extractor that a job's tree is for."""
    if "extractor" in trained:
        return ExtractorConfig.from_dict(trained["extractor"])
    # The job was begun by an older release, when a collection could not change its extractor.
    return collection.extractor


def assign(resources: Resources, job: JobRecord, part: PartRecord) -> PartResult:
    """Find the cells of one container's descriptors (map)."""
    with session_scope(resources.engine, write=False) as session:
        collection = collections.get_collection_by_id(session, job.collection_id)
        trained = parts.stage_result(session, job.id, "train")
        tree = trees.get_tree(session, part.args["tree"])
        record = containers.get_container(session, part.args["container"])
    rows = [row for row, _ in part.args["rows"]]
    key = f"{assignments(job)}/{digest(tree.key, record.key, rows)}.npz"
    checksum = resources.storage.find(key, AssignedRows.from_arrays)
    if checksum is None:
        model = resources.model(tree.key, tree.checksum)
        extractor = resources.extractor(_extractor(trained, collection))
        container = open_container(resources, record)
        features = [container.features[row] for row in rows]
        assigned = assign_features(
            model,
            [extractor.normalize(f.descriptors) for f in features],
            features,
            [(container.sha256[row], 0) for row in rows],
        )
        checksum = resources.storage.write_arrays(key, assigned.to_arrays(), {})
    offsets = resources.storage.read_array(key, "group_offsets")
    summary = {"key": key, "checksum": checksum, "rows": np.diff(offsets).tolist()}
    with session_scope(resources.engine) as session:
        parts.finish_part(session, job.id, "assign", part.number, summary)
    return summary


def assignments(job: JobRecord) -> str:
    """Return the folder of a job's assignments, which are kept until it is published."""
    return f"assignments/{job.id}"
