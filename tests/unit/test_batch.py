from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from core_data import asked, descriptors, model
from hypothesis import given
from hypothesis import strategies as st

from pipeline.arrays import ArrayFile, arrays_to_bytes
from pipeline.retrieval.batch import (
    BATCH_DESCRIPTORS,
    BATCH_IMAGES,
    BATCH_SHARE,
    Batch,
    QueryImage,
    cut_batches,
    join_batches,
)
from pipeline.retrieval.cost import REFERENCE, Machine, Workload
from pipeline.retrieval.open_segments import ImageSet
from pipeline.retrieval.plan import make_plan


@functools.cache
def query(seed: int, count: int, kind: str = "probed", rows: int = 930) -> Batch:
    codes = model().quantizer.encode(descriptors(seed, count))
    plan = make_plan(model(), codes, rows, asked(kind, 0.2))
    image = QueryImage(f"{seed}", 640, 480, count, {"extract": 1.5})
    workload = Workload(count, rows, 64, model().tree.cells)
    return Batch(plan, (image,), workload, asked(kind, 0.2), Machine("avx2", 2))


def test_a_batch_holds_the_descriptors_of_its_images_one_after_the_other() -> None:
    queries = [query(1, 5), query(2, 1), query(3, 12)]
    batch = join_batches(queries)
    assert [image.digest for image in batch.images] == ["1", "2", "3"]
    assert batch.offsets == [0, 5, 6, 18]
    assert batch.workload == replace(queries[0].workload, queries=18)
    for one, start, stop in zip(queries, batch.offsets, batch.offsets[1:], strict=False):
        for name, array in one.plan.to_arrays().items():
            assert np.array_equal(batch.plan.to_arrays()[name][start:stop], array)
        assert set(one.plan.groups) <= set(batch.plan.groups)
    assert join_batches(queries[:1]) == queries[0]


def test_a_batch_survives_its_file() -> None:
    batch = join_batches([query(1, 5), query(2, 1)])
    file = ArrayFile(arrays_to_bytes(*batch.to_arrays()))
    again = Batch.from_arrays(file, file.meta)
    assert replace(again, plan=batch.plan) == batch
    assert np.array_equal(again.plan.cells, batch.plan.cells)


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("ids", [(), (7, 3, 2**31)])
def test_a_filter_travels_with_its_batch(ids: tuple[int, ...], only: bool) -> None:
    wanted = ImageSet(frozenset(ids), only)
    batch = join_batches([replace(query(seed, 5), filter=wanted) for seed in (1, 2)])
    file = ArrayFile(arrays_to_bytes(*batch.to_arrays()))
    assert Batch.from_arrays(file, file.meta).filter == batch.filter == wanted


def test_images_of_one_plan_share_a_pass_in_their_order() -> None:
    kinds = ["probed", "exhaustive", "probed", "probed", "exhaustive"]
    queries = [query(number, 9, kind) for number, kind in enumerate(kinds)]
    assert cut_batches(queries, 5.0) == [[0, 2, 3], [1, 4]]
    assert cut_batches([], 5.0) == []


def test_a_pass_has_room_for_so_many_images_and_descriptors() -> None:
    many = [query(1, 9)] * (2 * BATCH_IMAGES + 1)
    assert [len(some) for some in cut_batches(many, 5.0)] == [BATCH_IMAGES, BATCH_IMAGES, 1]
    large = replace(query(1, 9), workload=replace(query(1, 9).workload, queries=30_000))
    assert [len(some) for some in cut_batches([large] * 5, 1e9)] == [2, 2, 1]
    assert 2 * 30_000 <= BATCH_DESCRIPTORS < 3 * 30_000


def test_a_pass_is_cut_so_that_its_deadline_stays_realistic() -> None:
    slow = query(1, 9, "exhaustive", 10**9)
    ms = slow.predicted(REFERENCE).wait_ms
    deadline_s = 3.5 * ms / 1e3 / BATCH_SHARE
    assert [len(some) for some in cut_batches([slow] * 8, deadline_s)] == [3, 3, 2]
    # One alone is not refused, however long it may take.
    assert cut_batches([slow, slow], 0.001) == [[0], [1]]


@given(st.lists(st.sampled_from([(5, "probed"), (9, "probed"), (3, "exhaustive")]), max_size=80))
def test_every_image_is_in_one_pass(asked: list[tuple[int, str]]) -> None:
    queries = [query(count, count, kind) for count, kind in asked]
    passes = cut_batches(queries, 5.0)
    assert sorted(number for some in passes for number in some) == list(range(len(queries)))
    for some in passes:
        assert some == sorted(some)
        assert len({queries[number].plan.kind for number in some}) == 1
        assert len(some) <= BATCH_IMAGES
