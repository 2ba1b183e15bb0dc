"""The package `vantage`: its public names, what they say of themselves, and what it loads."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vantage

ROOT = Path(__file__).parent.parent.parent
OLD = re.compile(
    r"(from|import) (workers\.(client|fused)|pipeline\.(local|fused|index|extraction\.surf))\b"
)


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield every public function, and every public method of a public class, with its name."""
    for name in vantage.__all__:
        value = getattr(vantage, name)
        if not inspect.isclass(value):
            yield name, value
            continue
        ours = [cls for cls in value.__mro__ if cls.__module__.startswith(("pipeline", "workers"))]
        for member, found in {k: v for cls in reversed(ours) for k, v in vars(cls).items()}.items():
            function = getattr(found, "__func__", found)
            if not member.startswith("_") and inspect.isfunction(function):
                yield f"{name}.{member}", function


CALLABLES = dict(public())


def test_the_names_are_sorted_and_there() -> None:
    assert vantage.__all__ == sorted(vantage.__all__)
    assert {name for name in vantage.__all__ if getattr(vantage, name).__name__ != name} == set()
    assert vantage.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vantage.nothing  # noqa: B018


@pytest.mark.parametrize("name", vantage.__all__)
def test_every_name_says_what_it_is(name: str) -> None:
    text = inspect.getdoc(getattr(vantage, name)) or ""
    assert text.splitlines()[0].endswith((".", ":"))
    assert "(self" not in text


@pytest.mark.parametrize("name", CALLABLES)
def test_every_function_describes_its_parameters_and_what_it_returns(name: str) -> None:
    function = CALLABLES[name]
    text = inspect.getdoc(function) or ""
    assert text
    signature = inspect.signature(function)
    wanted = [name for name in signature.parameters if name not in ("self", "cls")]
    sections = dict(re.findall(r"^(\w+)\n-+\n(.*?)(?=^\w+\n-+\n|\Z)", text, re.S | re.M))
    lines = re.findall(r"^\S.*", sections.get("Parameters", ""), re.M)
    described = set(re.findall(r"\w+", " ".join(lines)))
    assert [one for one in wanted if one not in described] == []
    # A getter's one sentence begins with what it returns.
    told = "Returns" in sections or text.startswith(("Return", "Tell", "Whether"))
    assert told or signature.return_annotation in ("None", None)


def test_importing_it_loads_next_to_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import vantage; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['vantage']\n"


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_the_pages_show_no_other_way_to_import(page: Path) -> None:
    assert [line for line in page.read_text().splitlines() if OLD.search(line)] == []
