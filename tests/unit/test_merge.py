"""The merge of assignments and of segments: the bytes of a plain sort, whatever the pieces."""

from __future__ import annotations

import functools
import io
import os
import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_data import (
    WIDTH,
    asked,
    assign,
    collection,
    descriptors,
    features,
    ids,
    merge_rows,
    model,
    named,
    opened,
)
from heavy import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.arrays import ArrayFile, arrays_to_bytes
from pipeline.config import IndexConfig
from pipeline.errors import StateError
from pipeline.index.identities import Identities
from pipeline.index.merge import (
    Merge,
    SortedRows,
    assigned_rows,
    join_segments,
    segment_rows,
    write_segment,
)
from pipeline.index.model import train_model
from pipeline.index.rows import pack_rows, unpack_rows
from pipeline.index.segments import AssignedRows, Segment
from pipeline.records import Features
from pipeline.retrieval.blocks import merge_blocks
from pipeline.retrieval.open_segments import ImageSet
from pipeline.retrieval.plan import make_plan
from pipeline.retrieval.scan import scan_opened

CELLS = model().cells_per_group


def plain_merge(group: int, assignments: Sequence[AssignedRows], dropped: frozenset[int]) -> bytes:
    """The whole group in memory, sorted at once."""

    def column(name: str) -> NDArray[Any]:
        return np.concatenate(
            [
                getattr(one, name)[one.group_offsets[group] : one.group_offsets[group + 1]]
                for one in assignments
            ]
        )

    cells = column("cells")
    ranges = [slice(*assigned.group_offsets[group : group + 2]) for assigned in assignments]
    images = np.concatenate(
        [ids(p.table)[p.images[rows]] for p, rows in zip(assignments, ranges, strict=True)]
    )
    order = np.lexsort((images, cells))
    order = order[~np.isin(images[order], sorted(dropped))]
    rows = pack_rows(column("codes")[order])
    known, numbers = np.unique(images[order], return_inverse=True)
    first = group * CELLS
    segment = Segment(
        rows,
        numbers.astype(np.uint32),
        column("geometry")[order],
        np.searchsorted(cells[order], np.arange(first, first + CELLS + 1)).astype(np.int64),
        first,
        Identities.of(named(known)),
    )
    return arrays_to_bytes(segment.to_arrays(), {"group": group})


def some_assignments(seed: int, count: int) -> list[AssignedRows]:
    """The collection's images, dealt out at random."""
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, count, len(collection()))
    return [
        assign(model(), {i: f for i, f in collection().items() if owner[i] == number})
        for number in range(count)
    ]


def merged(
    inputs: Sequence[SortedRows], group: int, dropped: frozenset[int], piece_bytes: int
) -> bytes:
    stream = io.BytesIO()
    merge = Merge(inputs, group * CELLS, Identities.of(named(dropped)), piece_bytes)
    merge.write(stream, {"group": group})
    return stream.getvalue()


@settings(max_examples=examples(40), deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 6),
    group=st.integers(0, 3),
    piece_rows=st.integers(0, 80),
    dropped=st.frozensets(st.integers(0, 30), max_size=5),
)
def test_pieces_of_any_size_give_the_bytes_of_one_sort(
    seed: int, count: int, group: int, piece_rows: int, dropped: frozenset[int]
) -> None:
    assignments = some_assignments(seed, count)
    expected = plain_merge(group, assignments, dropped)
    inputs = [assigned_rows(assigned, group, CELLS) for assigned in assignments]
    assert merged(inputs, group, dropped, piece_rows * 64) == expected
    # Merged by way of segments it is the same: compaction changes no byte.
    again = [segment_rows(merge_rows(model(), group, [assigned])) for assigned in assignments]
    assert merged(again, group, dropped, piece_rows * 64) == expected
    # In memory too.
    gone = Identities.of(named(dropped))
    held = Merge(again, group * CELLS, gone, piece_rows * 64).in_memory()
    assert arrays_to_bytes(held.to_arrays(), {"group": group}) == expected


def test_joined_segments_are_the_merged_one() -> None:
    segments = [merge_rows(model(), 2, [assigned]) for assigned in some_assignments(5, 4)]
    joined = arrays_to_bytes(join_segments(segments).to_arrays(), {"group": 2})
    assert joined == plain_merge(2, some_assignments(5, 4), frozenset())


@pytest.mark.parametrize("fan_in", [2, 3, 100])
def test_more_inputs_than_may_be_open_are_merged_in_rounds(fan_in: int) -> None:
    assignments = some_assignments(3, 17)
    opened: list[int] = []

    def open_one(number: int) -> SortedRows:
        opened.append(number)
        return assigned_rows(assignments[number], 1, CELLS)

    stream = io.BytesIO()
    inputs = [functools.partial(open_one, number) for number in range(17)]
    gone = frozenset({20})
    dropped = Identities.of(named(gone))
    write_segment(stream, inputs, CELLS, {"group": 1}, dropped, fan_in=fan_in)
    assert stream.getvalue() == plain_merge(1, assignments, gone)
    assert opened == list(range(17))


def test_rounds_lie_in_the_given_folder_and_the_last_but_one_is_removed(tmp_path: Path) -> None:
    scratch = tmp_path / "local" / "scratch"
    (scratch / f"{2**30}-left").mkdir(parents=True)  # by a process that is no more
    (scratch / f"{os.getpid()}-other").mkdir()  # of another merge in this process
    assignments, most = some_assignments(3, 17), 0

    class Watched(io.BytesIO):
        def write(self, data: Any) -> int:
            nonlocal most
            most = max(most, len(list(scratch.glob("*"))))
            return super().write(data)

    stream = Watched()
    inputs = [functools.partial(assigned_rows, assigned, 1, CELLS) for assigned in assignments]
    write_segment(stream, inputs, CELLS, {"group": 1}, fan_in=2, scratch=scratch)
    assert stream.getvalue() == plain_merge(1, assignments, frozenset())
    assert most == 2  # the last of four rounds alone, and the other merge's
    assert [path.name for path in scratch.iterdir()] == [f"{os.getpid()}-other"]


def test_a_full_disk_is_said_as_what_it_is(tmp_path: Path) -> None:
    assignments = some_assignments(3, 17)
    inputs = [functools.partial(assigned_rows, assigned, 1, CELLS) for assigned in assignments]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(StateError, match=r"needs 1 MiB .* cannot be written") as caught:
            write_segment(io.BytesIO(), inputs, CELLS, {}, fan_in=4, scratch=tmp_path / "scratch")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path / "scratch") in str(caught.value)
    assert "VANTAGE_LOCAL" in str(caught.value)
    assert list((tmp_path / "scratch").iterdir()) == []


def one_cell(images: Sequence[int]) -> SortedRows:
    """Rows that all lie in the second of three cells; a row's bytes tell image and place."""
    count = len(images)
    codes = np.zeros((count, 64), np.uint8)
    codes[:, 0], codes[:, 1] = images, np.arange(count)
    geometry = np.zeros((count, 4), np.uint16)
    known, numbers = np.unique(images, return_inverse=True)
    return SortedRows(
        np.array([0, 0, count, count], np.int64),
        numbers.astype(np.uint32),
        geometry,
        lambda a, b: codes[a:b],
        Identities.of(named(known.astype(int))),
    )


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 100])
def test_a_cell_with_most_of_the_rows_is_cut_between_its_images(rows: int) -> None:
    inputs = [one_cell([1, 1, 3, 3, 3, 9]), one_cell([2, 4, 4]), one_cell([]), one_cell([5] * 7)]
    merge = Merge(inputs, 0)
    pieces = list(merge._pieces(rows))
    assert max(len(images) for _, images, _ in pieces) <= rows + 7
    assert len(pieces) > 1 or rows == 100
    stream = io.BytesIO()
    replace(merge, piece_bytes=rows * 64).write(stream, {})
    found = Segment.from_arrays(ArrayFile(stream.getvalue()))
    images = ids(found.table)[found.images].tolist()
    assert images == [1, 1, 2, 3, 3, 3, 4, 4, *[5] * 7, 9]
    codes = unpack_rows(found.rows)
    assert codes[:, 0].tolist() == images
    assert codes[:, 1].tolist() == [0, 1, 0, 2, 3, 4, 1, 2, *range(7), 5]
    assert found.cell_offsets.tolist() == [0, 0, 16, 16]


def test_sizes_leave_out_what_is_dropped() -> None:
    inputs = [one_cell([1, 1, 3]), one_cell([2, 3])]
    assert Merge(inputs, 0).sizes().tolist() == [0, 5, 0]
    assert Merge(inputs, 0, Identities.of(named([3, 77]))).sizes().tolist() == [0, 3, 0]
    gone = Identities.of(named([1, 2, 3]))
    assert Merge(inputs, 0, gone, piece_bytes=8).sizes().sum() == 0


@pytest.mark.parametrize("kind", ["probed", "exhaustive"])
def test_two_hundred_segments_find_what_the_merged_one_finds(kind: Any) -> None:
    images = {number: features(number, 20) for number in range(200)}
    small = [merge_rows(model(), 1, [assign(model(), {i: f})]) for i, f in images.items()]
    inputs = [functools.partial(segment_rows, one) for one in small if one.rows.size]
    stream = io.BytesIO()
    write_segment(stream, inputs, CELLS, {})
    whole = Segment.from_arrays(ArrayFile(stream.getvalue()))
    assert whole.image_count > 150
    codes = model().quantizer.encode(descriptors(77, 300))
    planned = make_plan(model(), codes, 4000, asked(kind))
    plan = replace(planned, radius=planned.radius * 8)  # so that many rows are near enough
    gone = [ImageSet(frozenset({3, 50, 51}))]
    one_by_one = merge_blocks([scan_opened(opened(segment), plan, gone) for segment in small])
    at_once = scan_opened(opened(whole), plan, gone)
    assert len(at_once.query) > 100
    for name, found in at_once.to_arrays().items():
        assert np.array_equal(found, one_by_one.to_arrays()[name]), name
    assert at_once.counts.pairs == one_by_one.counts.pairs
    assert at_once.counts.rows == one_by_one.counts.rows


def test_a_collection_whose_descriptors_are_all_equal_is_built() -> None:
    """Every row lies in one cell, which is merged in pieces like any other."""
    rows = np.full((500, WIDTH), 0.3, np.float32)
    trained = train_model(rows, rows[:16], 100_000, IndexConfig(groups=2, cell_size=50))
    assert trained.tree.cells > 1000
    keypoints = np.zeros((50, 7), np.float32)
    assignments = [
        assign(trained, {number: Features(keypoints, rows[:50], 640, 480)}) for number in range(30)
    ]
    (group,) = np.unique(assignments[0].cells // trained.cells_per_group)
    cells = trained.cells_per_group
    inputs = [assigned_rows(assigned, int(group), cells) for assigned in assignments]
    stream = io.BytesIO()
    Merge(inputs, int(group) * cells, piece_bytes=64 * 100).write(stream, {})
    found = Segment.from_arrays(ArrayFile(stream.getvalue()))
    assert (found.rows.size, found.image_count) == (1500, 30)
    assert (np.diff(found.cell_offsets) > 0).sum() == 1
