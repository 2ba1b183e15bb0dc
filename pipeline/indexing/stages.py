"""The stages of a job: plan their parts, do a part, find the next stage (`pipeline.job_kinds`)."""

from __future__ import annotations

from pipeline.job_kinds import DONE, kind_of, load
from pipeline.metadata import jobs, parts
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import JobRecord, JobStage, PartRecord, PartResult
from pipeline.resources import Resources


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
        The worker's name, for the supervisor.

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
    found = kind_of(job.kind).stage(stage)
    assert found is not None, "the end has no parts"
    result: PartResult = load(found.work)(resources, job, part)
    return result


def open_stage(resources: Resources, job: JobRecord) -> list[PartRecord]:
    """Plan the parts of the job's present stage, if necessary; return the unfinished ones."""
    stage = kind_of(job.kind).stage(job.stage)
    if stage is None:
        return []
    load(stage.plan)(resources, job)
    with session_scope(resources.engine, write=False) as session:
        return parts.unfinished_parts(session, job.id, stage.name)


def plan_one_part(resources: Resources, job: JobRecord) -> None:
    """Plan the only part of an undivided stage."""
    with session_scope(resources.engine) as session:
        parts.create_parts(session, job.id, job.stage, [{}])


def next_stage(resources: Resources, job: JobRecord) -> JobStage:
    """Return the stage that follows the job's present one, whose parts are all done."""
    kind = kind_of(job.kind)
    stage = kind.stage(job.stage)
    if stage is None:
        return DONE
    chosen: JobStage | None = load(stage.after)(resources, job, stage) if stage.after else None
    return chosen or kind.following(stage.name)


def advance(resources: Resources, job: JobRecord) -> JobRecord | None:
    """Move a job whose stage is finished to the next one; None if another process did.

    A job that reaches the end is finished. An automatic job fails if it has gone back too often
    (`Kind.refusals`): the index changes faster than it can follow.
    """
    kind, stage = kind_of(job.kind), next_stage(resources, job)
    goes_back = job.stage in kind.from_stage(stage)
    refused = goes_back and job.origin == "upkeep" and kind.refusals > 0
    refusals = job.counters.get("refusals", 0) + refused
    with session_scope(resources.engine) as session:
        if refused and refusals >= kind.refusals:
            return jobs.finish_job(session, job.id, "failed", kind.outrun.format(refusals))
        moved = jobs.advance_stage(session, job.id, job.stage, job.attempt, stage)
        if moved is not None and stage == DONE:
            return jobs.finish_job(session, job.id, "done")
        if moved is not None and refused:
            jobs.set_counters(session, job.id, refusals=refusals)
            return jobs.get_job(session, job.id)
        return moved
