"""What the benchmark of the engine measures with: recall, time at a recall, multiplied rows."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.engine_data import PIECE, Descriptors, EngineData, matching_differences, multiply
from benchmarks.engine_measures import (
    Point,
    distance_ratio,
    frontier,
    growth,
    index_recall,
    nearest_rows,
    recall_among,
    recall_first,
    time_at,
    value_at,
)
from benchmarks.engine_peers import LIBRARIES, Bench, build_peers, inverted_lists
from benchmarks.engine_verdict import verdict
from pipeline.index.quantizer import Quantizer


def random_rows(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)


def test_recall_counts_the_queries_whose_nearest_row_came_back() -> None:
    ids = np.array([[3, 1], [1, 3], [5, 6], [-1, -1]])
    truth = np.array([3, 3, 3, 3])
    assert recall_among(ids, truth) == 0.5
    assert recall_first(ids, truth) == 0.25


def test_an_equally_near_row_is_no_index_loss() -> None:
    exact = np.array([[4, 4], [2, 9], [1, 2]], np.float32)
    found = np.array([[4, 9], [9, 9], [np.inf, np.inf]], np.float32)
    assert index_recall(found, exact) == pytest.approx(1 / 3)


def test_the_distance_ratio_is_of_distances_and_skips_what_has_none() -> None:
    rows = np.array([[0, 0], [1, 0], [3, 0]], np.float32)
    queries = np.array([[0, 0], [2, 0], [4, 0], [4, 0]], np.float32)
    ids = np.array([[0], [2], [1], [-1]])
    truth = np.array([0, 1, 2, 2])
    # The first lies on its row, the last found nothing: 1 / 1 and 3 / 1 remain.
    assert distance_ratio(rows, queries, ids, truth) == 2.0


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_nearest_rows_are_those_of_double_precision(piece: int) -> None:
    rows, queries = random_rows(100), random_rows(20, seed=2)
    wide = rows.astype(np.float64)
    truth = [((wide - query) ** 2).sum(axis=1).argmin() for query in queries.astype(np.float64)]
    assert nearest_rows(rows, queries, piece).tolist() == truth


def test_the_frontier_leaves_out_what_another_point_beats() -> None:
    points = [(0.5, 1.0), (0.6, 3.0), (0.7, 2.0), (0.9, 4.0), (0.9, 5.0), (0.4, 1.5)]
    assert frontier(points) == [(0.5, 1.0), (0.7, 2.0), (0.9, 4.0)]


def test_the_time_at_a_recall_lies_between_the_points_around_it() -> None:
    points = [(0.9, 1.0), (0.99, 4.0)]
    assert time_at(points, 0.9) == pytest.approx(1)
    assert time_at(points, 0.99) == pytest.approx(4)
    # Half way between the logarithms of the losses .1 and .01: half way between those of 1 and 4.
    assert time_at(points, 1 - math.sqrt(0.1 * 0.01)) == pytest.approx(2)
    assert time_at(points, 0.5) == 1.0
    assert math.isnan(time_at(points, 0.995))
    assert math.isnan(time_at([], 0.5))
    assert time_at([*points, (0.95, 9.0)], 0.99) == pytest.approx(4)


def test_points_without_recall_do_not_count() -> None:
    assert math.isnan(time_at([(math.nan, 1.0)], 0.5))
    assert time_at([(math.nan, 1.0), (0.9, 2.0)], 0.9) == 2.0


def test_values_between_points_are_linear_and_outside_there_are_none() -> None:
    points = [(0.9, 0.8), (0.8, 0.6)]
    assert value_at(points, 0.85) == pytest.approx(0.7)
    assert math.isnan(value_at(points, 0.95))


def test_growth_is_the_exponent_between_sizes() -> None:
    assert growth([1, 4, 16], [3.0, 6.0, 24.0]) == pytest.approx([0.5, 1.0])


def test_multiplied_rows_are_the_rows_and_copies_as_far_as_the_differences() -> None:
    rows = random_rows(PIECE + 500)
    differences = random_rows(40, seed=3) * np.float32(0.1)
    made = np.concatenate(list(multiply(rows, 3, differences)))
    assert made.shape == (3 * len(rows), 8)
    np.testing.assert_array_equal(made[: len(rows)], rows)
    lengths = np.linalg.norm(differences, axis=1)
    for copy in (made[len(rows) : 2 * len(rows)], made[2 * len(rows) :]):
        moved = np.linalg.norm(copy - rows, axis=1)
        # Each copy's way is one of the differences, and all of them are used alike.
        apart = np.abs(moved[:, None] - lengths)
        assert apart.min(axis=1).max() < 1e-5
        uses = np.bincount(apart.argmin(axis=1), minlength=40)
        assert 0.9 * uses.mean() < uses.min() <= uses.max() < 1.1 * uses.mean()
        assert np.abs((copy - rows).mean(axis=0)).max() < 0.005
    assert not np.array_equal(made[len(rows) : 2 * len(rows)], made[2 * len(rows) :])


def test_matching_pairs_agree_in_descriptor_and_in_place() -> None:
    """Two views of forty points: ten lie elsewhere in the second one, and do not count."""
    rng = np.random.default_rng(5)
    descriptors = rng.integers(0, 255, (40, 128)).astype(np.uint8)
    places = rng.uniform(0, 500, (40, 2)).astype(np.float32)
    moved = places * np.float32(1.5) + np.float32(20)
    moved[30:] = rng.uniform(0, 500, (10, 2))
    noisy = np.clip(descriptors.astype(int) + rng.integers(-5, 6, (40, 128)), 0, 255)
    found = Descriptors(
        {
            "paths": np.array(["a", "b"]),
            "sha256": np.array(["0", "1"]),
            "counts": np.array([40, 40]),
            "descriptors": np.concatenate([descriptors, noisy.astype(np.uint8)]),
            "positions": np.concatenate([places, moved]),
        }
    )
    rotation = np.linalg.qr(rng.normal(size=(128, 64)))[0].astype(np.float32)
    quantizer = Quantizer(np.zeros(128, np.float32), rotation, 127.0)
    none = np.empty((0, 64), np.float32)
    data = EngineData(none, none[None], [("a", "b"), ("a", "a")], quantizer, found)
    differences = matching_differences(data)
    # All forty of the picture with itself, where nothing differs, and thirty of the pair.
    zero = (differences == 0).all(axis=1)
    assert zero.sum() == 40
    assert 30 <= (~zero).sum() <= 31


def test_the_verdict_compares_at_equal_recall_among_k() -> None:
    def point(method: str, family: str, ms: float, among: float, own: float) -> Point:
        return Point(method, "", family, ms, among, among, 1.0, own)

    nan = math.nan
    points = [
        point("v exact", "exact", 10.0, 1.0, 1.0),
        point("flat", "exact", 250.0, 1.0, nan),
        point("v", "ours", 1.0, 0.90, 0.90),
        point("v", "ours", 2.0, 0.96, 0.95),
        point("v", "ours", 4.0, 0.99, 0.99),
        point("peer", "ivf", 3.0, 0.90, nan),
        point("peer", "ivf", 5.0, 0.96, nan),
    ]
    rows = {(str(row["at"]).split(" (")[0], row["method"]): row for row in verdict(points)}
    assert rows["exhaustive", "flat"]["times faster"] == "25.00"
    assert rows["index recall 0.95", "v"]["ms a batch"] == "2.00"
    assert rows["index recall 0.95", "peer"]["times faster"] == "2.50"
    assert rows["index recall 0.985", "peer"]["ms a batch"] == "not reached"
    assert "flat" not in {method for at, method in rows if at.startswith("index")}


def test_a_peer_that_is_not_installed_is_left_out_and_says_how(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert build_peers(random_rows(50), Bench(1, lambda: 0.0), {"faiss"}) == []
    assert "pip install --group bench" in capsys.readouterr().out


def test_numpy_finds_the_nearest_rows_over_several_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.engine_peers.PRODUCT_ROWS", 30)
    rows, queries = random_rows(100), random_rows(5, seed=2)
    product, full = LIBRARIES["numpy"](rows, Bench(1, lambda: 0.0))
    product.searches[""](queries)
    assert full.ids is not None
    found = full.ids(full.searches[""](queries))
    far = ((rows[None] - queries[:, None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(found, np.argsort(far, axis=1, kind="stable")[:, :16])


def test_an_index_that_is_kept_is_not_built_again(tmp_path: Path) -> None:
    held: list[str] = []

    def keep(build_seconds: float) -> tuple[float, int]:
        bench = Bench(1, lambda: 0.0, tmp_path)
        return bench.kept(
            "IVF 16, SQ8",
            lambda: build_seconds,
            lambda path: Path(path).write_text("index"),
            lambda path: held.append(Path(path).read_text()),
        )

    assert keep(3.0) == (3.0, 5)
    assert keep(4.0) == (3.0, 5)
    assert held == ["index"]


def test_inverted_lists_are_a_power_of_two_near_four_roots() -> None:
    assert inverted_lists(1_000_000) == 4096
    assert inverted_lists(100_000) == 1024
