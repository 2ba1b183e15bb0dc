"""Two extractors over the same photographs, searched together: by workers as without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sites import Site, found_names
from typer.testing import CliRunner

from pipeline.errors import ImageReadError, IndexNotBuiltError, InputError, UnknownNameError
from pipeline.records import FoundBy, FusedResult
from vantage import Collection, FusedCollection
from workers.cli.app import app
from workers.environment import environment

PAIR = ("indexed", "indexed-surf")


@pytest.fixture(scope="module")
def pair(site: Site, indexed: str, photo_folder: Path) -> tuple[str, str]:
    """The photographs by SIFT, and all but two of them by SURF."""
    files = sorted(photo_folder.iterdir())
    left_out = {"coffee.png", "page.png"}
    with Collection.open(PAIR[1], site.settings, extractor="surf") as collection:
        paths = [path for path in files if path.name not in left_out]
        progress = collection.index(paths).wait(timeout=600)
    assert (progress.images_done, progress.images_failed) == (43, 0)
    assert indexed == PAIR[0]
    return PAIR


def answer(result: FusedResult) -> dict[str, Any]:
    """Return what two answers to one query must have in common: all but the times."""
    values = result.to_dict()
    values.pop("timings")
    values.pop("explains")
    return values


@pytest.mark.parametrize("plan", ["probed", "exhaustive"])
def test_workers_fuse_as_one_process_does(
    site: Site, pair: tuple[str, str], queries: list[Path], plan: Any
) -> None:
    with (
        FusedCollection.open(pair, site.settings) as remote,
        FusedCollection.open(pair, site.settings, local=True) as here,
    ):
        for query in queries:
            wanted = here.search(query, top=20, plan=plan)
            assert wanted.complete
            assert [one.plan["kind"] for one in wanted.answers] == [plan, plan]
            assert answer(remote.search(query, top=20, plan=plan)) == answer(wanted)
            handle = remote.enqueue_search(query, top=20, plan=plan)
            assert answer(handle.wait()) == answer(wanted)
            assert handle.ready()
            assert found_names(wanted)[0].split("__")[0] == query.stem


def test_an_answer_says_which_extractor_found_what(
    site: Site, pair: tuple[str, str], photo_folder: Path
) -> None:
    query = photo_folder / "coffee.png"
    with Collection.open(pair[0], site.settings, local=True) as one:
        alone = one.search(query, top=45)
    with FusedCollection.open(pair, site.settings, local=True) as both:
        result = both.search(query, top=45)
    assert result.labels == ("sift", "surf")
    first = result.matches[0]
    assert first.locations == (str(query),)
    # SURF has not indexed the photograph itself; that does not speak against it.
    assert first.found_by == (
        FoundBy(pair[0], "sift", 1, alone.matches[0].score),
        FoundBy(pair[1], "surf", indexed=False),
    )
    by_sift = {match.image: match for match in alone.matches}
    for match in result.matches:
        sift, surf = match.found_by
        assert (sift.collection, surf.collection) == pair
        if sift.rank is not None:
            assert (sift.rank, sift.score) == (
                by_sift[match.image].rank,
                by_sift[match.image].score,
            )
        assert sift.rank is not None or surf.rank is not None
    both = [match for match in result.matches if all(found.rank for found in match.found_by)]
    assert len(both) >= 2


def test_what_one_extractor_cannot_see_the_other_answers(
    site: Site, pair: tuple[str, str], tmp_path: Path, small_photographs: dict[str, bytes]
) -> None:
    """SURF needs more room around a keypoint than SIFT: a small picture has none for it."""
    pixels = cv2.imdecode(np.frombuffer(small_photographs["text"], np.uint8), cv2.IMREAD_COLOR)
    path = tmp_path / "small.png"
    cv2.imwrite(str(path), pixels[40:64, 40:100])
    with (
        FusedCollection.open(pair, site.settings) as remote,
        FusedCollection.open(pair, site.settings, local=True) as here,
    ):
        wanted = here.search(path)
        assert [one.query["descriptors"] > 0 for one in wanted.answers] == [True, False]
        assert wanted.answers[1].plan == {}
        assert wanted.matches
        assert wanted.complete
        assert answer(remote.search(path)) == answer(wanted)
        assert answer(remote.enqueue_search(path).wait()) == answer(wanted)
        blank = np.full((200, 200), 90, np.uint8)
        for search in (here.search, remote.search):
            with pytest.raises(InputError, match="sift extractor found no keypoint"):
                search(blank)


def test_errors_come_before_any_search(
    site: Site, pair: tuple[str, str], queries: list[Path]
) -> None:
    def search(names: Any, query: Any, local: bool) -> FusedResult:
        with FusedCollection.open(names, site.settings, local=local) as opened:
            return opened.search(query)

    for local in (True, False):
        with pytest.raises(InputError, match="cannot be fused with itself"):
            search([pair[0], pair[0]], queries[0], local)
        with pytest.raises(UnknownNameError, match="did you mean 'indexed-surf'"):
            search([pair[0], "indexd-surf"], queries[0], local)
        with pytest.raises(ImageReadError):
            search(pair, b"no image", local)
        # Arguments in the wrong order, or a name alone.
        for names in ("query.jpg", pair[0], Path("query.jpg"), [Path("a"), Path("b")], [1, 2]):
            with pytest.raises(InputError, match="named"):
                search(names, queries[0], local)


def test_a_collection_without_an_index_is_named(
    site: Site, pair: tuple[str, str], queries: list[Path], tmp_path: Path
) -> None:
    with Collection.open("still-empty", site.settings, local=True) as collection:
        collection.index([tmp_path])
    names = [pair[0], "still-empty"]
    for order in (names, names[::-1]):
        for local in (True, False):
            with (
                FusedCollection.open(order, site.settings, local=local) as opened,
                pytest.raises(IndexNotBuiltError, match="still-empty"),
            ):
                opened.search(queries[0])


def vantage(site: Site, *args: str | Path) -> Any:
    """Run ``vantage`` in this process, with the site's settings."""
    env = environment(site.settings) | {"COLUMNS": "80"}
    return CliRunner().invoke(app, [str(arg) for arg in args], env=env)


def test_the_command_shows_what_each_extractor_says(
    site: Site, pair: tuple[str, str], queries: list[Path], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    command = ["search", pair[0], queries[1], "--fuse", pair[1]]
    shown = {}
    for name, more in {"workers": (), "local": ("--local",)}.items():
        found = vantage(site, *command, *more, "--json", "--html", page)
        assert found.exit_code == 0, found.output
        shown[name] = json.loads(found.stdout)
        (search,) = shown[name]["searches"]
        search.pop("timings")
        search.pop("explains")
    assert shown["workers"] == shown["local"]
    assert shown["local"]["fused_with"] == [pair[1]]
    assert search["collections"] == list(pair)
    assert search["extractors"] == dict(zip(pair, ("sift", "surf"), strict=True))
    assert [found["extractor"] for found in search["matches"][0]["found_by"]] == ["sift", "surf"]
    text = page.read_text(encoding="utf-8")
    assert "sift + surf" in text
    assert "sift #1, score 0." in text
    assert "surf has not indexed it" in text or "surf #" in text
    people = vantage(site, *command)
    lines = people.stdout.splitlines()
    assert lines[1].split() == ["#", "score", "sift", "surf", "location"]
    assert lines[2].split()[0] == "1"
    assert any(line.startswith("  surf: exhaustive plan") for line in lines)
    assert any("not indexed" in line for line in lines)
    assert all(len(line) <= 80 for line in lines[1:] if ": " not in line)


def test_the_command_refuses_what_cannot_be_fused(
    site: Site, pair: tuple[str, str], queries: list[Path]
) -> None:
    itself = vantage(site, "search", pair[0], queries[0], "--fuse", pair[0], "--local")
    assert itself.exit_code == 2
    assert "cannot be fused with itself" in itself.stderr
    unknown = vantage(site, "search", pair[0], queries[0], "--fuse", "indexed-surv")
    assert unknown.exit_code == 2
    assert "did you mean 'indexed-surf'" in unknown.stderr


@pytest.fixture(scope="module")
def dataset(
    tmp_path_factory: pytest.TempPathFactory,
    small_photographs: dict[str, bytes],
    queries: list[Path],
) -> Path:
    """The photographs, to be found by changed views of four of them."""
    folder = tmp_path_factory.mktemp("dataset")
    for name, data in small_photographs.items():
        (folder / f"{name}.png").write_bytes(data)
    relevant = {}
    for query in queries:
        (folder / f"view-of-{query.name}").write_bytes(query.read_bytes())
        relevant[f"view-of-{query.name}"] = [f"{query.stem}.png"]
    truth = {"images": [*(f"{n}.png" for n in small_photographs), *relevant], "relevant": relevant}
    (folder / "groundtruth.json").write_text(json.dumps(truth), encoding="utf-8")
    return folder


def test_eval_measures_extractors_alone_and_fused(site: Site, dataset: Path) -> None:
    command = ["eval", dataset, "--extractor", "sift", "--extractor", "surf", "--fuse"]
    found = vantage(site, *command, "--plan", "exhaustive", "--json")
    assert found.exit_code == 0, found.output
    figures = json.loads(found.stdout)
    assert list(figures["extractors"]) == ["sift", "surf", "fused"]
    assert figures["extractor"] == "sift"
    assert figures["overall"] == figures["extractors"]["sift"]["overall"]
    for each in figures["extractors"].values():
        assert each["overall"]["queries"] == 4
        assert each["plans_run"] == {"exhaustive": 4}
    assert figures["extractors"]["fused"]["overall"]["mAP"] == 1.0
    assert json.loads(vantage(site, "collections", "--json").stdout)["collections"]
    assert "eval-" not in vantage(site, "collections").stdout


def test_eval_for_people_shows_the_extractors_side_by_side(site: Site, dataset: Path) -> None:
    command = ["eval", dataset, "--extractor", "sift", "--extractor", "surf", "--fuse", "--local"]
    found = vantage(site, *command, "--plan", "probed")
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert lines[1].split()[:3] == ["subset", "extractor", "plan"]
    assert [line.split()[1] for line in lines[2:5]] == ["sift", "surf", "fused"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--fuse"], "--fuse takes at least two extractors, not 1"),
        (["--extractor", "sift", "--extractor", "sift"], "'sift' is given twice"),
        (["--extractor", "sifd"], "did you mean 'sift'"),
    ],
)
def test_eval_refuses_extractors_that_make_no_sense(
    site: Site, dataset: Path, given: list[str], message: str
) -> None:
    found = vantage(site, "eval", dataset, *given, "--local")
    assert found.exit_code == 2
    assert message in found.stderr
