"""A rebuild that changes the extractor of a collection, in one process and by workers."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from gates import EXTRACTOR, Gate
from numpy.typing import NDArray
from PIL import Image
from sites import Site, answer, found_names, make_settings
from sqlalchemy import select
from sqlalchemy.orm import Session

from pipeline import indexing
from pipeline.config import Settings
from pipeline.errors import ConfigError, MissingRootError, StateError
from pipeline.extraction import registry
from pipeline.extraction.base import Extractor
from pipeline.images import DecodedImage
from pipeline.metadata import holdings, identities, jobs, parts, versions
from pipeline.metadata.engine import session_scope
from pipeline.metadata.models import Version
from pipeline.metadata.records import JobRecord, PartRecord, VersionRecord
from pipeline.records import Features
from pipeline.resources import Resources
from vantage import Collection


class Thumbnail(Extractor):
    """One vector an image, of any image: its pixels, in small."""

    name = "thumbnail"
    dimensions = 128
    row_bytes = 128
    one_vector = True

    def extract(self, image: DecodedImage, max_features: int) -> Features:
        small = cv2.resize(image.pixels, (16, 8), interpolation=cv2.INTER_AREA)
        keypoint = np.array([[image.width / 2, image.height / 2, 1, 0, 1, 0, 0]], np.float32)
        rows = small.reshape(1, -1).astype(np.float32) + 1
        return Features(keypoint, rows, image.width, image.height)

    def normalize(self, descriptors: NDArray[np.generic]) -> NDArray[np.float32]:
        rows = descriptors.astype(np.float32)
        unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry.Registration("thumbnail", lambda config, open_model: Thumbnail())
    monkeypatch.setitem(registry._REGISTERED, "thumbnail", known)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path / "a home")


@pytest.fixture
def collection(settings: Settings) -> Iterator[Collection]:
    with Collection.open("pictures", settings, threads=2, local=True) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path, small_photographs: dict[str, bytes]) -> Path:
    """Seven photographs and a picture that has no keypoint."""
    path = tmp_path / "photographs"
    path.mkdir()
    for name in ("astronaut", "brick", "coffee", "page", "rocket", "text", "chelsea"):
        (path / f"{name}.png").write_bytes(small_photographs[name])
    Image.new("L", (200, 200), 90).save(path / "flat.png")
    return path


def current(collection: Collection) -> VersionRecord:
    return collection._driver.resources.current_version(collection.name)


def part_results(collection: Collection, job_id: str, stage: str) -> list[dict[str, Any]]:
    with session_scope(collection._driver.resources.engine, write=False) as session:
        return [part.result or {} for part in parts.parts(session, job_id, stage)]


def newest_job(collection: Collection) -> JobRecord:
    with session_scope(collection._driver.resources.engine, write=False) as session:
        return jobs.list_jobs(session, limit=1)[0]


def before_publication(patch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    """Let something happen when a rebuild has merged its segments, the first time."""
    advance, done = indexing.advance, list[str]()

    def advanced(resources: Resources, job: JobRecord) -> JobRecord | None:
        if (job.kind, job.stage) == ("rebuild", "merge") and not done:
            done.append(job.id)
            happens()
        return advance(resources, job)

    patch.setattr(indexing, "advance", advanced)


def after_planning(patch: pytest.MonkeyPatch, happens: Callable[[], Any]) -> None:
    """Let something happen when a rebuild has planned its extraction, the first time."""
    open_stage, done = indexing.open_stage, list[str]()

    def opened(resources: Resources, job: JobRecord) -> list[PartRecord]:
        planned = open_stage(resources, job)
        if (job.kind, job.stage) != ("rebuild", "extract") or done:
            return planned
        done.append(job.id)
        happens()
        return open_stage(resources, job)

    patch.setattr(indexing, "open_stage", opened)


# --- in one process ------------------------------------------------------------------------------


def test_answers_are_those_of_a_collection_made_with_it(
    collection: Collection, settings: Settings, folder: Path, queries: list[Path]
) -> None:
    collection.index(folder)
    old = current(collection)
    done = collection.rebuild(extractor="surf").wait()
    assert (done.images_done, done.images_failed) == (8, 1)
    new = current(collection)
    assert (new.number, new.extractor.name, old.extractor.name) == (2, "surf", "sift")
    with Collection.open("surfed", settings, local=True, extractor="surf") as other:
        other.index(folder)
        for plan in ("exhaustive", "probed"):
            for query in queries:
                found = collection.search(query, top=8, plan=plan)  # type: ignore[arg-type]
                wanted = other.search(query, top=8, plan=plan)  # type: ignore[arg-type]
                assert found.matches == wanted.matches
                assert found_names(found)[0] == query.stem
    # The former version is there as it was, with its extractor.
    engine = collection._driver.resources.engine
    with session_scope(engine, write=False) as session:
        assert versions.get_version(session, old.id) == old


def test_searches_use_the_former_version_until_it_is_published(
    collection: Collection, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.index(folder)
    query = folder / "coffee.png"
    before, during = collection.search(query), []
    before_publication(monkeypatch, lambda: during.append(collection.search(query)))
    collection.rebuild(extractor="surf")
    after = collection.search(query)
    assert [answer(one) for one in during] == [answer(before)]
    assert (before.extractor, after.extractor) == ("sift", "surf")
    assert (before.version, after.version) == (1, 2)
    assert found_names(after)[0] == "coffee"


def test_what_failed_with_one_may_succeed_with_the_other_and_the_other_way_round(
    collection: Collection, folder: Path, settings: Settings
) -> None:
    flat = folder / "flat.png"
    collection.index(folder)
    assert [row.code for row in collection.failures()] == ["no-features"]
    done = collection.rebuild(extractor="thumbnail").wait()
    assert done.counters["images_extracted"] == 8
    assert collection.failures() == []
    assert found_names(collection.search(flat))[0] == "flat"
    assert len(collection) == 8
    assert current(collection).index.dimensions == 128
    # Back again: the features are found by name, but what failed then fails again.
    back = collection.rebuild(extractor="sift")
    assert [row.code for row in collection.failures()] == ["no-features"]
    assert len(collection) == 7
    assert current(collection).index.dimensions == 64
    assert sum(r["extracted"] for r in part_results(collection, back.id, "extract")) == 0


def test_later_images_are_extracted_with_it(
    collection: Collection, folder: Path, small_photographs: dict[str, bytes], settings: Settings
) -> None:
    with Collection.open("pictures", settings, local=True, extractor="sift") as opened:
        opened.index(folder)
        opened.rebuild(extractor="surf")
        (folder / "grass.png").write_bytes(small_photographs["grass"])
        assert opened.index(folder).wait().counters["images_extracted"] == 1
        assert found_names(opened.search(folder / "grass.png"))[0] == "grass"
        assert opened.rebuild().wait().counters.get("images_extracted", 0) == 0
        assert current(opened).extractor.name == "surf"
    with pytest.raises(ConfigError, match=r"made with surf.*vantage rebuild pictures --extractor"):
        Collection.open("pictures", settings, local=True, extractor="sift")


def test_the_extractor_that_it_has_reads_no_image(collection: Collection, folder: Path) -> None:
    collection.index(folder)
    shutil.rmtree(folder)
    done = collection.rebuild(extractor="sift").wait()
    assert (done.state, done.images_total) == ("done", 0)


def test_images_indexed_meanwhile_are_taken_in(
    collection: Collection,
    folder: Path,
    small_photographs: dict[str, bytes],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collection.index(folder)

    def add() -> None:
        (folder / "grass.png").write_bytes(small_photographs["grass"])
        with Collection.open("pictures", settings, local=True) as other:
            assert other.index(folder).wait().counters["images_extracted"] == 1

    before_publication(monkeypatch, add)
    handle = collection.rebuild(extractor="surf")
    assert (current(collection).number, current(collection).extractor.name) == (3, "surf")
    # Each image once: the late one in a part of its own.
    sizes = [result["images"] for result in part_results(collection, handle.id, "extract")]
    assert sorted(sizes) == [1, 3, 4]
    assert found_names(collection.search(folder / "grass.png"))[0] == "grass"


def test_one_that_was_stopped_goes_on_from_there(
    collection: Collection, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.index(folder)

    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        before_publication(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            collection.rebuild(extractor="surf")
    first = newest_job(collection)
    assert (first.state, current(collection).extractor.name) == ("failed", "sift")
    assert sum(r["extracted"] for r in part_results(collection, first.id, "extract")) == 7
    again = collection.rebuild(extractor="surf")
    assert sum(r["extracted"] for r in part_results(collection, again.id, "extract")) == 0
    assert current(collection).extractor.name == "surf"


def test_nothing_changes_where_no_image_has_features_of_it(
    collection: Collection, tmp_path: Path
) -> None:
    pictures = tmp_path / "flat"
    pictures.mkdir()
    for grey in range(3):
        Image.new("L", (100, 100), 80 + grey).save(pictures / f"{grey}.png")
    collection.index(pictures, extractor=None)
    with pytest.raises(StateError, match="no image of collection 'pictures' has features of surf"):
        collection.rebuild(extractor="surf")
    assert newest_job(collection).state == "failed"
    with pytest.raises(ConfigError, match="made with sift"):
        collection.index(
            pictures,
            extractor=make_settings(
                tmp_path,
            ).extractor.__class__(name="surf"),
        )


def test_a_missing_folder_fails_no_image(collection: Collection, folder: Path) -> None:
    collection.index(folder)
    away = folder.with_name("away")
    folder.rename(away)
    with pytest.raises(MissingRootError):
        collection.rebuild(extractor="surf")
    job = newest_job(collection)
    assert (job.state, job.params.folders) == ("paused", (str(folder),))
    assert current(collection).extractor.name == "sift"


def test_every_version_holds_what_there_was_and_has_rows_of_no_other_image(
    collection: Collection, tmp_path: Path, small_photographs: dict[str, bytes]
) -> None:
    """Whatever happens between: additions, removals, returns, compactions, other extractors."""
    folder = tmp_path / "changing"
    folder.mkdir()
    lies: dict[str, str] = {}
    wanted: dict[int, set[str]] = {}

    def put(**contents: str) -> None:
        for place, name in contents.items():
            (folder / f"{place}.png").write_bytes(small_photographs[name])
            lies[place] = hashlib.sha256(small_photographs[name]).hexdigest()
        collection.index(folder)
        look()

    def look() -> None:
        resources = collection._driver.resources
        wanted[current(collection).number] = set(lies.values())
        with session_scope(resources.engine, write=False) as session:
            for version in session.execute(select(Version.number, Version.id)).all():
                record = versions.get_version(session, version.id)
                args = session, record.collection_id, version.number
                held, rows = holdings.held_images(*args), holdings.images_with_rows(*args)
                assert _contents(session, held) == wanted[version.number]
                assert record.tombstones == rows - held
                files = [resources.open_segment(s.key, s.checksum) for s in record.segments]
                named = {sha256 for file in files for sha256, _ in file.table.pairs()}
                assert named == _contents(session, rows)

    put(a="page", b="text", c="rocket")
    put(a="brick")  # the page goes
    put(d="page", b="coffee")  # and comes back; the text goes
    collection.rebuild(extractor="surf")
    look()
    put(c="text")  # the text comes back, the rocket goes
    collection.compact()
    look()
    put(d="rocket")  # extracted anew; the page goes
    collection.rebuild(extractor="sift")
    look()
    put(e="page")
    assert sorted(wanted) == list(range(1, 10))


def _contents(session: Session, image_ids: set[int]) -> set[str]:
    return {sha256 for sha256, _ in identities.identities_of(session, sorted(image_ids))}


def test_every_part_may_be_done_twice(
    collection: Collection, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.index(folder)
    run_part, ran = indexing.run_part, set[str]()

    def twice(resources: Resources, job_id: str, stage: str, number: int) -> dict[str, Any]:
        run_part(resources, job_id, stage, number)
        with session_scope(resources.engine) as session:
            part: PartRecord = parts.get_part(session, job_id, stage, number)
        ran.add(part.stage)
        return run_part(resources, job_id, stage, number)

    monkeypatch.setattr(indexing, "run_part", twice)
    assert collection.rebuild(extractor="surf").wait().state == "done"
    assert ran == {"extract", "train", "assign", "merge", "publish"}
    assert len(collection) == 7


# --- by workers ----------------------------------------------------------------------------------


def test_workers_change_the_extractor_while_searches_and_index_jobs_go_on(
    site: Site,
    photo_folder: Path,
    queries: list[Path],
    gate: Gate,
    tmp_path: Path,
    eventually: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photographs = sorted(photo_folder.iterdir())
    name = "changed"
    with gate.installed(), Collection.open(name, site.settings, extractor="surf") as collection:
        collection.index(photographs[:30]).wait(timeout=600)
        before = [answer(collection.search(query)) for query in queries]
        gate.close(after=6)
        handle = collection.rebuild(extractor=EXTRACTOR)
        eventually(lambda: handle.progress().images_done)
        # It is held in the middle of the extraction.
        assert [answer(collection.search(query)) for query in queries] == before
        # It has the workers' processes, so this one indexes.
        with Collection.open(name, site.settings, local=True) as beside:
            added = beside.index(photographs[30:]).wait()
        assert added.counters["images_extracted"] == 15
        assert (current(collection).number, current(collection).extractor.name) == (2, "surf")
        assert handle.progress().stage == "extract"
        gate.open()
        done = handle.wait(timeout=600)
        assert (done.images_done, done.images_failed) == (45, 0)
        version = current(collection)
        assert (version.number, version.extractor.name) == (3, EXTRACTOR)
        home = make_settings(tmp_path / "home")
        with Collection.open(name, home, local=True, extractor="surf") as here:
            here.index(photographs[:30])
            after_planning(monkeypatch, lambda: here.index(photographs[30:]))
            here.rebuild(extractor=EXTRACTOR)
            for query, plan in product(queries, ("exhaustive", "probed")):
                found = collection.search(query, top=45, plan=plan)  # type: ignore[arg-type]
                wanted = here.search(query, top=45, plan=plan)  # type: ignore[arg-type]
                assert found.complete
                assert found.matches == wanted.matches
                assert found_names(found)[0].split("__")[0] == query.stem
        # What is added now is extracted with it, too.
        with pytest.raises(ConfigError, match=f"made with {EXTRACTOR}"):
            collection.index(photographs, extractor=site.settings.extractor)
        collection.index(photographs).wait(timeout=600)
        assert current(collection).extractor.name == EXTRACTOR
