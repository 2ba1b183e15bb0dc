"""Extractors with a model file: identity, the store, what is refused."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from sites import found_names, make_settings

from pipeline.config import ExtractorConfig, IndexConfig, Settings
from pipeline.errors import (
    ConfigError,
    CorruptFileError,
    LostFileError,
    StorageUnavailableError,
)
from pipeline.extraction import registry
from pipeline.extraction.base import Extractor
from pipeline.images import DecodedImage
from pipeline.metadata import collections
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import CollectionRecord
from pipeline.records import Features
from pipeline.resources import Resources
from vantage import Collection


class Projection(Extractor):
    """A random projection of a small picture; its model is a file of a seed."""

    name = "projection"
    dimensions = 192
    row_bytes = 192
    one_vector = True
    color = True

    def __init__(self, config: ExtractorConfig, open_model: Callable[[str], Path]) -> None:
        seed = int(open_model(config.model).read_text())
        self._side = int(config.options.get("side", 16))
        rng = np.random.default_rng(seed)
        size = (self._side * self._side * 3, self.dimensions)
        self._matrix = rng.standard_normal(size).astype(np.float32)

    def extract(self, image: DecodedImage, max_features: int) -> Features:
        small = cv2.resize(image.pixels, (self._side, self._side), interpolation=cv2.INTER_AREA)
        centred = small.reshape(1, -1).astype(np.float32) - np.float32(small.mean())
        keypoint = np.array([[image.width / 2, image.height / 2, 1, 0, 1, 0, 0]], np.float32)
        return Features(keypoint, centred @ self._matrix, image.width, image.height)

    def normalize(self, descriptors: NDArray[np.generic]) -> NDArray[np.float32]:
        rows = descriptors.astype(np.float32)
        unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_made", {})
    known = registry.Registration("projection", Projection, needs_model=True)
    monkeypatch.setitem(registry._REGISTERED, "projection", known)
    # The process that tries a model knows only extractors that are installed.
    monkeypatch.setattr("pipeline.extraction.trial.try_model", lambda *_: None)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path / "a home")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two models; the second has options beside it."""
    folder = tmp_path / "models of mine"
    folder.mkdir()
    (folder / "one.onnx").write_text("1")
    (folder / "two.onnx").write_text("2")
    (folder / "two.toml").write_text("side = 20\n")
    return folder


@pytest.fixture
def photographs(tmp_path: Path, small_photographs: dict[str, bytes]) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, data in small_photographs.items():
        (folder / f"{name}.png").write_bytes(data)
    return folder


@pytest.fixture
def made(settings: Settings, models: Path) -> Iterator[Collection]:
    """A collection of the first model, without a picture."""
    spec = f"projection:{models / 'one.onnx'}"
    with Collection.open("looks", settings, threads=2, extractor=spec, local=True) as opened:
        opened.index([])
        yield opened


def record(collection: Collection) -> CollectionRecord:
    with session_scope(collection._driver.resources.engine, write=False) as session:
        return collections.get_collection(session, collection.name)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stored(settings: Settings) -> list[str]:
    return sorted(path.name for path in (Path(settings.store) / "models").iterdir())


def forget(settings: Settings) -> None:
    """Let this process forget all extractors, like a new one."""
    registry._made.clear()
    shutil.rmtree(settings.local, ignore_errors=True)


def test_a_collection_is_made_with_model_options_and_rows_of_its_extractor(
    made: Collection, settings: Settings, models: Path
) -> None:
    first = record(made)
    assert first.extractor.name == "projection"
    assert first.extractor.model == sha256(models / "one.onnx")
    assert first.extractor.options == {}
    assert first.index.dimensions == 192
    with Collection.open(
        "other", settings, extractor=f"projection:{models}/two.onnx", local=True
    ) as other:
        other.index([])
        assert record(other).extractor.options == {"side": 20}
        assert record(other).extractor_id != first.extractor_id


def test_it_searches_in_a_process_that_has_only_the_store(
    made: Collection, settings: Settings, models: Path, photographs: Path
) -> None:
    assert made.index([photographs]).wait().state == "done"
    shutil.rmtree(models)
    forget(settings)
    with Collection.open("looks", settings, local=True) as opened:
        found = found_names(opened.search(photographs / "coffee.png", top=3))
    assert found[0] == "coffee"


def test_rows_that_the_caller_asks_for_are_kept(settings: Settings, models: Path) -> None:
    spec = f"projection:{models / 'one.onnx'}"
    with Collection.open("short", settings, extractor=spec, local=True) as opened:
        opened.index([], index=IndexConfig(dimensions=128))
        assert record(opened).index.dimensions == 128


def test_two_collections_with_one_model_share_its_file(
    made: Collection, settings: Settings, models: Path
) -> None:
    shutil.copy(models / "one.onnx", models / "another name.onnx")
    spec = f"projection:{models / 'another name.onnx'}"
    with Collection.open("more", settings, extractor=spec, local=True) as other:
        other.index([])
        assert record(other).extractor == record(made).extractor
    assert stored(settings) == [f"{sha256(models / 'one.onnx')}.onnx"]


def test_another_extractor_is_refused_with_both_named(
    made: Collection, settings: Settings, models: Path
) -> None:
    two = models / "two.onnx"
    mine = f"projection (model {sha256(models / 'one.onnx')[:12]})"
    for spec, yours in (
        ("sift", "sift"),
        (f"projection:{two}", f"projection (model {sha256(two)[:12]})"),
    ):
        with pytest.raises(ConfigError) as caught:
            Collection.open("looks", settings, extractor=spec, local=True)
        sentence = str(caught.value)
        assert f"extractor is '{yours}': collection 'looks' was made with {mine}" in sentence
        assert "index into a collection of another name" in sentence
    with pytest.raises(ConfigError, match="was made with projection"):
        made.index([], extractor=ExtractorConfig())
    with (
        pytest.raises(ConfigError, match="'looks'"),
        Collection.open("looks", settings, local=True) as opened,
    ):
        opened.index([], extractor=replace(record(made).extractor, model="0" * 64))
    # What is refused leaves nothing in the store.
    assert stored(settings) == [f"{sha256(models / 'one.onnx')}.onnx"]


def test_other_options_of_the_same_model_are_named(
    made: Collection, settings: Settings, models: Path
) -> None:
    (models / "one.toml").write_text("side = 8\n")
    with pytest.raises(ConfigError, match=r"and other options \(side\)"):
        Collection.open(
            "looks", settings, extractor=f"projection:{models / 'one.onnx'}", local=True
        )


def test_the_same_extractor_from_another_environment_is_no_other(
    made: Collection, settings: Settings, models: Path
) -> None:
    changed = replace(settings, extractor=replace(settings.extractor, max_features=9))
    with Collection.open(
        "looks", changed, extractor=f"projection:{models}/one.onnx", local=True
    ) as opened:
        opened.index([])
        assert record(opened).extractor.max_features == settings.extractor.max_features


def test_a_model_that_vanished_from_the_store_is_named_and_can_be_put_back(
    made: Collection, settings: Settings, models: Path
) -> None:
    config = record(made).extractor
    key = f"models/{sha256(models / 'one.onnx')}.onnx"
    (Path(settings.store) / key).unlink()
    forget(settings)
    with pytest.raises(LostFileError) as caught:
        made._driver.resources.extractor(config)
    assert key in str(caught.value)
    assert "--extractor NAME:FILE" in str(caught.value)
    Collection.open(
        "looks", settings, extractor=f"projection:{models}/one.onnx", local=True
    ).close()
    assert made._driver.resources.extractor(config).dimensions == 192
    assert stored(settings) == [f"{sha256(models / 'one.onnx')}.onnx"]


def test_a_damaged_model_is_noticed_and_replaced(
    made: Collection, settings: Settings, models: Path
) -> None:
    file = Path(settings.store) / f"models/{sha256(models / 'one.onnx')}.onnx"
    forget(settings)
    file.unlink()
    file.write_text("9")
    with pytest.raises(CorruptFileError, match=r"models/\w+\.onnx' is damaged"):
        made._driver.resources.extractor(record(made).extractor)
    Collection.open(
        "looks", settings, extractor=f"projection:{models}/one.onnx", local=True
    ).close()
    assert made._driver.resources.extractor(record(made).extractor).dimensions == 192
    assert file.read_text() == "1"


def test_a_damaged_local_copy_of_a_model_is_fetched_again(
    made: Collection, settings: Settings, models: Path
) -> None:
    registry._made.clear()
    copy = Resources(settings).storage.fetch_model(sha256(models / "one.onnx"))
    copy.unlink()
    copy.write_text("9")
    Resources(settings).extractor(record(made).extractor)
    assert copy.read_text() == "1"


def test_an_unreachable_store_differs_from_a_lost_model(
    made: Collection, settings: Settings
) -> None:
    Path(settings.store).rename(Path(settings.store).with_name("unmounted"))
    forget(settings)
    with pytest.raises(StorageUnavailableError):
        made._driver.resources.extractor(record(made).extractor)


def test_the_settings_extractor_is_that_of_new_collections(
    settings: Settings, models: Path
) -> None:
    config = replace(settings.extractor, name="projection")
    mine = replace(settings, extractor=config, extractor_text=f"projection:{models / 'two.onnx'}")
    with Collection.open("new", mine, local=True) as opened:
        opened.index([])
        assert record(opened).extractor.model == sha256(models / "two.onnx")
    with Collection.open("new", settings, local=True) as opened:  # whose settings say sift
        opened.index([])
        assert record(opened).extractor.name == "projection"


def test_a_refused_model_makes_no_collection(settings: Settings, models: Path) -> None:
    (models / "bad.onnx").write_text("no number")
    spec = f"projection:{models / 'bad.onnx'}"
    with Collection.open("bad", settings, extractor=spec, local=True) as opened:
        with pytest.raises(ValueError, match="no number"):
            opened.index([])
        with session_scope(opened._driver.resources.engine, write=False) as session:
            assert collections.list_collections(session) == []
    assert not [*Path(settings.store).rglob("*.onnx")], "what is refused leaves nothing"
