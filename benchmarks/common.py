"""Tools of the benchmarks: photographs, a running system, percentiles, a table."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Settings
from pipeline.errors import InputError
from pipeline.walk import walk
from workers.cli.output import say, show_table
from workers.stack import Stack


def parser(text: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    options = argparse.ArgumentParser(description=text)
    options.add_argument(
        "--photos", type=Path, help="folder of photographs; default: scikit-image's samples"
    )
    options.add_argument("--json", action="store_true", help="print JSON")
    return options


def photographs(folder: Path | None) -> list[str]:
    """Return the image files of a folder, by default of scikit-image's wheel."""
    if folder is None:
        import skimage

        folder = Path(skimage.__file__).parent / "data"
    files = [found.path for found in walk([folder]) if found.error is None]
    if not files:
        raise InputError(f"there is no image in {str(folder)!r}")
    return files


@contextmanager
def running(**changes: Any) -> Iterator[Settings]:
    """Run a whole system in a temporary home; yields its settings."""
    with tempfile.TemporaryDirectory(prefix="vantage-bench-") as home:
        own = {"VANTAGE_HOME": home, "VANTAGE_FLOWER_PORT": "0"}
        settings = replace(Settings.from_env(own), **changes)
        with Stack(settings):
            yield settings


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return median and 95th percentile."""
    return {
        "p50": round(float(np.median(values)), 2),
        "p95": round(float(np.percentile(values, 95)), 2),
    }


def markdown(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a table in Markdown, in which decision records quote them."""
    print(f"\n{title}\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(str(value) for value in row.values())} |", flush=True)


def show(title: str, rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print rows as a table or as JSON."""
    if as_json:
        json.dump({title: rows}, sys.stdout)
        print()
        return
    header = list(rows[0])
    say(title)
    show_table(header, [list(row.values()) for row in rows], numbers=header)
    say()
