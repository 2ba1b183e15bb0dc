"""The tables of docs/operations.md are compared with the program."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pipeline.config import MAX_GROUPS, Settings
from pipeline.containers import UNREADABLE_CODES
from pipeline.images import FAILURE_CODES
from workers.cli import exits
from workers.queues import group_queue, task_routes
from workers.up import read_procfile

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def table(heading: str, number: int = 0) -> list[list[str]]:
    """Return the rows of a section's table, cell by cell, without its head."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    rows = [line.strip("| \n").split(" | ") for line in tables[number].splitlines()]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def code(cell: str) -> str | None:
    """Return what stands in a cell as code, if nothing else does."""
    found = re.fullmatch(r"`([^`]+)`", cell)
    return found[1] if found else None


class _Environment(Mapping[str, str]):
    """An empty environment that remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> str:
        self.asked.append(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def test_every_variable_is_listed_and_none_that_is_not_read() -> None:
    environment = _Environment()
    Settings.from_env(environment)
    listed = [code(row[0]) for row in table("Settings")]
    assert listed == list(dict.fromkeys(environment.asked))


@pytest.mark.parametrize("row", table("Settings"), ids=lambda row: row[0].strip("`"))
def test_the_default_of_a_variable_is_its_default(row: list[str]) -> None:
    name, default = code(row[0]), code(row[1])
    assert name is not None
    by_default = Settings.from_env({})
    if default is not None:
        assert Settings.from_env({name: default}) == by_default
    elif "below the home" in row[1] or "in the home" in row[1]:
        folder = row[1].split("`")[1]
        scheme = "sqlite:///" if name == "VANTAGE_DATABASE_URL" else ""
        value = f"{scheme}{by_default.home / folder}"
        assert Settings.from_env({name: value}) == by_default
    elif row[1] == "one a core":
        assert Settings.from_env({name: str(os.cpu_count())}) == by_default
    else:
        assert row[1] in {
            "the user's data directory",
            "our own, started by `vantage up`",
            "this machine's name",
            "a new one at each start",
            "none",
        }


def test_what_a_collection_is_made_with_is_marked() -> None:
    marked = {code(row[0]) for row in table("Settings") if "(*new collections*)" in row[2]}
    changed = {
        "VANTAGE_EXTRACTOR": "surf",
        "VANTAGE_MAX_SIDE": "512",
        "VANTAGE_MAX_FEATURES": "100",
        "VANTAGE_QUERY_MAX_FEATURES": "100",
        "VANTAGE_GROUP_COUNT": "8",
        "VANTAGE_CELL_SIZE": "100",
        "VANTAGE_VANTAGE_POINTS": "random",
        "VANTAGE_CELLS": "leaves",
    }
    assert marked == set(changed)
    before = Settings.from_env({})
    for name, value in changed.items():
        after = Settings.from_env({name: value})
        assert (after.extractor, after.index) != (before.extractor, before.index), name


def test_the_lines_of_the_procfile_are_listed_with_queues_and_pools() -> None:
    rows = table("Processes and queues")
    commands = read_procfile()
    assert [code(row[0]) for row in rows] == list(commands)
    for name, queues, pool, _ in rows:
        command = commands[name.strip("`")]
        if pool == "-":
            assert queues == "none"
            assert " worker " not in command
            continue
        assert f"-P {'prefork' if pool == 'processes' else 'threads'} " in command
        if name == "`group`":
            assert queues.startswith(f"`{group_queue(0)}` to `{group_queue(MAX_GROUPS - 1)}`")
            assert "workers.queues" in command
        else:
            assert f"-Q {','.join(re.findall('`([^`]+)`', queues))} " in command


def test_every_task_is_listed_with_its_queue() -> None:
    routes = {task: queue or "group.<g>" for task, queue in task_routes().items()}
    rows = table("Processes and queues", 1)
    assert {str(code(row[0])): code(row[1]) for row in rows} == routes


def test_the_exit_codes_are_those_of_the_command() -> None:
    codes = [exits.OK, exits.TROUBLE, exits.USAGE, exits.INCOMPLETE, exits.INTERRUPTED]
    assert [code(row[0]) for row in table("Exit codes")] == [str(number) for number in codes]


def test_every_failure_code_is_listed_with_its_meaning() -> None:
    rows = {code(row[0]): row[1] for row in table("Why an image failed")}
    assert list(rows) == sorted(FAILURE_CODES)
    for name, sentence in FAILURE_CODES.items():
        assert rows[name].startswith(sentence)


def test_failures_that_can_pass_are_said_to_be_tried_again() -> None:
    rows = table("Why an image failed")
    again = {code(row[0]) for row in rows if row[2] == "yes"}
    # A file above the limit is never read, so nothing is known of its content.
    assert again == UNREADABLE_CODES | {"too-large-bytes"}
    assert {row[2] for row in rows} == {"yes", "when the file has changed"}
