"""Machine code is kept on disk, made again when it must be, and gives what Python gives."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline import machine_code, machine_code_file
from pipeline.machine_code import CompiledLoop
from pipeline.machine_code_file import machine_code_folder, read_machine_code

PACKAGE = Path(pipeline.__file__).parent
LOOPS = """
import math

import numba
import numpy as np

from {constants} import FACTOR


@numba.njit(nogil=True)
def add_up(rows, weight, doubled, skipped, path):
    total, count = 0.0, 0
    scratch = np.zeros(rows.shape[1], np.float32).reshape((rows.shape[1], 1))
    for i in range(rows.shape[0]):
        if i == skipped:
            continue
        for j in range(rows.shape[1]):
            scratch[j, 0] = math.ceil(rows[i, j] * weight) * FACTOR
            total += scratch[j, 0]
            count += len(path)
    return (2 * total if doubled else total), count


@numba.njit(nogil=True)
def fill(rows, value):
    for i in range(rows.shape[0]):
        rows[i] = value


@numba.njit(nogil=True)
def divide(one, other):
    return one // other


@numba.njit(nogil=True)
def words():
    return "no number"
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with loops, and an empty folder for machine code."""
    name = f"loops_{tmp_path.name}".replace("-", "_")
    folder = tmp_path / "modules" / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "constants.py").write_text("FACTOR = 3\n")
    (folder / "loops.py").write_text(LOOPS.format(constants=f"{name}.constants"))
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(machine_code, "_PACKAGE", folder)
    machine_code._source.cache_clear()
    kept = tmp_path / "kept"
    monkeypatch.setattr(machine_code, "machine_code_folder", lambda: kept)
    monkeypatch.setattr(machine_code, "_platform", lambda: "this machine")
    yield name
    machine_code._source.cache_clear()


def loop(package: str, name: str) -> CompiledLoop:
    return CompiledLoop(f"{package}.loops", name, [f"{package}.constants"])


ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
ARGUMENTS: tuple[Any, ...] = (ROWS, np.float32(0.5), True, 1, (0, 0))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.loop"))


def test_a_loop_gives_what_python_gives(package: str, tmp_path: Path) -> None:
    add_up = loop(package, "add_up")
    wanted = add_up.dispatcher.py_func(*ARGUMENTS)
    assert add_up(*ARGUMENTS) == wanted
    assert wanted[1] == 18
    locked = ROWS.copy()
    locked.flags.writeable = False
    assert add_up(locked, np.float32(0.5), np.bool_(True), np.int32(1), (0, 0)) == wanted
    assert (add_up.versions, len(files(tmp_path / "kept"))) == (1, 1)
    other = add_up(ROWS, 0.5, False, -1, ())
    assert other == add_up.dispatcher.py_func(ROWS, 0.5, False, -1, ())
    assert (add_up.versions, len(files(tmp_path / "kept"))) == (2, 2)


def test_arrays_are_written_in_place_and_no_threads_disturb_each_other(package: str) -> None:
    fill = loop(package, "fill")
    rows = [np.zeros(100_000, np.int64) for _ in range(8)]
    threads = [threading.Thread(target=fill, args=(row, i)) for i, row in enumerate(rows)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [set(row.tolist()) for row in rows] == [{i} for i in range(8)]
    assert fill.versions == 1
    assert fill(rows[0], 7) is None
    assert fill(np.empty(0, np.int64), 7) is None


_before_forks: list[threading.Event] = []


def _fork_begins() -> None:
    for event in _before_forks:
        event.set()


os.register_at_fork(before=_fork_begins)


def test_a_fork_waits_for_the_compiler(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import compiling

    compile_loop = compiling.compile_loop
    begun, forking = threading.Event(), threading.Event()

    def compile_later(*args: Any) -> Any:
        begun.set()
        assert forking.wait(600)
        return compile_loop(*args)

    monkeypatch.setattr(compiling, "compile_loop", compile_later)
    monkeypatch.setattr(sys.modules[__name__], "_before_forks", [forking])
    rows, fill = np.zeros(10, np.int64), loop(package, "fill")
    compiles = threading.Thread(target=fill, args=(rows, 3))
    compiles.start()
    assert begun.wait(600)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(600)
        fill(rows, 7)
        os._exit(0 if set(rows.tolist()) == {7} else 1)
    assert os.waitpid(child, 0)[1] == 0
    compiles.join(600)
    assert set(rows.tolist()) == {3}


def test_what_is_kept_is_loaded_without_the_compiler(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = loop(package, "add_up")(*ARGUMENTS)
    from pipeline import compiling

    monkeypatch.setattr(compiling, "compile_loop", None)
    assert loop(package, "add_up")(*ARGUMENTS) == wanted


@pytest.mark.parametrize("change", ["a byte", "half", "nothing left", "a changed constant"])
def test_code_that_is_damaged_or_outdated_is_made_again(
    package: str, tmp_path: Path, change: str
) -> None:
    wanted = loop(package, "add_up")(*ARGUMENTS)
    (file,) = files(tmp_path / "kept")
    data = file.read_bytes()
    if change == "a byte":
        file.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    elif change == "half":
        file.write_bytes(data[: len(data) // 2])
    elif change == "nothing left":
        file.write_bytes(b"")
    else:
        constants = machine_code._PACKAGE / "constants.py"
        constants.write_text("FACTOR = 33\n")
        machine_code._source.cache_clear()
    assert loop(package, "add_up")(*ARGUMENTS) == wanted
    assert len(files(tmp_path / "kept")) == (2 if change == "a changed constant" else 1)
    assert files(tmp_path / "kept")[0].stat().st_size == len(data)


def test_code_of_another_user_is_not_executed(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0)
    try:
        loop(package, "fill")(np.empty(1, np.int64), 7)
    finally:
        os.umask(before)
    (file,) = files(tmp_path / "kept")
    assert file.stat().st_mode & 0o777 == 0o644
    assert read_machine_code(file) is not None
    somebody_else = frozenset([file.stat().st_uid + 1])
    monkeypatch.setattr(machine_code_file, "_trusted_users", lambda: somebody_else)
    assert read_machine_code(file) is None


def test_a_user_without_a_home_has_a_folder_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what Python does then
    machine_code_folder.cache_clear()
    try:
        assert machine_code_folder().is_absolute()
        assert machine_code_folder().name == f"vantage-{os.geteuid()}"
    finally:
        machine_code_folder.cache_clear()


def test_a_folder_that_cannot_be_written_costs_time_alone(package: str, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("no folder")
    add_up = loop(package, "add_up")
    assert add_up(*ARGUMENTS) == add_up.dispatcher.py_func(*ARGUMENTS)


def test_what_would_be_read_wrongly_is_refused(package: str) -> None:
    add_up, rest = loop(package, "add_up"), ARGUMENTS[1:]
    for array in (ROWS[:, ::2], ROWS.T, np.asfortranarray(ROWS)):
        with pytest.raises(TypeError, match="C-contiguous"):
            add_up(array, *rest)
    with pytest.raises(TypeError, match="not str"):
        add_up("text", *rest)


def test_code_that_refuses_its_arguments_gives_no_answer(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_code, "_in_order", lambda value: value)
    with pytest.raises(RuntimeError, match="add_up failed with status"):
        loop(package, "add_up")(ROWS.T, *ARGUMENTS[1:])


def test_an_error_in_a_loop_is_raised(package: str) -> None:
    divide = loop(package, "divide")
    assert divide(7, 2) == 3
    with pytest.raises(RuntimeError, match="divide failed with status"):
        divide(7, 0)


def test_what_cannot_run_without_the_compiler_is_refused_when_it_is_compiled(package: str) -> None:
    with pytest.raises(RuntimeError, match="only int64 and float64 are read"):
        loop(package, "words")()


def test_searching_and_extracting_load_no_compiler() -> None:
    code = textwrap.dedent("""
        import sys
        import numpy as np
        from pipeline.extraction.surf import surf
        from vantage import VantageIndex
        from workers.doctor import warm
        warm()
        index = VantageIndex.build(np.random.default_rng(1).random((3000, 128), np.float32))
        index.search(np.zeros((2, 128), np.float32), 5, effort=0.1)
        surf(np.random.default_rng(1).integers(0, 256, (200, 300), np.uint8))
        print(sorted({name for name in sys.modules if name in ("numba", "llvmlite")}))
    """)
    for wanted in (None, "['llvmlite']\n"):  # the first may have to compile
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
        )
        assert wanted is None or done.stdout == wanted


def _all_loops() -> list[CompiledLoop]:
    """Return every loop of the package."""
    from pipeline.extraction.surf import descriptor, hessian, integral, orientation
    from pipeline.index import cells, kernels, quantizer, vptree, work

    modules = (cells, kernels, quantizer, vptree, work, descriptor, hessian, integral, orientation)
    return [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, CompiledLoop)
    ]


def test_a_loop_names_every_source_that_is_compiled_into_it() -> None:
    loops = _all_loops()
    assert len(loops) > 15
    for one in loops:
        for module in one._sources:
            path = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
            used = {
                node.module
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pipeline.")
            }
            if module == one.module:
                assert used <= set(one._sources), one.name
