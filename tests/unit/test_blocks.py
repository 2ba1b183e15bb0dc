"""Blocks depend on one query image and one segment, whatever is added, removed or filtered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from core_data import (
    asked,
    assign,
    collection,
    descriptors,
    features,
    merge_rows,
    model,
    named,
    opened,
)
from numpy.typing import NDArray
from test_retrieval import Row

from pipeline.arrays import arrays_to_bytes
from pipeline.config import IndexConfig
from pipeline.index.model import Model, train_model
from pipeline.index.rows import to_signed, unpack_rows
from pipeline.index.segments import assign_features
from pipeline.records import Features
from pipeline.retrieval.batch import Batch, QueryImage, join_batches
from pipeline.retrieval.blocks import DistanceBlock, merge_blocks, split_block
from pipeline.retrieval.cost import Machine, Workload
from pipeline.retrieval.open_segments import KEPT_MASKS, UNKNOWN, ImageSet, OpenSegment
from pipeline.retrieval.pairs import pairs_of
from pipeline.retrieval.plan import join_plans, make_plan
from pipeline.retrieval.scan import block_key, scan_opened, scan_segment
from pipeline.retrieval.score import rank_blocks

PLANS = ("probed", "exhaustive")


def query(seed: int, count: int, kind: str, rows: int = 930, effort: float | None = None) -> Batch:
    """Plan a search with descriptors that lie near those of the collection."""
    codes = model().quantizer.encode(descriptors(seed, count))
    made = make_plan(model(), codes, rows, asked(kind, effort))
    plan = replace(made, radius=made.radius * 8)  # so that many rows are near enough
    keypoints = features(seed, count).keypoints[:, :4]
    image = QueryImage(f"query {seed}", 640, 480, count, {})
    workload = Workload(count, rows, 64, model().tree.cells)
    return Batch(plan, (image,), workload, asked(kind, effort), Machine("avx2", 2), keypoints)


def segment(group: int, *images: int) -> OpenSegment:
    """Return a segment of some images of the collection."""
    some = {number: collection()[number] for number in images}
    made = merge_rows(model(), group, [assign(model(), some)])
    return replace(opened(made), name=f"{group}: {images}")


def block_of(batch: Batch, number: int, searched: OpenSegment) -> DistanceBlock:
    """Return the block that `block_key` names."""
    block = scan_segment(searched.segment, batch.plan.widened)
    return split_block(block, batch.offsets)[number]


def as_bytes(block: DistanceBlock) -> bytes:
    return arrays_to_bytes(block.to_arrays(), {})


@pytest.mark.parametrize("kind", PLANS)
def test_an_addition_elsewhere_changes_neither_key_nor_block(kind: str) -> None:
    # A hundred times the rows: the plan is made for another collection.
    before, after = query(15, 30, kind), query(15, 30, kind, rows=93_000)
    assert before.workload != after.workload
    for group in range(4):
        mine = segment(group, *range(20))
        assert block_key(before, 0, "m", mine) == block_key(after, 0, "m", mine)
        assert as_bytes(block_of(before, 0, mine)) == as_bytes(block_of(after, 0, mine))


@pytest.mark.parametrize("kind", PLANS)
def test_an_image_of_a_batch_has_the_key_and_the_block_of_a_search_for_it_alone(kind: str) -> None:
    effort = 0.3 if kind == "probed" else None
    sizes = ((15, 30), (3, 7), (9, 25))
    queries = [query(seed, count, kind, effort=effort) for seed, count in sizes]
    batch, mine = join_batches(queries), segment(1, *range(31))
    for number, one in enumerate(queries):
        assert block_key(batch, number, "m", mine) == block_key(one, 0, "m", mine)
        assert as_bytes(block_of(batch, number, mine)) == as_bytes(block_of(one, 0, mine))


def test_a_key_holds_all_that_the_block_depends_on() -> None:
    mine, batch = segment(1, *range(31)), query(15, 30, "probed", effort=0.1)
    nearest = replace(batch, plan=replace(batch.plan, neighbours=10))
    keys = [
        block_key(batch, 0, "m", mine),
        block_key(batch, 0, "another model", mine),
        block_key(query(16, 40, "probed", effort=0.1), 0, "m", mine),
        block_key(batch, 0, "m", segment(1, *range(30))),
        block_key(query(15, 30, "probed", effort=0.3), 0, "m", mine),
        block_key(query(15, 30, "exhaustive"), 0, "m", mine),
        block_key(nearest, 0, "m", mine),
        block_key(replace(batch, plan=replace(nearest.plan, neighbours=20)), 0, "m", mine),
    ]
    assert len(set(keys)) == len(keys)


def test_only_the_cells_that_are_really_opened_are_in_the_key() -> None:
    everything = query(15, 30, "probed", effort=1.0)
    mine = segment(1, *range(31))
    exhaustive = query(15, 30, "exhaustive")
    assert block_key(everything, 0, "m", mine) == block_key(exhaustive, 0, "m", mine)
    # Cells of other groups, and cells without rows, are not opened here, in whatever order.
    batch = query(15, 30, "probed", effort=0.3)
    small = segment(2, 4)
    first, cells = small.segment.first_cell, batch.plan.cells.astype(np.int64)
    offsets = small.segment.cell_offsets
    inside = (cells >= first) & (cells < first + len(offsets) - 1)
    filled = np.diff(offsets)[np.where(inside, cells - first, 0)] > 0
    other = np.where(inside & filled, cells, 0).astype(np.uint32)[:, ::-1]
    assert (other != batch.plan.cells).any()
    moved = replace(batch, plan=replace(batch.plan, cells=np.ascontiguousarray(other)))
    assert block_key(moved, 0, "m", small) == block_key(batch, 0, "m", small)
    assert as_bytes(block_of(moved, 0, small)) == as_bytes(block_of(batch, 0, small))


@pytest.mark.parametrize("kind", PLANS)
def test_a_removed_image_is_masked_after_the_block(kind: str) -> None:
    batch, mine = query(15, 30, kind), segment(1, *range(31))
    block = block_of(batch, 0, mine)
    removed = frozenset({15, 7, 1000})
    assert (mine.ids[block.image] == 15).any()
    found = scan_opened(mine, batch.plan, [ImageSet(removed)])
    kept = ~np.isin(mine.ids[block.image], list(removed))
    expected = replace(block.some(kept), image=mine.ids[block.image[kept]])
    assert as_bytes(merge_blocks([found])) == as_bytes(merge_blocks([expected]))
    assert as_bytes(block_of(batch, 0, mine)) == as_bytes(block)


def test_an_image_that_the_database_does_not_have_is_no_answer() -> None:
    batch, mine = query(15, 30, "exhaustive"), segment(1, *range(31))
    everyone = scan_opened(mine, batch.plan)
    ids = np.where(mine.ids == 15, UNKNOWN, mine.ids).astype(np.uint32)
    found = scan_opened(replace(mine, ids=ids), batch.plan)
    assert as_bytes(found) == as_bytes(scan_opened(mine, batch.plan, [ImageSet(frozenset({15}))]))
    assert 0 < len(found.query) < len(everyone.query)


def test_sets_that_change_at_each_search_leave_the_mask_of_the_version_alone() -> None:
    mine = segment(1, *range(31))
    removed, made = ImageSet(frozenset({3, 4})), []

    class Counted(ImageSet):
        def admits(self, ids: NDArray[np.uint32]) -> NDArray[np.bool_]:
            made.append(self.ids)
            return super().admits(ids)

    counted = Counted(removed.ids)
    for number in range(3 * KEPT_MASKS):
        only = ImageSet(frozenset(range(number, 31)), only=True)
        admitted = mine.admitted([Counted(frozenset(removed.ids)), only])
        expected = [i >= number and i not in (3, 4) for i in mine.ids.tolist()]
        assert admitted.tolist() == expected
    assert made == [counted.ids]
    assert len(mine._masks) == KEPT_MASKS
    assert mine.admitted([ImageSet(frozenset(), only=True)]).sum() == 0


# --- one vector an image --------------------------------------------------------------------------

PICTURES = 1500


@pytest.fixture(scope="module")
def pictures() -> tuple[Model, NDArray[np.int8], list[OpenSegment]]:
    """Whole-picture vectors in one segment a group, group 0 in two."""
    rng = np.random.default_rng(4)
    rows = rng.normal(0, 1, (PICTURES, 64)) * np.linspace(2, 0.3, 64) + 0.5
    rows[40:44] = rows[40]
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    config = IndexConfig(groups=2, cell_size=64)
    trained = train_model(vectors, vectors[:16], PICTURES, config, unit=True)
    picture = np.array([[320, 240, 640, 0, 0, 0, 0]], np.float32)
    assignments = []
    for numbers in (range(1200), range(1200, PICTURES)):
        images = [Features(picture, vectors[i : i + 1], 640, 480) for i in numbers]
        normalized = [f.descriptors for f in images]
        assignments.append(assign_features(trained, normalized, images, named(numbers)))
    stored = [merge_rows(trained, 0, [assigned]) for assigned in assignments] + [
        merge_rows(trained, 1, assignments)
    ]
    return trained, trained.quantizer.encode(vectors), [opened(one) for one in stored]


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("way", ["removed", "only"])
@pytest.mark.parametrize("gone", [0, 1, 30, 1000])
def test_the_nearest_that_may_be_answers_are_found_however_many_may_not(
    pictures: tuple[Model, NDArray[np.int8], list[OpenSegment]], kind: str, way: str, gone: int
) -> None:
    trained, codes, stored = pictures
    queries = codes[[3, 42, 1400]]
    request = asked(kind, 1.0)
    plan = make_plan(trained, queries, PICTURES, request, one_vector=True)
    squared = ((codes.astype(np.int64)[None] - queries.astype(np.int64)[:, None]) ** 2).sum(axis=2)
    # The first so many of the first query; of the others those that happen to be among them.
    out = np.argsort(squared[0], kind="stable")[:gone]
    living = np.setdiff1d(np.arange(PICTURES), out)
    sets = [ImageSet(frozenset(out.tolist()))]
    if way == "only":
        sets = [ImageSet(frozenset(living.tolist()), only=True)]
    found = merge_blocks([scan_opened(one, plan, sets) for one in stored], plan.neighbours)
    for number in range(3):
        last = np.sort(squared[number, living])[plan.neighbours - 1]
        near = living[squared[number, living] <= min(last, plan.radius[number] - 1)]
        mine = found.query == number
        expected = {(int(i), int(squared[number, i])) for i in near}
        assert (
            set(zip(found.image[mine].tolist(), found.distance[mine].tolist(), strict=True))
            == expected
        )
        assert len(expected) >= plan.neighbours or gone == 1000


@pytest.mark.parametrize("kind", PLANS)
def test_of_one_vector_too_the_block_of_a_batch_is_that_of_each_search(
    pictures: tuple[Model, NDArray[np.int8], list[OpenSegment]], kind: str
) -> None:
    trained, codes, stored = pictures
    # Four rows are the same: some neighbours are as near as the last.
    plans = [
        make_plan(trained, codes[[row]], PICTURES, asked(kind, 0.5), one_vector=True)
        for row in (3, 42, 1400)
    ]
    together = join_plans(plans)
    for one in stored:
        parted = split_block(scan_segment(one.segment, together.widened), [0, 1, 2, 3])
        for plan, block in zip(plans, parted, strict=True):
            alone = scan_segment(one.segment, plan.widened)
            assert as_bytes(merge_blocks([block])) == as_bytes(merge_blocks([alone]))


def test_a_segment_is_scanned_again_only_where_too_few_are_left(
    pictures: tuple[Model, NDArray[np.int8], list[OpenSegment]],
) -> None:
    trained, codes, stored = pictures
    far = int(((codes.astype(np.int64) - codes[3]) ** 2).sum(axis=1).argmax())
    plan = make_plan(trained, codes[[3, far]], PICTURES, asked("exhaustive"), True)
    rows = to_signed(unpack_rows(stored[0].segment.rows)).astype(np.int64)
    near = np.argsort(((rows - plan.codes[0]) ** 2).sum(axis=1))
    mine = stored[0].ids[stored[0].segment.images[near]]
    size = len(rows)
    for gone, again in ((6, 0), (60, size)):
        removed = ImageSet(frozenset(mine[:gone].tolist()))
        counts = scan_opened(stored[0], plan, [removed]).counts
        assert (counts.rows, counts.pairs) == (size, 2 * size + again)


# --- pairs ----------------------------------------------------------------------------------------


def test_the_pairs_of_an_image_are_what_its_score_is_the_sum_of() -> None:
    batch = query(15, 30, "exhaustive")
    found = scan_opened(segment(1, *range(31)), batch.plan)
    ranking = rank_blocks([found], batch.plan.radius)
    rows = {int(i): Row(f"{i:03}", 640, 480) for i in ranking.images[:4]}
    pairs = pairs_of([found], batch.plan.radius, batch.keypoints, {**rows, 999: Row("x")})
    assert len(pairs[999]) == 0
    for place, number in enumerate(rows):
        mine = pairs[number]
        assert len(mine) == ranking.votes[place] > 0
        assert mine.gain.sum() == ranking.scores[place]
    # An image finds itself, keypoint by keypoint, within the step of their bytes.
    itself = pairs[int(ranking.images[0])]
    assert int(ranking.images[0]) == 15
    assert (itself.distance == 0).all()
    assert np.abs(itself.query[:, :2] - itself.image[:, :2]).max() < 0.02
