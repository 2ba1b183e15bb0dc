"""The table of kinds of job: their stages, and everything about each stage.

To add a kind, add an entry to `KINDS` and write the functions that it names. Functions are named as
``module:function`` and loaded when a part is done, so reading a queue or a sentence here loads no
extractor.
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
"""Where every job ends; not the name of a stage."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a kind of job.

    Attributes
    ----------
    name : str
        At most 16 characters; in SQL.
    sentence : str
        What users read while it runs.
    unit : str
        Unit of its progress, plural; one for each part, unless one of the next two is given.
    by_images : bool
        Progress counts images; a part has several.
    counter : str
        Progress shows this counter of the job, because the total is unknown.
    work : str
        Does one part: (resources, job, part) -> result. It may run twice.
    plan : str
        Plans the parts of the stage, unless that is done: (resources, job) -> None. Default: one
        part without arguments.
    after : str
        Returns the stage where the job continues: (resources, job, stage) -> its name, or None for
        the next one. Default: the next one.
    again : str
        The stage to go back to when finished work no longer fits the index; used by `after`.
    kept : bool
        The stage keeps its parts when the job goes back; more may be planned then.
    queue : {"extract", "reduce", "group"}
        Workers that do the parts; ``group``: each part's ``args["group"]`` says whose.
    task : str
        The Celery task of a part.
    join : str
        The task that continues the job when all parts are done. None for a stage with one part,
        whose own task does that.
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
    kept: bool = False
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
        Type of the job's parameters.
    summary : str
        Tells users the outcome: (collection, counters, seconds) -> sentences.
    adds_segments : bool
        It may leave too many segments (`pipeline.indexing.due_upkeep`).
    merges_segments : bool
        It leaves few segments.
    replaces : bool
        It processes all containers, and its segments replace all others, with their own tree.
    refusals : int
        How often an automatic job may go back to an earlier stage before it fails; 0: any number of
        times. Each time it has written a full set of segments.
    outrun : str
        The message when such a job fails; ``{}`` stands for that number.
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
        """Queues of all its stages: the kinds of worker that it needs."""
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
    kept=True,
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
    # Refused: the collection has a new tree, so assign to that; perhaps a new extractor, too.
    stages=(_REGISTER, _EXTRACT, _TRAIN, _ASSIGN, _MERGE, replace(_PUBLISH, again="extract")),
    params=IndexParams,
    summary="pipeline.job_summaries:indexed",
    adds_segments=True,
)

REBUILD = Kind(
    name="rebuild",
    # Refused: there are new images. Most are assigned already, so it catches up.
    stages=(
        replace(_EXTRACT, plan="pipeline.indexing.extract:plan_anew"),
        replace(_TRAIN, kept=True),
        _ASSIGN,
        _MERGE,
        replace(_PUBLISH, again="extract"),
    ),
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
        # Refused: the segments have changed, so plan the merges again.
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
        This release has no such kind.
    """
    try:
        return KINDS[name]
    except KeyError:
        known = ", ".join(KINDS)
        raise StateError(f"there is no kind of job {name!r} here, only {known}") from None


def all_stages() -> list[Stage]:
    """Return the stages of all kinds; shared ones appear several times."""
    return [stage for kind in KINDS.values() for stage in kind.stages]


def load(reference: str) -> Callable[..., Any]:
    """Return the function named ``module:function``."""
    module, _, function = reference.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found
