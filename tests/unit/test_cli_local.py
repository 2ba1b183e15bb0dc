from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.abandoned_jobs import end_abandoned_jobs, this_process
from pipeline.config import Settings
from pipeline.index.cells import cells_by_default
from pipeline.indexing import open_stage, run_part
from pipeline.job_params import IndexParams
from pipeline.metadata.engine import session_scope
from pipeline.metadata.jobs import create_job, get_job, pause_job
from pipeline.resources import Resources
from pipeline.text import columns
from vantage import Collection
from workers.cli import exits
from workers.cli.options import complete_collection

pytest.importorskip("skimage", reason="the sample photographs come with scikit-image")

from cli_runs import PHOTOGRAPHS, copy_photographs, vantage, vantage_json


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_photographs(tmp_path_factory.mktemp("photos") / "all")
    (folder / "notes.txt").write_text("no image")
    (folder / "two\nlines \x1b[31m.jpg").write_bytes(b"no image either")
    (folder / "[red]empty.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A home with one collection."""
    home = tmp_path_factory.mktemp("filled")
    summary = vantage_json(home, "index", "holiday", photos, "--local")
    assert summary["state"] == "done"
    return home


def test_index_says_what_became_of_the_files(filled: Path, photos: Path) -> None:
    again = vantage_json(filled, "index", "holiday", photos, "--local")
    assert again["collection"] == "holiday"
    assert again["version"] == 1
    assert again["counters"]["files_seen"] == len(PHOTOGRAPHS) + 2
    assert again["counters"]["skipped"] == 1
    assert again["counters"].get("images_extracted", 0) == 0


def test_index_for_people_names_the_numbers_and_the_way_to_the_failures(
    home: Path, photos: Path
) -> None:
    result = vantage(home, "index", "holiday", photos, "--local")
    assert result.exit_code == exits.OK
    assert f"{len(PHOTOGRAPHS)} images added" in result.stdout
    assert "1 file without an image's suffix left out" in result.stdout
    assert "2 files could not be used: see `vantage failures holiday`" in result.stdout
    assert "extracting" in result.stderr


def test_an_empty_folder_is_reported(home: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    result = vantage(home, "index", "none", empty, "--local")
    assert result.exit_code == exits.OK
    assert "No image file was found" in result.stdout
    search = vantage(home, "search", "none", empty / "x.jpg", "--local")
    assert search.exit_code == exits.TROUBLE
    assert "has no searchable image yet" in search.stderr


@pytest.mark.parametrize("plan", ["auto", "probed", "exhaustive"])
def test_search_finds_the_photograph_itself_first(filled: Path, photos: Path, plan: str) -> None:
    queries = [photos / "coffee.png", photos / "rocket.jpg"]
    answer = vantage_json(
        filled, "search", "holiday", *queries, "--local", "--plan", plan, "--top", "2"
    )
    assert [item["image"] for item in answer["searches"]] == [str(query) for query in queries]
    for item, query in zip(answer["searches"], queries, strict=True):
        assert item["matches"][0]["locations"] == [str(query)]
        assert len(item["matches"]) <= 2
        assert item["complete"] is True
        assert item["plan"]["kind"] in ("probed", "exhaustive")
        assert plan in ("auto", item["plan"]["kind"])


def test_search_output_fits_80_columns_and_names_the_plan(filled: Path, photos: Path) -> None:
    result = vantage(filled, "search", "holiday", photos / "coffee.png", "--local")
    assert result.exit_code == exits.OK
    lines = result.stdout.splitlines()
    table = [line for line in lines if line.startswith("  ")]
    assert all(columns(line) <= 80 for line in table)
    assert table[0].split() == ["#", "score", "votes", "location"]
    assert table[1].endswith("coffee.png")
    assert "100.0% scanned" in result.stdout
    assert "complete" in result.stdout


def test_exact_and_effort_choose_the_plan(filled: Path, photos: Path) -> None:
    query = photos / "coffee.png"

    def plan(*options: str) -> dict[str, Any]:
        answer = vantage_json(filled, "search", "holiday", query, "--local", *options)
        found: dict[str, Any] = answer["searches"][0]
        assert found["matches"][0]["locations"] == [str(query)]
        return found

    assert plan("--exact")["plan"]["kind"] == "exhaustive"
    assert plan("--exact")["explain"]["effort"] is None
    some = plan("--effort", "0.3")
    cells, opened = some["plan"]["cells"], some["plan"]["cells_probed"]
    assert opened == round(0.3 * cells)
    # The share that is opened: of few cells it is not quite the one asked for.
    assert (some["plan"]["kind"], some["explain"]["effort"]) == ("probed", opened / cells)
    usual = plan("--plan", "probed")["plan"]
    assert usual["cells_probed"] == cells_by_default(cells)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--exact", "--effort", "0.1"), "ask for one of the two"),
        (("--exact", "--plan", "probed"), "ask for one of the two"),
        (("--plan", "exhaustive", "--effort", "0.1"), "leave out one of the two"),
        (("--effort", "1.5"), "effort is 1.5: must be above 0 and at most 1"),
    ],
)
def test_plans_that_contradict_themselves_are_refused(
    filled: Path, photos: Path, options: tuple[str, ...], sentence: str
) -> None:
    for command in (("search", "holiday", photos / "coffee.png"), ("eval", photos)):
        result = vantage(filled, *command, "--local", *options)
        assert result.exit_code == exits.USAGE
        assert sentence in " ".join(result.stderr.split())
        assert result.stdout == ""


def test_explain_prints_the_plan_its_cost_and_its_times(filled: Path, photos: Path) -> None:
    names = [photos / "coffee.png", photos / "rocket.jpg"]
    result = vantage(filled, "search", "holiday", *names, "--local", "--explain", "--exact")
    assert result.exit_code == exits.OK
    lines = result.stdout.splitlines()
    assert all(columns(line) <= 80 for line in lines if line.startswith("  "))
    text = " ".join(result.stdout.split())
    assert "Plan of holiday: exhaustive; it was asked for." in text
    assert "Scanned for 2 images with" in text
    # One pass for both, explained once, after both answers.
    assert text.count("Tree: ") == 1
    assert text.index("rocket.jpg: ") < text.index("Tree: ")
    table = [line.split() for line in lines if line.startswith("  ")]
    assert any(line[0] == "pairs" and "1.00" in line for line in table)
    assert any(line[0] == "all" for line in table)
    assert re.search(r"extract ms plan ms send and wait ms rank ms( [\d,]+\.\d){4}", text)
    assert "the probed plan, predicted" in text


def test_explained_figures_add_up(filled: Path, photos: Path) -> None:
    query = photos / "coffee.png"
    for options in (("--exact",), ("--effort", "0.3")):
        answer = vantage_json(filled, "search", "holiday", query, "--local", *options)
        (found,) = answer["searches"]
        explain, plan = found["explain"], found["plan"]
        groups = explain["groups"]
        assert explain["plan"] == plan["kind"]
        assert [group["group"] for group in groups] == plan["groups"]
        assert explain["queries"] == found["query"]["descriptors"]
        wanted = explain["queries"] * plan["cells_probed"]
        assert sum(group["wanted"] for group in groups) == wanted
        for name in ("pairs", "bytes"):
            assert explain["actual"][name] == sum(group[name] for group in groups)
        assert explain["actual"]["pairs"] == pytest.approx(
            plan["scanned_share"] * plan["descriptors"] * explain["queries"], rel=1e-3
        )
        for group in groups:
            assert 0 < group["cells"] <= group["distinct"] <= group["wanted"]
            assert group["bytes"] == 72 * group["visited"] <= 72 * group["rows"]
            assert 0 < group["matches"] <= group["computed"] <= group["pairs"]
            assert group["ms"] > 0
        if plan["kind"] == "exhaustive":
            assert explain["predicted"]["pairs"] == explain["actual"]["pairs"]
            assert explain["predicted"]["bytes"] == explain["actual"]["bytes"]


def test_search_takes_standard_input(filled: Path, photos: Path) -> None:
    data = (photos / "coffee.png").read_bytes()
    result = vantage(filled, "search", "holiday", "-", "--local", "--json", stdin=data)
    (item,) = json.loads(result.stdout)["searches"]
    assert item["image"] == "standard input"
    assert item["matches"][0]["locations"] == [str(photos / "coffee.png")]


def test_standard_input_that_is_named_twice_is_searched_twice(filled: Path, photos: Path) -> None:
    data = (photos / "coffee.png").read_bytes()
    result = vantage(filled, "search", "holiday", "-", "-", "--local", "--json", stdin=data)
    first, second = json.loads(result.stdout)["searches"]
    assert first["matches"]
    assert first["matches"] == second["matches"]


def test_a_misspelt_extractor_of_new_collections_stops_no_search(
    filled: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VANTAGE_EXTRACTOR", "cnn:")
    found = vantage_json(filled, "search", "holiday", photos / "coffee.png", "--local")
    assert found["searches"][0]["matches"]
    refused = vantage(filled, "index", "fresh", tmp_path, "--local")
    assert refused.exit_code == exits.USAGE
    assert "cnn:FILE" in refused.stderr


def test_a_bad_query_image_spoils_only_its_own_answer(filled: Path, photos: Path) -> None:
    answer = vantage_json(
        filled,
        "search",
        "holiday",
        photos / "notes.txt",
        photos / "coffee.png",
        "--local",
        code=exits.USAGE,
    )
    bad, good = answer["searches"]
    assert bad["error"]["code"] == "not-an-image"
    assert good["matches"][0]["locations"] == [str(photos / "coffee.png")]


def test_search_writes_the_picture_page(filled: Path, photos: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    query = photos / "coffee.png"
    answer = vantage_json(filled, "search", "holiday", query, "--local", "--html", page)
    assert answer["searches"][0]["matches"]
    text = page.read_text(encoding="utf-8")
    assert "coffee.png" in text
    assert text.count("data:image/jpeg;base64,") >= 2


def test_failures_are_listed_with_code_and_sentence(filled: Path, photos: Path) -> None:
    rows = vantage_json(filled, "failures", "holiday")["failures"]
    codes = {os.path.basename(row["path"]): row["code"] for row in rows}  # noqa: PTH119
    assert codes == {"two\nlines \x1b[31m.jpg": "not-an-image", "[red]empty.png": "empty-file"}
    assert all(row["message"] for row in rows)
    limited = vantage_json(filled, "failures", "holiday", "--limit", "1")
    assert len(limited["failures"]) == 1


def test_failures_for_people_show_names_without_obeying_them(filled: Path) -> None:
    shown = vantage(filled, "failures", "holiday").stdout
    assert r"two\nlines \x1b[31m.jpg" in shown
    assert "[red]empty.png" in shown
    assert "\x1b" not in shown
    assert "2 files could not be used." in shown
    cut = vantage(filled, "failures", "holiday", "--limit", "1").stdout
    assert "--limit 0 shows all" in cut


def test_collections_and_status_count_what_is_there(filled: Path) -> None:
    (summary,) = vantage_json(filled, "collections")["collections"]
    assert summary["name"] == "holiday"
    assert summary["indexed"] == len(PHOTOGRAPHS)
    status = vantage_json(filled, "status", "holiday")
    (collection,) = status["collections"]
    assert collection["images"]["indexed"] == len(PHOTOGRAPHS)
    assert collection["images"]["failed"] == 2
    assert sum(collection["segments"].values()) >= 1
    assert status["workers"] == []
    assert status["jobs"] == []
    assert status["groups_unserved"] == sorted(int(group) for group in collection["segments"])
    shown = vantage(filled, "status").stdout
    assert f"{len(PHOTOGRAPHS)} indexed" in shown
    assert "Workers: none alive" in shown


def test_status_can_follow_when_nothing_runs(filled: Path) -> None:
    assert vantage(filled, "status", "holiday", "--follow").exit_code == exits.OK


def test_an_outgrown_collection_is_reported_and_rebuild_repairs_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VANTAGE_CELL_SIZE", "64")
    monkeypatch.setenv("VANTAGE_GROUP_COUNT", "1")
    folder = copy_photographs(tmp_path / "photos", ("rocket.jpg",))
    with Image.open(folder / "rocket.jpg") as image:
        image.resize((48, 48)).save(folder / "small.png")
    assert vantage_json(home, "index", "growing", folder / "small.png", "--local")["version"] == 1
    assert vantage_json(home, "index", "growing", folder, "--local")["version"] == 2
    shown = vantage(home, "status", "growing").stdout
    assert "run `vantage rebuild growing`" in shown
    rebuilt = vantage_json(home, "rebuild", "growing", "--local")
    assert (rebuilt["kind"], rebuilt["version"]) == ("rebuild", 3)
    assert "rebuild" not in vantage(home, "status", "growing").stdout


def test_collection_names_are_completed_and_a_missing_database_is_no_trouble(
    filled: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VANTAGE_HOME", str(filled))
    assert complete_collection("hol") == ["holiday"]
    assert complete_collection("x") == []
    monkeypatch.setenv("VANTAGE_HOME", str(home))
    assert complete_collection("") == []
    assert list(home.iterdir()) == []
    monkeypatch.setenv("VANTAGE_HOMME", "wrong")
    assert complete_collection("") == []


def test_migrate_sets_up_and_then_has_nothing_to_do(home: Path) -> None:
    first = vantage_json(home, "migrate")
    assert first["from"] is None
    second = vantage_json(home, "migrate")
    assert second["from"] == second["to"] == first["to"]


def test_the_job_of_a_killed_process_does_not_keep_its_images(home: Path, photos: Path) -> None:
    """As after kill -9 in the middle: images are registered for a job whose process is gone."""
    settings = Settings.from_env({"VANTAGE_HOME": str(home)})
    with Collection.open("killed", settings, local=True) as collection:
        collection.index([photos / "coffee.png"])
    resources = Resources(settings)
    gone = json.dumps({"host": settings.host, "pid": os.getpid(), "started": 1.0})
    params = IndexParams(paths=(str(photos),))
    with session_scope(resources.engine) as session:
        old = create_job(session, 1, "index", params, process=gone)
    open_stage(resources, old)
    run_part(resources, old.id, "register", 0)
    summary = vantage_json(home, "index", "killed", photos, "--local")
    assert summary["counters"]["images_new"] == 0
    assert summary["counters"]["images_extracted"] == len(PHOTOGRAPHS) - 1
    with session_scope(resources.engine, write=False) as session:
        assert get_job(session, old.id).state == "failed"
    resources.close()


def test_the_job_of_a_living_process_is_left_alone(home: Path, photos: Path) -> None:
    settings = Settings.from_env({"VANTAGE_HOME": str(home)})
    with Collection.open("busy", settings, local=True) as collection:
        collection.index([photos / "coffee.png"])
    resources = Resources(settings)
    process = this_process(settings.host)
    with session_scope(resources.engine) as session:
        job = create_job(session, 1, "index", IndexParams(), process=process)
    assert end_abandoned_jobs(resources.engine, 1, settings.host) == []
    assert end_abandoned_jobs(resources.engine, 1, "another host") == []
    with session_scope(resources.engine) as session:
        pause_job(session, job.id, "a folder is missing")
    # nobody waits behind a paused job of a single process
    assert [j.id for j in end_abandoned_jobs(resources.engine, 1, settings.host)] == [job.id]
    resources.close()


def test_an_unfinished_job_of_the_workers_is_reported(home: Path, photos: Path) -> None:
    settings = Settings.from_env({"VANTAGE_HOME": str(home)})
    with Collection.open("shared", settings, local=True) as collection:
        collection.index([photos / "coffee.png"])
    resources = Resources(settings)
    with session_scope(resources.engine) as session:
        job = create_job(session, 1, "index", IndexParams(paths=(str(photos),)))
    resources.close()
    result = vantage(home, "index", "shared", photos, "--local", "--json")
    assert json.loads(result.stdout)["unfinished_jobs"] == [job.id]
    assert f"job {job.id} of this collection is unfinished" in result.stderr


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, and for two of them a smaller view as the query."""
    folder = copy_photographs(tmp_path_factory.mktemp("dataset") / "set")
    relevant = {}
    for name in ("coffee.png", "rocket.jpg"):
        with Image.open(folder / name) as image:
            image.convert("RGB").resize((320, 240)).save(folder / f"view of {name}.jpg")
        relevant[f"view of {name}.jpg"] = [name]
    truth = {"images": [*PHOTOGRAPHS, *relevant], "relevant": relevant}
    truth["parts"] = {"drinks": {"queries": ["view of coffee.png.jpg"]}}
    (folder / "groundtruth.json").write_text(json.dumps(truth), encoding="utf-8")
    return folder


def test_eval_measures_both_plans_and_leaves_no_collection(home: Path, dataset: Path) -> None:
    found = vantage_json(home, "eval", dataset, "--local")
    assert found["plan"] == "probed"
    assert set(found["plans"]) == {"probed", "exhaustive"}
    assert set(found["parts"]) == {"drinks", "all"}
    for report in (found, *found["plans"].values()):
        assert report["overall"]["mAP"] == 1.0
        assert report["overall"]["recall@1"] == 1.0
        assert report["overall"]["p50_ms"] > 0
        assert 0 < report["overall"]["scanned_share"] <= 1
    assert found["plans"]["exhaustive"]["overall"]["scanned_share"] == 1.0
    assert vantage_json(home, "collections") == {"collections": []}


def test_eval_measures_the_effort_that_is_asked_for(home: Path, dataset: Path) -> None:
    shares = []
    for effort in ("0.3", "1.0"):
        found = vantage_json(home, "eval", dataset, "--local", "--keep", "--effort", effort)
        assert set(found["plans"]) == {"probed", "exhaustive"}
        shares.append(found["plans"]["probed"]["overall"]["scanned_share"])
    assert 0 < shares[0] < shares[1] == 1.0
    exact = vantage_json(home, "eval", dataset, "--local", "--keep", "--exact")
    assert set(exact["plans"]) == {"exhaustive"}


def test_eval_for_people_shows_the_plans_side_by_side(home: Path, dataset: Path) -> None:
    kept = vantage(home, "eval", dataset, "--local", "--keep", "--subsets", "drinks")
    assert kept.exit_code == exits.OK
    lines = kept.stdout.splitlines()
    assert all(columns(line) <= 80 for line in lines)
    assert [line.split()[:2] for line in lines[2:6]] == [
        ["drinks", "probed"],
        ["drinks", "exhaustive"],
        ["all", "probed"],
        ["all", "exhaustive"],
    ]
    (collection,) = vantage_json(home, "collections")["collections"]
    assert collection["name"].startswith("eval-")
    # a kept collection is used again, and kept again
    again = vantage(home, "eval", dataset, "--local", "--subsets", "drinks", "--plan", "probed")
    assert collection["name"] in again.stderr
    assert "extracting" not in again.stderr
    assert vantage_json(home, "collections")["collections"] == [collection]


def test_doctor_says_what_it_found(filled: Path) -> None:
    # Whether this machine is well is not for a test to say; that both forms agree is.
    result = vantage(filled, "doctor", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == (exits.OK if found["ok"] else exits.TROUBLE)
    assert {"python", "opencv", "database"} <= {check["name"] for check in found["checks"]}
    shown = vantage(filled, "doctor")
    assert shown.exit_code == result.exit_code
    assert "opencv" in shown.stdout


def test_a_collection_is_made_with_the_extractor_that_is_asked_for(
    home: Path, photos: Path
) -> None:
    small = ("index", "views", photos / "coffee.png", photos / "rocket.jpg", "--local")
    assert vantage_json(home, *small, "--extractor", "surf")["state"] == "done"
    answer = vantage_json(home, "search", "views", photos / "coffee.png", "--local")
    assert answer["searches"][0]["matches"][0]["locations"] == [str(photos / "coffee.png")]
    (listed,) = vantage_json(home, "collections")["collections"]
    assert listed["extractor_id"].startswith("surf-")
    # Without the option it stays what it is; with another one nothing is mixed.
    assert vantage_json(home, *small)["version"] == 1
    refused = vantage(home, *small, "--extractor", "sift")
    assert refused.exit_code == exits.USAGE
    message = " ".join(refused.stderr.split())
    assert "extractor is 'sift': collection 'views' was made with surf and keeps it" in message
    assert "index into a collection of another name" in message
    # A rebuild changes it.
    assert "`vantage rebuild views --extractor ...`" in message
    shown = vantage(home, "rebuild", "views", "--local", "--extractor", "sift").stdout
    assert "Rebuilt views in" in shown
    assert "2 images extracted anew." in shown
    assert "Searchable: 2 images, version 2." in shown
    assert vantage_json(home, *small, "--extractor", "sift")["version"] == 2
    unknown = vantage(home, "rebuild", "views", "--local", "--extractor", "surff")
    assert (unknown.exit_code, "did you mean 'surf'?" in unknown.stderr) == (exits.USAGE, True)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("surff", "did you mean 'surf'?"),
        ("cnn", "write cnn:FILE"),
        ("sift:x.onnx", "sift works without a model"),
        ("cnn:/none/such.onnx", "there is no such file"),
    ],
)
def test_an_invalid_extractor_is_refused_before_anything_is_made(
    home: Path, photos: Path, spec: str, sentence: str
) -> None:
    result = vantage(home, "index", "odd", photos, "--local", "--extractor", spec)
    assert result.exit_code == exits.USAGE
    assert sentence in " ".join(result.stderr.split())
    assert vantage_json(home, "collections")["collections"] == []


def test_the_extractors_are_listed_with_their_patents(home: Path) -> None:
    found = {info["name"]: info for info in vantage_json(home, "extractors")["extractors"]}
    assert {"sift", "surf", "cnn"} <= set(found)
    assert "US 8,165,401 may still be in force" in found["surf"]["patents"]
    assert "expired" in found["sift"]["patents"]
    assert (found["sift"]["dimensions"], found["sift"]["row_bytes"]) == (128, 64)
    assert (found["surf"]["dimensions"], found["surf"]["row_bytes"]) == (64, 64)
    assert not found["sift"]["one_vector"]
    assert found["cnn"]["reason"] == "needs a model: cnn:FILE"
    assert all(info["usable"] and info["licence"] for info in found.values())
    result = vantage(home, "extractors")
    assert result.exit_code == exits.OK
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        *("extractor", "dimensions", "row", "bytes", "descriptors", "usable", "licence")
    ]
    for info in found.values():
        assert f"{info['name']}: patents: {info['patents']}" in lines
    assert vantage(home, "extractors", "surff").exit_code == exits.USAGE
