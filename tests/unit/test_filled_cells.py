"""Which cells have rows, as text and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.index.filled_cells import pack_filled, unpack_filled


@given(st.lists(st.integers(0, 3), min_size=1, max_size=70))
def test_a_text_says_which_cells_have_rows(sizes: list[int]) -> None:
    text = pack_filled(np.concatenate([[0], np.cumsum(sizes)]))
    filled = unpack_filled(text, len(sizes))
    assert filled is not None
    assert filled.tolist() == [size > 0 for size in sizes]


@pytest.mark.parametrize("text", [None, "", "AA==", "AAAA AAA", "é", "A"])
def test_what_does_not_fit_is_not_known(text: str | None) -> None:
    assert unpack_filled(text, 64) is None
