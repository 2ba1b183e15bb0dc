"""How long scans take here and now, which says how many images a pass may have.

Each scan notes how much slower it was than predicted for the reference machine, and how long its
message had waited: a busy or slow host shows in the first, a long queue in the second. Callers cut
their passes (`workers.passes`) by the worst of the last half minute.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from workers.context import Context

if TYPE_CHECKING:
    from pipeline.metadata.records import VersionRecord
    from pipeline.retrieval.batch import Batch
    from pipeline.retrieval.blocks import GroupScan

__all__ = ["measured_pace", "note_pace"]

_FRESH_S = 30.0
_TOO_SHORT_MS = 5.0
"""Scans predicted to be shorter say nothing: what surrounds them takes longer."""


def note_pace(
    context: Context,
    pipe: Any,
    version: VersionRecord,
    scan: tuple[Batch, GroupScan],
    wait_s: float,
) -> None:
    """Add to a pipeline the command that notes how a scan went.

    Parameters
    ----------
    context : Context
    pipe : Pipeline
    version : VersionRecord
    scan : (Batch, GroupScan)
        What was searched for, and what was found.
    wait_s : float
        How long the message of the scan had waited.
    """
    from pipeline.retrieval.cost import REFERENCE

    batch, found = scan
    rows = sum(segment.descriptor_count for segment in version.segments)
    mine = sum(segment.descriptor_count for segment in version.group_segments(found.group))
    predicted = batch.predicted(REFERENCE).scan_ms * mine / max(1, rows)
    slowness = found.ms / predicted if predicted >= _TOO_SHORT_MS else 1.0
    value = f"{slowness:.3f} {max(0.0, wait_s):.3f} {time.time():.3f}"
    pipe.hset(context.keys.pace, str(found.group), value)


def measured_pace(context: Context) -> tuple[float, float]:
    """Return how many times slower than predicted scans are now, and how many seconds they wait."""
    known = cast("dict[bytes, bytes]", context.redis.hgetall(context.keys.pace))
    slowness, wait_s = 1.0, 0.0
    for value in known.values():
        try:
            slow, wait, at = (float(number) for number in value.split())
        except ValueError:
            continue
        if time.time() - at <= _FRESH_S:
            slowness, wait_s = max(slowness, slow), max(wait_s, wait)
    return slowness, wait_s
