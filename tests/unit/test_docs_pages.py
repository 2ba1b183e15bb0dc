"""Every page: its links and names exist, and it contains no private path."""

from __future__ import annotations

import doctest
import importlib
import importlib.metadata
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline.config import Settings
from workers.cli.app import COMMANDS, app
from workers.environment import environment
from workers.queues import task_routes

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TASKS = set(task_routes())
# Said by the pages and read elsewhere: by the program for itself, by the tests.
OTHER_VARIABLES = {
    "VANTAGE_UP_PID",
    "VANTAGE_INSTALLATION",
    "VANTAGE_COMPLETE",
    "VANTAGE_TEST_POSTGRESQL_URL",
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def sources() -> list[Path]:
    folders = ("pipeline", "workers", "demo", "benchmarks", "tests")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, made as GitHub makes them."""
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> Iterator[str]:
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    yield from re.findall(r"\]\(([^)\s]+)\)", prose)
    yield from re.findall(r"^\[[^\]]+\]: (\S+)$", prose, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    variables = set(environment(Settings.from_env({}), {}))
    variables |= {
        "VANTAGE_REDIS_URL",
        "VANTAGE_REDIS_LISTEN",
        "VANTAGE_FLOWER_PASSWORD",
        "VANTAGE_CACHE_URL",
        "VANTAGE_CACHE_LISTEN",
    }
    variables |= OTHER_VARIABLES
    assert set(re.findall(r"\bVANTAGE_[A-Z_]*[A-Z]\b", text)) <= variables
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"(?:`|^|&& |\$ )make ([a-z-]+)", text, re.MULTILINE)) <= targets
    assert set(re.findall(r"(?:`|^|\$ )vantage ([a-z]+)", text, re.MULTILINE)) <= set(COMMANDS)
    for module in re.findall(r"python3? -m ((?:benchmarks|workers|demo)[\w.]*)", text):
        assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_that_a_page_types_are_options(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    typed = re.findall(r"\bvantage ([a-z]+)((?: [^`\n|]*)?)", page.read_text(encoding="utf-8"))
    for command, rest in typed:
        if command not in COMMANDS:
            continue  # prose
        found = group.get_command(None, command)
        known = {option for parameter in found.params for option in parameter.opts} | {"--help"}
        assert set(re.findall(r"(?<= )--[a-z][a-z-]*", rest.split("#")[0])) <= known, command


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_recipes_are_good_shell(page: Path) -> None:
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        assert language in {"sh", "console", "python", "text", "ini", "json", "toml"}
        if language == "sh":
            done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
            assert (done.returncode, done.stderr) == (0, ""), text


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_page_names_a_private_path(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"(?<![\w.])/(?:work|tmp|root|Users)/\S*", text) == []
    assert set(re.findall(r"/home/(\w+)", text)) <= {"ana"}


def test_tests_named_in_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## Promises and their tests\n(.*?)^## ", text, re.M | re.S)
    named = re.findall(r"\]\(([^)]+\.py)\)((?:,? `test_\w+`)*)", section)
    assert len(named) > 20
    for path, names in named:
        code = (ROOT / "docs" / path).read_text(encoding="utf-8")
        for test in re.findall(r"test_\w+", names):
            assert re.search(rf"^ *def {test}\(", code, re.MULTILINE), (path, test)


def test_pages_named_in_code_exist() -> None:
    for path in sources():
        for page in re.findall(r"\bdocs/[\w/-]+\.(?:md|svg)", path.read_text(encoding="utf-8")):
            assert (ROOT / page).is_file(), (name(path), page)


def test_the_picture_is_well_formed_and_names_tasks() -> None:
    picture = ElementTree.parse(ROOT / "docs" / "data-way.svg")
    texts = [(element.text or "") for element in picture.iter() if element.tag.endswith("}text")]
    named = {text for text in texts if re.fullmatch(r"(job|extract|group|retrieve)\.[a-z]+", text)}
    assert named <= TASKS
    assert len(named) >= 8


def test_the_changelog_has_an_entry_for_this_version_and_room_for_the_next() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[([^\]]+)\]", text, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == importlib.metadata.version("vantage-cbir")
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def _with_examples() -> list[str]:
    """Return the modules whose docstrings have examples."""
    paths = [
        path for path in sources() if path.relative_to(ROOT).parts[0] in {"pipeline", "workers"}
    ]
    found = [path for path in paths if ">>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found]


@pytest.mark.parametrize("module", _with_examples())
def test_examples_in_docstrings_give_what_they_show(module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(module), raise_on_error=False)
    assert outcome.attempted > 0
    assert outcome.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_prose_is_wrapped_at_120(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    lines = [line for line in prose.splitlines() if len(line) > 120]
    assert [line for line in lines if not re.match(r"\s*[|#!\[]", line)] == []
