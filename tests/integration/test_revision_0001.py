"""An installation made by revision 0001 is migrated: the versions hold the same, answers stay.

``tests/data/revision_0001`` holds its rows, the files of its current version, and what its code
said of it. Its life, version by version: a, b, c indexed (1); a changed and d came (2); c changed
(3); the first a came back as e (4); compacted (5); b changed (6); rebuilt (7); d changed (8); the
first c came back as f (9); g came, and a file that is no picture (10); e changed (11). Then h, i
and j came; h changed before the assignment, i after it; there the job was stopped.
"""

from __future__ import annotations

import io
import json
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sites import make_settings

from pipeline import indexing
from pipeline.config import Settings
from pipeline.metadata import holdings, jobs, versions
from pipeline.metadata.engine import create_metadata_engine, require_schema, session_scope, upgrade
from pipeline.resources import Resources
from vantage import Collection

DATA = Path(__file__).parents[1] / "data" / "revision_0001"

SAID = json.loads((DATA / "said.json").read_text())
"""Tombstones of each version; answers to pictures that are read as then: SHA-256, score, votes."""

# By image id: b, a, c, d as they were first; then a, c, b, d changed; no picture; g; e changed.
HELD = {
    1: {1, 2, 3},
    2: {1, 3, 4, 5},
    3: {1, 4, 5, 6},
    4: {1, 2, 4, 5, 6},
    5: {1, 2, 4, 5, 6},
    6: {2, 4, 5, 6, 7},
    7: {2, 4, 5, 6, 7},
    8: {2, 5, 6, 7, 8},
    9: {2, 3, 5, 6, 7, 8},
    10: {2, 3, 5, 6, 7, 8, 10},
    11: {3, 5, 6, 7, 8, 10, 11},
}


def picture(seed: int) -> bytes:
    """Return one of the photographs, of which there were fifteen."""
    rng = np.random.default_rng(seed)
    image = Image.new("L", (96, 72), 128)
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        x, y = int(rng.integers(0, 80)), int(rng.integers(0, 60))
        width, height = int(rng.integers(4, 24)), int(rng.integers(4, 24))
        draw.rectangle([x, y, x + width, y + height], fill=int(rng.integers(0, 255)))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The installation, migrated."""
    settings = make_settings(tmp_path_factory.mktemp("revision_0001") / "home", compact_above=0)
    with tarfile.open(DATA / "store.tar.xz") as files:
        files.extractall(settings.store, filter="data")
    engine = create_metadata_engine(settings.database_url)
    upgrade(engine, "0001")
    database = sqlite3.connect(settings.database_url.removeprefix("sqlite:///"))
    database.executescript((DATA / "database.sql").read_text())
    database.close()
    upgrade(engine)
    require_schema(engine)
    engine.dispose()
    return settings


@pytest.fixture
def resources(settings: Settings) -> Iterator[Resources]:
    resources = Resources(settings)
    yield resources
    resources.close()


def test_every_version_holds_and_hides_what_it_did(resources: Resources) -> None:
    with session_scope(resources.engine, write=False) as session:
        held = {number: holdings.held_images(session, 1, number) for number in HELD}
        found = {number: versions.get_version(session, number) for number in HELD}
        changed = holdings.changed_images(session, 1, 6, 11)
    assert held == HELD
    hidden = {str(number): sorted(version.tombstones) for number, version in found.items()}
    assert hidden == SAID["tombstones"]
    assert changed == {
        **dict.fromkeys((2, 4), "removed"),
        **dict.fromkeys((3, 8, 10, 11), "added"),
    }
    assert {version.extractor.max_features for version in found.values()} == {12}
    assert {version.index.groups for version in found.values()} == {2}


@pytest.mark.parametrize("asked", SAID["answers"])
def test_answers_are_those_of_before(settings: Settings, asked: str) -> None:
    seed, plan = asked.split()
    with Collection.open("pictures", settings, local=True) as collection:
        answer = collection.search(picture(int(seed)), top=10, plan=plan)  # type: ignore[arg-type]
    found = [(match.image, match.votes) for match in answer.matches]
    assert found == [(image, votes) for image, _, votes in SAID["answers"][asked]]
    scores = [score for _, score, _ in SAID["answers"][asked]]
    assert [match.score for match in answer.matches] == pytest.approx(scores)


def test_a_stopped_job_assigns_again_without_removed_images(
    resources: Resources,
) -> None:
    with session_scope(resources.engine, write=False) as session:
        (job,) = jobs.unfinished_jobs(session)
    assert (job.kind, job.stage, job.state) == ("index", "assign", "running")
    parts = indexing.open_stage(resources, job)
    rows = {part.args["container"]: part.args["rows"] for part in parts}
    assert rows == {10: [[0, 12]]}  # j; neither h, nor i, which alone is in container 11
    with session_scope(resources.engine, write=False) as session:
        assert 12 not in holdings.images_with_rows(session, 1)
