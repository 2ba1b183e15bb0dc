"""docs/formats.md describes every file; it is compared with files as written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_data import assign, collection, features, model, segments
from numpy.typing import NDArray

from pipeline.arrays import ArrayFile, arrays_to_bytes
from pipeline.config import ExtractorConfig
from pipeline.containers import container_arrays, container_key, read_container
from pipeline.records import Features, ImageFailure
from pipeline.request import SearchRequest
from pipeline.retrieval.batch import Batch, QueryImage
from pipeline.retrieval.blocks import GroupScan
from pipeline.retrieval.cost import Machine, Workload
from pipeline.retrieval.plan import make_plan
from pipeline.retrieval.scan import scan_segment

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
FAILURE = ImageFailure("cd" * 32, "truncated", "the file ends too early")


def sift_like(seed: int, count: int) -> Features:
    found = features(seed, count)
    rows = np.random.default_rng(seed).integers(0, 256, (count, 128), dtype=np.uint8)
    return Features(found.keypoints, rows, 640, 480)


def container_file() -> bytes:
    done = [("ab" * 32, sift_like(1, 10)), ("01" * 32, sift_like(2, 5))]
    return arrays_to_bytes(*container_arrays(done, [FAILURE], 128))


def plan_file(kind: str) -> bytes:
    codes = model().quantizer.encode(features(15, 30).descriptors)
    plan = make_plan(model(), codes, 930, SearchRequest(plan=kind))  # type: ignore[arg-type]
    image = QueryImage("ab", 640, 480, 30, {"plan": 1.0})
    workload = Workload(30, 930, 64, model().tree.cells)
    keypoints = features(15, 30).keypoints[:, :4]
    request = SearchRequest(effort=0.06)
    batch = Batch(plan, (image,), workload, request, Machine("avx2", 2), keypoints)
    return arrays_to_bytes(*batch.to_arrays())


def block_file() -> bytes:
    codes = model().quantizer.encode(features(15, 30).descriptors)
    plan = make_plan(model(), codes, 930, SearchRequest())
    block = scan_segment(segments()[2], plan)
    scan = GroupScan(1, block, 2.5, "avx2")
    return arrays_to_bytes(block.to_arrays(), scan.to_meta())


FILES: dict[str, bytes] = {
    "Container": container_file(),
    "Model": arrays_to_bytes(model().to_arrays(), {}),
    "Assignment": arrays_to_bytes(assign(model(), collection()).to_arrays(), {}),
    "Segment": arrays_to_bytes(segments()[2].to_arrays(), {"group": 1}),
    "Query plan": plan_file("probed"),
    "Distance block": block_file(),
}


def documented(heading: str) -> dict[str, tuple[str, list[str]]]:
    """Return dtype and shape of every array in a section's table, in its order."""
    section = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    text = next(part for part in section if part.startswith(f"{heading}\n"))
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| \(([^)]*)\) \|", text, flags=re.MULTILINE)
    return {name: (dtype, shape.split(", ")) for name, dtype, shape in rows}


def bind(known: dict[str, int], symbol: str, size: int) -> None:
    """Compare a length with its symbol; a letter's first use says what it is."""
    if symbol.isdigit():
        assert size == int(symbol)
        return
    form = re.fullmatch(r"(?:(\d+) )?([A-Z])(?: \+ (\d+))?", symbol)
    assert form is not None, symbol
    factor, letter, more = int(form[1] or 1), form[2], int(form[3] or 0)
    assert (size - more) % factor == 0
    assert known.setdefault(letter, (size - more) // factor) == (size - more) // factor, symbol


@pytest.mark.parametrize("heading", FILES)
def test_the_page_names_every_array_with_its_type_and_shape(heading: str) -> None:
    file = ArrayFile(FILES[heading])
    expected = documented(heading)
    assert list(file) == list(expected)
    lengths: dict[str, int] = {}
    for name, (dtype, shape) in expected.items():
        array: NDArray[Any] = file[name]
        assert array.dtype == np.dtype(dtype), name
        assert array.ndim == len(shape), name
        for symbol, size in zip(shape, array.shape, strict=True):
            bind(lengths, symbol, size)
    known = {"L": model().tree.levels, "V": model().tree.cells - 1, "C": model().cells_per_group}
    assert all(lengths[letter] == size for letter, size in known.items() if letter in lengths)


@pytest.mark.parametrize("heading", FILES)
def test_the_page_names_the_plain_values(heading: str) -> None:
    text = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    for name in ArrayFile(FILES[heading]).meta:
        assert f"`{name}`" in text


def test_a_container_comes_back_from_its_file() -> None:
    file = ArrayFile(container_file())
    container = read_container(file, file.meta)
    assert container.sha256 == ("ab" * 32, "01" * 32)
    assert container.failures == (FAILURE,)
    assert container.descriptor_count == 15
    for seed, (sha256, found) in zip((1, 2), container.items(), strict=True):
        expected = sift_like(seed, len(found))
        assert sha256 in container.sha256
        assert np.array_equal(found.keypoints, expected.keypoints)
        assert np.array_equal(found.descriptors, expected.descriptors)
        assert (found.width, found.height) == (640, 480)


def test_a_container_of_failures_alone_comes_back() -> None:
    file = ArrayFile(arrays_to_bytes(*container_arrays([], [FAILURE], 128)))
    container = read_container(file, file.meta)
    assert (container.sha256, container.features) == ((), ())
    assert container.failures == (FAILURE,)
    assert file["descriptors"].shape == (0, 128)


def test_a_containers_name_is_made_of_its_images_in_any_order_and_the_extractor() -> None:
    config = ExtractorConfig()
    name = container_key(config, ["ab", "cd"])
    assert re.fullmatch(r"containers/sift-n500-s1024-\w{8}/\w{32}\.npz", name)
    assert container_key(config, ["cd", "ab"]) == name
    assert container_key(config, ["ab"]) != name
    assert container_key(ExtractorConfig(max_features=400), ["ab", "cd"]) != name
