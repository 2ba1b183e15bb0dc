from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
from core_data import (
    asked,
    collection,
    descriptors,
    features,
    ids,
    merge_rows,
    model,
    named,
    opened,
    segments,
)
from heavy import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.arrays import ArrayFile, arrays_to_bytes
from pipeline.config import IndexConfig
from pipeline.errors import DeadlinePassedError
from pipeline.index.kernels import k_nearest, prepare_queries
from pipeline.index.model import Model, train_model
from pipeline.index.rows import pack_rows, to_signed, unpack_rows
from pipeline.index.segments import Segment, assign_features
from pipeline.records import Features
from pipeline.request import SearchRequest
from pipeline.retrieval import scan
from pipeline.retrieval.blocks import DistanceBlock, ScanCounts, merge_blocks, split_block
from pipeline.retrieval.cost import (
    EXHAUSTIVE_WITHIN_BYTES,
    Workload,
    exhaustive_is_fast_enough,
)
from pipeline.retrieval.open_segments import ImageSet
from pipeline.retrieval.plan import (
    ONE_VECTOR_ROWS,
    QueryPlan,
    background_radius,
    join_plans,
    make_plan,
    plan_work,
)
from pipeline.retrieval.scan import scan_opened, scan_segment
from pipeline.retrieval.score import NOTHING_RANKED, Ranking, make_matches, rank_blocks


def query_codes(seed: int = 15, count: int = 40) -> NDArray[np.int8]:
    """Descriptors of image 15 with a little noise."""
    noise = np.random.default_rng(seed).normal(0, 0.05, (count, 32)).astype(np.float32)
    return model().quantizer.encode(features(15, 30).descriptors[np.arange(count) % 30] + noise)


def plan_of(kind: str, share: float = 1.0, codes: NDArray[np.int8] | None = None) -> QueryPlan:
    request = asked(kind, share)
    return make_plan(model(), query_codes() if codes is None else codes, 930, request)


def scan_all(plan: QueryPlan, removed: frozenset[int] = frozenset()) -> list[DistanceBlock]:
    return [scan_one(segment, plan, removed) for segment in segments()]


def scan_one(
    segment: Segment,
    plan: QueryPlan,
    removed: frozenset[int] = frozenset(),
    until: float | None = None,
) -> DistanceBlock:
    return scan_opened(opened(segment), plan, [ImageSet(removed)], until)


def same_block(one: DistanceBlock, other: DistanceBlock) -> bool:
    return arrays_to_bytes(one.to_arrays(), one.to_meta()) == arrays_to_bytes(
        other.to_arrays(), other.to_meta()
    )


# --- plan ----------------------------------------------------------------------------------------


def test_the_probed_plan_over_all_cells_finds_what_the_exhaustive_plan_finds() -> None:
    probed, exhaustive = scan_all(plan_of("probed")), scan_all(plan_of("exhaustive"))
    assert sum(len(block.query) for block in exhaustive) >= 40
    for one, other in zip(probed, exhaustive, strict=True):
        assert one.counts.computed is not None
        assert len(one.query) <= one.counts.computed <= one.counts.pairs
        # How many pairs the prefixes decide depends on the tiles.
        tiled = replace(one.counts, computed=other.counts.computed)
        assert same_block(replace(one, counts=tiled), other)


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_each_wanted_cell_is_visited_once_by_the_queries_that_want_it(share: float) -> None:
    plan = plan_of("probed", share)
    visits: set[tuple[int, int]] = set()
    for segment in (segments()[0], *segments()[2:]):
        work = plan_work(plan, segment)
        cells = np.searchsorted(segment.cell_offsets, work.row_start, side="right") - 1
        assert len(np.unique(cells)) == len(cells)
        assert (work.row_stop > work.row_start).all()
        assert np.array_equal(segment.cell_offsets[cells], work.row_start)
        assert np.array_equal(segment.cell_offsets[cells + 1], work.row_stop)
        for item, cell in enumerate(cells):
            wanting = work.query_list[work.query_start[item] : work.query_start[item + 1]]
            assert len(np.unique(wanting)) == len(wanting) > 0
            visits |= {(int(query), int(cell) + segment.first_cell) for query in wanting}
    filled = {
        cell + segment.first_cell
        for segment in (segments()[0], *segments()[2:])
        for cell in np.flatnonzero(np.diff(segment.cell_offsets))
    }
    wanted = {(query, int(cell)) for query, row in enumerate(plan.cells) for cell in row}
    assert visits == {(query, cell) for query, cell in wanted if cell in filled}


def test_a_probed_plan_names_the_groups_of_its_cells_alone() -> None:
    plan = plan_of("probed", 0.01, query_codes(count=1))
    assert plan.cells.shape == (1, 1)
    assert plan.groups == (int(plan.cells[0, 0]) // model().cells_per_group,)
    for segment in segments():
        work = plan_work(plan, segment)
        group = segment.first_cell // model().cells_per_group
        assert (work.pairs > 0) <= (group in plan.groups)


def test_auto_takes_the_exhaustive_plan_where_the_reference_is_fast_enough() -> None:
    config = SearchRequest()
    for count in (1, 7, 40):
        rows = 10**6
        while exhaustive_is_fast_enough(Workload(count, rows, 64, model().tree.cells)):
            rows *= 2
        for many, kind in ((rows, "probed"), (rows // 2, "exhaustive")):
            assert make_plan(model(), query_codes(count=count), many, config).kind == kind


def test_plans_of_images_are_joined_and_what_a_scan_found_is_parted_again() -> None:
    codes = [query_codes(seed, count) for seed, count in ((15, 40), (3, 7), (9, 1), (15, 40))]
    for kind in ("probed", "exhaustive"):
        plans = [plan_of(kind, 0.2, some) for some in codes]
        joined = join_plans(plans)
        offsets = [0, 40, 47, 48, 88]
        together = merge_blocks(scan_all(joined))
        assert len(together.query) > 0
        for plan, one in zip(plans, split_block(together, offsets), strict=True):
            alone = merge_blocks(scan_all(plan))
            again = merge_blocks([one])
            for name, array in alone.to_arrays().items():
                assert np.array_equal(array, again.to_arrays()[name])
        counts = together.counts
        assert counts.pairs == sum(merge_blocks(scan_all(plan)).counts.pairs for plan in plans)
        # What several want is visited once.
        assert counts.cells < sum(merge_blocks(scan_all(plan)).counts.cells for plan in plans)


def test_the_background_radius_is_that_of_the_second_neighbour_or_the_shortened_sixteenth() -> None:
    queries = prepare_queries(query_codes())
    distance, _ = k_nearest(model().background, queries, 16)
    size = model().background.size
    expected_nearer = 2e-5 * (32_768 / size) ** 0.5 * size
    expected = np.maximum(
        distance[:, 1] * min(1, (expected_nearer / 2) ** (2 / 10.4)),
        0.9 * distance[:, 15] * min(1, (expected_nearer / 16) ** (2 / 10.4)),
    )
    assert np.array_equal(background_radius(model(), queries), expected.astype(np.int32))


@pytest.mark.parametrize("size", [1, 2, 10, 16, 40])
def test_a_small_background_sample_still_gives_a_radius(size: int) -> None:
    small = replace(model(), background=pack_rows(unpack_rows(model().background)[:size]))
    assert (background_radius(small, prepare_queries(query_codes())) > 0).all()


def test_a_plan_survives_its_file() -> None:
    for kind in ("probed", "exhaustive"):
        plan = plan_of(kind, 0.2)
        file = ArrayFile(arrays_to_bytes(plan.to_arrays(), plan.to_meta()))
        again = QueryPlan.from_arrays(file, file.meta)
        assert (again.kind, again.groups) == (plan.kind, plan.groups)
        for name, array in plan.to_arrays().items():
            assert np.array_equal(array, again.to_arrays()[name])


# --- scan ----------------------------------------------------------------------------------------


def test_a_block_holds_of_each_query_descriptor_and_image_the_nearest_row_within_the_radius() -> (
    None
):
    plan, removed = plan_of("exhaustive"), frozenset({3, 20})
    merged = merge_blocks(scan_all(plan, removed))
    expected: dict[tuple[int, int], int] = {}
    for segment in segments():
        stored = to_signed(unpack_rows(segment.rows)).astype(np.int64)
        images = ids(segment.table)[segment.images]
        for query, code in enumerate(plan.codes.astype(np.int64)):
            distances = ((stored - code) ** 2).sum(axis=1)
            for image, distance in zip(images, distances, strict=True):
                if distance < plan.radius[query] and int(image) not in removed:
                    key = (query, int(image))
                    expected[key] = min(int(distance), expected.get(key, 2**31))
    found = {
        (int(query), int(image)): int(distance)
        for query, image, distance in zip(merged.query, merged.image, merged.distance, strict=True)
    }
    assert found == expected
    assert len(merged.query) == len(expected)


def test_a_scan_is_given_up_between_cells_when_its_search_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, segment = plan_of("probed"), segments()[2]
    expected = scan_segment(segment, plan)
    monkeypatch.setattr(scan, "PAIRS_BETWEEN_LOOKS", 64)
    assert same_block(scan_segment(segment, plan, until=time.time() + 600), expected)
    with pytest.raises(DeadlinePassedError, match="deadline passed"):
        scan_segment(segment, plan, until=time.time() - 1)
    clock = iter([0.0, 0.0, 9.0])
    monkeypatch.setattr("pipeline.retrieval.scan.time.time", lambda: next(clock))
    with pytest.raises(DeadlinePassedError):
        scan_segment(segment, plan, until=5.0)
    assert not list(clock)


def random_count(rng: np.random.Generator) -> int | None:
    return None if rng.random() < 0.2 else int(rng.integers(0, 9))


def random_block(rng: np.random.Generator) -> DistanceBlock:
    count = int(rng.integers(0, 30))
    return DistanceBlock(
        rng.integers(0, 4, count).astype(np.uint16),
        rng.integers(0, 4, count).astype(np.uint32),
        rng.integers(0, 3, count).astype(np.uint32),
        rng.integers(0, 3, (count, 4)).astype(np.uint16) * 20_000,
        ScanCounts(*rng.integers(0, 9, 5).tolist(), computed=random_count(rng)),
    )


@given(seed=st.integers(0, 2**32))
def test_merging_blocks_is_associative_and_commutative(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (random_block(rng) for _ in range(3))
    expected = merge_blocks([a, b, c])
    assert same_block(merge_blocks([merge_blocks([a, b]), c]), expected)
    assert same_block(merge_blocks([a, merge_blocks([b, c])]), expected)
    assert same_block(merge_blocks([c, a, b]), expected)
    assert same_block(merge_blocks([expected]), expected)
    pairs = list(zip(expected.image.tolist(), expected.query.tolist(), strict=True))
    assert pairs == sorted(set(pairs))


def test_merging_no_blocks_gives_an_empty_block() -> None:
    nothing = merge_blocks([])
    assert len(nothing.query) == len(nothing.geometry) == 0
    assert nothing.counts == ScanCounts()
    assert nothing.geometry.shape == (0, 4)


def test_a_block_survives_its_file() -> None:
    block = scan_all(plan_of("exhaustive"))[2]
    file = ArrayFile(arrays_to_bytes(block.to_arrays(), block.to_meta()))
    assert same_block(DistanceBlock.from_arrays(file, file.meta), block)


# --- one vector an image --------------------------------------------------------------------------


@functools.cache
def pictures() -> tuple[Model, NDArray[np.float32], tuple[Segment, ...]]:
    """Three hundred whole-picture vectors of 128 numbers in one segment a group, group 0 in two."""
    rng = np.random.default_rng(8)
    rows = rng.normal(0, 1, (300, 128)) * np.linspace(2, 0.3, 128) + 0.5
    rows[40:44] = rows[40]  # four equal pictures
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    config = IndexConfig(groups=4, cell_size=20, dimensions=128)
    trained = train_model(vectors, vectors[:16], 300, config, unit=True)
    picture = np.array([[320, 240, 640, 0, 0, 0, 0]], np.float32)
    assignments = []
    for numbers in (range(120), range(120, 300)):
        images = [Features(picture, vectors[i : i + 1], 640, 480) for i in numbers]
        normalized = [vectors[i : i + 1] for i in numbers]
        assignments.append(assign_features(trained, normalized, images, named(numbers)))
    made = [merge_rows(trained, 0, [assigned]) for assigned in assignments]
    return trained, vectors, (*made, *(merge_rows(trained, g, assignments) for g in (1, 2, 3)))


def nearest_pictures(
    number: int, kind: str, top: int, removed: frozenset[int] = frozenset()
) -> tuple[QueryPlan, DistanceBlock]:
    trained, vectors, stored = pictures()
    request = replace(asked(kind, 1.0), top=top)
    codes = trained.quantizer.encode(vectors[number : number + 1])
    plan = make_plan(trained, codes, 300, request, one_vector=True)
    blocks = [scan_one(segment, plan, removed) for segment in stored]
    return plan, merge_blocks(blocks, plan.neighbours)


@pytest.mark.parametrize("kind", ["probed", "exhaustive"])
@pytest.mark.parametrize("removed", [frozenset[int](), frozenset({5, 17, 41})])
def test_one_vector_finds_the_nearest_pictures_that_are_not_removed(
    kind: str, removed: frozenset[int]
) -> None:
    trained, vectors, _ = pictures()
    stored = trained.quantizer.encode(vectors).astype(np.int64)
    for number in (0, 17, 42, 299):
        plan, block = nearest_pictures(number, kind, 10, removed)
        assert plan.neighbours == 100
        squared = ((stored - stored[number]) ** 2).sum(axis=1)
        living = np.array([i for i in range(300) if i not in removed])
        order = living[np.argsort(squared[living], kind="stable")]
        last = min(squared[order[99]], plan.radius[0] - 1)
        expected = {(int(i), int(squared[i])) for i in order if squared[i] <= last}
        assert set(zip(block.image.tolist(), block.distance.tolist(), strict=True)) == expected


def test_one_vector_opens_cells_for_many_rows() -> None:
    """The usual share of the cells of a small collection holds too few of the right images."""
    trained, vectors, _ = pictures()
    codes = trained.quantizer.encode(vectors[:1])
    usual = SearchRequest(plan="probed")
    cells = trained.tree.cells
    for count, wide in ((300, cells), (ONE_VECTOR_ROWS * 2, cells / 2), (10**9, 8)):
        plan = make_plan(trained, codes, count, usual, one_vector=True)
        assert plan.cells.shape == (1, wide)
    # Who asks for an effort gets it.
    for one_vector in (False, True):
        asked = make_plan(trained, codes, 300, replace(usual, effort=1 / 16), one_vector)
        assert asked.cells.shape == (1, cells / 16)


def test_the_score_of_one_vector_is_the_cosine() -> None:
    trained, vectors, _ = pictures()
    plan, block = nearest_pictures(42, "exhaustive", 10)
    ranking = rank_blocks([block], plan.radius)
    assert ranking.images[:4].tolist() == [40, 41, 42, 43]
    rows = {i: Row(f"{i:03}") for i in range(300)}
    matches = make_matches(ranking, rows, 10)
    assert [m.score for m in matches[:4]] == [1.0] * 4
    assert {m.votes for m in matches} == {1}
    rotated = (vectors - trained.quantizer.mean) @ trained.quantizer.rotation
    unit = rotated / np.linalg.norm(rotated, axis=1, keepdims=True)
    for match in matches:
        assert match.score == pytest.approx(unit[int(match.image)] @ unit[42], abs=0.02)


def test_pictures_as_near_as_the_last_are_all_found_in_whatever_order_they_lie() -> None:
    trained, vectors, stored = pictures()
    codes = trained.quantizer.encode(vectors[42:43])
    plan = replace(
        make_plan(trained, codes, 300, SearchRequest(plan="exhaustive"), one_vector=True),
        neighbours=2,
    )
    blocks = [scan_one(segment, plan) for segment in stored]
    merged = merge_blocks(blocks, 2)
    assert merged.image.tolist() == [40, 41, 42, 43]
    again = merge_blocks([merge_blocks(blocks[3:], 2), merge_blocks(blocks[:3], 2)], 2)
    assert same_block(again, merged)


@pytest.mark.parametrize("neighbours", [2, 7, 100])  # the first has others as near as its last
def test_the_nearest_are_looked_for_in_pieces_with_a_look_at_the_clock(
    neighbours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, vectors, stored = pictures()
    codes = trained.quantizer.encode(vectors[40:43])
    request = SearchRequest(plan="probed", effort=1.0)
    plan = replace(make_plan(trained, codes, 300, request, one_vector=True), neighbours=neighbours)
    removed = frozenset({41})
    expected = [scan_one(segment, plan, removed) for segment in stored]
    monkeypatch.setattr(scan, "PAIRS_BETWEEN_LOOKS", 16)
    for segment, block in zip(stored, expected, strict=True):
        assert same_block(scan_one(segment, plan, removed, until=time.time() + 600), block)
    clock = iter([0.0, 0.0, 9.0])
    monkeypatch.setattr("pipeline.retrieval.scan.time.time", lambda: next(clock))
    with pytest.raises(DeadlinePassedError):
        scan_one(max(stored, key=lambda one: one.rows.size), plan, until=5.0)
    assert not list(clock)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 5))
def test_merging_the_nearest_is_associative_and_commutative(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (random_block(rng) for _ in range(3))
    expected = merge_blocks([a, b, c], count)
    assert same_block(merge_blocks([merge_blocks([a, b], count), c], count), expected)
    assert same_block(merge_blocks([c, merge_blocks([b, a], count)], count), expected)
    everything = merge_blocks([a, b, c])
    for query in np.unique(everything.query):
        mine = np.sort(everything.distance[everything.query == query])
        kept = np.sort(expected.distance[expected.query == query])
        assert kept.tolist() == mine[mine <= mine[min(count, len(mine)) - 1]].tolist()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("whiten", [False, True])
def test_one_vector_of_the_smallest_collections(count: int, equal: bool, whiten: bool) -> None:
    rng = np.random.default_rng(count)
    rows = rng.random((1 if equal else count, 192)).repeat(count if equal else 1, axis=0)
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    config = IndexConfig(dimensions=192)
    trained = train_model(vectors, vectors, count, config, unit=True, whiten=whiten)
    picture = np.array([[320, 240, 640, 0, 0, 0, 0]], np.float32)
    images = [Features(picture, row[None], 640, 480) for row in vectors]
    assigned = assign_features(
        trained, [f.descriptors for f in images], images, named(range(count))
    )
    stored = [merge_rows(trained, group, [assigned]) for group in range(4)]
    for kind in ("probed", "exhaustive"):
        request = asked(kind, 1.0)
        codes = trained.quantizer.encode(vectors[:1])
        plan = make_plan(trained, codes, count, request, one_vector=True)
        ranking = rank_blocks([scan_one(segment, plan) for segment in stored], plan.radius)
        assert ranking.images[0] == 0
        assert ranking.scores[0] == ranking.full_score
        assert len(ranking.images) == count if equal else len(ranking.images) >= 1


def test_long_rows_are_probed_in_smaller_collections() -> None:
    trained, vectors, _ = pictures()
    codes = trained.quantizer.encode(vectors[:1])
    most = EXHAUSTIVE_WITHIN_BYTES // (128 + 8)
    for count, kind in [(most, "exhaustive"), (most + 1, "probed")]:
        plan = make_plan(trained, codes, count, SearchRequest(), one_vector=True)
        assert plan.kind == kind


# --- score ---------------------------------------------------------------------------------------


def one_block(
    *matches: tuple[int, int, int], keypoints: list[tuple[int, int, int, int]] | None = None
) -> DistanceBlock:
    """Matches (query, image, distance), each of a row of its own unless keypoints are given."""
    query, image, distance = zip(*matches, strict=True)
    places = keypoints or [(number, 0, 0, 0) for number in range(len(matches))]
    return DistanceBlock(
        np.array(query, np.uint16),
        np.array(image, np.uint32),
        np.array(distance, np.uint32),
        np.array(places, np.uint16),
    )


def test_an_image_scores_what_its_nearest_rows_lie_below_the_background() -> None:
    radius = np.array([100, 50, 10], np.int32)
    block = one_block((0, 7, 40), (0, 7, 60), (1, 7, 0), (2, 9, 1), (0, 9, 99))
    ranking = rank_blocks([block], radius)
    assert ranking.images.tolist() == [7, 9]
    assert ranking.scores.tolist() == [60 + 50, 9 + 1]
    assert ranking.votes.tolist() == [2, 2]
    assert ranking.full_score == 160


def test_a_row_votes_once_for_its_image_with_its_best_pair() -> None:
    radius = np.full(5, 100, np.int32)
    same, turned, moved = (9, 8, 7, 6), (9, 8, 7, 5), (8, 8, 7, 6)
    block = one_block(
        (0, 7, 40), (1, 7, 30), (2, 7, 30), (3, 7, 90), (4, 7, 90), (0, 8, 20), (1, 8, 20),
        keypoints=[same, same, same, turned, moved, same, moved],
    )  # fmt: skip
    ranking = rank_blocks([block], radius)
    assert ranking.images.tolist() == [8, 7]
    assert ranking.scores.tolist() == [80 + 80, 70 + 10 + 10]
    assert ranking.votes.tolist() == [2, 3]


@settings(max_examples=examples(25), deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_order_of_the_blocks_does_not_change_the_ranking(seed: int) -> None:
    plan = plan_of("exhaustive")
    blocks = scan_all(plan)
    expected = rank_blocks(blocks, plan.radius)
    order = np.random.default_rng(seed).permutation(len(blocks))
    found = rank_blocks([blocks[i] for i in order], plan.radius)
    for name in ("images", "scores", "votes"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    assert expected.images[0] == 15


def test_no_block_gives_an_empty_ranking() -> None:
    ranking = rank_blocks([], np.array([5], np.int32))
    assert len(ranking.images) == len(ranking.scores) == len(ranking.votes) == 0
    assert make_matches(ranking, {}, 5) == ()


@dataclass(frozen=True)
class Row:
    sha256: str
    width: int | None = 4
    height: int | None = None
    locations: tuple[str, ...] = ("/a", "/b")
    location_states: tuple[str, ...] = ("unknown", "gone")


def ranking_of(scores: list[int]) -> Ranking:
    return Ranking(
        np.arange(len(scores), dtype=np.uint32),
        np.array(scores, np.int64),
        np.ones(len(scores), np.int64),
        100,
    )


def test_ties_are_broken_by_sha256_also_at_the_end_of_the_answer() -> None:
    ranking = ranking_of([50, 20, 20, 20, 10])
    assert ranking.candidates(2).tolist() == [0, 1, 2, 3]
    rows = {0: Row("e"), 1: Row("d"), 2: Row("b"), 3: Row("c")}
    matches = make_matches(ranking, rows, 2)
    assert [(m.rank, m.image, m.score) for m in matches] == [(1, "e", 0.5), (2, "b", 0.2)]
    assert matches[0].locations == ("/a", "/b")
    assert (matches[0].width, matches[0].height) == (4, 0)


def test_an_image_without_a_row_is_left_out() -> None:
    matches = make_matches(ranking_of([50, 20, 10]), {0: Row("a"), 2: Row("b")}, 5)
    assert [(m.rank, m.image) for m in matches] == [(1, "a"), (2, "b")]


def test_the_same_file_is_first_whatever_its_score_and_without_any() -> None:
    rows = {number: Row(name) for number, name in enumerate("abcd")}
    for same, wanted in ((2, ["c", "a"]), (3, ["d", "a"]), (9, ["a", "b"])):
        matches = make_matches(ranking_of([50, 20, 10]), rows, 2, [same])
        assert [match.image for match in matches] == wanted
        assert [match.same_file for match in matches] == [same in rows, False]
    assert make_matches(NOTHING_RANKED, rows, 5, [3])[0].score == 0


def test_equal_images_tie() -> None:
    plan = plan_of("exhaustive", codes=model().quantizer.encode(descriptors(7, 14)))
    ranking = rank_blocks(scan_all(plan), plan.radius)
    assert collection()[7] is collection()[8]
    assert sorted(ranking.images[:2].tolist()) == [7, 8]
    assert ranking.scores[0] == ranking.scores[1] == ranking.full_score
