"""Index and search in one process, with which the workers are compared."""

from __future__ import annotations

import io
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from sites import answer, files_below, found_names, make_settings
from sqlalchemy import text
from typer.testing import CliRunner

from pipeline import indexing
from pipeline.config import Settings
from pipeline.errors import (
    ConfigError,
    CorruptFileError,
    ImageReadError,
    IndexNotBuiltError,
    MissingRootError,
    NoFeaturesError,
    StateError,
    UnknownNameError,
)
from pipeline.job_kinds import INDEX, load
from pipeline.job_params import RebuildParams
from pipeline.metadata import collections, holdings, images, jobs, parts
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import FailureRow, JobRecord
from pipeline.request import SearchRequest
from pipeline.resources import Resources
from pipeline.retrieval.open_segments import ImageSet
from pipeline.searching import finish_batch, prepare_query, scan_group, searched_groups
from pipeline.storage import Storage
from vantage import Collection
from workers.cli.app import app
from workers.environment import environment

BOTH_PLANS = pytest.mark.parametrize("plan", ["exhaustive", "probed"])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path / "a home")


@pytest.fixture
def collection(settings: Settings) -> Iterator[Collection]:
    with Collection.open("pictures", settings, threads=2, local=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Iterator[Collection]:
    """The photographs and their views, indexed once. Only to be searched."""
    settings = make_settings(tmp_path_factory.mktemp("local") / "home")
    with Collection.open("shared", settings, threads=2, local=True) as opened:
        opened.index([photo_folder]).wait()
        yield opened


@pytest.fixture
def folder(tmp_path: Path, small_photographs: dict[str, bytes]) -> Path:
    """Six photographs that a test may change."""
    path = tmp_path / "photographs"
    path.mkdir()
    for name in ("astronaut", "brick", "coffee", "page", "rocket", "text"):
        (path / f"{name}.png").write_bytes(small_photographs[name])
    return path


def matches(collection: Collection, query: Any, plan: str = "exhaustive") -> list[Any]:
    return collection.search(query, top=50, plan=plan).to_dict()["matches"]  # type: ignore[arg-type]


def failures(collection: Collection) -> list[FailureRow]:
    with session_scope(collection._driver.resources.engine, write=False) as session:
        record = collections.get_collection(session, collection.name)
        return list(images.failures(session, record.id, 100, 0))


# --- indexing ------------------------------------------------------------------------------------


def test_indexing_twice_extracts_nothing_the_second_time(
    collection: Collection, folder: Path, settings: Settings
) -> None:
    first = collection.index([folder]).wait()
    assert (first.images_done, first.images_failed) == (6, 0)
    assert first.counters["images_extracted"] == first.counters["images_new"] == 6
    stored = files_below(settings.store)
    second = collection.index([folder]).wait()
    assert second.state == "done"
    assert second.counters["files_seen"] == second.counters["files_unchanged"] == 6
    assert second.counters["images_new"] == 0
    assert second.counters.get("images_extracted", 0) == second.images_total == 0
    assert files_below(settings.store) == stored


def test_images_added_later_are_found_beside_the_first_ones(
    collection: Collection, folder: Path, small_photographs: dict[str, bytes]
) -> None:
    collection.index([folder]).wait()
    (folder / "chelsea.png").write_bytes(small_photographs["chelsea"])
    added = collection.index([folder]).wait()
    assert added.counters["images_extracted"] == 1
    for name in ("chelsea", "astronaut"):
        assert found_names(collection.search(small_photographs[name]))[0] == name


def test_a_changed_file_takes_its_new_content(
    collection: Collection, folder: Path, small_photographs: dict[str, bytes]
) -> None:
    collection.index([folder]).wait()
    (folder / "coffee.png").write_bytes(small_photographs["chelsea"])
    collection.index([folder]).wait()
    best = matches(collection, small_photographs["chelsea"])[0]
    assert best["locations"] == [str(folder / "coffee.png")]
    left = matches(collection, small_photographs["coffee"])
    assert all(match["score"] < 0.2 for match in left)


def test_equal_files_are_one_image_at_two_locations(collection: Collection, folder: Path) -> None:
    copy = folder / "below" / "the same.png"
    copy.parent.mkdir()
    shutil.copy(folder / "page.png", copy)
    progress = collection.index([folder]).wait()
    assert progress.counters["images_new"] == 6
    best = matches(collection, copy)[0]
    assert best["locations"] == [str(copy), str(folder / "page.png")]


def test_an_answer_names_what_exists_first_and_marks_what_is_gone(
    collection: Collection, folder: Path, settings: Settings, small_photographs: dict[str, bytes]
) -> None:
    def places(name: str) -> list[tuple[str, str]]:
        best = collection.search(small_photographs[name]).matches[0]
        names = [os.path.relpath(path, folder) for path in best.locations]
        return list(zip(names, best.location_states, strict=True))

    def shown(name: str, *more: str) -> str:
        command = ["search", "pictures", str(folder.parent / "query.png"), "--local", "--top", "1"]
        (folder.parent / "query.png").write_bytes(small_photographs[name])
        env = environment(settings) | {"COLUMNS": "300"}
        result = CliRunner().invoke(app, [*command, *more], env=env)
        assert result.exit_code == 0, result.output
        return result.stdout

    shutil.copy(folder / "page.png", folder / "another.png")
    collection.index([folder])
    (folder / "below").mkdir()
    (folder / "astronaut.png").rename(folder / "below" / "z.png")
    (folder / "brick.png").unlink()
    (folder / "another.png").unlink()
    # Before the folder is indexed again, the answer knows it too.
    assert places("page") == [("page.png", "present"), ("another.png", "gone")]
    assert places("astronaut") == [("astronaut.png", "gone")]
    assert "[same file, gone] " in shown("brick")
    assert collection.index([folder]).wait().counters["files_gone"] == 3
    assert places("astronaut") == [("below/z.png", "present"), ("astronaut.png", "gone")]
    assert places("brick") == [("brick.png", "gone")]
    assert f"[same file, +1 more, 1 of them gone] {folder}/below/z.png" in shown("astronaut")
    page = folder.parent / "answer.html"
    shown("astronaut", "--html", str(page))
    assert "astronaut.png (gone)" in page.read_text(encoding="utf-8")
    # A drive that is not mounted: nothing is known.
    folder.rename(folder.parent / "elsewhere")
    assert places("page") == [("page.png", "unknown"), ("another.png", "gone")]
    assert "[same file, unknown] " in shown("coffee")


def test_an_image_that_was_deleted_and_comes_back_is_found_again(
    collection: Collection, folder: Path, small_photographs: dict[str, bytes]
) -> None:
    collection.index([folder]).wait()
    page = small_photographs["page"]
    (folder / "page.png").write_bytes(small_photographs["chelsea"])
    collection.index([folder]).wait()
    assert found_names(collection.search(page))[0:1] != ["page"] or (
        matches(collection, page)[0]["score"] < 0.2
    )
    (folder / "page again.png").write_bytes(page)
    collection.index([folder]).wait()
    result = matches(collection, page)
    assert [Path(match["locations"][0]).stem for match in result].count("page again") == 1
    assert result[0]["locations"] == [str(folder / "page again.png")]
    assert result[0]["score"] > 0.5


def test_bad_files_are_recorded_and_the_rest_is_indexed(
    collection: Collection, folder: Path
) -> None:
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.png").write_bytes((folder / "page.png").read_bytes()[:3000])
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (200, 200), (90, 90, 90)).save(folder / "flat.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    progress = collection.index([folder]).wait()
    assert progress.state == "done"
    assert progress.images_done - progress.images_failed == 6
    recorded = {Path(failure.path).name: failure.code for failure in failures(collection)}
    assert recorded == {
        "text.jpg": "not-an-image",
        "cut.png": "truncated",
        "empty.png": "empty-file",
        "flat.png": "no-features",
        "gone.png": "vanished",
    }
    again = collection.index([folder]).wait()
    assert again.counters.get("images_extracted", 0) == 0
    assert len(failures(collection)) == 5


def test_a_file_that_cannot_be_read_for_a_while_does_not_spoil_the_container_of_the_others(
    collection: Collection, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page vanishes between listing and extraction, and comes back."""
    hidden = folder.parent / "hidden.png"
    advance = indexing.advance

    def hide(resources: Resources, job: JobRecord) -> JobRecord | None:
        if job.stage == "register":
            (folder / "page.png").rename(hidden)
        return advance(resources, job)

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "advance", hide)
        progress = collection.index([folder]).wait()
    assert (progress.images_done, progress.images_failed) == (6, 1)
    hidden.rename(folder / "page.png")
    os.utime(folder / "page.png")
    collection.index([folder]).wait()
    assert failures(collection) == []
    assert found_names(collection.search(folder / "page.png"))[0] == "page"
    # The new tree is trained on the page too, so that only the rocket itself scores as before.
    before = answer(collection.search(folder / "rocket.png"))["matches"][0]
    assert before["score"] == 1
    assert collection.rebuild().wait().state == "done"
    assert answer(collection.search(folder / "rocket.png"))["matches"][0] == before


def test_an_empty_folder_is_no_error_and_gives_nothing_to_search(
    collection: Collection, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("not looked at")
    progress = collection.index([tmp_path / "empty"]).wait()
    assert (progress.state, progress.counters["skipped"]) == ("done", 1)
    with pytest.raises(IndexNotBuiltError, match="pictures"):
        collection.search(np.zeros((50, 50), np.uint8))


def test_a_missing_folder_is_reported(collection: Collection, tmp_path: Path) -> None:
    with pytest.raises(MissingRootError, match="nowhere"):
        collection.index([tmp_path / "nowhere"])


def test_a_rebuild_of_the_same_images_gives_the_same_answers(
    shared: Collection, photo_folder: Path, queries: list[Path], settings: Settings
) -> None:
    with Collection.open("pictures", settings, local=True) as other:
        other.index([photo_folder]).wait()
        stored = files_below(settings.store)
        assert other.rebuild().wait().state == "done"
        assert files_below(settings.store) == stored
        for query in queries:
            rebuilt = matches(other, query)
            assert len(rebuilt) > 2
            assert rebuilt == matches(shared, query)


def test_a_rebuild_after_additions_trains_on_all_images(
    collection: Collection, folder: Path, queries: list[Path]
) -> None:
    collection.index([folder / "rocket.png", folder / "page.png"]).wait()
    collection.index([folder]).wait()
    before = collection._driver.resources.current_version("pictures")
    assert collection.rebuild().wait().state == "done"
    after = collection._driver.resources.current_version("pictures")
    assert after.tree.trained_on > before.tree.trained_on
    assert len(after.segments) == 4 < len(before.segments)
    assert after.stats["descriptors"] == before.stats["descriptors"]
    for query in queries:
        assert found_names(collection.search(query))[0] == query.stem


def test_a_rebuild_repairs_damaged_segments_and_trees(
    collection: Collection, folder: Path, settings: Settings
) -> None:
    collection.index([folder]).wait()
    collection.rebuild().wait()
    expected = matches(collection, folder / "text.png")
    sound = files_below(settings.store)
    for path in Path(settings.store).rglob("*.npz"):
        if path.parts[-2] != "trees" and "groups" not in path.parts:
            continue
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.unlink()
        path.write_bytes(data)
    shutil.rmtree(settings.local)
    with Collection.open("pictures", settings, local=True) as other:
        with pytest.raises(CorruptFileError, match="vantage rebuild"):
            other.search(folder / "text.png")
        assert other.rebuild().wait().state == "done"
        assert matches(other, folder / "text.png") == expected
    assert files_below(settings.store) == sound


def test_a_rebuild_repairs_files_that_differ_from_the_recorded_ones(
    collection: Collection, folder: Path, settings: Settings
) -> None:
    """As if they had been lost and made again by a processor that rounds differently."""
    collection.index([folder]).wait()
    collection.rebuild().wait()
    expected = matches(collection, folder / "text.png")
    storage = Storage(settings.store, settings.local)
    for path in Path(settings.store).rglob("*.npz"):
        key = str(path.relative_to(settings.store))
        arrays = storage.read_arrays(key)
        content, meta = {name: arrays[name].copy() for name in arrays}, arrays.meta
        path.unlink()
        storage.write_arrays(key, content, {**meta, "made": "again"})
    shutil.rmtree(settings.local)
    with Collection.open("pictures", settings, local=True) as other:
        with pytest.raises(CorruptFileError, match="vantage rebuild"):
            other.search(folder / "text.png")
        assert other.rebuild().wait().state == "done"
        assert matches(other, folder / "text.png") == expected
    shutil.rmtree(settings.local)
    with Collection.open("pictures", settings, local=True) as other:
        assert matches(other, folder / "text.png") == expected
        (folder / "later.png").write_bytes((folder / "text.png").read_bytes() + b"x")
        assert other.index([folder]).wait().state == "done"


def test_a_running_rebuild_is_reported_and_left_alone(collection: Collection, folder: Path) -> None:
    collection.index([folder]).wait()
    engine = collection._driver.resources.engine
    with session_scope(engine) as session:
        record = collections.get_collection(session, "pictures")
        other = jobs.create_job(session, record.id, "rebuild", RebuildParams())
    with pytest.raises(StateError, match=f"worked on already, by the rebuild job {other.id}"):
        collection.rebuild()
    with session_scope(engine, write=False) as session:
        assert jobs.get_job(session, other.id).state == "running"


def test_every_part_run_twice_gives_the_same_files_and_rows(
    collection: Collection,
    folder: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once more after it is done (a message delivered twice), and before (a worker killed)."""
    run_part, ran = indexing.run_part, []

    def twice(resources: Resources, job_id: str, stage: Any, number: int) -> dict[str, Any]:
        with session_scope(resources.engine) as session:
            job = jobs.get_job(session, job_id)
            part = parts.start_part(session, job_id, stage, number, "killed")
        found = INDEX.stage(stage)
        assert found is not None
        first = load(found.work)(resources, job, part)
        files, rows = files_below(settings.store), dump(resources)
        again = load(found.work)(resources, job, part)
        third = run_part(resources, job_id, stage, number)
        ran.append(stage)
        assert ignoring_fresh(again) == ignoring_fresh(third) == ignoring_fresh(first)
        if stage != "extract":  # where another thread extracts at the same time
            assert files_below(settings.store) == files
            assert dump(resources) == rows
        return first

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "run_part", twice)
        with Collection.open("pictures", settings, threads=1, local=True) as single:
            assert single.index([folder]).wait().state == "done"
            answers = matches(single, folder / "page.png")
    assert set(ran) == {stage.name for stage in INDEX.stages}
    once = make_settings(folder.parent / "another home")
    with Collection.open("pictures", once, threads=1, local=True) as single:
        single.index([folder]).wait()
        assert matches(single, folder / "page.png") == answers
    assert files_below(once.store) == files_below(settings.store)


def ignoring_fresh(summary: dict[str, Any]) -> dict[str, Any]:
    """What a part did itself, and what it found done, may differ."""
    varying = {"extracted", "files_unchanged", "images_new", "images_known"}
    return {name: value for name, value in summary.items() if name not in varying}


def dump(resources: Resources) -> dict[str, list[tuple[Any, ...]]]:
    """The content of the tables, without times."""
    columns = {
        "images": "id, sha256, state, container_id, row_in_container, descriptor_count",
        "locations": "id, path, image_id, size, mtime_ns",
        "containers": '"key", checksum, image_count, descriptor_count, state',
        "trees": '"key", checksum, levels, cells',
        "segments": '"key", checksum, descriptor_count, image_count, byte_count',
        "versions": "number, tree_id, job_id",
    }
    with resources.engine.connect() as connection:
        return {
            table: sorted(
                tuple(row) for row in connection.execute(text(f"SELECT {c} FROM {table}"))
            )
            for table, c in columns.items()
        }


def test_temporary_files_of_a_job_are_deleted_at_the_end(
    collection: Collection, folder: Path, settings: Settings
) -> None:
    collection.index([folder]).wait()
    stored = files_below(settings.store)
    assert {name.split("/")[0] for name in stored} == {"containers", "groups", "trees"}
    assert not list(Path(settings.store).rglob("*.tmp"))


# --- searching -----------------------------------------------------------------------------------


@BOTH_PLANS
def test_a_changed_view_finds_its_photograph_first(
    shared: Collection, queries: list[Path], plan: Any
) -> None:
    for query in queries:
        result = shared.search(query, plan=plan)
        assert result.plan["kind"] == plan
        assert found_names(result)[0].split("__")[0] == query.stem


def test_the_probed_plan_over_all_cells_gives_the_exhaustive_answer(
    shared: Collection, queries: list[Path]
) -> None:
    for query in queries:
        exhaustive = shared.search(query, top=45, plan="exhaustive").to_dict()
        probed = shared.search(query, top=45, plan="probed", effort=1.0).to_dict()
        assert probed["matches"] == exhaustive["matches"]
        assert probed["plan"] == exhaustive["plan"] | {"kind": "probed"}
        assert exhaustive["plan"]["scanned_share"] == 1.0


@BOTH_PLANS
def test_path_bytes_and_pixels_of_one_image_give_one_answer(
    shared: Collection, photo_folder: Path, plan: str
) -> None:
    path = photo_folder / "coffee.png"  # no JPEG: its decoders differ
    pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    expected = matches(shared, path, plan)
    assert expected
    for source in (str(path), path.read_bytes()):
        assert matches(shared, source, plan) == expected
    # Pixels are no file that could be the same.
    expected[0]["same_file"] = False
    assert matches(shared, pixels, plan) == expected


@BOTH_PLANS
def test_all_encodings_of_a_picture_come_before_every_other_picture(
    collection: Collection,
    folder: Path,
    small_photographs: dict[str, bytes],
    plan: str,
) -> None:
    """Forty near-copies must not make each other look like background."""
    with Image.open(io.BytesIO(small_photographs["chelsea"])) as opened:
        cat = opened.convert("RGB")
    width, height = cat.size
    for quality, scale in itertools.product(
        (30, 40, 50, 60, 70, 80, 90, 95), (0.9, 0.95, 1.0, 1.05, 1.1)
    ):
        view = cat.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
        view.save(folder / f"copy-{quality}-{scale}.jpg", quality=quality)
    assert collection.index([folder]).wait().images_done == 46
    for query in (small_photographs["chelsea"], folder / "copy-30-0.9.jpg"):
        names = [Path(match["locations"][0]).stem for match in matches(collection, query, plan)]
        assert len(names) >= 40
        assert all(name.startswith("copy-") for name in names[:40])


@BOTH_PLANS
@pytest.mark.parametrize("only", [False, True])
def test_a_filter_leaves_the_answer_that_there_would_be_without_the_others(
    shared: Collection, photo_folder: Path, plan: Any, only: bool
) -> None:
    resources = shared._driver.resources
    version = resources.current_version("shared")
    request = SearchRequest(plan=plan, top=45)
    batch = prepare_query(resources, version, photo_folder / "coffee.png", request)
    everything = shared.search(photo_folder / "coffee.png", request)
    with session_scope(resources.engine, write=False) as session:
        held = holdings.held_images(session, version.collection_id, version.number)
        names = {one.sha256: one.id for one in images.image_records(session, list(held)).values()}
    unwanted = [match.image for match in everything.matches[:3]]
    ids = {names[one] for one in unwanted}
    wanted = ImageSet(frozenset(held - ids) if only else frozenset(ids), only)
    batch = replace(batch, filter=wanted)
    scans = [scan_group(resources, version, g, batch) for g in searched_groups(version, batch.plan)]
    (found,) = finish_batch(resources, version, batch, scans, {}, {})
    assert len(everything.matches) > 5
    # A row votes for each of its descriptors by itself: the others' scores do not change.
    assert [(match.image, match.score) for match in found.matches] == [
        (match.image, match.score) for match in everything.matches if match.image not in unwanted
    ]


def test_a_search_of_nothing_says_what_to_do(shared: Collection, settings: Settings) -> None:
    with (
        Collection.open("nosuch", settings, local=True) as unknown,
        pytest.raises(UnknownNameError, match="no collection is named 'nosuch'"),
    ):
        unknown.search(np.zeros((50, 50), np.uint8))
    with pytest.raises(NoFeaturesError):
        shared.search(np.full((200, 200), 128, np.uint8))
    with pytest.raises(ImageReadError):
        shared.search("/nowhere/query.jpg")
    with pytest.raises(ConfigError, match="effort"):
        shared.search(np.zeros((50, 50), np.uint8), effort=0.0)
    with pytest.raises(ConfigError, match="top"):
        shared.search(np.zeros((50, 50), np.uint8), top=0)


def test_fewer_matches_are_the_beginning_of_more(shared: Collection, queries: list[Path]) -> None:
    many = shared.search(queries[1], top=30).matches
    assert shared.search(queries[1], top=3).matches == many[:3]
    assert [match.rank for match in many] == list(range(1, len(many) + 1))
    scores = [match.score for match in many]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score <= 1 for score in scores)


def test_a_result_survives_json(shared: Collection, queries: list[Path]) -> None:
    result = shared.search(queries[0])
    assert type(result).from_dict(result.to_dict()) == result
