"""A batch that takes several slices: progress survives a kill, slow files come last and alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bombs import many_scans
from heavy import long_only
from PIL import Image
from sites import make_settings

from pipeline import indexing
from pipeline.config import ImageLimits, Settings
from pipeline.extraction import features
from pipeline.files import hash_bytes
from pipeline.images import DecodedImage
from pipeline.indexing import extract as stage
from pipeline.indexing import unfinished_batch
from pipeline.job_params import IndexParams
from pipeline.metadata import collections, images, jobs, parts
from pipeline.metadata.engine import session_scope, upgrade
from pipeline.opening import open_collection
from pipeline.resources import Resources
from vantage import Collection
from workers.stack import Stack

GOOD = 5


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Sound pictures, and two that no budget is enough for."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    random = np.random.default_rng(5)
    for number in range(GOOD):
        pixels = random.integers(0, 256, (90, 120), dtype=np.uint8)
        Image.fromarray(pixels).resize((360, 270)).save(folder / f"good{number}.png")
    for number in range(2):
        (folder / f"slow{number}.jpg").write_bytes(many_scans(60_000 + number))
    return folder


def hasty(settings: Settings) -> Settings:
    """Settings with little patience for a decode."""
    return replace(settings, image_limits=ImageLimits(decode_seconds=0.4))


def failures(settings: Settings, name: str) -> dict[str, str]:
    resources = Resources(settings)
    with session_scope(resources.engine, write=False) as session:
        collection = collections.get_collection(session, name)
        found = images.failures(session, collection.id)
    resources.close()
    return {Path(failure.path).name: failure.code for failure in found}


def kept(settings: Settings) -> list[Path]:
    return sorted(Path(settings.store).glob("unfinished/*/*.npz"))


def test_slow_files_are_tried_twice_and_do_not_hold_up_their_batch(
    settings: Settings, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[tuple[str, bool]] = []
    real = features.try_decode

    def noting(data: bytes, *, name: str, alone: bool, **options: object) -> DecodedImage:
        tries.append((Path(name).name[:4], alone))
        return real(data, name=name, alone=alone, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(features, "try_decode", noting)
    monkeypatch.setattr(stage, "SLICE_S", 0.0)  # every step is a slice
    monkeypatch.setattr(features, "DECODING_S", 0.0)  # and every image a step
    with Collection.open("mixed", hasty(settings), local=True) as collection:
        job = collection.index([photographs]).progress()
    assert (job.state, job.images_done, job.images_failed) == ("done", GOOD + 2, 2)
    assert sorted(tries) == sorted(
        [("good", False)] * GOOD + [("slow", False)] * 2 + [("slow", True)] * 2
    )
    assert [alone for _, alone in tries] == [False] * (GOOD + 2) + [True] * 2
    assert failures(settings, "mixed") == {"slow0.jpg": "too-slow", "slow1.jpg": "too-slow"}
    assert kept(settings) == []


def test_what_a_killed_process_had_kept_is_not_extracted_again(
    settings: Settings, photographs: Path, eventually: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The process is killed while it waits for a file that takes for ever."""
    code = (
        "from dataclasses import replace\n"
        "from pipeline.config import ImageLimits, Settings\n"
        "from pipeline.extraction import features\n"
        "from pipeline.indexing import unfinished_batch\n"
        "from vantage import Collection\n"
        "unfinished_batch.KEEP_EVERY_S = features.DECODING_S = 0.0\n"
        "settings = replace(Settings.from_env(), image_limits=ImageLimits(decode_seconds=1e4))\n"
        f"Collection.open('killed', settings, local=True).index([{str(photographs)!r}])\n"
    )
    environment = {"VANTAGE_HOME": str(settings.home), "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        # Whatever the order of the files is: what comes before the first slow one is kept.
        before = _before_the_first_slow(photographs)
        eventually(lambda: len(kept(settings)) >= before)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    extracted: list[str] = []
    real = features.try_decode

    def noting(data: bytes, *, name: str, **options: object) -> DecodedImage:
        extracted.append(Path(name).name)
        return real(data, name=name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(features, "try_decode", noting)
    with Collection.open("killed", hasty(settings), local=True) as collection:
        job = collection.index([photographs]).progress()
    assert (job.state, job.images_done, job.images_failed) == ("done", GOOD + 2, 2)
    good = [name for name in extracted if name.startswith("good")]
    assert len(good) == len(set(good)) == GOOD - before
    assert kept(settings) == []


def _before_the_first_slow(photographs: Path) -> int:
    """Return how many files a batch, sorted by SHA-256, has before its first slow one."""
    return [path.name[:4] for path in _in_their_order(photographs)].index("slow")


def _in_their_order(photographs: Path) -> list[Path]:
    """Return the files as a batch has them: by SHA-256."""
    return sorted(photographs.iterdir(), key=lambda path: hash_bytes(path.read_bytes()))


class InterruptedByLimitError(Exception):
    """As a soft time limit of the process that does the work."""


@pytest.mark.parametrize("error", [InterruptedByLimitError, MemoryError])
def test_no_exception_of_the_process_becomes_a_failure_of_a_file(
    settings: Settings, photographs: Path, monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:  # fmt: skip
    def interrupt(*_: object) -> None:
        raise error

    former = signal.signal(signal.SIGALRM, interrupt)
    monkeypatch.setattr(unfinished_batch, "KEEP_EVERY_S", 0.0)
    real = features._decode_item

    def arm(item: features.BatchItem, *rest: object) -> object:
        if "slow" in item[2]:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
        return real(item, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(features, "_decode_item", arm)
    resources = Resources(settings)
    try:
        job_id = _registered_job(resources, photographs)
        with pytest.raises(error):
            indexing.run_part(resources, job_id, "extract", 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    with session_scope(resources.engine, write=False) as session:
        assert parts.get_part(session, job_id, "extract", 0).state == "running"
    resources.close()
    assert failures(settings, "stopped") == {}


def test_a_failure_that_may_pass_does_not_outlive_its_job(
    settings: Settings, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slow in photographs.glob("slow*"):
        slow.unlink()
    monkeypatch.setattr(stage, "SLICE_S", 0.0)  # every step is a slice
    monkeypatch.setattr(features, "DECODING_S", 0.0)  # and every image a step
    resources = Resources(settings)
    job_id = _registered_job(resources, photographs)
    first = _in_their_order(photographs)[0]
    away = first.rename(photographs.parent / "away.png")
    assert indexing.run_part(resources, job_id, "extract", 0) == {"more": True}
    assert len(kept(settings)) == 1
    with session_scope(resources.engine) as session:
        jobs.finish_job(session, job_id, "failed", "interrupted")
    resources.close()
    away.rename(first)
    with Collection.open("stopped", settings, local=True) as collection:
        job = collection.index([photographs]).progress()
    assert (job.state, job.images_done, job.images_failed) == ("done", GOOD, 0)
    assert failures(settings, "stopped") == {}
    assert kept(settings) == []


def _registered_job(resources: Resources, folder: Path) -> str:
    """Register a folder's files in a collection and plan their extraction; returns the job."""
    upgrade(resources.engine)
    collection = open_collection(resources, "stopped", None, None)
    with session_scope(resources.engine) as session:
        job = jobs.create_job(session, collection.id, "index", IndexParams(paths=(str(folder),)))
    indexing.open_stage(resources, job)
    indexing.run_part(resources, job.id, "register", 0)
    moved = indexing.advance(resources, job)
    assert moved is not None
    assert len(indexing.open_stage(resources, moved)) == 1
    return job.id


@long_only
def test_workers_hand_a_slow_batch_on_by_messages_and_end_it(
    tmp_path: Path, photographs: Path
) -> None:
    home = tmp_path / "home"
    limits = ImageLimits(decode_seconds=0.4)
    # A slow file has its second try at the beginning of a slice: the batch takes several.
    settings = make_settings(home, batch_size=16, image_limits=limits, visibility_timeout_s=60)
    with Stack(settings), Collection.open("mixed", settings) as collection:
        job = collection.index([photographs]).wait(timeout=600)
        answer = collection.search(photographs / "good3.png")
    assert (job.state, job.images_done, job.images_failed) == ("done", GOOD + 2, 2)
    assert answer.matches[0].locations[0].endswith("good3.png")
    assert failures(settings, "mixed") == {"slow0.jpg": "too-slow", "slow1.jpg": "too-slow"}
    assert kept(settings) == []
