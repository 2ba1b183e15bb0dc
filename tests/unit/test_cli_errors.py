from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import vantage, vantage_json

from workers.cli import exits
from workers.cli.app import COMMANDS


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["serch", "a", "b"], "Did you mean 'search'?"),
        (["search", "a", "b", "--tpo", "3"], "No such option: --tpo; did you mean '--top'?"),
        (["search", "a", "b", "--plan", "probd"], "'probd' is not one of 'auto', 'probed'"),
        (["search", "a", "b", "--top", "0"], "greater than or equal to 1"),
        (["search", "a"], "Missing argument 'IMAGE'"),
        (["index", "a"], "Missing argument 'PATH'"),
        (["index", "a", ".", "--local", "--no-wait"], "--local works in this process"),
        (["up", "--groups", "2,77"], "'2,77': give group numbers from 0 to 15"),
        (["up", "--groups", "two"], "'two': give group numbers from 0 to 15"),
        (["index", "no/such name", ".", "--local"], "cannot be named 'no/such name'"),
        (["eval", "/nowhere/at/all"], "'/nowhere/at/all' is not a folder"),
        (["status", "nobody"], "no collection is named 'nobody'"),
        (["failures", "nobody"], "no collection is named 'nobody'"),
        (["rebuild", "nobody", "--local"], "no collection is named 'nobody'"),
        (["search", "nobody", "a.jpg", "--local"], "no collection is named 'nobody'"),
        (["search", "a", "b.jpg", "--html", "/nowhere/page.html"], "there is no folder '/nowhere'"),
    ],
)
def test_a_wrong_input_is_one_sentence_and_exit_code_2(
    home: Path, args: list[str], sentence: str
) -> None:
    result = vantage(home, *args)
    assert result.exit_code == exits.USAGE
    assert result.stderr.startswith("error: ")
    assert sentence in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_an_error_is_json_too_where_json_was_asked_for(home: Path) -> None:
    known = vantage_json(home, "status", "nobody", code=exits.USAGE)
    assert known["error"]["type"] == "UnknownNameError"
    assert "nobody" in known["error"]["message"]
    usage = vantage_json(home, "status", "--bogus", code=exits.USAGE)
    assert usage["error"]["type"] == "UsageError"


def test_a_misspelt_path_is_answered_with_the_near_one(home: Path, tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    wrong = tmp_path / "photgraphs"
    result = vantage(home, "index", "some", wrong, "--local")
    assert result.exit_code == exits.USAGE
    assert f"did you mean '{tmp_path / 'photographs'}'?" in result.stderr
    # and no job was made for it, nor a collection
    assert vantage_json(home, "collections") == {"collections": []}


def test_without_redis_the_error_gives_the_remedy(home: Path, tmp_path: Path) -> None:
    result = vantage(home, "index", "some", tmp_path)
    assert result.exit_code == exits.TROUBLE
    assert "vantage up" in result.stderr


def test_a_wrong_setting_is_exit_code_2(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VANTAGE_HOMME", "x")
    result = vantage(home, "status")
    assert result.exit_code == exits.USAGE
    assert "VANTAGE_HOMME is '***': not a variable that Vantage knows; did" in result.stderr


@pytest.mark.parametrize(
    ("revision", "remedy"), [("0001", "run `vantage migrate`"), ("9999", "install a newer Vantage")]
)
def test_a_database_of_another_schema_is_left_to_the_operator(
    home: Path, revision: str, remedy: str
) -> None:
    import sqlite3

    assert vantage(home, "migrate").exit_code == exits.OK
    with sqlite3.connect(home / "vantage.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()
    result = vantage(home, "collections")
    assert result.exit_code == exits.TROUBLE
    assert remedy in result.stderr


def test_the_debug_option_works_anywhere_and_raises_the_error(home: Path) -> None:
    for args in (["--debug", "status", "nobody"], ["status", "nobody", "--debug"]):
        assert type(vantage(home, *args).exception).__name__ == "UnknownNameError"


def test_every_command_has_help_with_an_example(home: Path) -> None:
    overview = vantage(home, "--help")
    assert overview.exit_code == exits.OK
    assert "Exit codes" in overview.stdout
    for name, (_, line) in COMMANDS.items():
        assert f"  {name}" in overview.stdout
        assert line in overview.stdout
        page = vantage(home, name, "--help")
        assert page.exit_code == exits.OK
        assert f"$ vantage {name}" in page.stdout
        assert "--json" in page.stdout


def test_no_command_at_all_is_answered_with_the_help(home: Path) -> None:
    result = vantage(home)
    assert result.exit_code == exits.USAGE
    assert "Usage" in result.stdout


def test_the_version_is_printed(home: Path) -> None:
    assert vantage(home, "--version").stdout.startswith("vantage ")
