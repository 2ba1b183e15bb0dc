"""The demonstration without its running system: samples, arguments, tables, page."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

pytest.importorskip("skimage", reason="the sample photographs come with scikit-image")

from demo import samples, show
from demo.__main__ import app
from demo.searches import PLANS, TOP, search_all
from demo.system import isolate_environment
from pipeline.config import Settings
from pipeline.errors import InputError, NoFeaturesError, StateError
from pipeline.evaluation.transforms import STANDARD
from pipeline.records import Match, SearchResult


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return samples.sample_queries(tmp_path_factory.mktemp("samples"))


def found(*locations, kind="probed", descriptors=300):
    """Return a search result with one location a rank."""
    matches = tuple(
        Match(rank, f"{rank:064x}", (location,), 1 / (rank + 1), 9, 8, 6)
        for rank, location in enumerate(locations, start=1)
    )
    plan = {"kind": kind, "cells": 100, "cells_probed": 6.0, "scanned_share": 0.06}
    query = {"descriptors": descriptors, "width": 8, "height": 6}
    return SearchResult(matches, True, (), plan, {"total": 5.0}, query, "demo", 1)


def printed(rows):
    console = Console(file=io.StringIO(), width=160)
    show.print_rows(console, rows)
    return console.file.getvalue()


def test_about_twenty_real_photographs_are_asked_for_in_every_way(material):
    folders, queries = material
    database = samples.image_files(folders[0])
    assert len(database) == len(samples.SAMPLES) == 19
    assert len(queries) == 2 * 19 + 1
    assert {t.description for t in STANDARD} < {query.change for query in queries}
    for query in queries:
        with Image.open(query.path) as image:
            image.load()
        assert query.answers <= {str(path) for path in database}
        assert len(query.answers) == 1


def test_the_other_half_of_the_stereo_pair_is_asked_for_and_not_indexed(material):
    folders, queries = material
    assert queries[-1].path.name == "motorcycle_right.png"
    assert {Path(location).name for location in queries[-1].answers} == {"motorcycle_left.png"}
    assert not (folders[0] / "motorcycle_right.png").exists()


def test_ranks_are_shown_for_both_plans(material):
    _, queries = material
    chosen = queries[:3]
    (right,) = chosen[0].answers

    def search(query, plan):
        if query is chosen[0]:
            return found(right, "/other.png", kind=plan)
        if query is chosen[1]:
            # The same photograph, which one plan has later.
            return found(*(["/other.png"] if plan == "probed" else []), right, kind=plan)
        raise NoFeaturesError(str(query.path), "sift")

    rows = list(search_all(chosen, search))
    assert [rows[0].answers[plan].right_match(chosen[0]).rank for plan in PLANS] == [1, 1]
    assert [rows[1].answers[plan].right_match(chosen[1]).rank for plan in PLANS] == [2, 1]
    text = printed(rows)
    assert "astronaut" in text
    assert "turned by 30 degrees" in text
    assert re.search(r"half the size +– +\d+ +– +\d+", text)
    lines = [line for line in text.splitlines() if line.startswith(("probed:", "exhaustive:"))]
    assert lines[0].startswith("probed: 1 of 3 first, 2 among the first 10, median ")
    assert lines[1].startswith("exhaustive: 2 of 3 first, 2 among the first 10, median ")
    assert "6.0 of 100 cells" in lines[0]
    assert lines[0].endswith("6.0% of the descriptor pairs computed, ran as probed")
    assert "Not first with probed: astronaut, turned by 90 degrees (300 descriptors" in text
    assert "Not first with probed and exhaustive: brick, half the size (no descriptors" in text


def test_a_photograph_that_is_not_returned_is_said_to_be_missing(material):
    _, queries = material
    rows = list(search_all(queries[:1], lambda query, plan: found("/other.png", kind=plan)))
    text = printed(rows)
    assert re.search(r"turned by 30 degrees +– +\d+ +– +\d+", text)
    assert f"0 of 1 first, 0 among the first {TOP}" in text


def test_the_table_fits_a_terminal_of_eighty_columns(material):
    _, queries = material
    rows = list(search_all(queries, lambda query, plan: found(*query.answers, kind=plan)))
    console = Console(file=io.StringIO(), width=80)
    console.print(show.views_table(rows))
    lines = [line.strip() for line in console.file.getvalue().splitlines() if line.strip()]
    assert len(lines) == 1 + 2 + 1 + len(rows), "title, head, rule and one line for each view"
    assert lines[-1].startswith("motorcycle_left")


def test_trouble_that_is_not_the_pictures_ends_the_demonstration(material):
    _, queries = material

    def search(query, plan):
        raise StateError("no worker")

    with pytest.raises(StateError):
        list(search_all(queries[:1], search))


def test_the_page_marks_the_photograph(material, tmp_path):
    _, queries = material
    (right,) = queries[0].answers
    rows = list(search_all(queries[:1], lambda query, plan: found("/gone", right, kind=plan)))
    target = tmp_path / "new" / "results.html"
    show.write_page(rows, target, "A note.")
    html = target.read_text(encoding="utf-8")
    assert html.count("2 ✓") == 2
    assert "A note." in html


def test_own_pictures_are_listed_with_their_matches(tmp_path):
    query = tmp_path / "[bold]mine.png"
    Image.new("RGB", (9, 9)).save(query)
    rows = list(
        search_all(
            samples.own_queries([query]),
            lambda query, plan: found("/a\nb.png", kind=plan) if plan == "probed" else found(),
        )
    )
    text = printed(rows)
    assert "Matches of [bold]mine.png" in text
    assert "/a\\nb.png" in text
    assert "no match" in text


def test_views_of_own_photographs_know_their_answer(tmp_path):
    photographs = tmp_path / "photos"
    photographs.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (number, 9, 9)).save(photographs / f"{number}.png")
    (photographs / "broken.png").write_bytes(b"no")
    queries = samples.own_views(photographs, tmp_path / "work")
    assert [query.answers for query in queries] == [
        {str(photographs / f"{number}.png")} for number in range(3)
    ]
    assert len({query.change for query in queries}) == 3
    (photographs / "sub").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        samples.own_views(photographs / "sub", tmp_path / "work")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--photos", "{}/none"], "is missing; name a folder of photographs"),
        (["--photos", "{}/a.png"], "is a file; name a folder of photographs"),
        (["--photos", "{}/empty"], "holds no image"),
        (["--query", "{}/none.png"], "is missing; name an image file"),
        (["--query", "{}/empty"], "is a folder; name an image file"),
        (["--query", "{}/text.png"], "is not an image"),
        (["--output", "{}/empty"], "is a folder; name a file"),
        (["--output", "{}/a.png/x.html"], "not a folder"),
        (["--bogus"], "No such option: --bogus"),
    ],
)
def test_bad_arguments_are_explained_with_status_two(arguments, message, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("words")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    result = CliRunner().invoke(app, [part.format(tmp_path) for part in arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_the_users_own_settings_are_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("VANTAGE_DATABASE_URL", "postgresql://example/production")
    monkeypatch.setenv("VANTAGE_HOME", "/precious")
    monkeypatch.setenv("VANTAGE_FLOWER_PORT", "0")
    monkeypatch.setenv("VANTAGE_CELL_SIZE", "4000")
    isolate_environment(tmp_path, 64)
    settings = Settings.from_env()
    assert settings.home == tmp_path
    assert settings.database_url == f"sqlite:///{tmp_path / 'vantage.sqlite'}"
    assert settings.flower_port == 0
    assert settings.index.cell_size == 64
