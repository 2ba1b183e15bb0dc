"""An image that kills its process is recorded as failed; the other images are indexed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gates import DEADLY_WIDTH, EXTRACTOR, Gate
from PIL import Image
from sites import Site

from pipeline.metadata import collections, images, parts
from pipeline.metadata.engine import session_scope
from vantage import Collection
from workers.context import Context

OTHERS = 6


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Small pictures, and one that kills its process as a crash in a decoder does."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    random = np.random.default_rng(5)
    for number in range(OTHERS):
        pixels = random.integers(0, 256, (90, 120), dtype=np.uint8)
        Image.fromarray(pixels).resize((360, 270)).save(folder / f"small{number}.png")
    Image.fromarray(pixels).resize((DEADLY_WIDTH, 400)).save(folder / "deadly.png")
    return folder


def test_an_image_that_kills_its_process_is_given_up_and_the_others_are_indexed(
    site: Site, gate: Gate, photographs: Path
) -> None:
    with (
        gate.installed(),
        Collection.open("deadly", site.settings, extractor=EXTRACTOR) as collection,
    ):
        progress = collection.index([photographs]).wait(timeout=600)
        context = Context(site.settings)
        with session_scope(context.engine, write=False) as session:
            failed = images.failures(session, collections.get_collection(session, "deadly").id)
            extracting = parts.parts(session, progress.job_id, "extract")
        context.close()
        assert max(part.starts for part in extracting) >= 3
        assert [(Path(f.path).name, f.code) for f in failed] == [("deadly.png", "kills-worker")]
        assert (progress.images_done, progress.images_failed) == (OTHERS + 1, 1)
        answer = collection.search(photographs / "small3.png")
        assert answer.matches[0].locations[0].endswith("small3.png")
