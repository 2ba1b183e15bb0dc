"""The final comparison: times at equal recall, from all points."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from benchmarks.engine_measures import Point, time_at, value_at

INDEX_RECALLS = (0.95, 0.985)


def verdict(points: Sequence[Point]) -> list[dict[str, object]]:
    """Return a row for each comparison of the engine with a peer.

    The engine's time at an index recall is read off its curve, and so is its 1-recall@k there; a
    peer's is its time at that same 1-recall@k. *times faster* is the peer's over the engine's.
    """
    rows = _exact_rows(points)
    names = dict.fromkeys(point.method for point in points if point.family == "ours")
    for name in names:
        ours = [point for point in points if point.method == name]
        for recall in INDEX_RECALLS:
            time = time_at([(point.index_recall, point.ms) for point in ours], recall)
            among = value_at([(point.index_recall, point.among) for point in ours], recall)
            at = f"index recall {recall:g} (1-recall@16 {among:.3f})"
            rows.append(_row(at, name, time, time))
            for method, measured in _by_method(points).items():
                rows.append(_row(at, method, time_at(measured, among), time))
    return rows


def _exact_rows(points: Sequence[Point]) -> list[dict[str, object]]:
    """Return the comparison of exhaustive scans."""
    exact = [point for point in points if point.family == "exact"]
    ours = [point.ms for point in exact if not math.isnan(point.index_recall)]
    if not ours:
        return []
    return [_row("exhaustive", point.method, point.ms, ours[0]) for point in exact]


def _by_method(points: Sequence[Point]) -> dict[str, list[tuple[float, float]]]:
    """Return the (1-recall@k, ms) pairs of each peer that does not scan everything."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for point in points:
        if point.family not in ("ours", "exact", "portable"):
            curves[point.method].append((point.among, point.ms))
    return curves


def _row(name: str, method: str, time: float, ours: float) -> dict[str, object]:
    """Return a row; a peer that does not reach the recall has none of the figures."""
    reached = not math.isnan(time) and not math.isnan(ours)
    return {
        "at": name,
        "method": method,
        "ms a batch": f"{time:.2f}" if reached else "not reached",
        "times faster": f"{time / ours:.2f}" if reached else "",
    }
