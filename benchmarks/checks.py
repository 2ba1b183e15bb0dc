"""Cost of the checks when a segment is opened, beside that of its SHA-256.

    python -m benchmarks.checks [--rows 1000000]

One file of random rows: ``open`` maps it, ``checks`` makes the segment of its arrays, comparing
types, shapes, offsets and numbers (`pipeline.columns`); ``SHA-256`` reads all of it. Medians of 15,
the file in the cache.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.common import parser, show
from benchmarks.engine_data import numbered_images
from pipeline.arrays import ArrayFile, write_arrays
from pipeline.index.rows import pack_rows
from pipeline.index.segments import Segment
from pipeline.storage import file_checksum

CELLS = 2048
DESCRIPTORS = 400
"""Rows of one image."""


def main() -> None:
    """Print the table."""
    options = parser(str(__doc__).splitlines()[0])
    options.add_argument("--rows", type=int, default=1_000_000)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="vantage-bench-") as folder:
        path = Path(folder) / "segment.npz"
        write_segment(path, arguments.rows)
        opened = ArrayFile(path)
        times = {
            "open": median_ms(lambda: ArrayFile(path)),
            "checks": median_ms(lambda: Segment.from_arrays(opened)),
            "SHA-256": median_ms(lambda: file_checksum(path)),
        }
        mib = path.stat().st_size / 2**20
    row = {"rows": arguments.rows, "MiB": round(mib, 1)}
    row |= {f"{name}, ms": round(ms, 2) for name, ms in times.items()}
    show("opening a segment", [row], arguments.json)


def write_segment(path: Path, rows: int) -> None:
    """Write a segment of random rows."""
    rng = np.random.default_rng(1)
    cuts = np.sort(rng.integers(0, rows, CELLS - 1))
    table = numbered_images(-(-rows // DESCRIPTORS))
    segment = Segment(
        pack_rows(rng.integers(0, 256, (rows, 64), dtype=np.uint8)),
        rng.integers(0, len(table), rows).astype(np.uint32),
        np.zeros((rows, 4), np.uint16),
        np.concatenate([[0], cuts, [rows]]).astype(np.int64),
        0,
        table,
    )
    with path.open("w+b") as stream:
        write_arrays(stream, segment.to_arrays(), {"group": 0})


def median_ms(work: Callable[[], object], rounds: int = 15) -> float:
    """Return the median milliseconds of a call."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


if __name__ == "__main__":
    main()
