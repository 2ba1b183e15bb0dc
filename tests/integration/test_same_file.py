"""The file that is asked with is first if the collection has it, whatever its score."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sites import make_settings
from typer.testing import CliRunner

from pipeline.config import Settings
from pipeline.errors import ImageReadError, IndexNotBuiltError, InputError, NoFeaturesError
from pipeline.records import Match
from vantage import Collection, FusedCollection
from workers.cli.app import app
from workers.environment import environment

USELESS = ("flat.png", "cut off.png", "text.jpg")
"""Files that the collections know, but without features."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return make_settings(tmp_path_factory.mktemp("same") / "home")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_photographs: dict[str, bytes]) -> Path:
    """Photographs, one of them with a brighter copy, and files that cannot be used."""
    path = tmp_path_factory.mktemp("same-files")
    for name in ("astronaut", "brick", "coffee", "grass", "page"):
        (path / f"{name}.png").write_bytes(small_photographs[name])
    pixels = cv2.imdecode(np.frombuffer(small_photographs["brick"], np.uint8), cv2.IMREAD_COLOR)
    for step in range(1, 5):
        cv2.imwrite(str(path / f"brick {step}.png"), cv2.convertScaleAbs(pixels, beta=step))
    cv2.imwrite(str(path / "flat.png"), np.full((200, 200), 90, np.uint8))
    (path / "cut off.png").write_bytes(small_photographs["coffee"][:3000])
    (path / "text.jpg").write_text("no picture")
    return path


@pytest.fixture(scope="module")
def pictures(settings: Settings, folder: Path) -> Iterator[Collection]:
    with Collection.open("pictures", settings, local=True) as collection:
        collection.index(folder)
        yield collection


def first(matches: tuple[Match, ...]) -> str:
    """Return the name of the first match, which must be the only one that is the same file."""
    assert [match.same_file for match in matches] == [True] + [False] * (len(matches) - 1)
    assert [match.rank for match in matches] == list(range(1, len(matches) + 1))
    return Path(matches[0].locations[0]).name


@pytest.mark.parametrize(
    "options", [{"plan": "exhaustive"}, {"plan": "probed", "effort": 0.01}, {"top": 1}]
)
def test_every_file_finds_itself_first(
    pictures: Collection, folder: Path, options: dict[str, Any]
) -> None:
    files = sorted(folder.iterdir())
    for path, found in zip(files, pictures.search_many(files, **options), strict=True):
        assert not isinstance(found, InputError)
        assert first(found.matches) == path.name
        assert ("error" in found.query) == (path.name in USELESS)
    for path in files:
        assert first(pictures.search(path.read_bytes(), **options).matches) == path.name
        assert first(pictures.enqueue_search(path, **options).wait().matches) == path.name


def test_a_file_without_features_is_found_with_the_reason(
    pictures: Collection, folder: Path
) -> None:
    found = pictures.search(folder / "flat.png")
    assert [(match.score, match.votes) for match in found.matches] == [(0.0, 0)]
    assert found.query["error"]["code"] == "no-features"
    assert found.complete
    assert type(found).from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(NoFeaturesError):
        pictures.search(np.full((201, 201), 90, np.uint8))
    with pytest.raises(ImageReadError):
        pictures.search(b"other text")


def test_other_bytes_of_the_same_picture_are_not_the_same_file(
    pictures: Collection, folder: Path
) -> None:
    data = (folder / "brick.png").read_bytes()
    pixels = cv2.cvtColor(cv2.imread(str(folder / "brick.png")), cv2.COLOR_BGR2RGB)
    for query in (data + b"\0", pixels):
        assert not any(match.same_file for match in pictures.search(query).matches)


def test_a_removed_file_is_not_there(
    settings: Settings, tmp_path: Path, small_photographs: dict[str, bytes]
) -> None:
    for name in ("astronaut", "coffee", "page"):
        (tmp_path / f"{name}.png").write_bytes(small_photographs[name])
    with Collection.open("changing", settings, local=True) as collection:
        collection.index(tmp_path)
        (tmp_path / "page.png").write_bytes(small_photographs["chelsea"])
        collection.index(tmp_path)
        found = collection.search(small_photographs["page"]).matches
        assert not any(match.same_file for match in found)
        assert first(collection.search(small_photographs["chelsea"]).matches) == "page.png"


def test_a_collection_without_features_knows_its_files(
    settings: Settings, folder: Path, tmp_path: Path
) -> None:
    with Collection.open("featureless", settings, local=True) as collection:
        collection.index([folder / name for name in USELESS])
        found = collection.search(folder / "flat.png")
        assert (first(found.matches), found.version) == ("flat.png", 0)
        assert first(collection.enqueue_search(folder / "flat.png").wait().matches) == "flat.png"
        nowhere = tmp_path / "nowhere.png"
        for query in ([folder / "brick.png"], [folder / "flat.png", folder / "brick.png"], nowhere):
            with pytest.raises(IndexNotBuiltError):
                collection.search_many(query)
        known, unread = collection.search_many([folder / "flat.png", nowhere])
        assert not isinstance(known, InputError)
        assert first(known.matches) == "flat.png"
        assert isinstance(unread, ImageReadError)


def test_collections_together_put_it_first(
    pictures: Collection, settings: Settings, folder: Path
) -> None:
    """SURF's collection lacks some files that SIFT's has, and has others alone."""
    some = ["brick 1.png", "brick 2.png", "coffee.png", "flat.png"]
    alone = folder.parent / "alone.png"
    cv2.imwrite(str(alone), np.full((150, 150), 17, np.uint8))
    with Collection.open("by-surf", settings, local=True, extractor="surf") as collection:
        collection.index([*(folder / name for name in some), alone])
    with FusedCollection.open(["pictures", "by-surf"], settings, local=True) as both:
        for path in [*sorted(folder.iterdir()), alone]:
            assert first(both.search(path).matches) == path.name
            assert first(both.enqueue_search(path).wait().matches) == path.name
        with pytest.raises(InputError):
            both.search(b"other text")


def test_the_command_marks_it_in_text_json_and_page(
    pictures: Collection, settings: Settings, folder: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    command = ["search", "pictures", folder / "brick 3.png", folder / "flat.png", "--local"]

    def run(*more: str | Path) -> str:
        given = [str(argument) for argument in (*command, *more)]
        result = CliRunner().invoke(app, given, env=environment(settings) | {"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.stdout

    lines = run("--html", page, "--top", "2").splitlines()
    marked = [line for line in lines if "[same file] " in line]
    assert [Path(line).name for line in marked] == ["brick 3.png", "flat.png"]
    assert "the sift extractor found no keypoint in it" in lines[-2]
    assert page.read_text(encoding="utf-8").count(">same file<") == 2
    searches = json.loads(run("--json"))["searches"]
    assert [one["matches"][0]["same_file"] for one in searches] == [True, True]
    assert not any(match["same_file"] for one in searches for match in one["matches"][1:])
