"""Photographs and real stacks for the tests of this folder."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from gates import Gate
from PIL import Image
from sites import Eventually, SecondHost, Site, make_settings

from pipeline.evaluation.transforms import STANDARD, get_transform, view_bytes
from vantage import Collection
from workers.stack import Stack

_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)


@pytest.fixture(scope="session")
def small_photographs() -> dict[str, bytes]:
    """Photographs of scikit-image's wheel, 300 pixels wide or high: PNG files by name."""
    skimage = pytest.importorskip("skimage", reason="the photographs come with scikit-image")
    folder = Path(skimage.__file__).parent / "data"
    found = {}
    for name in _PHOTOGRAPHS:
        with Image.open(folder / name) as opened:
            image = opened.convert("RGB")
        image.thumbnail((300, 300))
        stream = io.BytesIO()
        image.save(stream, "PNG")
        found[Path(name).stem] = stream.getvalue()
    return found


@pytest.fixture(scope="session")
def photo_folder(
    small_photographs: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the photographs and two views of each: 45 images. Do not change it."""
    folder = tmp_path_factory.mktemp("photographs")
    turn = 0
    for name, data in small_photographs.items():
        (folder / f"{name}.png").write_bytes(data)
        for _ in range(2):
            transform = STANDARD[turn % len(STANDARD)]
            turn += 1
            (folder / f"{name}__{transform.name}.jpg").write_bytes(view_bytes(data, transform))
    return folder


@pytest.fixture(scope="session")
def queries(
    small_photographs: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Changed views of some of the photographs."""
    folder = tmp_path_factory.mktemp("queries")
    paths = []
    for name in ("astronaut", "coffee", "page", "rocket"):
        path = folder / f"{name}.jpg"
        path.write_bytes(view_bytes(small_photographs[name], get_transform("phone")))
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def many_photographs(
    small_photographs: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of 45 different small views: enough to be killed in the middle of."""
    folder = tmp_path_factory.mktemp("many photographs")
    for name, data in small_photographs.items():
        with Image.open(io.BytesIO(data)) as opened:
            pixels = np.asarray(opened)
        height, width = pixels.shape[:2]
        for turn in range(3):
            matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 20 * turn, 0.9)
            view = cv2.warpAffine(pixels, matrix, (width, height))
            Image.fromarray(view).save(folder / f"{name}-{turn}.png")
    return folder


@pytest.fixture(scope="session")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """The gate of the extractor ``gated`` in `site`; open it again."""
    return Gate(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="session")
def site(
    tmp_path_factory: pytest.TempPathFactory, gate: Gate, eventually: Eventually
) -> Iterator[Site]:
    """A running installation for all tests that do not change it, because start-up takes long."""
    settings = make_settings(tmp_path_factory.mktemp("site") / "home", serve_groups=(0, 1))
    stack = Stack(settings)
    with gate.installed():
        stack.start()
    with contextlib.ExitStack() as end:
        end.callback(stack.stop)
        second = SecondHost(settings, (2, 3), eventually)
        second.start()
        yield Site(stack, second)
        second.stop()


@pytest.fixture(scope="session")
def indexed(site: Site, photo_folder: Path) -> str:
    """Name of a collection of the photographs, indexed through Celery. Do not change it."""
    with Collection.open("indexed", site.settings) as collection:
        progress = collection.index([photo_folder]).wait(timeout=600)
    assert (progress.images_done, progress.images_failed) == (45, 0)
    return "indexed"
