"""Caches: what they find again, and where they pay.

    python -m benchmarks.cache a c --photos DATASET [--requests 5000] [--plots docs]

``a``   hit ratios of the distance cache against its size, as Figure 9 of the paper has them
``c``   where the distance cache pays: gain against the cost of one distance

DATASET is a folder with a ``groundtruth.json``. Plots need the group ``bench``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.cache import gain, hit_ratios
from benchmarks.cache.data import Options
from benchmarks.common import parser

ROWS: dict[str, Callable[[Options], None]] = {"a": hit_ratios.run, "c": gain.run}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("rows", nargs="+", choices=sorted(ROWS), help="rows of the table")
    options.add_argument("--requests", type=int, default=5000, help="of a stream; default: 5000")
    options.add_argument("--plots", type=Path, help="folder for the plots; default: none is drawn")
    chosen = options.parse_args()
    if chosen.photos is None:
        options.error("name a data set with --photos: a folder with a groundtruth.json")
    settings = Options(chosen.photos, chosen.requests, chosen.plots, chosen.json)
    for row in chosen.rows:
        ROWS[row](settings)


if __name__ == "__main__":
    main()
