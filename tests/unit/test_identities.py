"""Tables of images: sorted by SHA-256 and frame, joined and found again."""

from __future__ import annotations

import numpy as np
import pytest
from core_data import assign, collection, ids, merge_rows, model, named
from hypothesis import given
from hypothesis import strategies as st

from pipeline.arrays import ArrayFile, arrays_to_bytes
from pipeline.errors import CorruptFileError
from pipeline.index.identities import Identities, Identity, unite
from pipeline.index.merge import Merge, segment_rows
from pipeline.index.segments import AssignedRows, Segment

# Few of each, so that some are the same; zeros at the end, which strings of bytes may lose.
HASHES = ("00" * 32, "ab" + "00" * 31, "ab" * 32, "ff" * 31 + "00")
IMAGES = st.tuples(st.sampled_from(HASHES), st.sampled_from([0, 1, 256, 2**32 - 1]))


@given(tables=st.lists(st.lists(IMAGES, max_size=6), max_size=4))
def test_united_tables_hold_every_image_once_in_order(tables: list[list[Identity]]) -> None:
    made = [Identities.of(images) for images in tables]
    assert [table.pairs() for table in made] == tables
    whole = unite(made)
    assert whole.pairs() == sorted({image for images in tables for image in images})
    assert whole.sorted
    for images, table in zip(tables, made, strict=True):
        assert [whole.pairs()[number] for number in whole.numbers_of(table)] == images
        assert whole.holds(table).all()
        assert table.holds(whole).tolist() == [image in images for image in whole.pairs()]
        assert table.sorted == (images == sorted(set(images)))


def test_the_table_of_a_segment_names_the_images_that_have_rows_in_it() -> None:
    segment = merge_rows(model(), 2, [assign(model(), collection())])
    assert np.array_equal(np.unique(segment.images), np.arange(segment.image_count))
    assert 0 not in ids(segment.table)  # it has no descriptors


def former_file(segment: Segment, number: int = 1000) -> ArrayFile:
    """Return a segment as it was written before: images by ids, in another order than their own."""
    arrays = {n: a for n, a in segment.to_arrays().items() if n not in ("sha256", "frames")}
    arrays["images"] = (number - ids(segment.table)[segment.images]).astype(np.uint32)
    return ArrayFile(arrays_to_bytes(arrays, {}))


def test_a_file_without_a_table_is_read_with_the_ids_of_its_database() -> None:
    segment = merge_rows(model(), 0, [assign(model(), collection())])
    file = former_file(segment)
    read = Segment.from_arrays(file, lambda old: Identities.of(named((1000 - old).tolist())))
    assert np.array_equal(ids(read.table)[read.images], ids(segment.table)[segment.images])
    assert (read.image_count, read.table.sorted) == (segment.image_count, False)
    # Merged with another, it gets the numbers that it would have now, whatever the pieces.
    images = collection()
    halves = [
        merge_rows(model(), 0, [assign(model(), {i: images[i] for i in some})])
        for some in (range(12), range(12, 31))
    ]
    old = Segment.from_arrays(
        former_file(halves[0]), lambda old: Identities.of(named((1000 - old).tolist()))
    )
    for piece_bytes in (64, 64 * 7, 2**20):
        inputs = [segment_rows(old), segment_rows(halves[1])]
        made = Merge(inputs, 0, piece_bytes=piece_bytes).in_memory()
        assert arrays_to_bytes(made.to_arrays(), {}) == arrays_to_bytes(segment.to_arrays(), {})


def test_a_file_without_a_table_and_without_a_database_is_refused() -> None:
    segment = merge_rows(model(), 0, [assign(model(), collection())])
    for kind in (Segment, AssignedRows):
        with pytest.raises(CorruptFileError, match="table of images is missing"):
            kind.from_arrays(former_file(segment))
