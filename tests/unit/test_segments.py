from __future__ import annotations

import itertools

import numpy as np
import pytest
from core_data import WIDTH, assign, collection, features, ids, merge_rows, model, named
from heavy import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays import ArrayFile, arrays_to_bytes
from pipeline.config import IndexConfig
from pipeline.index.model import Model, train_model
from pipeline.index.rows import to_signed, unpack_rows
from pipeline.index.segments import (
    AssignedRows,
    Segment,
    assign_features,
    decode_geometry,
    encode_geometry,
)
from pipeline.records import Features


def as_bytes(segment: Segment) -> bytes:
    return arrays_to_bytes(segment.to_arrays(), {})


@settings(max_examples=examples(20), deadline=None)
@given(cuts=st.lists(st.integers(0, 31), max_size=5), seed=st.integers(0, 2**32))
def test_a_segment_does_not_depend_on_how_the_images_were_split_and_in_what_order(
    cuts: list[int], seed: int
) -> None:
    images, rng = collection(), np.random.default_rng(seed)
    bounds = [0, *sorted(cuts), 31]
    assignments = []
    for low, high in itertools.pairwise(bounds):
        ids = rng.permutation(np.arange(low, high))
        assignments.append(assign(model(), {int(i): images[int(i)] for i in ids}))
    mixed = [assignments[i] for i in rng.permutation(len(assignments))]
    for group in range(4):
        expected = merge_rows(model(), group, [assign(model(), images)])
        assert as_bytes(merge_rows(model(), group, mixed)) == as_bytes(expected)


def test_the_groups_hold_every_descriptor_once_in_its_own_cell() -> None:
    images = collection()
    assigned = assign(model(), images)
    rows = 0
    for group in range(4):
        segment = merge_rows(model(), group, [assigned])
        rows += segment.rows.size
        codes = to_signed(unpack_rows(segment.rows))
        cells = model().tree.assign(codes)
        sizes = np.diff(segment.cell_offsets)
        assert np.array_equal(cells, np.repeat(np.arange(len(sizes)) + segment.first_cell, sizes))
        assert segment.cell_offsets[0] == 0
        assert segment.cell_offsets[-1] == segment.rows.size
        assert (np.diff(segment.images)[np.diff(cells) == 0] >= 0).all()
    assert rows == sum(len(f) for f in images.values())


def test_rows_keep_their_image_and_keypoint() -> None:
    images = {5: features(5, 40), 3: features(3, 20)}
    assigned = assign(model(), images)
    for number, found in images.items():
        mine = ids(assigned.table)[assigned.images] == number
        stored = {
            (c.tobytes(), g.tobytes())
            for c, g in zip(assigned.codes[mine], assigned.geometry[mine], strict=True)
        }
        codes = model().quantizer.encode(found.descriptors).view(np.uint8) ^ 0x80
        geometry = encode_geometry(found.keypoints, 640, 480)
        expected = {(c.tobytes(), g.tobytes()) for c, g in zip(codes, geometry, strict=True)}
        assert stored == expected


@pytest.mark.parametrize("images", [{}, {1: features(1, 0)}], ids=["no image", "no descriptor"])
def test_nothing_makes_empty_segments(images: dict[int, Features]) -> None:
    assigned = assign(model(), images)
    segment = merge_rows(model(), 2, [assigned])
    assert segment.rows.size == 0
    assert segment.image_count == 0
    assert not segment.cell_offsets.any()


def test_assignment_segment_and_model_survive_their_files() -> None:
    assigned = assign(model(), collection())
    again = AssignedRows.from_arrays(ArrayFile(arrays_to_bytes(assigned.to_arrays(), {})))
    for name, array in assigned.to_arrays().items():
        assert np.array_equal(array, again.to_arrays()[name]), name
    segment = merge_rows(model(), 1, [again])
    file = ArrayFile(as_bytes(segment))
    assert as_bytes(Segment.from_arrays(file)) == as_bytes(segment)
    trained = arrays_to_bytes(model().to_arrays(), {})
    assert arrays_to_bytes(Model.from_arrays(ArrayFile(trained)).to_arrays(), {}) == trained


@settings(deadline=None)
@given(
    width=st.integers(1, 20_000),
    height=st.integers(1, 20_000),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    size=st.floats(0, 4095),
    angle=st.floats(-360, 720),
)
def test_keypoints_come_back_within_the_step_of_their_bytes(
    width: int, height: int, place: tuple[float, float], size: float, angle: float
) -> None:
    keypoint = np.zeros((1, 7), np.float32)
    keypoint[0, :4] = place[0] * width, place[1] * height, size, angle
    stored = encode_geometry(keypoint, width, height)
    x, y, found, turned = (float(v) for v in decode_geometry(stored, width, height)[0])
    step = max(width, height) / 65535
    assert abs(x - keypoint[0, 0]) <= step / 2 + 1e-2
    assert abs(y - keypoint[0, 1]) <= step / 2 + 1e-2
    assert abs(found - keypoint[0, 2]) <= 1 / 32 + 1e-3
    difference = (turned - float(keypoint[0, 3])) % 360
    assert min(difference, 360 - difference) <= 360 / 65536 / 2 + 1e-3


def test_keypoints_outside_the_range_are_stored_at_its_end() -> None:
    keypoints = np.array([[-5, 700, 9000, -1, 0, 0, 0]], np.float32)
    assert encode_geometry(keypoints, 640, 480).tolist() == [[0, 65535, 65535, 65354]]


@pytest.mark.parametrize("width", [128, 512])
def test_segments_of_wider_rows_hold_every_row_in_its_cell(width: int) -> None:
    rng = np.random.default_rng(width)
    rows = rng.normal(0, 1, (300, width)).astype(np.float32)
    config = IndexConfig(groups=2, cell_size=50, dimensions=width)
    wide = train_model(rows, rows[:20], 300, config)
    picture = np.array([[320, 240, 640, 0, 0, 0, 0]], np.float32)
    pictures = [Features(picture, row[None], 640, 480) for row in rows]
    assigned = assign_features(wide, [f.descriptors for f in pictures], pictures, named(range(300)))
    found = [merge_rows(wide, group, [assigned]) for group in (0, 1)]
    codes = wide.quantizer.encode(rows)
    for segment in found:
        assert segment.rows.dimensions == width
        images = ids(segment.table)[segment.images]
        assert np.array_equal(to_signed(unpack_rows(segment.rows)), codes[images])
        cells = np.searchsorted(segment.cell_offsets, np.arange(len(segment.images)), "right") - 1
        home = wide.tree.assign(codes[images])
        assert np.array_equal(cells + segment.first_cell, home)
    assert sorted(np.concatenate([ids(s.table) for s in found]).tolist()) == list(range(300))


def test_the_test_descriptors_are_narrower_than_a_row() -> None:
    assert model().quantizer.rotation.shape == (WIDTH, 64)
