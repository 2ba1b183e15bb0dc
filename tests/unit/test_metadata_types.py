from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metadata.types import escape_text, unescape_text

ANY_TEXT = st.text(st.characters(codec=None) | st.sampled_from("\\u0dcf\x00\udcff"))


@given(ANY_TEXT)
def test_every_string_comes_back(value: str) -> None:
    assert unescape_text(escape_text(value)) == value


@given(ANY_TEXT)
def test_what_is_stored_is_text_that_every_database_takes(value: str) -> None:
    stored = escape_text(value)
    assert "\x00" not in stored
    assert stored.encode("utf-8").decode("utf-8") == stored


@given(ANY_TEXT, ANY_TEXT)
def test_different_strings_are_stored_differently(one: str, other: str) -> None:
    assert (escape_text(one) == escape_text(other)) == (one == other)


@given(st.binary())
def test_every_file_name_comes_back(name: bytes) -> None:
    assert os.fsencode(unescape_text(escape_text(os.fsdecode(name)))) == name


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("/Größe\n写真.jpg", "/Größe\n写真.jpg"),
        ("a\\b", "a\\\\b"),
        ("a\udcffb", "a\\udcffb"),
        ("a\\udcff", "a\\\\udcff"),
        ("\x00", "\\u0000"),
    ],
)
def test_ordinary_text_is_stored_as_it_is(value: str, stored: str) -> None:
    assert escape_text(value) == stored
