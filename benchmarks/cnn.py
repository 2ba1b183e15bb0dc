"""onnxruntime against OpenCV's network module; with ``--photos``, mAP of CNN vectors.

    python -m benchmarks.cnn [--model FILE.onnx] [--rounds 9] [--photos FOLDER]

One thread each, processor time, medians; all take turns in every round, each as `CnnExtractor`
runs it (pictures prepared, outputs pooled). Networks made here have random weights and the shapes
of well-known kinds. With ``--photos`` (an evaluation data set) the network of ``--model`` with the
TOML file beside it, and changes of it, rank the subset ``--subset``: float32 cosine, and rows of 8
bits as the index stores them. ``--settings`` names a TOML file that lies elsewhere.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.common import parser, show
from pipeline.config import ImageLimits
from pipeline.evaluation.dataset import Dataset, read_dataset
from pipeline.evaluation.measures import average_precision, judge, recall_at
from pipeline.extraction.cnn import CnnExtractor, CnnSettings, settings_beside
from pipeline.extraction.cnn.pooling import unit_rows
from pipeline.files import read_file
from pipeline.images import DecodedImage, decode_image, from_array
from pipeline.index.quantizer import train_quantizer

BATCHES = (1, 4, 8, 16)
RUNTIMES = ("onnxruntime", "opencv")


class Builder:
    """Writes a network with random weights."""

    def __init__(self, seed: int = 1) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int) -> str:
        """Store random weights; returns their name."""
        values = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append an operation; returns its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def conv(self, x: str, wide: tuple[int, int], k: int, stride: int = 1, groups: int = 1) -> str:
        """Append a convolution and its ReLU."""
        weight = self.weight(wide[1], wide[0] // groups, k, k)
        pads, strides = [k // 2] * 4, [stride, stride]
        x = self.add("Conv", x, weight, group=groups, pads=pads, strides=strides)
        return self.add("Relu", x)

    def pool(self, x: str) -> str:
        """Append a pooling that halves both sides."""
        return self.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])

    def save(self, path: Path, output: str) -> Path:
        """Write it with an output; returns the path."""
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 224, 224])
        out = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, path.stem, [image], [out], self.weights)
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        path.write_bytes(model.SerializeToString())
        return path


def residual(path: Path) -> Path:
    """Write a network of the shape of ResNet-18 (512 numbers)."""
    b = Builder()
    x, wide = b.pool(b.conv("image", (3, 64), 7, 2)), 64
    for out, stride in (
        (64, 1),
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        (512, 1),
    ):
        y = b.conv(b.conv(x, (wide, out), 3, stride), (out, out), 3)
        x = b.add("Add", y, x if wide == out else b.conv(x, (wide, out), 1, stride))
        wide = out
    return b.save(path, x)


def separable(path: Path) -> Path:
    """Write a network of the shape of MobileNet (1024 numbers)."""
    b = Builder()
    x, wide = b.conv("image", (3, 32), 3, 2), 32
    steps = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5]
    for out, stride in [*steps, (1024, 2), (1024, 1)]:
        x = b.conv(b.conv(x, (wide, wide), 3, stride, wide), (wide, out), 1)
        wide = out
    return b.save(path, x)


def dense(path: Path) -> Path:
    """Write a network of the shape of AlexNet up to fc7 (4096 numbers)."""
    b = Builder()
    x = b.pool(b.conv("image", (3, 64), 11, 4))
    x = b.pool(b.conv(x, (64, 192), 5))
    x = b.pool(b.conv(b.conv(x, (192, 384), 3), (384, 256), 3))
    x = b.add("Gemm", b.add("Flatten", x), b.weight(4096, 256 * 36), transB=1)
    return b.save(path, b.add("Gemm", b.add("Relu", x), b.weight(4096, 4096), transB=1))


def pictures(count: int) -> list[DecodedImage]:
    """Return pictures of the networks' size."""
    rng = np.random.default_rng(3)
    shape = (224, 224, 3)
    return [
        from_array(rng.integers(0, 256, shape, np.uint8), max_side=1024, color=True)
        for _ in range(count)
    ]


def compare(name: str, model: Path, settings: CnnSettings, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each runtime and batch."""
    images = pictures(max(BATCHES))
    made: dict[tuple[str, int], CnnExtractor] = {}
    loading: dict[tuple[str, int], float] = {}
    for runtime in RUNTIMES:
        for batch in BATCHES:
            started = time.thread_time()
            # Typed as a choice; from_dict checks it.
            values = {**settings.to_dict(), "runtime": runtime, "batch": batch}
            made[runtime, batch] = CnnExtractor(model, CnnSettings.from_dict(values))
            loading[runtime, batch] = time.thread_time() - started
    spent: dict[tuple[str, int], list[float]] = {key: [] for key in made}
    vectors: dict[tuple[str, int], NDArray[np.float32]] = {}
    for _ in range(rounds):
        for key, extractor in made.items():
            started = time.thread_time()
            found = extractor.extract_many(images[: key[1]], 1)
            spent[key].append((time.thread_time() - started) / key[1])
            vectors[key] = found[0].descriptors
    best = median(spent["onnxruntime", 1])
    reference = vectors["onnxruntime", 1]
    return [
        {
            "network": name,
            "runtime": key[0],
            "batch": key[1],
            "load and try, ms": round(loading[key] * 1e3),
            "ms an image": round(median(times) * 1e3, 2),
            "over onnxruntime alone": round(median(times) / best, 2),
            "same bits as alone": np.array_equal(vectors[key], vectors[key[0], 1]),
            "distance": f"{np.linalg.norm(vectors[key] - reference):.0e}",
        }
        for key, times in spent.items()
    ]


def read_pictures(dataset: Dataset) -> dict[str, DecodedImage]:
    """Decode every picture of a data set, as the pipeline does."""
    limits = ImageLimits()
    paths = sorted({*dataset.database, *(query.path for query in dataset.queries)})
    return {
        path: decode_image(
            read_file(dataset.file(path), limits=limits),
            name=path, limits=limits, max_side=512, color=True,
        )
        for path in paths
    }  # fmt: skip


def ranked(dataset: Dataset, rows: dict[str, NDArray[Any]]) -> tuple[float, float]:
    """Return mAP and recall@1 of rows ranked by Euclidean distance."""
    names = list(dataset.database)
    table = np.stack([rows[name] for name in names]).astype(np.float64)
    lengths = np.einsum("nd,nd->n", table, table)
    precisions, firsts = [], []
    for query in dataset.queries:
        order = np.argsort(lengths - 2 * table @ rows[query.path], kind="stable")
        judged = judge(([names[i]] for i in order), query.relevant, query.neutral)
        precisions.append(average_precision(judged, len(query.relevant)))
        firsts.append(recall_at(judged, 1))
    return float(np.mean(precisions)), float(np.mean(firsts))


def accuracy(
    dataset: Dataset, images: dict[str, DecodedImage], extractor: CnnExtractor
) -> dict[str, float]:
    """Return the measures of one extractor: float32, and 8 bits of several lengths."""
    found = extractor.extract_many(list(images.values()), 1)
    rows = unit_rows(np.concatenate([features.descriptors for features in found]))
    by_name = dict(zip(images, rows, strict=True))
    mean_ap, first = ranked(dataset, by_name)
    measured = {"mAP": round(mean_ap, 3), "recall@1": round(first, 3)}
    sample = np.stack([by_name[name] for name in dataset.database])
    for title, unit, whiten in (
        ("rotated", False, False),
        ("centred", True, False),
        ("whitened", True, True),
    ):
        for length in (64, 128, 256, 512):
            codes = train_quantizer(sample, length, unit, whiten).encode(rows)
            coded = dict(zip(images, codes.astype(np.float64), strict=True))
            measured[f"{length} B {title}"] = round(ranked(dataset, coded)[0], 3)
    return measured


def variants(base: CnnSettings) -> dict[str, CnnSettings]:
    """Return the settings that are compared."""
    changes: list[tuple[str, Callable[[], CnnSettings]]] = [
        ("as described", lambda: base),
        ("average", lambda: replace(base, pooling="average")),
        ("gem 2", lambda: replace(base, pooling="gem", gem_power=2)),
        ("gem 3", lambda: replace(base, pooling="gem", gem_power=3)),
        ("max", lambda: replace(base, pooling="max")),
        ("no margin", lambda: replace(base, resize_to=0)),
        ("stretch", lambda: replace(base, resize_to=0, resize="stretch")),
        ("letterbox", lambda: replace(base, resize_to=0, resize="letterbox")),
        ("channels swapped", lambda: replace(base, channels=base.channels[::-1])),  # type: ignore[arg-type]
        ("own output", lambda: replace(base, output="", pooling="average")),
    ]
    return {name: make() for name, make in changes}


def main() -> None:
    """Print the tables."""
    options = parser(str(__doc__).splitlines()[0])
    options.add_argument("--model", type=Path, help="an ONNX network to compare too")
    options.add_argument("--settings", type=Path, help="its TOML file, where not beside it")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--subset", default="instre", help="subset of the data set of --photos")
    arguments = options.parse_args()
    cv2.setNumThreads(1)
    settings = _settings(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain = CnnSettings(size=224, scale=1 / 58, mean=2, pooling="average")
        for write in (residual, separable, dense):
            path = write(Path(folder) / f"{write.__name__}.onnx")
            rows += compare(write.__name__, path, plain, arguments.rounds)
    if settings:
        rows += compare(arguments.model.stem, arguments.model, settings, arguments.rounds)
    show("runtimes, one thread", rows, arguments.json)
    if settings and arguments.photos:
        dataset = read_dataset(arguments.photos).select([arguments.subset])
        images = read_pictures(dataset)
        table = [
            {"settings": name} | accuracy(dataset, images, CnnExtractor(arguments.model, changed))
            for name, changed in variants(settings).items()
        ]
        show(f"{arguments.subset}: {len(dataset.database)} images", table, arguments.json)


def _settings(arguments: argparse.Namespace) -> CnnSettings | None:
    """Return the settings of the model that was named."""
    if arguments.settings:
        return CnnSettings.from_toml(arguments.settings)
    return settings_beside(arguments.model) if arguments.model else None


if __name__ == "__main__":
    main()
