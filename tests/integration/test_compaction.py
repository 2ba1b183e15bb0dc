"""Compaction in one process: answers stay the same, whatever is indexed or searched meanwhile."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from heavy import long_only
from sites import files_below, found_names, make_settings
from sqlalchemy import text, update
from sqlalchemy.exc import OperationalError

from pipeline import indexing
from pipeline.config import Settings
from pipeline.errors import CorruptFileError, StateError, StorageUnavailableError
from pipeline.indexing import compact as compaction_stages
from pipeline.indexing import publish as publish_stage
from pipeline.job_kinds import COMPACT, REBUILD, load
from pipeline.job_params import CompactParams, RebuildParams
from pipeline.job_summaries import compacted as compaction_sentences
from pipeline.metadata import collections, compaction, jobs, parts
from pipeline.metadata.engine import session_scope
from pipeline.metadata.models import Segment
from pipeline.metadata.records import CollectionStatus, JobProgress, JobRecord, VersionRecord
from pipeline.metadata.versions import current_version
from pipeline.resources import Resources
from vantage import Collection

NAMES = ("astronaut", "brick", "chelsea", "coffee", "coins", "page", "rocket", "text")
PLANS = ("probed", "exhaustive")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path / "home", compact_above=0)


@pytest.fixture
def collection(settings: Settings) -> Iterator[Collection]:
    with Collection.open("pictures", settings, threads=2, local=True) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "photographs"
    path.mkdir()
    return path


def add(collection: Collection, folder: Path, photographs: dict[str, bytes], *names: str) -> None:
    """Add photographs one by one."""
    for name in names:
        (folder / f"{name}.png").write_bytes(photographs[name])
        collection.index([folder])


def answers(collection: Collection, photographs: dict[str, bytes]) -> list[Any]:
    """What every photograph finds, with both plans, scores and votes included."""
    return [
        collection.search(photographs[name], top=50, plan=plan).to_dict()["matches"]  # type: ignore[arg-type]
        for name in NAMES
        for plan in PLANS
    ]


def status(collection: Collection) -> CollectionStatus:
    with session_scope(collection._driver.resources.engine, write=False) as session:
        return collections.collection_status(session, collection.name)


def version(collection: Collection) -> VersionRecord:
    with session_scope(collection._driver.resources.engine, write=False) as session:
        return current_version(session, collection.name)


def job_list(collection: Collection) -> list[JobRecord]:
    with session_scope(collection._driver.resources.engine, write=False) as session:
        return jobs.list_jobs(session)


def test_answers_are_the_same_after_compaction_and_nothing_is_left_to_merge(
    collection: Collection,
    folder: Path,
    small_photographs: dict[str, bytes],
    settings: Settings,
) -> None:
    add(collection, folder, small_photographs, *NAMES)
    assert status(collection).largest_group == len(NAMES)
    old, before = version(collection), answers(collection, small_photographs)
    done = collection.compact().wait()
    assert (done.kind, done.state) == ("compact", "done")
    assert done.counters == {
        "segments_merged": len(old.segments),
        "segments_made": 4,
        "images_dropped": 0,
    }
    assert status(collection).segments == dict.fromkeys(range(4), 1)
    assert answers(collection, small_photographs) == before
    assert version(collection).stats["median_cell"] == old.stats["median_cell"]
    # What was replaced is still there for searches that began before.
    assert all((Path(settings.store) / segment.key).exists() for segment in old.segments)
    files, number = files_below(settings.store), version(collection).number
    again = collection.compact().wait()
    assert (again.state, again.counters) == ("done", {})
    assert (files_below(settings.store), version(collection).number) == (files, number)


def test_a_collection_without_a_version_has_nothing_to_merge(
    collection: Collection, folder: Path
) -> None:
    collection.index([folder])
    done = collection.compact().wait()
    assert (done.state, done.counters) == ("done", {})


def begin(collection: Collection, folder: Path, photographs: dict[str, bytes]) -> None:
    """Index half of the photographs in one call: a model that the others do not outgrow."""
    for name in NAMES[:4]:
        (folder / f"{name}.png").write_bytes(photographs[name])
    collection.index([folder])


def test_an_index_call_merges_automatically_above_the_limit(
    folder: Path, small_photographs: dict[str, bytes], settings: Settings
) -> None:
    limited = dataclasses.replace(settings, compact_above=2)
    found = []
    for name, its_settings in (("never", settings), ("by-itself", limited)):
        with Collection.open(name, its_settings, local=True) as collection:
            begin(collection, folder, small_photographs)
            for photograph in NAMES[4:]:
                (folder / f"{photograph}.png").write_bytes(small_photographs[photograph])
                done = collection.index([folder]).wait()
                assert (done.kind, done.counters["images_new"]) == ("index", 1)
            found.append(
                [
                    (match["image"], match["score"], match["votes"])
                    for answer in answers(collection, small_photographs)
                    for match in answer
                ]
            )
            largest = status(collection).largest_group
            kinds = [job.kind for job in job_list(collection)]
        for photograph in NAMES[4:]:
            (folder / f"{photograph}.png").unlink()
    assert largest <= 2
    assert found[0] == found[1]
    assert set(kinds) == {"index", "compact"}


def test_a_model_of_the_first_images_alone_is_trained_again_instead(
    folder: Path, small_photographs: dict[str, bytes], settings: Settings
) -> None:
    limited = dataclasses.replace(settings, compact_above=2)
    with Collection.open("pictures", limited, local=True) as collection:
        add(collection, folder, small_photographs, *NAMES)
        kinds = [job.kind for job in reversed(job_list(collection))]
        assert {job.state for job in job_list(collection)} == {"done"}
        now = version(collection)
        rows = sum(segment.descriptor_count for segment in now.segments)
        assert now.tree.trained_on > rows / 4
        # Three images are not four times as many as one; five are.
        assert kinds.index("compact") < kinds.index("rebuild")
        assert status(collection).largest_group <= 2
        for name in NAMES:
            assert found_names(collection.search(small_photographs[name]))[0] == name


def test_a_large_model_and_one_whose_rebuild_failed_are_not_trained_again(
    collection: Collection, folder: Path, small_photographs: dict[str, bytes], settings: Settings
) -> None:
    limited = dataclasses.replace(settings, compact_above=2)
    add(collection, folder, small_photographs, *NAMES[:5])
    due = partial(indexing.due_upkeep, Resources(limited), version(collection).collection_id)
    assert due() == (REBUILD, RebuildParams())
    with session_scope(collection._driver.resources.engine) as session:
        job = jobs.create_job(
            session, version(collection).collection_id, "rebuild", RebuildParams()
        )
    assert due() is None
    with session_scope(collection._driver.resources.engine) as session:
        jobs.finish_job(session, job.id, "failed", "a container is damaged")
    assert due() is None
    add(collection, folder, small_photographs, NAMES[5])
    assert due() == (COMPACT, CompactParams(everything=False, above=2))
    small = dataclasses.replace(settings.index, sample_size=100)
    with Collection.open("sampled", settings, local=True) as sampled:
        for name in NAMES[:5]:
            sampled.index([folder / f"{name}.png"], index=small)
        due = indexing.due_upkeep(Resources(limited), version(sampled).collection_id)
        assert due is not None
        assert due[0] is COMPACT


@long_only
def test_a_model_of_as_many_descriptors_as_the_sample_takes_is_not_trained_again(
    folder: Path, small_photographs: dict[str, bytes], settings: Settings
) -> None:
    """SIFT's 128 numbers are twice the unit: of these images 512 descriptors are enough."""
    limited = dataclasses.replace(settings, compact_above=2)
    due = []
    for name, most in (("fewer", 480), ("enough", 530)):
        extractor = dataclasses.replace(settings.extractor, max_features=most)
        index = dataclasses.replace(settings.index, sample_size=700)
        with Collection.open(name, settings, local=True) as collection:
            for photograph in ("brick", *(name for name in NAMES if name != "brick")):
                path = folder / f"{photograph}.png"
                path.write_bytes(small_photographs[photograph])
                collection.index([path], extractor=extractor, index=index)
            now = version(collection)
        rows = sum(segment.descriptor_count for segment in now.segments)
        assert rows > 4 * now.tree.trained_on
        assert (now.tree.trained_on < 512, now.tree.trained_on < 700) == (name == "fewer", True)
        found = indexing.due_upkeep(Resources(limited), now.collection_id)
        assert found is not None
        due.append(found[0])
    assert due == [REBUILD, COMPACT]


def test_rows_of_removed_images_are_left_out_and_come_back_with_them(
    collection: Collection, folder: Path, small_photographs: dict[str, bytes]
) -> None:
    add(collection, folder, small_photographs, "coffee", "page", "rocket", "text")
    everything = answers(collection, small_photographs)
    (folder / "page.png").write_bytes(small_photographs["brick"])
    collection.index([folder])
    before, old = answers(collection, small_photographs), version(collection)
    assert len(old.tombstones) == 1
    done = collection.compact().wait()
    assert done.counters["images_dropped"] == 1
    assert answers(collection, small_photographs) == before
    now = version(collection)
    assert now.tombstones == frozenset()
    rows = [sum(s.descriptor_count for s in found.segments) for found in (old, now)]
    assert rows[1] < rows[0]
    assert collection.compact().wait().counters == {}
    # It comes back: it is extracted again and found as before.
    (folder / "page.png").write_bytes(small_photographs["page"])
    returned = collection.index([folder]).wait()
    assert returned.counters["images_extracted"] == 1
    assert found_names(collection.search(small_photographs["page"]))[0] == "page"
    assert len(version(collection).tombstones) == 1  # the brick's
    collection.compact()
    assert answers(collection, small_photographs) == everything


def test_automatic_compaction_keeps_the_rows_of_removed_images(
    folder: Path, small_photographs: dict[str, bytes], settings: Settings
) -> None:
    limited = dataclasses.replace(settings, compact_above=2)
    with Collection.open("pictures", limited, local=True) as collection:
        begin(collection, folder, small_photographs)
        add(collection, folder, small_photographs, "page")
        (folder / "page.png").write_bytes(small_photographs["text"])
        collection.index([folder])
        assert [job.kind for job in job_list(collection)].count("compact") == 1
        assert (status(collection).largest_group <= 2, len(version(collection).tombstones)) == (
            *(True, 1),
        )
        best = collection.search(small_photographs["page"]).matches
        assert all(match.score < 0.2 for match in best)
        (folder / "page.png").write_bytes(small_photographs["page"])
        returned = collection.index([folder]).wait()
        assert returned.counters.get("images_extracted", 0) == 0
        found = collection.search(small_photographs["page"]).matches[0]
        assert (Path(found.locations[0]).name, found.score > 0.5) == ("page.png", True)


def test_a_collection_whose_images_are_all_gone_can_be_compacted_and_searched(
    collection: Collection, folder: Path, small_photographs: dict[str, bytes]
) -> None:
    add(collection, folder, small_photographs, "coffee", "page")
    for name in ("coffee", "page"):
        (folder / f"{name}.png").write_bytes(b"no picture any more")
    collection.index([folder])
    assert collection.compact().wait().counters["images_dropped"] == 2
    assert (version(collection).segments, status(collection).largest_group) == ((), 0)
    for plan in PLANS:
        result = collection.search(small_photographs["page"], plan=plan)  # type: ignore[arg-type]
        assert (result.matches, result.complete) == ((), True)
    add(collection, folder, small_photographs, "rocket")
    assert found_names(collection.search(small_photographs["rocket"])) == ["rocket"]


def test_every_part_run_twice_gives_the_same_files_and_rows(
    collection: Collection,
    folder: Path,
    small_photographs: dict[str, bytes],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add(collection, folder, small_photographs, "coffee", "page", "rocket")
    (folder / "page.png").write_bytes(small_photographs["text"])
    collection.index([folder])
    before, run_part = answers(collection, small_photographs), indexing.run_part
    ran: list[str] = []

    def twice(resources: Resources, job_id: str, stage: Any, number: int) -> dict[str, Any]:
        with session_scope(resources.engine) as session:
            job = jobs.get_job(session, job_id)
            part = parts.start_part(session, job_id, stage, number, "killed")
        found = COMPACT.stage(stage)
        assert found is not None
        first = load(found.work)(resources, job, part)
        files, now = files_below(settings.store, "groups/**/*"), version(collection)
        assert load(found.work)(resources, job, part) == first
        assert run_part(resources, job_id, stage, number) == first
        if stage == "publish":
            assert (files_below(settings.store, "groups/**/*"), version(collection)) == (files, now)
        ran.append(stage)
        return first

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "run_part", twice)
        counters = collection.compact().wait().counters
    assert ran == [*["merge"] * 4, "publish"]
    assert (counters["segments_made"], counters["images_dropped"]) == (4, 1)
    assert answers(collection, small_photographs) == before


def test_a_compaction_is_planned_again_when_the_index_has_changed(
    collection: Collection,
    folder: Path,
    small_photographs: dict[str, bytes],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rebuild, and an image that comes back, between the merges and the publication."""
    add(collection, folder, small_photographs, "coffee", "page", "rocket")
    (folder / "page.png").write_bytes(small_photographs["text"])
    collection.index([folder])
    publish, happened = compaction_stages.publish, []

    def disturbed(resources: Resources, job: JobRecord, part: Any) -> dict[str, Any]:
        if not happened:
            happened.append("return")
            (folder / "again.png").write_bytes(small_photographs["page"])
            with Collection.open("pictures", settings, local=True) as other:
                other.index([folder])
        elif happened == ["return"]:
            happened.append("rebuild")
            with Collection.open("pictures", settings, local=True) as other:
                other.rebuild()
        return publish(resources, job, part)

    with monkeypatch.context() as patch:
        patch.setattr(compaction_stages, "publish", disturbed)
        done = collection.compact().wait()
    assert (happened, done.state, done.counters) == (["return", "rebuild"], "done", {})
    assert status(collection).largest_group == 1
    for name, file in (("page", "again"), ("coffee", "coffee"), ("text", "page")):
        assert found_names(collection.search(small_photographs[name]))[0] == file


def test_indexing_and_searching_go_on_while_segments_are_merged(
    collection: Collection,
    folder: Path,
    small_photographs: dict[str, bytes],
    settings: Settings,
) -> None:
    add(collection, folder, small_photographs, *NAMES[:4])
    stop, searches, wrong = threading.Event(), [], []

    def search() -> None:
        with Collection.open("pictures", settings, threads=1, local=True) as mine:
            while not stop.is_set():
                for plan in PLANS:
                    result = mine.search(small_photographs["coffee"], plan=plan)  # type: ignore[arg-type]
                    searches.append(result.version)
                    if not result.complete or found_names(result)[0] != "coffee":
                        wrong.append(result)

    def merge() -> None:
        with Collection.open("pictures", settings, threads=1, local=True) as mine:
            while not stop.is_set():
                mine.compact()

    threads = [threading.Thread(target=target) for target in (search, merge)]
    for thread in threads:
        thread.start()
    try:
        add(collection, folder, small_photographs, *NAMES[4:])
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=600)
    assert wrong == []
    assert len(set(searches)) > 1
    compacted = [job for job in job_list(collection) if job.kind == "compact" and job.counters]
    assert compacted
    assert {job.state for job in job_list(collection)} == {"done"}
    collection.compact()
    assert status(collection).images == {"indexed": len(NAMES)}
    for name in NAMES:
        assert found_names(collection.search(small_photographs[name]))[0] == name


def test_a_second_compaction_of_a_collection_is_refused_while_one_is_under_way(
    collection: Collection, folder: Path, small_photographs: dict[str, bytes]
) -> None:
    add(collection, folder, small_photographs, "coffee")
    with session_scope(collection._driver.resources.engine) as session:
        found = collections.get_collection(session, "pictures")
        other = jobs.create_job(session, found.id, "compact", CompactParams())
    with pytest.raises(StateError, match=f"by the compact job {other.id}"):
        collection.compact()


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_segment_is_named_with_the_remedy(
    folder: Path, small_photographs: dict[str, bytes], settings: Settings, damage: str
) -> None:
    with Collection.open("pictures", settings, local=True) as collection:
        add(collection, folder, small_photographs, "coffee", "page")
        segments = version(collection).segments
    victim = Path(settings.store) / segments[0].key
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.unlink()  # the local copy was a hard link: it goes, too
    victim.write_bytes(data[: len(data) // 2] if damage == "truncated" else data)
    (settings.local / segments[0].key).unlink()
    with Collection.open("pictures", settings, local=True) as collection:
        (cause,) = collection.search(small_photographs["page"], plan="exhaustive").causes
        assert str(victim) in cause
        with pytest.raises(CorruptFileError, match="`vantage rebuild COLLECTION`") as caught:
            collection.compact()
        assert str(victim) in str(caught.value)
        assert job_list(collection)[0].state == "failed"
        collection.rebuild()
        for name in ("coffee", "page"):
            assert found_names(collection.search(small_photographs[name]))[0] == name


@pytest.mark.parametrize("what", ["of another group", "number of rows"])
def test_a_segment_that_is_not_as_recorded_is_not_merged_and_made_again(
    folder: Path, small_photographs: dict[str, bytes], settings: Settings, what: str
) -> None:
    """Its own checksum is right, and that in the database, too."""
    with Collection.open("pictures", settings, local=True) as collection:
        add(collection, folder, small_photographs, "coffee", "page")
        groups = version(collection).groups
        victim, other = (version(collection).group_segments(group)[0] for group in groups[:2])
    wrong: dict[str, Any] = {"descriptor_count": victim.descriptor_count + 1}
    if what == "of another group":
        path = Path(settings.store) / victim.key
        path.unlink()
        path.write_bytes((Path(settings.store) / other.key).read_bytes())
        wrong = {"checksum": other.checksum, "descriptor_count": other.descriptor_count}
    with Collection.open("pictures", settings, local=True) as collection:
        with session_scope(collection._driver.resources.engine) as session:
            session.execute(update(Segment).where(Segment.id == victim.id).values(wrong))
        (cause,) = collection.search(small_photographs["page"], plan="exhaustive").causes
        with pytest.raises(CorruptFileError) as caught:
            collection.compact()
        assert str(caught.value).replace("COLLECTION", "pictures") in cause
        collection.rebuild()
        answer = collection.search(small_photographs["page"], plan="exhaustive")
        assert (answer.complete, found_names(answer)[0]) == (True, "page")


def test_trouble_with_merging_is_no_trouble_of_the_index_call(
    folder: Path, small_photographs: dict[str, bytes], settings: Settings
) -> None:
    limited = dataclasses.replace(settings, compact_above=1)
    with Collection.open("pictures", limited, local=True) as collection:
        add(collection, folder, small_photographs, "coffee")
        segments = version(collection).segments
    for segment in segments:
        path = Path(settings.store) / segment.key
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.unlink()
        path.write_bytes(data)
        (settings.local / segment.key).unlink()
    with Collection.open("pictures", limited, local=True) as collection:
        add(collection, folder, small_photographs, "page")
        last, index = job_list(collection)[:2]
        assert (last.kind, last.state, index.kind, index.state) == (
            *("compact", "failed"),
            *("index", "done"),
        )
        assert "is damaged" in str(last.message)
        # It is not tried again and again: only when something is published.
        collection.index([folder])
        assert [job.kind for job in job_list(collection)[:2]] == ["index", "compact"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_store_is_named(
    collection: Collection, folder: Path, small_photographs: dict[str, bytes], settings: Settings
) -> None:
    add(collection, folder, small_photographs, "coffee", "page")
    before = answers(collection, small_photographs)
    folders = [path for path in Path(settings.store).rglob("*") if path.is_dir()]
    for path in folders:
        path.chmod(0o500)
    try:
        with pytest.raises(StorageUnavailableError, match="Permission denied"):
            collection.compact()
        assert answers(collection, small_photographs) == before
    finally:
        for path in folders:
            path.chmod(0o700)
    collection.compact()
    assert answers(collection, small_photographs) == before


def test_images_of_one_descriptor_each_are_searched_and_merged(
    tmp_path: Path, small_photographs: dict[str, bytes], settings: Settings
) -> None:
    one = dataclasses.replace(
        settings, extractor=dataclasses.replace(settings.extractor, max_features=1)
    )
    with Collection.open("tiny", one, local=True) as collection:
        for name in NAMES:
            path = tmp_path / f"{name}.png"
            path.write_bytes(small_photographs[name])
            collection.index([path])
            assert collection.search(path).complete
        assert sum(s.descriptor_count for s in version(collection).segments) == len(NAMES)
        before = answers(collection, small_photographs)
        collection.compact()
        assert status(collection).largest_group == 1
        assert answers(collection, small_photographs) == before


def _open_segments(settings: Settings) -> set[str]:
    """The local copies of segments that this process has mapped."""
    maps = psutil.Process().memory_maps(grouped=True)
    groups = f"{settings.local}/groups/"
    return {Path(item.path).name for item in maps if item.path.startswith(groups)}


def test_replaced_segments_are_let_go(
    collection: Collection,
    folder: Path,
    small_photographs: dict[str, bytes],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.arrays.MAPPED_BYTES", 1)  # of small ones, too
    added: set[str] = set()
    for name in NAMES[:5]:
        add(collection, folder, small_photographs, name)
        collection.search(small_photographs["brick"], exact=True)
        added |= {Path(segment.key).name for segment in version(collection).segments}
    assert added <= _open_segments(settings)
    former = collection._driver.resources.current_version(collection.name)
    collection.compact()
    assert _open_segments(settings) <= added  # merged segments are not kept open
    collection.search(small_photographs["brick"], exact=True)
    add(collection, folder, small_photographs, NAMES[5])
    collection.search(small_photographs["brick"], exact=True)
    now = {Path(segment.key).name for segment in version(collection).segments}
    assert _open_segments(settings) == now
    # A search that began before opens them again.
    assert collection._driver.resources.version(former.id) == former
    collection.search(small_photographs["brick"], exact=True)
    assert now <= _open_segments(settings)


def test_small_segments_are_scanned_as_one_and_answer_as_each_by_itself(
    collection: Collection,
    folder: Path,
    small_photographs: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resources = collection._driver.resources
    add(collection, folder, small_photographs, *NAMES[:5])
    (folder / "brick.png").write_bytes(small_photographs["text"])
    collection.index([folder])
    now = version(collection)
    assert now.tombstones
    group = max(now.groups, key=lambda number: len(now.group_segments(number)))
    several = len(now.group_segments(group))
    assert several > 2
    together = answers(collection, small_photographs)
    (joined,) = resources.group_segments(now, group).opened
    assert resources.group_segments(now, group).opened[0] is joined
    sizes = [segment.descriptor_count for segment in now.group_segments(group)]
    assert joined.segment.rows.size == sum(sizes)
    # Its name is made of theirs: the same wherever they are joined, whoever is removed.
    former = resources.version(now.id - 1)
    assert former.tombstones != now.tombstones
    assert Resources(resources.settings).group_segments(now, group).opened[0].name == joined.name
    assert resources.group_segments(former, group).opened[0].name != joined.name
    # Those that are large enough stay by themselves.
    monkeypatch.setattr("pipeline.resources.JOINED_ROWS", sorted(sizes)[2])
    fresh = Resources(resources.settings)
    assert [one.segment.rows.size for one in fresh.group_segments(now, group).opened] == [
        sum(size for size in sizes if size < sorted(sizes)[2]),
        *(size for size in sorted(sizes) if size >= sorted(sizes)[2]),
    ]
    # And so do those that would make it too large a copy.
    monkeypatch.setattr("pipeline.resources.JOINED_IN_ALL", sum(sorted(sizes)[:2]))
    monkeypatch.setattr("pipeline.resources.JOINED_ROWS", 4096)
    fresh = Resources(resources.settings)
    assert [one.segment.rows.size for one in fresh.group_segments(now, group).opened] == [
        sum(sorted(sizes)[:2]),
        *sorted(sizes)[2:],
    ]
    monkeypatch.setattr("pipeline.resources.JOINED_ROWS", 0)
    assert len(resources.group_segments(now, group).opened) == several
    assert answers(collection, small_photographs) == together
    # A joined segment goes with its version.
    for name in NAMES[5:7]:
        add(collection, folder, small_photographs, name)
        collection.search(small_photographs["coffee"])
    assert all(one is not joined for one in resources._opened.values())


def test_remaining_rows_of_removed_images_are_reported(
    collection: Collection,
    folder: Path,
    small_photographs: dict[str, bytes],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compaction, "DROPPED_AT_ONCE", 2)
    add(collection, folder, small_photographs, "brick", "coffee", "page", "rocket")
    for name in ("coffee", "page", "rocket"):
        (folder / f"{name}.png").write_bytes(b"no picture any more")
    collection.index([folder])

    def told(counters: dict[str, int]) -> list[str]:
        return compaction_sentences("pictures", counters, 0.1)[1:]

    with session_scope(collection._driver.resources.engine) as session:
        found = collections.get_collection(session, "pictures")
        rebuild = jobs.create_job(session, found.id, "rebuild", RebuildParams())
    done = collection.compact().wait().counters
    assert told(done) == [
        "Rows of 3 removed images kept: a rebuild is under way. Run it again after that."
    ]
    # Nothing is left to merge, but it says why.
    again = collection.compact().wait().counters
    assert "segments_merged" not in again
    assert told(again) == told(done)
    with session_scope(collection._driver.resources.engine) as session:
        jobs.finish_job(session, rebuild.id, "failed", "the test says so")
    done = collection.compact().wait().counters
    assert told(done) == [
        "Rows of 2 removed images left out.",
        "Rows of 1 removed image more: run it again.",
    ]
    assert told(collection.compact().wait().counters) == ["Rows of 1 removed image left out."]
    assert collection.compact().wait().counters == {}


def test_the_predicted_time_is_that_of_the_threads_at_hand(
    folder: Path, small_photographs: dict[str, bytes], settings: Settings
) -> None:
    for threads in (1, 3):
        with Collection.open("pictures", settings, threads=threads, local=True) as collection:
            add(collection, folder, small_photographs, "coffee")
            found = collection.search(small_photographs["coffee"])
            assert found.explain["machine"]["threads"] == threads


def test_a_rebuild_that_images_outrun_gives_up(
    folder: Path,
    small_photographs: dict[str, bytes],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limited = dataclasses.replace(settings, compact_above=2)
    publish, tries = publish_stage.publish, []

    def outrun(resources: Resources, job: JobRecord, part: Any) -> dict[str, Any]:
        if job.kind == "rebuild":
            assert len(tries) < 9, "it goes round for ever"
            tries.append(job.attempt)
            path = folder / f"meanwhile {len(tries)}" / f"{NAMES[-len(tries)]}.png"
            path.parent.mkdir()
            path.write_bytes(small_photographs[NAMES[-len(tries)]])
            with Collection.open("pictures", settings, local=True) as other:
                other.index([path])
        return publish(resources, job, part)

    with Collection.open("pictures", limited, local=True) as collection:
        with monkeypatch.context() as patch:
            patch.setattr(publish_stage, "publish", outrun)
            add(collection, folder, small_photographs, *NAMES[:5])
        (rebuild,) = [job for job in job_list(collection) if job.kind == "rebuild"]
        assert (rebuild.state, len(tries)) == ("failed", 3)
        assert "indexed each of the 3 times" in str(rebuild.message)
        collection.index([folder])
        last, index = job_list(collection)[:2]
        assert (last.kind, last.state, index.kind) == ("compact", "done", "index")
        assert status(collection).largest_group <= 2


def test_an_error_in_upkeep_does_not_fail_the_index_call(
    folder: Path, small_photographs: dict[str, bytes], settings: Settings
) -> None:
    limited = dataclasses.replace(settings, compact_above=2)
    with Collection.open("pictures", limited, local=True) as collection:

        def break_the_database(progress: JobProgress) -> None:
            if (progress.stage, progress.done_parts) == ("publish", 1):
                with session_scope(collection._driver.resources.engine) as session:
                    session.execute(text("ALTER TABLE version_segments RENAME TO elsewhere"))

        (folder / "coffee.png").write_bytes(small_photographs["coffee"])
        done = collection.index([folder], report=break_the_database)
        assert done.progress().state == "done"
        with pytest.raises(OperationalError, match="version_segments"):
            indexing.due_upkeep(collection._driver.resources, 1)
