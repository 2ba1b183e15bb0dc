"""The peers of the engine, all built and searched through the same few functions.

All get the same float32 rows and the same number of threads, and the parameters their authors
recommend; what a search needs beside the index (``nprobe``, ``ef``) is swept. A peer that is not
installed is left out, with a line that says how to install it.
"""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Search = Callable[[Floats], Any]

NEIGHBOURS = 16
INSTALL = "pip install --group bench"
PRODUCT_ROWS = 16_384
"""Rows of a matrix product: the result of 250 queries stays in the last cache."""

PROBES = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96)
REFINED = 8
"""Candidates of the 4-bit codes that are ranked again by 8-bit ones, times the neighbours."""

GRAPH_EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192)
GRAPH_LINKS, GRAPH_BUILD_EFFORT = 16, 200
TREES, CHECKS = 4, (256, 2048)


@dataclass(frozen=True)
class Built:
    """A method that is ready to search.

    Attributes
    ----------
    name, family : str
    build_s : float
        Seconds to build, training included.
    bytes_a_row : float
        Size of its file over the rows; NaN when it cannot write one.
    searches : dict of str to callable
        By setting: asks one batch for its `NEIGHBOURS` nearest rows.
    ids : callable
        Returns the row numbers (Q, k) of what a search returned; not timed. None where there are
        none.
    ours : bool
        The engine under test: its searches return (distances, ids).
    memory : float
        Bytes a row of all its columns in memory; NaN where nothing tells.
    """

    name: str
    family: str
    build_s: float
    bytes_a_row: float
    searches: Mapping[str, Search]
    ids: Callable[[Any], Ids] | None
    ours: bool = False
    memory: float = float("nan")

    @property
    def slow(self) -> bool:
        """Whether it compares with every row."""
        return self.family == "exact"


@dataclass(frozen=True)
class Bench:
    """How methods are built and timed.

    Attributes
    ----------
    threads : int
        Of every method.
    clock : callable
        Returns seconds: of the wall, or of the processor.
    store : Path, optional
        Folder that keeps the peers' indexes and what building them took, for another run.
    """

    threads: int
    clock: Callable[[], float]
    store: Path | None = None

    def timed(self, step: Callable[[], object]) -> float:
        """Return the seconds of a step."""
        started = self.clock()
        step()
        return self.clock() - started

    def kept(
        self,
        name: str,
        build: Callable[[], float],
        write: Callable[[str], object],
        read: Callable[[str], object],
    ) -> tuple[float, int]:
        """Build an index, or read it when it is kept; return the seconds it took, and its bytes."""
        with tempfile.TemporaryDirectory() as folder:
            file = (self.store or Path(folder)) / re.sub(r"\W+", "-", name)
            note = file.with_suffix(".seconds")
            if note.is_file():
                read(str(file))
                return float(note.read_text()), file.stat().st_size
            spent = build()
            write(str(file))
            note.write_text(f"{spent:.3f}")
            return spent, file.stat().st_size


Build = Callable[[Floats, Bench], list[Built]]


def build_peers(rows: Floats, bench: Bench, wanted: set[str]) -> list[Built]:
    """Build the peers whose library is installed and whose name is wanted (all, when empty)."""
    cv2.setNumThreads(bench.threads)
    built: list[Built] = []
    for library, build in LIBRARIES.items():
        if wanted and library not in wanted:
            continue
        try:
            importlib.import_module(library)
        except ImportError as error:
            print(f"{library} is left out ({error}); to have it: {INSTALL}", flush=True)
            continue
        for made in build(rows, bench):
            print(f"{made.name} built in {made.build_s:.1f} s", flush=True)
            built.append(made)
    return built


def build_numpy(rows: Floats, bench: Bench) -> list[Built]:
    """Matrix products of pieces: alone, and with the k nearest kept. Threads are the BLAS's."""
    started = bench.clock()
    pieces = [
        np.ascontiguousarray(rows[at : at + PRODUCT_ROWS].T)
        for at in range(0, len(rows), PRODUCT_ROWS)
    ]
    norms = np.einsum("nd,nd->n", rows, rows) / 2
    spent = bench.clock() - started
    space = np.empty((0, PRODUCT_ROWS), np.float32)

    def room(queries: Floats) -> Floats:
        nonlocal space
        if len(space) != len(queries):
            space = np.empty((len(queries), PRODUCT_ROWS), np.float32)
        return space

    def product(queries: Floats) -> None:
        out = room(queries)
        for piece in pieces:
            # A last, narrow piece would not be contiguous in `out`, and BLAS needs that.
            np.matmul(queries, piece, out=out if piece.shape[1] == PRODUCT_ROWS else None)

    def search(queries: Floats) -> Ids:
        best = np.full((len(queries), NEIGHBOURS), np.inf, np.float32)
        ids = np.full((len(queries), NEIGHBOURS), -1, np.int64)
        for number, piece in enumerate(pieces):
            at = number * PRODUCT_ROWS
            far = norms[at : at + PRODUCT_ROWS] - queries @ piece
            few = np.argpartition(far, min(NEIGHBOURS, far.shape[1] - 1), axis=1)[:, :NEIGHBOURS]
            both = np.concatenate([best, np.take_along_axis(far, few, 1)], axis=1)
            order = np.argsort(both, axis=1, kind="stable")[:, :NEIGHBOURS]
            best = np.take_along_axis(both, order, 1)
            ids = np.take_along_axis(np.concatenate([ids, few + at], axis=1), order, 1)
        return ids

    size = float(rows.shape[1] * 4)
    return [
        Built("numpy product alone", "exact", spent, size, {"": product}, None),
        Built("numpy", "exact", spent, size, {"": search}, lambda found: found),
    ]


def build_faiss(rows: Floats, bench: Bench) -> list[Built]:
    """Flat, SQ8, and inverted lists with whole rows, with bytes, and with refined 4-bit codes."""
    import faiss

    faiss.omp_set_num_threads(bench.threads)
    width = rows.shape[1]
    lists = inverted_lists(len(rows))
    byte = faiss.ScalarQuantizer.QT_8bit
    coarse = faiss.IndexFlatL2(width)
    trainer = faiss.IndexIVFFlat(coarse, width, lists)

    def read_coarse(path: str) -> None:
        nonlocal coarse
        coarse = faiss.read_index(path)

    # Trained once, as the k-means cells of the three are the same. Each answers for the time.
    train_s, _ = bench.kept(
        f"coarse {lists}",
        lambda: bench.timed(lambda: trainer.train(rows)),
        lambda path: faiss.write_index(coarse, path),
        read_coarse,
    )

    def made(name: str, family: str, index: Any, extra_s: float) -> Built:
        holder = [index]

        def build() -> float:
            return bench.timed(lambda: (index.train(rows), index.add(rows))) + extra_s

        def read(path: str) -> None:
            holder[0] = faiss.read_index(path)

        spent, size = bench.kept(name, build, lambda path: faiss.write_index(index, path), read)
        searches = _faiss_searches(holder[0], family)
        return Built(name, family, spent, size / len(rows), searches, lambda found: found[1])

    scalar = faiss.IndexIVFScalarQuantizer(coarse, width, lists, byte)
    codes = faiss.IndexIVFPQFastScan(coarse, width, lists, width // 2, 4)
    refined = faiss.IndexRefine(codes, faiss.IndexScalarQuantizer(width, byte))
    return [
        made("faiss Flat", "exact", faiss.IndexFlatL2(width), 0),
        made("faiss SQ8", "exact", faiss.IndexScalarQuantizer(width, byte), 0),
        made(f"faiss IVF{lists}-Flat", "ivf", faiss.IndexIVFFlat(coarse, width, lists), train_s),
        made(f"faiss IVF{lists}-SQ8", "ivf", scalar, train_s),
        made(f"faiss IVF{lists}-PQ{width // 2}fs,SQ8", "ivf", refined, train_s),
    ]


def _faiss_searches(index: Any, family: str) -> dict[str, Search]:
    """Return the settings of an index: probes of an inverted file, one of an exhaustive scan."""
    import faiss

    def with_probes(probes: int) -> Search:
        given = faiss.SearchParametersIVF(nprobe=probes)
        if isinstance(index, faiss.IndexRefine):
            given = faiss.IndexRefineSearchParameters(k_factor=REFINED, base_index_params=given)
        return lambda queries: index.search(queries, NEIGHBOURS, params=given)

    if family == "exact":
        return {"": lambda queries: index.search(queries, NEIGHBOURS)}
    return {f"nprobe {probes}": with_probes(probes) for probes in PROBES}


def build_hnswlib(rows: Floats, bench: Bench) -> list[Built]:
    """A navigable small world graph over float32 rows."""
    import hnswlib

    index = hnswlib.Index(space="l2", dim=rows.shape[1])
    index.set_num_threads(bench.threads)

    def build() -> float:
        index.init_index(
            max_elements=len(rows), M=GRAPH_LINKS, ef_construction=GRAPH_BUILD_EFFORT, random_seed=1
        )
        index.set_num_threads(bench.threads)
        return bench.timed(lambda: index.add_items(rows))

    name = f"hnswlib M={GRAPH_LINKS}"
    spent, size = bench.kept(name, build, index.save_index, index.load_index)
    index.set_num_threads(bench.threads)

    def with_effort(effort: int) -> Search:
        def search(queries: Floats) -> Any:
            index.set_ef(effort)
            return index.knn_query(queries, NEIGHBOURS)

        return search

    searches = {f"ef {effort}": with_effort(effort) for effort in GRAPH_EFFORTS}
    each = size / len(rows)
    return [Built(name, "graph", spent, each, searches, lambda found: found[0].astype(np.int64))]


def build_usearch(rows: Floats, bench: Bench) -> list[Built]:
    """The same graph by another library (its bytes would drop the length of a row)."""
    from usearch.index import Index

    index = Index(
        ndim=rows.shape[1],
        metric="l2sq",
        dtype="f32",
        connectivity=GRAPH_LINKS,
        expansion_add=GRAPH_BUILD_EFFORT,
    )
    numbers = np.arange(len(rows))

    def build() -> float:
        return bench.timed(lambda: index.add(numbers, rows, threads=bench.threads))

    name = f"usearch M={GRAPH_LINKS}"
    spent, size = bench.kept(name, build, index.save, index.load)

    def with_effort(effort: int) -> Search:
        def search(queries: Floats) -> Any:
            index.expansion_search = effort
            return index.search(queries, NEIGHBOURS, threads=bench.threads)

        return search

    searches = {f"expansion {effort}": with_effort(effort) for effort in GRAPH_EFFORTS}
    each = size / len(rows)
    return [Built(name, "graph", spent, each, searches, lambda found: found.keys.astype(np.int64))]


def build_flann(rows: Floats, bench: Bench) -> list[Built]:
    """OpenCV's matcher with randomised KD-trees; it is made for a number of leaves to check."""
    searches: dict[str, Search] = {}
    spent = 0.0

    def train(matcher: cv2.FlannBasedMatcher) -> None:
        matcher.add([rows])
        matcher.train()

    for checks in CHECKS:
        matcher = cv2.FlannBasedMatcher(
            {"algorithm": 1, "trees": TREES}, {"checks": checks, "sorted": True}
        )
        spent = bench.timed(partial(train, matcher))
        searches[f"checks {checks}"] = partial(matcher.knnMatch, k=NEIGHBOURS)

    def ids(found: Any) -> Ids:
        out = np.full((len(found), NEIGHBOURS), -1, np.int64)
        for line, matches in zip(out, found, strict=True):
            line[: len(matches)] = [match.trainIdx for match in matches]
        return out

    return [Built(f"cv2 FLANN, {TREES} trees", "trees", spent, float("nan"), searches, ids)]


def inverted_lists(rows: int) -> int:
    """Return the number of lists: the power of two nearest to four times the root of the rows."""
    return int(2 ** round(np.log2(4 * np.sqrt(rows))))


def versions() -> str:
    """Name the installed peers with their versions, and what faiss was compiled for."""
    names = []
    for library in LIBRARIES:
        try:
            module = importlib.import_module(library)
        except ImportError:
            continue
        names.append(f"{library} {getattr(module, '__version__', '')}".strip())
        if library == "faiss":
            names[-1] += f" ({module.get_compile_options().strip()})"
    return ", ".join(names)


LIBRARIES: dict[str, Build] = {
    "numpy": build_numpy,
    "faiss": build_faiss,
    "hnswlib": build_hnswlib,
    "usearch": build_usearch,
    "cv2": build_flann,
}
