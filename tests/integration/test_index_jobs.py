"""Index jobs by workers: only new files are extracted, nothing twice, bad files are recorded."""

from __future__ import annotations

import io
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gates import EXTRACTOR, Gate
from PIL import Image
from sites import Eventually, Site, answer, files_below, found_names, frozen

from pipeline.errors import StateError
from pipeline.job_kinds import INDEX
from pipeline.job_params import IndexParams
from pipeline.metadata import collections, images, jobs, parts
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import FailureRow, JobRecord, JobStage
from pipeline.metadata.versions import current_version
from pipeline.records import SearchResult
from vantage import Collection, JobHandle
from workers.context import Context


@pytest.fixture
def context(site: Site) -> Iterator[Context]:
    context = Context(site.settings)
    yield context
    context.close()


def _version(context: Context, name: str) -> int:
    with session_scope(context.engine, write=False) as session:
        return current_version(session, name).number


def _job(context: Context, job_id: str) -> JobRecord:
    with session_scope(context.engine, write=False) as session:
        return jobs.get_job(session, job_id)


def test_indexing_again_extracts_nothing_and_adding_extracts_the_added(
    site: Site, context: Context, photo_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "growing"
    folder.mkdir()
    for name in ("coffee.png", "coins.png", "page.png"):
        shutil.copy(photo_folder / name, folder)
    with Collection.open("growing", site.settings) as collection:
        first = collection.index([folder]).wait(timeout=600)
        assert first.counters["images_extracted"] == 3
        containers = files_below(site.settings.store, "containers/**/*")

        again = collection.index([folder]).wait(timeout=600)
        assert again.counters.get("images_extracted", 0) == 0
        assert again.counters["files_unchanged"] == 3
        assert (again.images_total, _version(context, "growing")) == (0, 1)
        assert files_below(site.settings.store, "containers/**/*") == containers

        shutil.copy(photo_folder / "rocket.png", folder)
        shutil.copy(photo_folder / "coins.png", folder / "the same coins.png")
        added = collection.index([folder]).wait(timeout=600)
        assert added.counters["images_extracted"] == 1
        assert (added.images_total, _version(context, "growing")) == (1, 2)
        assert found_names(collection.search(photo_folder / "rocket.png"))[0] == "rocket"
        coins = collection.search(photo_folder / "coins.png").matches[0]
        assert coins.locations == (str(folder / "coins.png"), str(folder / "the same coins.png"))


def test_a_changed_file_is_a_new_image_and_the_old_content_is_gone(
    site: Site, context: Context, photo_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "changing"
    folder.mkdir()
    for name in ("coffee.png", "coins.png"):
        shutil.copy(photo_folder / name, folder)
    with Collection.open("changing", site.settings) as collection:
        collection.index([folder]).wait(timeout=600)
        shutil.copy(photo_folder / "rocket.png", folder / "coins.png")
        changed = collection.index([folder]).wait(timeout=600)
        assert changed.counters["images_extracted"] == 1
        assert changed.counters["images_removed"] == 1
        result = collection.search(photo_folder / "rocket.png")
        assert result.matches[0].locations == (str(folder / "coins.png"),)
        assert result.matches[0].score > 0.5
        old = collection.search(photo_folder / "coins.png")
        assert [match for match in old.matches if match.score > 0.5] == []


def test_two_index_jobs_at_once_both_land(
    site: Site, context: Context, photo_folder: Path, tmp_path: Path
) -> None:
    photographs = sorted(photo_folder.glob("*.png"))
    folders = []
    for number in range(2):
        folder = tmp_path / f"half-{number}"
        folder.mkdir()
        for photograph in photographs[number::2]:
            shutil.copy(photograph, folder)
        folders.append(folder)
    handles: dict[int, JobHandle] = {}
    with Collection.open("halves", site.settings) as collection:
        # At the very same time, by two callers.
        gate = threading.Barrier(2)

        def index(number: int) -> None:
            gate.wait(timeout=600)
            handles[number] = collection.index([folders[number]])

        threads = [threading.Thread(target=index, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=600)
        extracted = 0
        for handle in handles.values():
            extracted += handle.wait(timeout=600).counters["images_extracted"]
        assert extracted == len(photographs)
        assert _version(context, "halves") == 2
        for photograph in photographs:
            best = collection.search(photograph).matches[0]
            assert (Path(best.locations[0]).name, best.score > 0.5) == (photograph.name, True)


def _send_stage(context: Context, job: JobRecord, stage: JobStage, numbers: list[int]) -> None:
    """Send every message of a stage twice, as a broker that redelivers would."""
    found = INDEX.stage(stage)
    assert found is not None
    for _ in range(2):
        for number in numbers:
            args = (job.id, job.attempt, number) if found.join else (job.id, job.attempt)
            queue = {"queue": f"group.{number}"} if found.queue == "group" else {}
            context.app.send_task(found.task, args=args, ignore_result=True, **queue)
        if found.join:
            context.app.send_task(found.join, args=(job.id, job.attempt), ignore_result=True)


def test_every_message_may_come_twice(
    site: Site, context: Context, photo_folder: Path, eventually: Eventually
) -> None:
    """A job driven by hand: each stage's messages twice, and again after the stage is over."""
    with session_scope(context.engine) as session:
        collection = collections.get_or_create_collection(
            session, "twice", site.settings.extractor, site.settings.index
        )
    with Collection.open("twice", site.settings) as client:
        seen: dict[JobStage, JobRecord] = {}

        def finished() -> bool:
            now = _job(context, job.id)
            if now.stage not in seen and not now.finished:
                seen[now.stage] = now
                with session_scope(context.engine, write=False) as session:
                    numbers = [part.number for part in parts.parts(session, job.id, now.stage)]
                _send_stage(context, now, now.stage, numbers or [0])
            return now.finished

        # However fast the machine is, it waits in three stages until their messages were sent.
        with frozen(site.settings, "group"):
            with frozen(site.settings, "extract"):
                with frozen(site.settings, "reduce"):
                    job = _job(context, client.index([photo_folder]).id)
                    assert not finished()
                eventually(lambda: finished() or "extract" in seen)
            eventually(lambda: finished() or "merge" in seen)
        assert {"register", "extract", "merge"} <= set(seen)
        eventually(finished)
        # Whoever publishes clears them away, maybe a moment after the job has ended.
        eventually(lambda: not files_below(site.settings.store, f"assignments/{job.id}/*"))
        before = _everything(context, site, job.id)
        assert _job(context, job.id).state == "done"
        for record in seen.values():
            _send_stage(context, record, record.stage, [0, 1, 2, 3])
        probe = client.index([photo_folder])  # its messages come after those, in every queue
        assert probe.wait(timeout=600).counters.get("images_extracted", 0) == 0
        assert _everything(context, site, job.id) == before
        assert _job(context, job.id).counters["images_extracted"] == 45
        with session_scope(context.engine, write=False) as session:
            assert collections.collection_status(session, "twice").version == 1
            assert collection.id == _job(context, job.id).collection_id


def _everything(context: Context, site: Site, job_id: str) -> dict[str, Any]:
    """Return what a job has left: files, parts, segments."""
    with session_scope(context.engine, write=False) as session:
        version = current_version(session, "twice")
        rows = [p for stage in INDEX.stages for p in parts.parts(session, job_id, stage.name)]
    assert rows
    assert {part.state for part in rows} == {"done"}
    return {
        "files": files_below(site.settings.store),
        "parts": [(part.stage, part.number, part.result) for part in rows],
        "version": (version.number, [segment.checksum for segment in version.segments]),
    }


def test_messages_of_a_former_attempt_are_void(
    site: Site, context: Context, photo_folder: Path
) -> None:
    from workers.job_messages import do_part, proceed

    photographs = sorted(photo_folder.glob("*.png"))[:4]
    with Collection.open("attempts", site.settings) as collection:
        handle = collection.index(photographs)
        handle.wait(timeout=600)
        with session_scope(context.engine) as session:
            job = jobs.create_job(
                session,
                _job(context, handle.id).collection_id,
                "index",
                IndexParams(paths=tuple(map(str, photographs))),
                broker_epoch=None,
            )
            renewed = jobs.new_attempt(session, job.id, job.attempt, None)
        assert renewed is not None
        assert do_part(context, job.id, job.attempt, "register", 0) == {"void": True}
        assert proceed(context, job.id, job.attempt) == {"void": True}
        assert do_part(context, job.id, renewed.attempt, "extract", 0) == {"void": True}
        assert do_part(context, "0" * 32, 1, "extract", 0) == {"void": True}
        with session_scope(context.engine) as session:
            jobs.finish_job(session, job.id, "failed", "not wanted")
        assert do_part(context, job.id, renewed.attempt, "register", 0) == {"void": True}


def test_a_missing_folder_pauses_the_job_and_its_return_lets_it_go_on(
    site: Site, context: Context, photo_folder: Path, tmp_path: Path, eventually: Eventually
) -> None:
    folder, away = tmp_path / "mount", tmp_path / "unmounted"
    folder.mkdir()
    for photograph in sorted(photo_folder.glob("*.png")):
        shutil.copy(photograph, folder)
    with Collection.open("mounted", site.settings) as collection:
        folder.rename(away)
        before = collection.index([folder])
        with pytest.raises(StateError, match="is missing; mount or restore it"):
            before.wait(timeout=600)
        assert before.progress().state == "paused"
        away.rename(folder)
        eventually(lambda: before.progress().state != "paused")
        assert before.wait(timeout=600).counters["images_extracted"] == 15
        assert before.progress().message != before.id


def test_a_folder_that_goes_while_its_images_are_extracted_fails_none_of_them(
    site: Site,
    context: Context,
    many_photographs: Path,
    tmp_path: Path,
    eventually: Eventually,
    gate: Gate,
) -> None:
    folder, away = tmp_path / "mount", tmp_path / "unmounted"
    shutil.copytree(many_photographs, folder)
    with (
        gate.installed(),
        Collection.open("unmounted", site.settings, extractor=EXTRACTOR) as collection,
    ):
        gate.close(after=12)
        handle = collection.index([folder])
        eventually(lambda: handle.progress().images_done)
        folder.rename(away)
        folder.mkdir()  # as an empty mount point looks
        gate.open()
        paused = eventually(lambda: (p := handle.progress()).state == "paused" and p)
        assert str(folder) in (paused.message or "")
        assert 0 < paused.images_done < 45
        assert paused.images_failed == 0
        folder.rmdir()
        away.rename(folder)
        eventually(lambda: handle.progress().state != "paused")
        done = handle.wait(timeout=600)
        assert (done.images_done, done.images_failed) == (45, 0)
        assert done.counters["images_extracted"] == 45
        with session_scope(context.engine, write=False) as session:
            status = collections.collection_status(session, "unmounted")
        assert status.images == {"indexed": 45}


def test_a_file_that_goes_after_it_was_listed_fails_alone(
    site: Site, context: Context, photo_folder: Path, tmp_path: Path, eventually: Eventually
) -> None:
    for name in ("chelsea.png", "grass.png", "ihc.png"):
        shutil.copy(photo_folder / name, tmp_path)
    with Collection.open("vanishing", site.settings) as collection:
        with frozen(site.settings, "extract"):
            handle = collection.index([tmp_path])
            eventually(lambda: handle.progress().stage == "extract")
            (tmp_path / "ihc.png").unlink()
            shutil.copy(photo_folder / "rocket.png", tmp_path / "grass.png")
        done = handle.wait(timeout=600)
        assert (done.state, done.images_done, done.images_failed) == ("done", 3, 2)
        with session_scope(context.engine, write=False) as session:
            collection_id = collections.get_collection(session, "vanishing").id
            rows = images.failures(session, collection_id)
        assert {Path(row.path).name: row.code for row in rows} == {
            "grass.png": "changed",
            "ihc.png": "vanished",
        }
        assert found_names(collection.search(photo_folder / "chelsea.png"))[0] == "chelsea"


def _jpeg(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _make_zoo(folder: Path, photograph: Image.Image) -> None:
    """Write one of every kind of file that is not a plain photograph."""
    good = _jpeg(photograph)
    (folder / "truncated.jpg").write_bytes(good[: len(good) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no image")
    (folder / "png.jpg").write_bytes(_png(photograph))
    damaged = bytearray(_png(photograph.resize((90, 60))))
    damaged[len(damaged) // 2] ^= 0xFF
    (folder / "damaged.png").write_bytes(damaged)
    photograph.convert("P").save(
        folder / "moving.gif",
        save_all=True,
        append_images=[Image.new("P", photograph.size)],
    )
    grey = np.asarray(photograph.convert("L"))
    Image.fromarray(257 * grey.astype(np.uint16)).save(folder / "deep.png")
    photograph.convert("CMYK").save(folder / "print.jpg")
    photograph.convert("LA").save(folder / "grey and alpha.png")
    Image.new("L", (1, 1), 90).save(folder / "dot.png")
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        (folder / f"turned-{orientation}.jpg").write_bytes(_jpeg(photograph, exif=exif))
    (folder / "Übergröße 日本.png").write_bytes(_png(photograph.rotate(10)))
    (folder / "two\nlines.png").write_bytes(_png(photograph.rotate(20)))
    Path(os.fsdecode(os.fsencode(folder) + b"/latin-\xe9.png")).write_bytes(
        _png(photograph.rotate(30))
    )
    loop = folder / "loop"
    loop.mkdir()
    (loop / "back").symlink_to(folder)
    (folder / "nowhere.png").symlink_to(folder / "there is none.png")
    (folder / "itself.png").symlink_to(folder / "itself.png")


def test_a_folder_of_bad_files_is_indexed_with_a_reason_for_each(
    site: Site, context: Context, small_photographs: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "zoo"
    folder.mkdir()
    with Image.open(io.BytesIO(small_photographs["coffee"])) as photograph:
        _make_zoo(folder, photograph.convert("RGB"))
    with Collection.open("zoo", site.settings) as collection:
        progress = collection.index([folder]).wait(timeout=600)
        assert progress.state == "done"
        with session_scope(context.engine, write=False) as session:
            collection_id = collections.get_collection(session, "zoo").id
            rows = images.failures(session, collection_id)
            status = collections.collection_status(session, "zoo")
        assert {Path(row.path).name: row.code for row in rows} == {
            "truncated.jpg": "truncated",
            "empty.jpg": "empty-file",
            "text.jpg": "not-an-image",
            "damaged.png": "corrupt",
            "dot.png": "no-features",
            "huge.png": "too-many-pixels",
            "nowhere.png": "vanished",
            "itself.png": "symlink-loop",
        }
        assert [row for row in rows if not _is_a_sentence(row)] == []
        assert progress.images_failed == status.images["failed"] == 6
        assert status.unreadable_locations == 2
        # Every turned file shows the same picture, and the awkward names come back as they are.
        result = collection.search(folder / "png.jpg", top=20)
        found = {Path(path).name for match in result.matches for path in match.locations}
        assert {f"turned-{n}.jpg" for n in range(1, 9)} <= found
        assert {"Übergröße 日本.png", "two\nlines.png", "latin-\udce9.png"} <= found
        assert {"moving.gif", "deep.png", "print.jpg", "grey and alpha.png"} <= found


def _is_a_sentence(row: FailureRow) -> bool:
    return " " in row.message and row.message.strip() == row.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_reported(
    site: Site, context: Context, photo_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(photo_folder / "coffee.png", tmp_path)
    shutil.copy(photo_folder / "page.png", tmp_path)
    (tmp_path / "page.png").chmod(0)
    with Collection.open("closed", site.settings) as collection:
        assert collection.index([tmp_path]).wait(timeout=600).state == "done"
        with session_scope(context.engine, write=False) as session:
            collection_id = collections.get_collection(session, "closed").id
            (row,) = images.failures(session, collection_id)
        assert (Path(row.path).name, row.code) == ("page.png", "permission-denied")


def photographed(result: SearchResult) -> str:
    """Name the photograph that comes first: a new model may order its views anew."""
    return Path(result.matches[0].locations[0]).stem.split("__")[0]


def test_a_rebuild_replaces_the_index_while_searches_go_on(
    site: Site, context: Context, photo_folder: Path, queries: list[Path]
) -> None:
    photographs = sorted(photo_folder.iterdir())
    with Collection.open("rebuilt", site.settings) as collection:
        collection.index(photographs[:12]).wait(timeout=600)
        collection.index(photographs[12:]).wait(timeout=600)
        with session_scope(context.engine, write=False) as session:
            old = current_version(session, "rebuilt")
        before = [collection.search(query, plan="exhaustive") for query in queries]

        def search_all() -> None:
            for query, wanted in zip(queries, before, strict=True):
                result = collection.search(query)
                assert result.complete
                assert photographed(result) == photographed(wanted)

        with frozen(site.settings, "extract"):  # which assigns: the rebuild waits there
            handle = collection.rebuild()
            search_all()
            assert handle.progress().state == "running"
        while handle.progress().state == "running":
            search_all()
        assert handle.wait(timeout=1).counters.get("images_extracted", 0) == 0
        with session_scope(context.engine, write=False) as session:
            new = current_version(session, "rebuilt")
        assert new.number == old.number + 1 == 3
        assert new.tree.id != old.tree.id
        assert {s.id for s in new.segments}.isdisjoint(s.id for s in old.segments)
        assert len(new.segments) == 4
        for query, wanted in zip(queries, before, strict=True):
            result = collection.search(query, plan="exhaustive")
            assert photographed(result) == photographed(wanted)
            assert answer(result)["plan"]["scanned_share"] == 1.0
