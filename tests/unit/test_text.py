from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.text import columns, displayable, shortened


def test_a_short_text_stays_as_it_is() -> None:
    assert shortened("a.jpg", 5) == "a.jpg"


def test_a_long_text_loses_its_middle_and_keeps_more_of_its_end() -> None:
    assert shortened("/photographs/holiday/beach.jpg", 20) == "/photo…day/beach.jpg"


def test_wide_characters_count_as_two_columns_and_combining_marks_as_none() -> None:
    assert columns("東京.jpg") == 8
    assert columns("e\u0301") == 1


@given(st.text(max_size=60).map(displayable), st.integers(1, 30))
def test_a_shortened_text_fits_and_is_made_of_both_ends(text: str, width: int) -> None:
    short = shortened(text, width)
    assert columns(short) <= width
    if short != text:
        head, _, tail = short.partition("…")
        assert text.startswith(head)
        assert text.endswith(tail)


@given(st.text(st.characters(exclude_categories=())))
def test_a_displayable_text_has_nothing_that_a_terminal_would_obey(text: str) -> None:
    assert displayable(text).isprintable()
