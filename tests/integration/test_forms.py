"""Local and by workers: the same files and the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
from sites import Site, answer, files_below, found_names, make_settings

from pipeline.config import IndexConfig
from pipeline.errors import (
    ImageReadError,
    IndexNotBuiltError,
    InputError,
    NoFeaturesError,
    UnknownNameError,
)
from vantage import Collection

Plan = Literal["auto", "probed", "exhaustive"]


@pytest.mark.parametrize("plan", ["probed", "exhaustive"])
def test_both_forms_rank_a_path_bytes_and_pixels_alike(
    site: Site, indexed: str, queries: list[Path], plan: Plan
) -> None:
    with (
        Collection.open(indexed, site.settings) as remote,
        Collection.open(indexed, site.settings, local=True) as here,
    ):
        for path in queries:
            pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            for image in (path, path.read_bytes(), pixels):
                wanted = answer(here.search(image, top=20, plan=plan))
                assert wanted["complete"]
                assert wanted["plan"]["kind"] == plan
                assert len(wanted["matches"]) > 2
                assert answer(remote.search(image, top=20, plan=plan)) == wanted
                # Pixels travel to the workers as a file, so that only their digest differs.
                handle = remote.enqueue_search(image, top=20, plan=plan)
                there = answer(handle.wait())
                assert there["matches"] == wanted["matches"]
                assert there["plan"] == wanted["plan"]
                assert handle.ready()


def test_a_changed_view_finds_its_photograph_first(
    site: Site, indexed: str, queries: list[Path]
) -> None:
    with Collection.open(indexed, site.settings) as collection:
        for path in queries:
            assert found_names(collection.search(path))[0].split("__")[0] == path.stem


def test_probed_and_exhaustive_differ_in_what_they_scan(
    site: Site, indexed: str, queries: list[Path]
) -> None:
    with Collection.open(indexed, site.settings) as collection:
        exhaustive = collection.search(queries[0], plan="exhaustive").plan
        probed = collection.search(queries[0], plan="probed").plan
        wide = collection.search(queries[0], plan="probed", effort=0.5).plan
    assert exhaustive["scanned_share"] == 1.0
    assert 0 < probed["scanned_share"] < 0.3
    assert probed["scanned_share"] < wide["scanned_share"] < 1.0


def test_both_forms_write_the_same_files(
    site: Site, indexed: str, photo_folder: Path, tmp_path: Path
) -> None:
    settings = make_settings(tmp_path / "home")
    with Collection.open(indexed, settings, local=True) as collection:
        collection.index([photo_folder])
    mine, theirs = files_below(settings.store), files_below(site.settings.store)
    kinds = [name.split("/")[0] for name in mine]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "containers": 12,
        "trees": 1,
        "groups": 4,
    }
    # In databases that gave the images other ids.
    assert {name: theirs.get(name) for name in mine} == mine


def test_what_one_form_indexed_the_other_searches_and_adds_to(
    site: Site, photo_folder: Path, queries: list[Path]
) -> None:
    photographs = sorted(photo_folder.glob("*.png"))
    with (
        Collection.open("shared", site.settings) as remote,
        Collection.open("shared", site.settings, local=True) as here,
    ):
        here.index(photographs[:8])
        assert answer(remote.search(queries[0])) == answer(here.search(queries[0]))
        remote.index(photographs[8:]).wait(timeout=600)
        result = here.search(queries[3])
        assert found_names(result)[0] == "rocket"
        assert result.version == 2
        assert answer(remote.search(queries[3])) == answer(result)


def test_a_collection_keeps_the_number_of_groups_that_it_was_made_with(
    site: Site, photo_folder: Path, queries: list[Path]
) -> None:
    photographs = sorted(photo_folder.glob("*.png"))
    with (
        Collection.open("two-groups", site.settings) as remote,
        Collection.open("two-groups", site.settings, local=True) as here,
    ):
        remote.index(photographs, index=IndexConfig(groups=2, cell_size=200)).wait(timeout=600)
        result = remote.search(queries[0], plan="exhaustive")
        assert result.plan["groups"] == [0, 1]
        assert answer(here.search(queries[0], plan="exhaustive")) == answer(result)


def test_both_ways_to_search_refuse_invalid_queries(
    site: Site, indexed: str, tmp_path: Path, queries: list[Path]
) -> None:
    flat = cv2.imencode(".png", np.full((64, 64), 128, np.uint8))[1].tobytes()
    with Collection.open(indexed, site.settings) as collection:
        for image, error in (
            (b"not an image", ImageReadError),
            (b"", ImageReadError),
            (flat, NoFeaturesError),
        ):
            with pytest.raises(error) as direct:
                collection.search(image)
            with pytest.raises(error) as enqueued:
                collection.enqueue_search(image).wait()
            assert str(direct.value) == str(enqueued.value)
        with pytest.raises(ImageReadError, match=r"gone\.jpg"):
            collection.search(tmp_path / "gone.jpg")
        with pytest.raises(InputError):
            collection.enqueue_search(tmp_path / "gone.jpg")
    with Collection.open("indxed", site.settings) as unknown:
        with pytest.raises(UnknownNameError, match="did you mean 'indexed'"):
            unknown.search(queries[0])
        with pytest.raises(UnknownNameError, match="did you mean 'indexed'"):
            unknown.enqueue_search(queries[0]).wait()


def test_a_collection_without_a_usable_image_says_so(
    site: Site, tmp_path: Path, queries: list[Path]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    with Collection.open("empty", site.settings) as collection:
        progress = collection.index([tmp_path]).wait(timeout=600)
        assert (progress.state, progress.images_failed) == ("done", 1)
        with pytest.raises(IndexNotBuiltError):
            collection.search(queries[0])
        with pytest.raises(IndexNotBuiltError):
            collection.enqueue_search(queries[0]).wait()
        known = collection.search(tmp_path / "broken.jpg")
        assert [match.same_file for match in known.matches] == [True]
        assert collection.enqueue_search(tmp_path / "broken.jpg").wait() == known
