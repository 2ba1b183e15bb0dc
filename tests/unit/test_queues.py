from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.exceptions import OperationalError

from pipeline.config import MAX_GROUPS
from workers import queues
from workers.app import app
from workers.up import read_procfile


@pytest.mark.parametrize("group", range(MAX_GROUPS))
def test_a_group_and_its_queue_name_are_inverse(group: int) -> None:
    assert queues.group_of(queues.group_queue(group)) == group


@pytest.mark.parametrize("group", [-1, MAX_GROUPS])
def test_a_group_that_does_not_exist_has_no_queue(group: int) -> None:
    with pytest.raises(ValueError, match="groups are 0 to 15"):
        queues.group_queue(group)


@given(st.one_of(st.text(), st.from_regex(r"group\.[0-9٠-٩ +_-]{1,4}", fullmatch=True)))
def test_only_the_exact_name_of_a_group_queue_is_one(name: str) -> None:
    group = queues.group_of(name)
    assert group is None or queues.group_queue(group) == name


def test_every_registered_task_has_a_decided_queue() -> None:
    app.loader.import_default_modules()
    ours = [name for name in app.tasks if not name.startswith("celery.")]
    assert ours, "no task is registered at all"
    assert queues.unrouted(app.tasks) == []


def test_every_routed_task_is_registered() -> None:
    app.loader.import_default_modules()
    assert set(queues.task_routes()) == {name for name in app.tasks if name[:7] != "celery."}


def test_a_task_without_a_decided_queue_is_found() -> None:
    assert queues.unrouted(["extract.batch", "retrieve.scan", "celery.chord", "other.task"]) == [
        "other.task"
    ]


def test_tasks_go_to_their_queue() -> None:
    for task, queue in queues.task_routes().items():
        assert queue is None or app.amqp.router.route({}, task)["queue"].name == queue


def test_a_group_task_goes_where_its_caller_says() -> None:
    options = app.amqp.router.route({"queue": "group.3"}, "retrieve.scan")
    assert options["queue"].name == "group.3"


def test_a_group_task_without_a_queue_fails_where_it_is_sent() -> None:
    with pytest.raises(Exception, match="no-queue-was-given"):
        app.send_task("retrieve.scan", args=[1])


def test_a_mistyped_queue_fails_where_it_is_sent() -> None:
    with pytest.raises(Exception, match=re.escape("group.16")) as caught:
        app.send_task("retrieve.scan", args=[1], queue="group.16")
    assert not isinstance(caught.value, OperationalError)


def test_the_procfile_serves_every_queue() -> None:
    served = set()
    for command in read_procfile().values():
        found = re.search(r'-Q ("\$\(.*?\)"|\S+)', command)
        if found:
            served |= set(found[1].split(","))
    group_queues = '"$("${PYTHON:-python}" -m workers.queues)"'
    assert group_queues in served
    assert served - {group_queues} == {queues.EXTRACT, queues.REDUCE, queues.QUERY}


def test_the_printed_queues_are_those_of_the_served_groups(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VANTAGE_SERVE_GROUPS", "2,0")
    queues.main()
    assert capsys.readouterr().out == "group.0,group.2\n"
