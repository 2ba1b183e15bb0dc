"""Searches with the distance cache answer as if every distance was computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.caching.colours import COLOURS, WEIGHT, ColourDistance, colour_signature
from pipeline.caching.dcache import DCache, DCacheConfig
from pipeline.caching.metric import Metric, SquaredEuclidean
from pipeline.caching.object_ids import centre_ids, object_ids, runtime_id
from pipeline.caching.paths import feed_paths, follow_paths
from pipeline.caching.regions import ObjectSet, about_centres, of_tree, of_vantage_points
from pipeline.caching.search import DISTANCE, ESTIMATE, INSIDE, nearest, within
from pipeline.caching.table import ENTRY_BYTES, Shape
from pipeline.errors import InputError
from pipeline.index.cells import train_cells
from pipeline.index.vptree import VPTree, train_tree
from tests.heavy import examples

ROWS = SquaredEuclidean()
COLOUR = ColourDistance()


def cache_of(metric: Metric, entries: int, **config: Any) -> DCache:
    return DCache(metric, DCacheConfig(Shape(entries * 4 * ENTRY_BYTES), **config))


def some_rows(seed: int, count: int = 60) -> NDArray[np.int8]:
    """Return rows in clusters, some of them equal, the first ones at the corners of the cube."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(-100, 100, (5, 8))
    rows = centres[rng.integers(0, 5, count)] + rng.integers(-9, 10, (count, 8))
    rows[0], rows[1] = -128, 127
    rows[count // 2 : count // 2 + 5] = rows[3]
    return rows.astype(np.int8)


def some_signatures(seed: int, count: int = 24) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    found = np.zeros((count, COLOURS, 4), np.float32)
    found[..., 0] = rng.uniform(0, 100, (count, COLOURS))
    found[..., 1:3] = rng.uniform(-60, 60, (count, COLOURS, 2))
    found[..., 3] = rng.multinomial(WEIGHT, np.full(COLOURS, 1 / COLOURS), count)
    found[1::4] = found[::4] + np.array([1, 0, 0, 0], np.float32)
    return found


def arranged(form: str, metric: Metric, things: ObjectSet, seed: int) -> ObjectSet:
    """Return the set as it is, or with the regions of cells or of a tree."""
    if form == "flat":
        return things
    if form == "cells":
        centres = things.objects[:6]
        every = np.arange(len(centres))
        cells = np.array([metric.distances(o, centres, every).argmin() for o in things.objects])
        return about_centres(metric, things, cells, centres, first=100)
    if form == "index tree":
        return of_tree(train_tree(things.objects, 3, "random", seed), things)
    return of_vantage_points(metric, things, 3, seed)


def check_stream(
    cache: DCache, things: ObjectSet, queries: NDArray[Any], k: int, share: float
) -> None:
    """Ask both kinds of question with each query, and compare with all distances."""
    every = np.arange(len(things.ids))
    for query in queries:
        right = cache.metric.distances(query, things.objects, every)
        order = np.lexsort((every, right))
        radius = float(np.quantile(right, share))
        runtime = cache.begin(query, runtime_id(query.tobytes()))
        found = nearest(cache, things, query, runtime, k)
        assert found.indices.tolist() == order[:k].tolist()
        assert (found.values == right[order[:k]]).all()
        assert set(found.kinds) <= {DISTANCE}
        runtime = cache.begin(query, runtime_id(query.tobytes()))
        found = within(cache, things, query, runtime, radius)
        assert sorted(found.indices.tolist()) == np.flatnonzero(right <= radius).tolist()
        known = found.kinds == DISTANCE
        assert (found.values[known] == right[found.indices[known]]).all()
        assert (found.values >= right[found.indices])[~known].all()
        assert found.estimated == 0


FORMS = ["flat", "cells", "index tree", "tree"]


@settings(max_examples=examples(120), deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(FORMS), st.integers(1, 200),
       st.integers(0, 4), st.integers(1, 70), st.floats(0, 1))  # fmt: skip
def test_answers_over_rows_are_exact_whatever_the_cache_holds(
    seed: int, form: str, entries: int, pivots: int, k: int, share: float
) -> None:
    rows = some_rows(seed)
    things = arranged(form, ROWS, ObjectSet(rows, object_ids(0, len(rows))), seed)
    cache = cache_of(ROWS, entries, pivots=pivots, choice="nearest", among=6)
    near = (rows[::7].astype(np.int16) + 1).clip(-128, 127).astype(np.int8)
    queries = np.concatenate([rows[::9], near, rows[:2]])
    check_stream(cache, things, queries, k, share)


@settings(max_examples=examples(40), deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["flat", "cells", "tree"]),
       st.integers(1, 100), st.integers(1, 24), st.floats(0, 1))  # fmt: skip
def test_answers_over_colours_are_exact_whatever_the_cache_holds(
    seed: int, form: str, entries: int, k: int, share: float
) -> None:
    signatures = some_signatures(seed)
    things = arranged(form, COLOUR, ObjectSet(signatures, object_ids(0, len(signatures))), seed)
    cache = cache_of(COLOUR, entries, pivots=3)
    check_stream(cache, things, np.concatenate([signatures[::5], signatures[:6]]), k, share)


def test_cells_and_groups_are_excluded_by_the_lower_bound_and_taken_by_the_upper() -> None:
    """Figure 1 of the paper, with a query whose distances to the centres are bounded alone."""
    rows = np.zeros((30, 4), np.int8)
    rows[:10, 0] = np.arange(10) % 3  # a cell about 1, one about 100, one about -100
    rows[10:20, 0], rows[20:, 0] = 100 + rows[:10, 0], -100 + rows[:10, 0]
    centres = rows[[1, 11, 21]]
    flat = ObjectSet(rows, object_ids(0, 30))
    things = about_centres(ROWS, flat, np.repeat([0, 1, 2], 10), centres)
    cache = cache_of(ROWS, 1000, pivots=1)
    before, query = np.array([3, 0, 0, 0], np.int8), np.array([4, 0, 0, 0], np.int8)
    runtime = cache.begin(before, np.uint64(1 << 63))
    assert things.regions is not None
    cache.insert(runtime, things.regions.ids, ROWS.distances(before, centres, np.arange(3)))
    computed = cache.table.inserted
    runtime = cache.begin(query, np.uint64(1 << 63 | 1))
    found = within(cache, things, query, runtime, 100.0)
    assert found.indices.tolist() == list(range(10))
    assert set(found.kinds) == {INSIDE}
    assert (cache.counters.skipped, cache.counters.missed) == (30, 0)
    assert cache.counters.approximate == 3  # three centres
    assert cache.table.inserted == computed + 1  # the distance of the two queries


def test_what_lies_outside_of_a_ball_is_excluded_by_the_upper_bound_of_its_centre() -> None:
    rows = np.array([[0], [1], [100], [101], [102]], np.int8)
    flat = ObjectSet(rows, object_ids(0, 5))
    things = about_centres(ROWS, flat, np.array([0, 0, 1, 1, 1]), rows[:1].repeat(2, axis=0))
    for radius, wanted in ((98.0**2 - 1, [0, 1]), (98.0**2, [0, 1, 2])):
        cache = cache_of(ROWS, 1000, pivots=1)
        runtime = cache.begin(np.array([1], np.int8), np.uint64(1 << 63))
        cache.insert(runtime, centre_ids(0, 2), np.array([1.0, 1.0]))
        query = np.array([2], np.int8)  # 2 from the centre, which is known to be 0 to 2
        runtime = cache.begin(query, np.uint64(1 << 63 | 1))
        assert sorted(within(cache, things, query, runtime, radius).indices) == wanted
        assert cache.counters.skipped == (5 if wanted == [0, 1] else 2)  # the ball is taken


def test_an_object_at_the_radius_is_inside_though_its_cell_is_as_far_as_that() -> None:
    rows = np.array([[98], [99], [100], [101], [102], [0]], np.int8)
    flat = ObjectSet(rows, object_ids(0, 6))
    things = about_centres(ROWS, flat, np.array([0, 0, 0, 0, 0, 1]), rows[[2, 5]])
    for radius, wanted in ((98.0**2 - 1, [5]), (98.0**2, [0, 5])):
        cache, query = cache_of(ROWS, 1000), rows[5]
        runtime = cache.begin(query, np.uint64(1 << 63))
        assert sorted(within(cache, things, query, runtime, radius).indices) == wanted


@pytest.mark.parametrize("form", FORMS)
def test_any_number_of_neighbours_is_found(form: str) -> None:
    rows = some_rows(11)
    things = arranged(form, ROWS, ObjectSet(rows, object_ids(0, len(rows))), 1)
    for k in (*range(1, 30), 59, 60, 61):
        check_stream(cache_of(ROWS, 20, pivots=2), things, rows[k % 7 :: 20], k, k / 70)


def test_groups_above_cells_are_excluded_at_once() -> None:
    rows = some_rows(1, 400)
    things = arranged("tree", ROWS, ObjectSet(rows, object_ids(0, len(rows))), 1)
    cache = cache_of(ROWS, 5000)
    for query in rows[:50:10]:
        runtime = cache.begin(query, runtime_id(query.tobytes()))
        nearest(cache, things, query, runtime, 1)
    counters = cache.counters
    assert counters.skipped > 400
    assert counters.skipped + counters.lookups < 5 * 400 + 100


def test_an_object_is_taken_by_its_upper_bound() -> None:
    rows = np.array([[0], [1], [50]], np.int8)
    things, cache = ObjectSet(rows, object_ids(0, 3)), cache_of(ROWS, 1000)
    runtime = cache.begin(rows[0], np.uint64(1 << 63))
    nearest(cache, things, rows[0], runtime, 3)
    query = np.array([2], np.int8)
    runtime = cache.begin(query, np.uint64(1 << 63 | 1))
    found = within(cache, things, query, runtime, 9.0)
    assert (found.indices.tolist(), found.kinds.tolist()) == ([0, 1], [INSIDE, INSIDE])
    counters = cache.counters
    assert (counters.exact, counters.approximate, counters.missed) == (0, 3, 3)


def test_the_same_query_again_computes_nothing() -> None:
    rows = some_rows(3)
    things, cache = ObjectSet(rows, object_ids(0, len(rows))), cache_of(ROWS, 1000)
    for _ in range(2):
        runtime = cache.begin(rows[5], runtime_id(rows[5].tobytes()))
        nearest(cache, things, rows[5], runtime, len(rows))
    counters = cache.counters
    assert (counters.exact, counters.approximate, counters.missed) == (60, 0, 60)


def test_estimates_are_made_only_if_configured_and_are_marked() -> None:
    rows = some_rows(4)
    things = ObjectSet(rows, object_ids(0, len(rows)))
    for estimates in (False, True):
        cache = cache_of(ROWS, 1000, estimates=estimates)
        query = rows[7]
        cache.feed(np.array([1 << 63], np.uint64), things.ids[:20], np.full(20, 400.0))
        runtime = cache.begin(query, np.uint64(1 << 63))
        found = nearest(cache, things, query, runtime, 60)
        kinds = dict(zip(found.indices.tolist(), found.kinds.tolist(), strict=True))
        if not estimates:
            assert (found.estimated, set(kinds.values())) == (0, {DISTANCE})
            continue
        assert [kinds[i] for i in range(60)] == [DISTANCE] * 20 + [ESTIMATE] * 40
        assert (found.estimated, cache.counters.estimated) == (40, 40)
        assert set(found.values[found.kinds == ESTIMATE]) == {cache.table.middle.value}
        assert cache.table.inserted == 20


def test_estimates_lie_in_the_middle_of_bounds() -> None:
    rows = some_rows(5)
    things = ObjectSet(rows, object_ids(0, len(rows)))
    cache = cache_of(ROWS, 1000, estimates=True)
    every = np.arange(60)
    first = cache.begin(rows[0], runtime_id(b"0"))
    cache.insert(first, things.ids, ROWS.distances(rows[0], rows, every))
    runtime = cache.begin(rows[9], runtime_id(b"9"))
    found = nearest(cache, things, rows[9], runtime, 5)
    bounds = cache.bound(runtime, things.ids[found.indices])
    assert (found.values >= bounds.lower).all()
    assert (found.values <= bounds.upper).all()
    middle = (np.sqrt(bounds.lower) + np.sqrt(bounds.upper)) / 2
    assert np.sqrt(found.values) == pytest.approx(middle)
    assert set(found.kinds) == {ESTIMATE}


def test_an_empty_set_and_empty_regions_give_nothing() -> None:
    rows = some_rows(6)
    cache = cache_of(ROWS, 10)
    runtime = cache.begin(rows[0], np.uint64(1 << 63))
    nothing = ObjectSet(rows[:0], object_ids(0, 0))
    assert len(nearest(cache, nothing, rows[0], runtime, 3).indices) == 0
    assert len(within(cache, nothing, rows[0], runtime, 1e6).indices) == 0
    alike = ObjectSet(rows[30:34], object_ids(0, 4))  # equal rows: half of the cells is empty
    for form in FORMS[1:]:
        things = arranged(form, ROWS, alike, 1)
        assert len(nearest(cache, things, rows[0], runtime, 9).indices) == 4


@pytest.mark.parametrize("levels", [0, 1, 4])
def test_grouping_feeds_the_distances_of_the_paths(levels: int) -> None:
    rows = some_rows(7, 200)
    tree, ids = train_tree(rows, levels, "random", 3), object_ids(0, 200)
    cache = cache_of(ROWS, 2000)
    assert (feed_paths(cache, tree, rows, ids, 50) == tree.assign(rows)).all()
    assert cache.table.inserted == 200 * levels
    query = some_rows(8)[5]
    paths = follow_paths(tree, query[None])
    centres = paths.centres(0, 50)
    wanted = ((tree.points[paths.nodes[0]] - query) ** 2).sum(axis=1)
    assert (centres[1] == wanted).all()
    runtime = cache.begin(query, runtime_id(b"q"), centres)
    found = cache.bound(runtime, ids)
    right = ROWS.distances(query, rows, np.arange(200))
    assert (found.lower <= right).all()
    assert (right <= found.upper).all()
    if levels:
        assert set(centres[0]) <= set(centre_ids(50, len(tree.points)))
        assert (found.lower > 0).mean() > 0.5  # the root alone bounds every row


def test_vantage_points_that_are_no_rows_are_refused() -> None:
    rows = some_rows(9)
    tree = train_tree(rows, 2, "principal")
    with pytest.raises(InputError, match="random"):
        follow_paths(tree, rows)
    leaves = train_cells(rows, 2, "leaves", "spread")
    assert isinstance(leaves, VPTree)
    assert (follow_paths(leaves, rows).cells == leaves.assign(rows)).all()


def test_the_distance_of_colours_is_that_of_opencv_and_a_metric() -> None:
    import cv2

    signatures = some_signatures(1, 16)
    every = np.arange(len(signatures))
    found = np.array([COLOUR.distances(one, signatures, every) for one in signatures])
    pairs = [np.ascontiguousarray(one[:, [3, 0, 1, 2]]) for one in signatures]
    wanted = np.array([[cv2.EMD(a, b, cv2.DIST_L2)[0] for b in pairs] for a in pairs])
    assert found == pytest.approx(wanted, abs=2e-4)
    assert (found == found.T).all()
    assert (found.diagonal() == 0).all()
    for row in found:
        assert (row[:, None] + found >= row[None] - 3 * COLOUR.error).all()
    with pytest.raises(InputError, match="signature"):
        COLOUR.distances(signatures[0] * 2, signatures, every)


def test_signatures_of_pictures_have_their_colours_and_one_weight() -> None:
    rng = np.random.default_rng(1)
    flat = np.full((40, 30, 3), (255, 0, 0), np.uint8)
    halves = np.zeros((100, 200, 3), np.uint8)
    halves[:, 100:] = 255
    noise = rng.integers(0, 256, (90, 70, 3), np.uint8)
    signatures = np.stack([colour_signature(picture) for picture in (flat, halves, noise)])
    assert (signatures[..., 3].sum(axis=1) == WEIGHT).all()
    assert (colour_signature(noise) == signatures[2]).all()
    used = signatures[1][signatures[1][:, 3] > 0]
    assert used[0, 0] == pytest.approx(0, abs=0.1)
    assert used[-1, 0] == pytest.approx(100, abs=0.1)
    halfway = COLOUR.distances(signatures[1], signatures, np.arange(3))
    assert halfway[1] == 0
    assert halfway[0] > 40
