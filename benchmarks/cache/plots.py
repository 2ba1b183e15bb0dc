"""Plots of the benchmark of the caches; matplotlib is in the group ``bench``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw_hit_ratios(found: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw shares of look-ups over the size of the cache, a panel for each stream."""
    plt = _pyplot()
    panels = list(dict.fromkeys((one["objects"], one["stream"]) for one in found))
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True, sharey=True)
    for axis, (objects, stream) in zip(axes.flat, panels, strict=True):
        mine = [one for one in found if (one["objects"], one["stream"]) == (objects, stream)]
        for name, mark in (("total", "o-"), ("approximate", "s--"), ("exact", "^:")):
            axis.plot([one["MB"] for one in mine], [one[name] for one in mine], mark, label=name)
        axis.set(title=f"{objects}, {stream}", xscale="log", ylim=(0, 1))
        axis.set_xticks([one["MB"] for one in mine], [str(one["MB"]) for one in mine], minor=False)
        axis.minorticks_off()
        axis.grid(True, alpha=0.25)
    axes[0, 0].legend()
    figure.supxlabel("size of the cache, MB")
    figure.supylabel("share of look-ups")
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    plt.close(figure)


def draw_gain(found: Sequence[dict[str, Any]], costs: Sequence[int], file: Path) -> None:
    """Draw the gain over the cost of a distance, a line a stream; real metrics are stars."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for one in found:
        points = [(cost, one[f"{cost:,} ns"]) for cost in costs] + [(one["crossing, ns"], 1.0)]
        name = f"{one['objects']}, {one['stream']}"
        (line,) = axis.plot(*zip(*sorted(points), strict=True), "o-", label=name)
        axis.plot(one["own distance, ns"], one["measured gain"], "*", ms=14, color=line.get_color())
    axis.axhline(1, color="black", linewidth=1)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="cost of one distance, ns (stars: measured with the metric itself)",
        ylabel="time without the cache over time with it",
    )
    axis.grid(True, which="both", alpha=0.25)
    axis.legend()
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _pyplot() -> Any:
    """Return matplotlib without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
