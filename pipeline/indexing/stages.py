"""The stages of a job: their parts, what does one, what comes next."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.indexing import compact
from pipeline.indexing.extract import extract
from pipeline.indexing.group import assign, merge, publish
from pipeline.indexing.register import register
from pipeline.indexing.train import train
from pipeline.metadata import extraction, jobs, parts, trees
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import (
    STAGES,
    JobKind,
    JobRecord,
    JobStage,
    PartRecord,
    PartResult,
)
from pipeline.resources import Resources

_Step = Callable[[Resources, JobRecord, PartRecord], PartResult]

STEPS: dict[JobStage, _Step] = {
    "register": register,
    "extract": extract,
    "train": train,
    "assign": assign,
    "merge": merge,
    "publish": publish,
}
"""What does one part of a stage."""

COMPACT_STEPS: dict[JobStage, _Step] = {"merge": compact.merge, "publish": compact.publish}
"""The same for a compaction, which has these two stages only."""

REFUSALS = 3
"""Publications of a rebuild that began by itself that may be refused before it gives up: each try
has written a full set of segments."""

AGAIN_FROM: dict[JobKind, JobStage] = {"index": "train", "rebuild": "assign", "compact": "merge"}
"""Where a job goes on whose publication was refused: another tree to assign to; other containers,
of which most are assigned already, so that a rebuild catches up with additions; other segments."""


_OUTRUN = (
    "images were indexed each of the {} times that it was about to be published; segments are "
    "merged instead, and `vantage rebuild COLLECTION` goes on until it is published"
)


def run_part(
    resources: Resources, job_id: str, stage: JobStage, number: int, worker: str = "local"
) -> PartResult:
    """Do one part of a stage, unless it is done already; returns its result.

    Parameters
    ----------
    resources : Resources
    job_id : str
    stage : str
    number : int
    worker : str
        Who does it, for the watchman.

    Raises
    ------
    MissingRootError
        A whole image folder is missing: the job must be paused.
    TransientError
        Database or store do not answer: try again.
    """
    with session_scope(resources.engine) as session:
        job = jobs.get_job(session, job_id)
        part = parts.start_part(session, job_id, stage, number, worker)
    if part.state == "done":
        return part.result or {}
    steps = COMPACT_STEPS if job.kind == "compact" else STEPS
    return steps[stage](resources, job, part)


def open_stage(resources: Resources, job: JobRecord) -> list[PartRecord]:
    """Make sure that the job's present stage has its parts; return the unfinished ones."""
    stage = job.stage
    if stage == "merge" and job.kind == "compact":
        merges = compact.plan(resources, job)
        with session_scope(resources.engine) as session:
            parts.create_parts(session, job.id, stage, merges)
            return parts.unfinished_parts(session, job.id, stage)
    with session_scope(resources.engine) as session:
        if stage == "extract":
            extraction.plan_extraction(session, job.id, resources.settings.batch_size)
        elif stage == "assign":
            tree = parts.stage_result(session, job.id, "train")["tree"]
            args = [
                {"container": c.id, "tree": tree}
                for c in extraction.containers_to_index(session, job)
            ]
            parts.create_parts(session, job.id, stage, args)
        elif stage == "merge":
            tree_id = parts.stage_result(session, job.id, "train")["tree"]
            tree = trees.get_tree(session, tree_id)
            args = [{"group": group, "tree": tree_id} for group in range(tree.groups)]
            parts.create_parts(session, job.id, stage, args)
        elif stage != "done":
            parts.create_parts(session, job.id, stage, [{}])
        return parts.unfinished_parts(session, job.id, stage)


def next_stage(resources: Resources, job: JobRecord) -> JobStage:
    """Return the stage that follows the job's present one, whose parts are all done."""
    following = STAGES[STAGES.index(job.stage) + 1]
    if job.kind == "compact" and job.stage == "merge":
        with session_scope(resources.engine, write=False) as session:
            return following if parts.parts(session, job.id, "merge") else "done"
    if job.stage not in ("train", "publish"):
        return following
    with session_scope(resources.engine, write=False) as session:
        done = parts.stage_result(session, job.id, job.stage)
    if job.stage == "train" and done["tree"] is None:
        return "done"  # nothing to index, and nothing was indexed before
    if job.stage == "publish" and not done["published"]:
        return AGAIN_FROM[job.kind]
    return following


def advance(resources: Resources, job: JobRecord) -> JobRecord | None:
    """Move a job whose stage is finished to the next one; None when somebody else did.

    A job that reaches ``done`` is finished. A rebuild that nobody asked for fails when its
    publication was refused `REFUSALS` times: images come faster than it can follow.
    """
    stage = next_stage(resources, job)
    refused = stage == "assign" and job.stage == "publish" and "above" in job.params
    refusals = job.counters.get("refusals", 0) + refused
    with session_scope(resources.engine) as session:
        if refusals >= REFUSALS:
            return jobs.finish_job(session, job.id, "failed", _OUTRUN.format(refusals))
        moved = jobs.advance_stage(session, job.id, job.stage, job.attempt, stage)
        if moved is not None and stage == "done":
            return jobs.finish_job(session, job.id, "done")
        if moved is not None and refused:
            jobs.set_counters(session, job.id, refusals=refusals)
            return jobs.get_job(session, job.id)
        return moved
