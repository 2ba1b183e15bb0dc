"""Cost of building an index: images a second by threads, memory of merging a large group.

    python -m benchmarks.build [--photos FOLDER] [--images 400] [--rows 4000000]

The first table indexes the same photographs in fresh homes with one thread and with two; the stages
are those of the job, ``cores`` is processor time over time (OpenCV has threads of its own). The
second merges assignments of random rows into the segment of one group, each way in a separate
process: ``streamed`` as an index job does, ``at once`` with every row in memory, as it was done
before. ``allocated`` is the peak of Python's and NumPy's allocations, ``resident`` that of the
process with the mapped files that the system may take back.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.common import parser, photographs, show
from benchmarks.engine_data import numbered_images
from pipeline.arrays import ArrayFile, write_arrays
from pipeline.config import Settings
from pipeline.index.identities import unite
from pipeline.index.merge import SortedRows, assigned_rows, write_segment
from pipeline.index.rows import pack_rows
from pipeline.index.segments import AssignedRows, Segment
from pipeline.metadata.records import JobProgress
from vantage import Collection

CELLS = 1024
ASSIGNMENTS = 40
DESCRIPTORS = 500
"""Rows of one image."""


def main() -> None:
    """Print both tables."""
    options = parser(str(__doc__).splitlines()[0])
    options.add_argument("--images", type=int, default=400)
    options.add_argument("--rows", type=int, default=4_000_000)
    options.add_argument("--merge", nargs=2, metavar=("WAY", "FOLDER"), help="one merge, as JSON")
    arguments = options.parse_args()
    if arguments.merge:
        print(json.dumps(merge_row(arguments.merge[0], Path(arguments.merge[1]))))
        return
    files = photographs(arguments.photos)
    files = files[:: max(1, len(files) // arguments.images)][: arguments.images]
    rows = [build_row([Path(file) for file in files], threads) for threads in (1, 2)]
    show("build, seconds", rows, arguments.json)
    with tempfile.TemporaryDirectory(prefix="vantage-bench-") as folder:
        write_assignments(Path(folder), arguments.rows)
        command = [sys.executable, "-m", "benchmarks.build", "--merge"]
        rows = [json.loads(subprocess.check_output([*command, way, folder])) for way in WAYS]
    show(f"merge of {arguments.rows:,} rows, MiB", rows, arguments.json)


def build_row(files: list[Path], threads: int) -> dict[str, object]:
    """Index photographs in a fresh home; returns the time of every stage."""
    spent: dict[str, float] = defaultdict(float)
    last: list[tuple[str, float]] = []

    def report(progress: JobProgress) -> None:
        now = time.perf_counter()
        if last:
            spent[progress.stage if progress.stage != "done" else last[0][0]] += now - last[0][1]
        last[:] = [(progress.stage, now)]

    with tempfile.TemporaryDirectory(prefix="vantage-bench-") as home:
        settings = Settings.from_env({"VANTAGE_HOME": home})
        with Collection.open("bench", settings, local=True, threads=threads) as collection:
            started, busy = time.perf_counter(), time.process_time()
            progress = collection.index(files, report=report).wait()
            took = time.perf_counter() - started
            cores = (time.process_time() - busy) / took
    return {
        "threads": threads,
        "images": progress.images_done,
        "images/s": round(progress.images_done / took, 1),
        "cores": round(cores, 2),
        "all": round(took, 1),
        **{name: round(spent[name], 1) for name in ("register", "extract", "train")},
        **{name: round(spent[name], 1) for name in ("assign", "merge", "publish")},
    }


def write_assignments(folder: Path, rows: int) -> None:
    """Write assignments of random rows, all of one group."""
    for number in range(ASSIGNMENTS):
        rng = np.random.default_rng(number)
        count = rows // ASSIGNMENTS
        images = np.arange(number * count, (number + 1) * count, dtype=np.uint32) // DESCRIPTORS
        first = int(images[0])
        images -= first
        known = numbered_images(first + int(images.max()) + 1)
        cells = rng.integers(0, CELLS, count, dtype=np.uint32)
        order = np.lexsort((images, cells))
        assigned = AssignedRows(
            rng.integers(0, 256, (count, 64), dtype=np.uint8),
            cells[order],
            images[order],
            rng.integers(0, 65536, (count, 4), dtype=np.uint16),
            np.array([0, count], np.int64),
            known.some(np.arange(first, len(known))),
        )
        with (folder / f"{number:03}.npz").open("w+b") as stream:
            write_arrays(stream, assigned.to_arrays(), {})


def merge_row(way: str, folder: Path) -> dict[str, object]:
    """Merge the assignments of a folder; returns time and memory."""
    files = sorted(folder.glob("*.npz"))
    # The kernel's peak may come from the parent process: reset it here.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _peak_kib()
    started = time.perf_counter()
    WAYS[way](files, folder / way)
    took = time.perf_counter() - started
    resident = _peak_kib() - before
    tracemalloc.start()
    WAYS[way](files, folder / way)
    allocated = tracemalloc.get_traced_memory()[1]
    rows = len(ArrayFile(folder / way)["images"])
    return {
        "way": way,
        "seconds": round(took, 1),
        "rows/s": round(rows / took),
        "allocated": round(allocated / 2**20),
        "resident": round(resident / 2**10),
        "file": round((folder / way).stat().st_size / 2**20),
    }


def _peak_kib() -> int:
    """Return the peak resident memory of this process, KiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0])


def merge_streamed(files: list[Path], target: Path) -> None:
    """Merge as an index job does."""

    def open_one(path: Path) -> SortedRows:
        return assigned_rows(AssignedRows.from_arrays(ArrayFile(path)), 0, CELLS)

    with target.open("w+b") as stream:
        write_segment(stream, [partial(open_one, path) for path in files], 0, {"group": 0})


def merge_at_once(files: list[Path], target: Path) -> None:
    """Merge with every row in memory."""
    assignments = [AssignedRows.from_arrays(ArrayFile(path)) for path in files]
    cells = np.concatenate([assigned.cells for assigned in assignments])
    table = unite(assigned.table for assigned in assignments)
    images = np.concatenate(
        [table.numbers_of(assigned.table)[assigned.images] for assigned in assignments]
    )
    order = np.lexsort((images, cells))
    segment = Segment(
        pack_rows(np.concatenate([assigned.codes for assigned in assignments])[order]),
        images[order].astype(np.uint32),
        np.concatenate([assigned.geometry for assigned in assignments])[order],
        np.searchsorted(cells[order], np.arange(CELLS + 1)).astype(np.int64),
        0,
        table,
    )
    with target.open("w+b") as stream:
        write_arrays(stream, segment.to_arrays(), {"group": 0})


WAYS: dict[str, Callable[[list[Path], Path], None]] = {
    "streamed": merge_streamed,
    "at once": merge_at_once,
}


if __name__ == "__main__":
    main()
