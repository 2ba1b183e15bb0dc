"""Every benchmark can be imported and says what its options are, without the peers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import benchmarks

FOLDER = Path(benchmarks.__file__).parent

# One process for all, of its own: some modules set the number of threads when they are imported.
CHECK = """
import contextlib, importlib, io, pkgutil, sys, traceback
import benchmarks

for peer in ("faiss", "hnswlib", "matplotlib", "skimage", "usearch"):
    sys.modules[peer] = None  # as if it were not installed

def check(name):
    sys.argv, said = [name, "--help"], io.StringIO()
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    if hasattr(module, "main"):
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            module.main()
        assert said.getvalue().startswith("usage: "), f"{name} --help: {said.getvalue()!r}"

for found in pkgutil.iter_modules(benchmarks.__path__, "benchmarks."):
    print(found.name)
    try:
        check(found.name)
    except Exception:
        traceback.print_exc()
"""


def test_every_benchmark_is_imported_and_prints_its_help_without_the_peers(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=FOLDER.parent,
        env={**os.environ, "VANTAGE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stderr == "", done.stderr
    assert done.returncode == 0
    names = sorted(
        [path.stem for path in FOLDER.glob("*.py")]
        + [path.parent.name for path in FOLDER.glob("*/__init__.py")]
    )
    assert done.stdout.split() == [f"benchmarks.{name}" for name in names if name != "__init__"]
