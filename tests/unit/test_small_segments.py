"""Which segments of a group an automatic compaction merges."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.indexing.compact import small_segments
from pipeline.metadata.records import SegmentRecord


def segment(number: int, rows: int) -> SegmentRecord:
    return SegmentRecord(
        id=number,
        collection_id=1,
        tree_id=1,
        group_number=0,
        key=f"s{number}",
        checksum="c",
        descriptor_count=rows,
        image_count=1,
        byte_count=rows * 64,
        job_id=None,
        created_at=0.0,
    )


def chosen(sizes: list[int], most: int) -> list[int]:
    segments = [segment(number, rows) for number, rows in enumerate(sizes)]
    return [found.descriptor_count for found in small_segments(segments, most)]


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [
        ([], 8, []),
        ([5] * 8, 8, []),
        ([5] * 9, 8, [5] * 9),
        ([1000, *[1] * 8], 8, [1] * 8),
        ([1000, 17, 8, 1, 1, 1, 1, 1, 1], 8, [1, 1, 1, 1, 1, 1, 8, 17]),
        # Sizes that grow faster than the sum of what is smaller: as few as must be.
        ([4**power for power in range(9)], 8, [1, 4]),
        ([1000, 1000, 3], 1, [3, 1000, 1000]),
        ([7], 1, []),
    ],
)
def test_the_smallest_are_merged_until_the_next_is_twice_as_large(
    sizes: list[int], most: int, expected: list[int]
) -> None:
    assert chosen(sizes, most) == expected


@given(st.lists(st.integers(1, 10**6), max_size=40), st.integers(1, 12))
def test_few_enough_segments_are_left(sizes: list[int], most: int) -> None:
    merged = len(chosen(sizes, most))
    assert merged != 1
    assert len(sizes) - max(0, merged - 1) <= most


def test_additions_rewrite_each_row_a_logarithmic_number_of_times() -> None:
    segments: list[SegmentRecord] = []
    written = 0
    for number in range(2000):
        segments.append(segment(number, 100))
        found = small_segments(segments, 8)
        if found:
            rows = sum(one.descriptor_count for one in found)
            written += rows
            segments = [one for one in segments if one not in found]
            segments.append(segment(10_000 + number, rows))
        assert len(segments) <= 8
    assert written <= 200_000 * math.log2(2000)
