"""The engine under test, in the form of the peers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import llvmlite.binding as llvm

from benchmarks.engine_peers import NEIGHBOURS, Bench, Built, Floats, Search
from pipeline.config import IndexConfig
from pipeline.index import VantageIndex, cells, kernels, runs
from pipeline.index.paths import usable_paths
from pipeline.index.warm import warm_up

EFFORTS = (
    0.0003, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.06,
)  # fmt: skip
PORTABLE_EFFORTS = (0.004, 0.008, 0.015)
FEATURES = ("avx2", "avxvnni", "avx512f", "avx512vnni", "amx-int8")


def build_ours(rows: Floats, bench: Bench, cell_sizes: Sequence[int]) -> list[Built]:
    """Build the index once a cell size.

    Returns
    -------
    list of Built
        The exhaustive scan, the search of each cell size by effort, and both by the portable code
        path, which every processor has.
    """
    warm_up()
    made: list[Built] = []
    for cell_size in cell_sizes:
        config = replace(IndexConfig(), cell_size=cell_size, dimensions=rows.shape[1])
        index, spent = build_index(rows, config, bench)
        form = partial(
            _built,
            build_s=spent,
            bytes_a_row=file_bytes(index) / len(rows),
            memory=index.stats["bytes"] / len(rows),
        )
        made.append(form(f"vantage, cells of {cell_size}", "ours", searches(index, EFFORTS)))
    scan = {"": exhaustive(index)}
    portable = on_path("portable", searches(index, PORTABLE_EFFORTS))
    others = [path for path in reversed(usable_paths()) if path != kernels.PATH]
    return [
        form(f"vantage exact, {kernels.PATH}", "exact", scan),
        *(form(f"vantage exact, {path}", "exact", on_path(path, scan)) for path in others),
        *made,
        form(f"vantage, cells of {cell_size}, portable", "portable", portable),
    ]


def build_index(rows: Floats, config: IndexConfig, bench: Bench) -> tuple[VantageIndex, float]:
    """Return an index, and the seconds that building it took."""
    held: list[VantageIndex] = []
    build = partial(VantageIndex.build, rows, config=config, threads=bench.threads)
    spent = bench.timed(lambda: held.append(build()))
    return held[0], spent


def searches(index: VantageIndex, efforts: Iterable[float]) -> dict[str, Search]:
    """Return a search for each effort."""
    return {
        f"effort {effort:g}": partial(index.search, k=NEIGHBOURS, effort=effort)
        for effort in efforts
    }


def exhaustive(index: VantageIndex) -> Search:
    """Return the search that compares with every row."""
    return partial(index.search, k=NEIGHBOURS, exact=True)


def on_path(path: str, given: Mapping[str, Search]) -> dict[str, Search]:
    """Return the same searches by another code path of the kernels."""
    by_path = {
        (module, name): partial(getattr(kernels, name), path=path)
        for module, name in (
            (runs, "k_nearest"), (runs, "select_k_nearest"),
            (cells, "nearest_rows"), (cells, "select_k_nearest"),
        )
    }  # fmt: skip

    def changed(search: Search) -> Search:
        def run(queries: Floats) -> Any:
            with ExitStack() as stack:
                for (module, name), function in by_path.items():
                    stack.enter_context(patch.object(module, name, function))
                return search(queries)

        return run

    return {setting: changed(search) for setting, search in given.items()}


def file_bytes(index: VantageIndex) -> int:
    """Return the size of the file that the index writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        index.save(path)
        return path.stat().st_size


def processor() -> str:
    """Name the processor, its instructions that the kernels know, and the path that runs."""
    features = llvm.get_host_cpu_features()
    known = [name for name in FEATURES if features.get(name)]
    return f"{llvm.get_host_cpu_name()} ({', '.join(known) or 'none of ours'}), path {kernels.PATH}"


def _built(
    name: str,
    family: str,
    given: Mapping[str, Search],
    *,
    build_s: float,
    bytes_a_row: float,
    memory: float,
) -> Built:
    """Return a method of the engine."""
    return Built(name, family, build_s, bytes_a_row, given, lambda found: found[1], True, memory)
