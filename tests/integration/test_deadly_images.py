"""An image that kills the process that decodes it is given up; the other images go on."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from sites import live_workers, make_settings

from pipeline.metadata import collections, images, parts
from pipeline.metadata.engine import create_metadata_engine, session_scope
from pipeline.metadata.records import PartRecord
from workers.client import Collection
from workers.stack import Stack

OTHERS = 6
DEADLINE_S = 150


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Small pictures, and one that takes a second to decode: time enough to kill who does it."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    random = np.random.default_rng(5)
    for number in range(OTHERS):
        pixels = random.integers(0, 256, (90, 120), dtype=np.uint8)
        Image.fromarray(pixels).resize((360, 270)).save(folder / f"small{number}.png")
    pixels = random.integers(0, 256, (5000, 6000), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "deadly.png", compress_level=1)
    return folder


def kill_pool(worker: psutil.Process) -> None:
    """Kill what the extraction worker has forked, as a crash in a decoder does."""
    for child in worker.children():
        child.kill()


@pytest.mark.timeout(DEADLINE_S + 90)
def test_an_image_that_kills_its_process_is_given_up_and_the_others_are_indexed(
    tmp_path: Path, photographs: Path
) -> None:
    settings = make_settings(tmp_path / "home", batch_size=16)
    with Stack(settings), Collection.open("deadly", settings) as collection:
        worker = live_workers(settings)[f"extract@{settings.host}"]
        job = collection.index([photographs])
        engine = create_metadata_engine(settings.database_url)
        process, killed = psutil.Process(worker.pid), set()
        deadline = time.monotonic() + DEADLINE_S
        while (progress := job.progress()).state == "running":
            assert time.monotonic() < deadline, progress
            with session_scope(engine, write=False) as session:
                extracting = parts.parts(session, job.id, "extract")
                known = images.image_rows(session, range(1, OTHERS + 2))
            deadly = {i for i, row in known.items() if row.locations[0].endswith("deadly.png")}
            for part in extracting:
                if part.state == "running" and part.starts not in killed and is_at(part, deadly):
                    killed.add(part.starts)
                    kill_pool(process)
            time.sleep(0.01)
        with session_scope(engine, write=False) as session:
            failed = images.failures(session, collections.get_collection(session, "deadly").id)
        engine.dispose()
        assert len(killed) >= 3
        assert [(Path(f.path).name, f.code) for f in failed] == [("deadly.png", "kills-worker")]
        assert (progress.images_done, progress.images_failed) == (OTHERS + 1, 1)
        answer = collection.search(photographs / "small3.png")
        assert answer.matches[0].locations[0].endswith("small3.png")


def is_at(part: PartRecord, deadly: set[int]) -> bool:
    """Tell whether a part works on the deadly image; in its first start nobody can know."""
    if part.starts == 1:
        return True
    return len(part.suspects) == part.starts - 1 and part.suspects[-1] in deadly
