"""The table of the kinds of job is complete, and its functions and tasks exist."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections import defaultdict

import pytest

from pipeline.errors import StateError
from pipeline.job_kinds import (
    COMPACT,
    DONE,
    INDEX,
    KINDS,
    REBUILD,
    Kind,
    all_stages,
    kind_of,
    load,
)
from workers.app import app


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_function_that_a_kind_names_is_there_and_takes_what_it_is_given(kind: Kind) -> None:
    named = {"summary": (kind.summary, 3)}
    for stage in kind.stages:
        named |= {f"{stage.name} work": (stage.work, 3), f"{stage.name} plan": (stage.plan, 2)}
        if stage.after:
            named[f"{stage.name} after"] = (stage.after, 3)
    for what, (reference, arguments) in named.items():
        assert len(inspect.signature(load(reference)).parameters) == arguments, what


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_kind_fits_its_columns_and_goes_back_only_to_stages_it_has(kind: Kind) -> None:
    names = [stage.name for stage in kind.stages]
    assert len(set(names)) == len(names)
    assert all(0 < len(name) <= 16 for name in [kind.name, *names])
    assert DONE not in names
    for stage in kind.stages:
        assert (
            not stage.again or stage.again in kind.from_stage(names[0])[: names.index(stage.name)]
        )
        assert bool(stage.again) <= bool(stage.after), "only `after` can send a job back"
    assert bool(kind.refusals) == bool(kind.outrun)


def test_stages_with_one_task_are_the_same_to_it() -> None:
    by_task: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
    for stage in all_stages():
        by_task[stage.task].add((stage.name, stage.queue, stage.join))
    assert {task: found for task, found in by_task.items() if len(found) > 1} == {}
    joins = {stage.join for stage in all_stages()}
    assert not joins & set(by_task), "a task either does a part or joins them"


def test_every_stage_has_its_tasks() -> None:
    app.loader.import_default_modules()
    wanted = {name for stage in all_stages() for name in (stage.task, stage.join) if name}
    assert wanted <= set(app.tasks)


def test_the_order_of_the_stages() -> None:
    assert INDEX.first.name == "register"
    assert REBUILD.following("train") == "assign"
    assert COMPACT.following("publish") == DONE
    assert COMPACT.from_stage("publish") == ["publish", DONE]
    assert COMPACT.from_stage(DONE) == [DONE]
    assert INDEX.stage(DONE) is None
    assert set(COMPACT.queues) == {"group", "reduce"}
    assert set(REBUILD.queues) == {"extract", "group", "reduce"}


def test_what_this_release_does_not_know_is_said() -> None:
    with pytest.raises(StateError, match="no kind of job 'polish' here, only index"):
        kind_of("polish")
    with pytest.raises(StateError, match="jobs of kind 'compact' have no stage 'register'"):
        COMPACT.stage("register")


def test_the_table_is_read_without_loading_what_does_the_work() -> None:
    loaded = "sorted({'numpy', 'cv2', 'numba'} & set(sys.modules))"
    code = f"import sys, pipeline.job_kinds; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
