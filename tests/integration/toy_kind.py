"""A kind of job that this project does not have: it adds up numbers, a group's by its worker."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.errors import TransientError
from pipeline.job_kinds import Kind, Stage
from pipeline.metadata import jobs, parts
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import JobRecord, PartRecord, PartResult
from pipeline.resources import Resources

ROUNDS = 2
"""How often the numbers are added up: `again` is told of all but the last time."""


TROUBLE, TRIES = "trouble", "tries"
"""Files in the home."""


def plan(resources: Resources, job: JobRecord) -> None:
    """Plan two numbers for each of three groups."""
    with session_scope(resources.engine) as session:
        numbers = [{"group": group, "numbers": [group, 10 * group]} for group in range(3)]
        parts.create_parts(session, job.id, job.stage, numbers)


def add(resources: Resources, job: JobRecord, part: PartRecord) -> PartResult:
    """Add up the numbers of a part, unless there is trouble; each try is noted then."""
    home = resources.settings.home
    if (home / TROUBLE).exists():
        with (home / TRIES).open("a") as tries:
            tries.write(f"{part.number}\n")
        raise TransientError("there is trouble")
    result = {"sum": sum(part.args["numbers"])}
    with session_scope(resources.engine) as session:
        parts.finish_part(session, job.id, part.stage, part.number, result)
    return result


def tell(resources: Resources, job: JobRecord, part: PartRecord) -> PartResult:
    """Note the sum of all."""
    with session_scope(resources.engine) as session:
        found = parts.parts(session, job.id, "add")
        total = sum((one.result or {})["sum"] for one in found)
        rounds = job.counters.get("rounds", 0) + 1
        jobs.set_counters(session, job.id, total=total, rounds=rounds)
        parts.finish_part(session, job.id, part.stage, part.number, {"rounds": rounds})
    return {"rounds": rounds}


def after(resources: Resources, job: JobRecord, stage: Stage) -> str | None:
    """Go back once."""
    with session_scope(resources.engine, write=False) as session:
        rounds = parts.stage_result(session, job.id, stage.name)["rounds"]
    return None if rounds >= ROUNDS else stage.again


def told(collection: str, counters: Mapping[str, int], seconds: float) -> list[str]:
    """Say the sum."""
    return [f"The numbers of {collection} are {counters['total']} together."]


TOY = Kind(
    name="toy",
    stages=(
        Stage(
            name="add",
            sentence="adding up",
            unit="groups",
            plan=f"{__name__}:plan",
            work=f"{__name__}:add",
            queue="group",
            task="toy.add",
            join="toy.collect",
        ),
        Stage(
            name="tell",
            sentence="telling",
            work=f"{__name__}:tell",
            after=f"{__name__}:after",
            again="add",
            task="toy.tell",
        ),
    ),
    summary=f"{__name__}:told",
)
