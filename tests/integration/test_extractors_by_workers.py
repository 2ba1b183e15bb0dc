"""Every kind of extractor through Celery, on two hosts: the same answers as without a broker."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sites import Site, answer, found_names, make_settings

from pipeline.config import PlanKind
from pipeline.errors import ConfigError
from pipeline.metadata import collections, jobs
from pipeline.metadata.engine import session_scope
from pipeline.metadata.versions import current_version
from pipeline.records import SearchResult
from pipeline.resources import Resources
from vantage import Collection

SIDE, CHANNELS = 64, 80


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random convolution and its ReLU: blind to nothing, trained on nothing."""
    path = tmp_path_factory.mktemp("model") / "random.onnx"
    weights = np.random.default_rng(5).standard_normal((CHANNELS, 3, 7, 7)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["conv"], strides=[4, 4]),
        helper.make_node("Relu", ["conv"], ["maps"]),
    ]
    sides = (SIDE - 7) // 4 + 1
    graph = helper.make_graph(
        nodes,
        "random",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["n", CHANNELS, sides, sides])],
        [numpy_helper.from_array(weights, "weights")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    path.with_suffix(".toml").write_text(
        f'size = {SIDE}\nresize = "stretch"\nmean = 128\nstd = 60\n'
        'pooling = "average"\nrow_bytes = 128\n'
    )
    return path


@pytest.mark.parametrize("kind", ["surf", "cnn"])
def test_workers_index_and_search_with_every_extractor(
    site: Site, photo_folder: Path, queries: list[Path], network: Path, kind: str
) -> None:
    plan: PlanKind
    spec = f"cnn:{network}" if kind == "cnn" else kind
    name = f"by-{kind}"
    with (
        Collection.open(name, site.settings, extractor=spec) as remote,
        Collection.open(name, site.settings, local=True) as here,
    ):
        progress = remote.index([photo_folder]).wait(timeout=600)
        assert (progress.images_done, progress.images_failed) == (45, 0)
        with session_scope(remote._driver.context.engine, write=False) as session:
            made = collections.get_collection(session, name)
        assert made.extractor.name == kind
        assert made.index.dimensions == (128 if kind == "cnn" else 64)
        # A photograph itself, as a file, as bytes and as pixels, whose colours travel with them.
        picture = photo_folder / "coffee.png"
        pixels = cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB)
        for image in (picture, picture.read_bytes(), pixels):
            wanted = answer(here.search(image, top=20))
            assert found_names(here.search(image))[0] == "coffee"
            assert answer(remote.search(image, top=20)) == wanted
            there = answer(remote.enqueue_search(image, top=20).wait())
            assert there["matches"] == wanted["matches"]
        for plan in ("probed", "exhaustive"):
            singles = [here.search(query, top=20, plan=plan) for query in queries]
            for form in (here, remote):
                many = form.search_many(queries, top=20, plan=plan)
                assert [r.matches for r in many if isinstance(r, SearchResult)] == [
                    single.matches for single in singles
                ]
        first = [found_names(remote.search(query))[0].split("__")[0] for query in queries]
        # What a changed view looks like to random weights is not what is tested here.
        assert kind == "cnn" or first == [query.stem for query in queries]
        with pytest.raises(ConfigError, match=f"collection '{name}' was made with {kind}"):
            Collection.open(name, site.settings, extractor="sift")
        with pytest.raises(ConfigError, match=f"collection '{name}' was made with {kind}"):
            remote.index([photo_folder], extractor=site.settings.extractor)
    if kind == "cnn":
        assert (site.settings.local / "models" / f"{made.extractor.model}.onnx").is_file()


def test_a_model_with_other_colours_would_be_noticed(
    site: Site, photo_folder: Path, network: Path
) -> None:
    """The network of the test above tells a picture from the same one in grey."""
    with Collection.open("by-cnn", site.settings, extractor=f"cnn:{network}", local=True) as here:
        here.index([photo_folder])
        pixels = cv2.cvtColor(cv2.imread(str(photo_folder / "coffee.png")), cv2.COLOR_BGR2RGB)
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        scores = [here.search(image, top=1).matches[0].score for image in (pixels, grey)]
    assert scores[0] > 0.999
    assert scores[1] < 0.995


def test_a_collection_of_one_vector_an_image_is_not_rebuilt_unasked(
    tmp_path: Path, photo_folder: Path, network: Path
) -> None:
    """No background distance decides there, so a model of the first images is as good as any."""
    settings = make_settings(tmp_path / "home", compact_above=2)
    with Collection.open("vectors", settings, extractor=f"cnn:{network}", local=True) as collection:
        for path in sorted(photo_folder.glob("*.png"))[:6]:
            collection.index([path])
    resources = Resources(settings)
    with session_scope(resources.engine, write=False) as session:
        now = current_version(session, "vectors")
        kinds = {job.kind for job in jobs.list_jobs(session, now.collection_id)}
    resources.close()
    assert now.tree.trained_on == 1
    assert kinds == {"index", "compact"}
