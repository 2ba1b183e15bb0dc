from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from core_data import asked, descriptors, model, segments
from hypothesis import given
from hypothesis import strategies as st

from pipeline.index.paths import PATHS
from pipeline.retrieval.blocks import merge_blocks
from pipeline.retrieval.cost import (
    BYTE_NS,
    EXHAUSTIVE_WITHIN_MS,
    LIST_NS,
    NEAR_NS,
    PASS_NS,
    RATES,
    REFERENCE,
    Machine,
    Workload,
    exhaustive_cost,
    exhaustive_is_fast_enough,
    expected_distinct,
    probed_cost,
)
from pipeline.retrieval.plan import make_plan
from pipeline.retrieval.scan import scan_segment

EXTENT = Workload(queries=10, rows=6400, row_bytes=64, cells=64)


def test_every_code_path_has_its_rates() -> None:
    assert set(RATES) == set(PATHS)
    assert all(rate > 0 for rates in RATES.values() for rate in rates)


def milliseconds(read: float, places: float, rate: float, near: float, listed: float = 0) -> float:
    ns = PASS_NS + BYTE_NS * read + rate * places + NEAR_NS * near + LIST_NS * listed
    return ns / 1e6


def test_the_exhaustive_plan_compares_all_and_reads_every_row_once() -> None:
    cost = exhaustive_cost(EXTENT, Machine("vnni512", 4))
    assert cost.pairs == 64_000
    assert cost.bytes == 6400 * 72
    # Tiles of 16, 8 or 4 query descriptors, and of 2 where few are left of a round of 16.
    for path, count, places in (
        ("amx", 5, 16),
        ("amx", 19, 20),
        ("vnni512", 10, 16),
        ("vnni512", 18, 18),
        ("avx2", 11, 12),
        ("avx2", 3, 4),
    ):
        cost = exhaustive_cost(replace(EXTENT, queries=count), Machine(path, 4))
        rate = RATES[path].exhaustive
        assert cost.scan_ms == pytest.approx(
            milliseconds(6400 * 72, places * 6400, rate, near=6400 * count)
        )
        assert cost.wait_ms == cost.scan_ms / 4


def test_the_probed_plan_compares_with_the_cells_opened_and_reads_each_once() -> None:
    cost = probed_cost(EXTENT, Machine("avx2", 1), opened=5, distinct=20)
    assert cost.pairs == 10 * 5 * 100
    assert cost.bytes == 20 * 100 * 72
    # A cell leaves 1.25 places of its tiles free, on the average: 0, 1, 0, 1, then 0, 3, 2, 1.
    places = (50 + 20 * 1.25) * 100
    expected = milliseconds(20 * 7200, places, RATES["avx2"].probed, near=64_000, listed=50)
    assert cost.scan_ms == pytest.approx(expected)
    # One query descriptor alone leaves one of two free, in every cell.
    alone = probed_cost(replace(EXTENT, queries=1), Machine("avx2", 1), opened=5)
    expected = milliseconds(5 * 7200, 5 * 2 * 100, RATES["avx2"].probed, near=6400, listed=5)
    assert alone.scan_ms == pytest.approx(expected)


def test_longer_rows_cost_in_proportion() -> None:
    one = replace(EXTENT, one_vector=True)
    vector = RATES["avx2"].vector
    for row_bytes in (64, 256):
        cost = exhaustive_cost(replace(one, row_bytes=row_bytes), REFERENCE)
        places = 12 * 6400 * row_bytes / 64
        assert cost.bytes == 6400 * (row_bytes + 8)
        assert cost.scan_ms == pytest.approx(milliseconds(cost.bytes, places, vector, near=0))


@given(st.integers(1, 5000), st.integers(0, 10**8), st.integers(0, 14), st.floats(0.001, 1.0))
def test_cells_shared_cost_no_more_than_cells_apart(
    queries: int, rows: int, levels: int, effort: float
) -> None:
    cells = 2**levels
    opened = max(1, round(effort * cells))
    workload = Workload(queries, rows, 64, cells)
    distinct = expected_distinct(queries, opened, cells)
    assert min(opened, cells) * 0.999 <= distinct <= min(cells, queries * opened) * 1.001
    probed = probed_cost(workload, REFERENCE, opened)
    exhaustive = exhaustive_cost(workload, REFERENCE)
    assert probed.pairs <= exhaustive.pairs * 1.001 + 1
    assert probed.bytes <= exhaustive.bytes * 1.001 + 72
    # Two queries in one pass cost no more than two passes.
    twice = replace(workload, queries=2 * queries)
    assert probed_cost(twice, REFERENCE, opened).scan_ms <= 2 * probed.scan_ms * 1.001
    assert exhaustive_cost(twice, REFERENCE).scan_ms <= 2 * exhaustive.scan_ms * 1.001


def test_auto_does_not_ask_what_machine_it_is_on() -> None:
    thousand = Workload(1000, 10**6, 64, 512)
    edge = int(10**6 * EXHAUSTIVE_WITHIN_MS / exhaustive_cost(thousand, REFERENCE).wait_ms)
    assert exhaustive_is_fast_enough(replace(thousand, rows=round(0.99 * edge)))
    assert not exhaustive_is_fast_enough(replace(thousand, rows=round(1.01 * edge)))
    # Nothing is lost below a million descriptors, for a query of the default size.
    assert edge >= 10**6


@pytest.mark.parametrize("kind", ["probed", "exhaustive"])
def test_predictions_equal_the_counts(kind: str) -> None:
    """Pairs and bytes of the real scans: exactly when all is compared, nearly when cells differ."""
    codes = model().quantizer.encode(descriptors(77, 200))
    rows = sum(segment.rows.size for segment in segments())
    plan = make_plan(model(), codes, rows, asked(kind, 0.3))
    workload = Workload(200, rows, 64, model().tree.cells)
    counts = merge_blocks([scan_segment(segment, plan) for segment in segments()]).counts
    assert counts.rows == rows
    if kind == "exhaustive":
        cost = exhaustive_cost(workload, REFERENCE)
        assert (cost.pairs, cost.bytes) == (counts.pairs, counts.bytes)
        assert counts.visited == rows
    else:
        distinct = len(np.unique(plan.cells))
        cost = probed_cost(workload, REFERENCE, plan.cells.shape[1], distinct)
        assert cost.pairs == pytest.approx(counts.pairs, rel=0.5)
        assert cost.bytes == pytest.approx(counts.bytes, rel=0.5)
        assert counts.visited * 72 == counts.bytes
