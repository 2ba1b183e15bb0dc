"""Kinds of job: the stages of each, and all that is said of a stage anywhere, as one table.

To add a kind, add an entry to `KINDS` and write the functions that it names. Functions are named
as ``module:function`` and loaded when a part is done: whoever reads a queue or a sentence here
loads no extractor for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

from pipeline.errors import StateError
from pipeline.job_params import CompactParams, IndexParams, JobParams, RebuildParams

WorkQueue = Literal["extract", "reduce", "group"]

DONE = "done"
"""Where every job ends: a name of no stage."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a kind of job.

    Attributes
    ----------
    name : str
        At most 16 characters; in SQL.
    sentence : str
        What people read while it runs.
    unit : str
        What its progress counts, plural; one for each part, but for the next two.
    by_images : bool
        Images are counted, of which a part has several.
    counter : str
        A counter of the job is shown instead, where nobody knows the total.
    work : str
        Does one part: (resources, job, part) -> result. It may run twice.
    plan : str
        Makes sure that the stage has its parts: (resources, job) -> None. Default: one part without
        arguments.
    after : str
        Says where the job goes on: (resources, job, stage) -> name of a stage, or None for the next
        one. Default: the next one.
    again : str
        Where the job goes on when what it has done no longer fits; for `after`.
    queue : {"extract", "reduce", "group"}
        Workers that do the parts; ``group``: each part's ``args["group"]`` says whose.
    task : str
        The Celery task of a part.
    join : str
        The task that goes on with the job when all parts are done; of a stage with one part, whose
        task does that itself, none.
    """

    name: str
    sentence: str
    unit: str = "parts"
    by_images: bool = False
    counter: str = ""
    work: str
    plan: str = "pipeline.indexing.stages:plan_one_part"
    after: str = ""
    again: str = ""
    queue: WorkQueue = "reduce"
    task: str
    join: str = ""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of job.

    Attributes
    ----------
    name : str
        At most 16 characters; in SQL.
    stages : tuple of Stage
        In their order.
    params : type of JobParams
        What a job is told.
    summary : str
        Tells people what came of it: (collection, counters, seconds) -> sentences.
    adds_segments : bool
        There may be too many segments after it (`pipeline.indexing.due_upkeep`).
    merges_segments : bool
        There are few segments after it.
    replaces : bool
        It works on all containers, and its segments replace all others, with a tree of their own.
    refusals : int
        How often a job that began by itself may be sent back to an earlier stage before it fails;
        0: any number of times. Each time it has written a full set of segments.
    outrun : str
        What such a job fails with; ``{}`` is that number.
    """

    name: str
    stages: tuple[Stage, ...]
    params: type[JobParams] = JobParams
    summary: str
    adds_segments: bool = False
    merges_segments: bool = False
    replaces: bool = False
    refusals: int = 0
    outrun: str = ""

    @property
    def first(self) -> Stage:
        """Where a job begins."""
        return self.stages[0]

    @property
    def queues(self) -> tuple[str, ...]:
        """Queues of all that it does: the kinds of worker that it needs."""
        return tuple(dict.fromkeys([*(stage.queue for stage in self.stages), "reduce"]))

    def stage(self, name: str) -> Stage | None:
        """Return a stage; None for the end.

        Raises
        ------
        StateError
            It has no such stage.
        """
        if name == DONE:
            return None
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise StateError(f"jobs of kind {self.name!r} have no stage {name!r}")

    def following(self, name: str) -> str:
        """Return the name of the stage after one; `DONE` after the last."""
        return self.from_stage(name)[1]

    def from_stage(self, name: str) -> list[str]:
        """Return the names of a stage and of all after it, `DONE` too."""
        names = [*(stage.name for stage in self.stages), DONE]
        return names[names.index(name) :]


_REGISTER = Stage(
    name="register",
    sentence="reading files",
    unit="files",
    counter="files_seen",
    work="pipeline.indexing.register:register",
    task="job.register",
)
_EXTRACT = Stage(
    name="extract",
    sentence="extracting",
    unit="images",
    by_images=True,
    plan="pipeline.indexing.extract:plan",
    work="pipeline.indexing.extract:extract",
    queue="extract",
    task="extract.batch",
    join="extract.collect",
)
_TRAIN = Stage(
    name="train",
    sentence="training tree",
    work="pipeline.indexing.train:train",
    after="pipeline.indexing.train:after",
    task="group.train",
)
_ASSIGN = Stage(
    name="assign",
    sentence="assigning",
    unit="containers",
    plan="pipeline.indexing.assign:plan",
    work="pipeline.indexing.assign:assign",
    queue="extract",
    task="group.assign",
    join="group.collect",
)
_MERGE = Stage(
    name="merge",
    sentence="merging",
    unit="groups",
    plan="pipeline.indexing.merge:plan",
    work="pipeline.indexing.merge:merge",
    queue="group",
    task="group.merge",
    join="group.collect",
)
_PUBLISH = Stage(
    name="publish",
    sentence="publishing",
    work="pipeline.indexing.publish:publish",
    after="pipeline.indexing.publish:after",
    task="group.publish",
)

INDEX = Kind(
    name="index",
    # Refused: the collection has another tree now, to assign to.
    stages=(_REGISTER, _EXTRACT, _TRAIN, _ASSIGN, _MERGE, replace(_PUBLISH, again="train")),
    params=IndexParams,
    summary="pipeline.job_summaries:indexed",
    adds_segments=True,
)

REBUILD = Kind(
    name="rebuild",
    # Refused: there are other containers now. Most are assigned already, so that it catches up.
    stages=(_TRAIN, _ASSIGN, _MERGE, replace(_PUBLISH, again="assign")),
    params=RebuildParams,
    summary="pipeline.job_summaries:rebuilt",
    merges_segments=True,
    replaces=True,
    refusals=3,
    outrun=(
        "images were indexed each of the {} times that it was about to be published; segments are "
        "merged instead, and `vantage rebuild COLLECTION` goes on until it is published"
    ),
)

COMPACT = Kind(
    name="compact",
    stages=(
        replace(
            _MERGE,
            plan="pipeline.indexing.compact:plan",
            work="pipeline.indexing.compact:merge",
            after="pipeline.indexing.compact:after_merge",
        ),
        # Refused: the segments changed, so it looks again what there is to merge.
        replace(_PUBLISH, work="pipeline.indexing.compact:publish", again="merge"),
    ),
    params=CompactParams,
    summary="pipeline.job_summaries:compacted",
    merges_segments=True,
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in (INDEX, REBUILD, COMPACT)}
"""Every kind of job by its name."""


def kind_of(name: str) -> Kind:
    """Return a kind of job.

    Raises
    ------
    StateError
        This release has none of that name.
    """
    try:
        return KINDS[name]
    except KeyError:
        known = ", ".join(KINDS)
        raise StateError(f"there is no kind of job {name!r} here, only {known}") from None


def all_stages() -> list[Stage]:
    """Return the stages of all kinds; those that kinds have in common are there several times."""
    return [stage for kind in KINDS.values() for stage in kind.stages]


def load(reference: str) -> Callable[..., Any]:
    """Return the function that is named ``module:function``."""
    module, _, function = reference.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found
