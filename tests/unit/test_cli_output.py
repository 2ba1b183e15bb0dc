from __future__ import annotations

import json
import os

import pytest

from pipeline.text import columns
from workers.cli.output import counted, printable, ranges, seconds, show_table, write_json


def test_a_table_fits_the_terminal_by_cutting_its_last_column_in_the_middle(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = "/somewhere/far/down/below/the/holiday/beach.jpg"
    show_table(("#", "location"), [(1, path), (12, "/short.jpg")], numbers=("#",), indent=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "   #  location"
    assert lines[2] == "  12  /short.jpg"
    assert columns(lines[1]) == 40
    assert lines[1].startswith("   1  /somewhere")
    assert lines[1].endswith("holiday/beach.jpg")


def test_a_table_in_a_pipe_keeps_whole_paths(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show_table(("location",), [("/long" * 100,)])
    assert capsys.readouterr().out.splitlines() == ["location", "/long" * 100]


def test_a_table_escapes_what_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("name",), [("two\nlines \x1b[31m caf\udce9",)])
    assert capsys.readouterr().out.splitlines() == ["name", r"two\nlines \x1b[31m caf\xe9"]


def test_json_is_ascii_and_gives_the_bytes_of_a_name_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = os.fsdecode(b"caf\xe9 \xe6\x9d\xb1.jpg")
    write_json({"path": name})
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert os.fsencode(json.loads(printed)["path"]) == b"caf\xe9 \xe6\x9d\xb1.jpg"


def test_printable_keeps_our_own_newlines_only() -> None:
    assert printable("a\x07b\nc") == "a\\x07b\nc"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unknown"),
        (0.44, "0.4 s"),
        (12.4, "12 s"),
        (59.7, "1:00 min"),
        (205, "3:25 min"),
        (3723, "1:02:03 h"),
    ],
)
def test_times_have_a_suitable_unit(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_numbers_are_printed_with_their_noun() -> None:
    assert counted(1, "image") == "1 image"
    assert counted(2000, "image") == "2,000 images"
    assert counted(0, "query", "queries") == "0 queries"


def test_runs_of_numbers_are_drawn_together() -> None:
    assert ranges([]) == ""
    assert ranges([5]) == "5"
    assert ranges([3, 0, 1, 2, 7]) == "0-3,7"
