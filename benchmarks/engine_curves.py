"""Curves of recall against time, as a picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine_measures import LEAST_LOSS, Point, frontier

MARKS = "osv^DPX"
"""Not as many as colours, so that no two lines have both in common."""


def draw_curves(points: Sequence[Point], title: str, file: Path) -> None:
    """Draw the time of a batch over the loss of 1-recall@k, a line a method, into a PNG.

    Both axes are logarithmic; left is better found, down is faster. Exhaustive methods are dots.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        if point.among == point.among:
            lines[point.method].append(point)
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    for number, (method, measured) in enumerate(lines.items()):
        best = frontier([(point.among, point.ms) for point in measured])
        axes.plot(
            [max(1 - recall, LEAST_LOSS) for recall, _ in best],
            [ms for _, ms in best],
            marker=MARKS[number % len(MARKS)],
            linewidth=2.5 if measured[0].family == "ours" else 1,
            label=method,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="share of queries whose nearest row is not among the 16 returned",
        ylabel="ms a batch of 250",
        title=title,
    )
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=120)
    plt.close(figure)
