"""No module imports one that imports it again, not even from within a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline

ROOT = Path(pipeline.__file__).parent.parent
PACKAGES = ("pipeline", "workers", "vantage", "demo")


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs; imports for the type checker alone do not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _nodes(node)


def _targets(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _graph(root: Path) -> dict[str, set[str]]:
    """Return the modules that each module imports, at its top or in a function."""
    paths = {}
    for path in (path for package in PACKAGES for path in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        graph[name] = set()
        for target in (t for n in _nodes(ast.parse(path.read_text())) for t in _targets(n)):
            # `from package.module import thing` names a thing of a module.
            found = target if target in paths else target.rpartition(".")[0]
            if found in paths and found != name:
                graph[name].add(found)
    return graph


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for name in graph[todo.pop()] - seen:
            seen.add(name)
            todo.append(name)
    return seen


def _cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module."""
    reach = {name: _reachable(graph, name) for name in graph}
    rings = {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in graph
        if name in reach[name]
    }
    return [list(ring) for ring in sorted(rings)]


def test_no_import_goes_in_a_circle() -> None:
    graph = _graph(ROOT)
    assert len(graph) > 100
    assert _cycles(graph) == []


@pytest.mark.parametrize("second", ["import workers.a", "def f():\n    from workers.a import x"])
def test_a_circle_is_found_even_within_a_function(tmp_path: Path, second: str) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "a.py").write_text("from workers import b")
    (tmp_path / "workers" / "b.py").write_text(second)
    assert _cycles(_graph(tmp_path)) == [["workers.a", "workers.b"]]
