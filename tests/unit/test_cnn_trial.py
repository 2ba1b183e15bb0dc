"""Models from outside: kept in one file, and tried where they can do no harm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from cnn_models import FLOAT, SIDE, save, write_network
from onnx import TensorProto, helper, numpy_helper

from pipeline.config import ExtractorConfig
from pipeline.errors import ConfigError
from pipeline.extraction import trial
from pipeline.extraction.cnn.model_file import ModelFile
from pipeline.extraction.spec import parse_extractor
from pipeline.extraction.trial import try_model

pytest.importorskip("onnxruntime")


def elsewhere(name: str = "w") -> TensorProto:
    """A tensor whose numbers are in a file of the host."""
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"
    return tensor


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor)


def inner(*nodes: onnx.NodeProto, weights: tuple[TensorProto, ...] = ()) -> onnx.GraphProto:
    outputs = [helper.make_tensor_value_info("c", FLOAT, [3])]
    return helper.make_graph(list(nodes), "inner", [], outputs, list(weights))


def branch(graph: onnx.GraphProto) -> onnx.NodeProto:
    plain = inner(constant(numpy_helper.from_array(np.zeros(3, np.float32), "w")))
    return helper.make_node("If", ["image"], ["c"], then_branch=graph, else_branch=plain)


def sparse(tensor: TensorProto) -> onnx.SparseTensorProto:
    indices = numpy_helper.from_array(np.zeros(3, np.int64), "i")
    return helper.make_sparse_tensor(tensor, indices, [3])


def attribute_of_many(tensor: TensorProto) -> onnx.NodeProto:
    node = helper.make_node("Custom", ["image"], ["c"])
    many = node.attribute.add()
    many.name, many.type = "many", onnx.AttributeProto.TENSORS
    many.tensors.append(tensor)
    return node


def add_function(model: onnx.ModelProto) -> None:
    function = model.functions.add()
    function.name, function.domain = "f", "own"
    function.node.append(constant(elsewhere()))


PLACES = {
    "a weight": lambda m: m.graph.initializer.append(elsewhere()),
    "a sparse weight": lambda m: m.graph.sparse_initializer.append(sparse(elsewhere())),
    "a constant": lambda m: m.graph.node.append(constant(elsewhere())),
    "a sparse constant": lambda m: m.graph.node.append(
        helper.make_node("Constant", [], ["c"], sparse_value=sparse(elsewhere()))
    ),
    "a list of tensors": lambda m: m.graph.node.append(attribute_of_many(elsewhere())),
    "a constant of a branch": lambda m: m.graph.node.append(branch(inner(constant(elsewhere())))),
    "a weight of a branch": lambda m: m.graph.node.append(branch(inner(weights=(elsewhere(),)))),
    "a branch of a branch": lambda m: m.graph.node.append(
        branch(inner(branch(inner(constant(elsewhere())))))
    ),
    "a function": add_function,
    "the training": lambda m: m.training_info.add().initialization.initializer.append(elsewhere()),
}


@pytest.mark.parametrize("place", PLACES)
def test_numbers_in_other_files_are_refused_wherever_they_are_named(
    place: str, tmp_path: Path
) -> None:
    model = onnx.load(write_network(tmp_path / "small.onnx"))
    PLACES[place](model)
    (tmp_path / "small.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match="keeps weights in other files"):
        ModelFile(tmp_path / "small.onnx")


def test_a_place_without_the_kind_of_place_is_refused_too(tmp_path: Path) -> None:
    model = onnx.load(write_network(tmp_path / "small.onnx"))
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "weights"
    (tmp_path / "small.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match="keeps weights in other files"):
        ModelFile(tmp_path / "small.onnx")


def test_inner_graphs_of_any_depth_are_searched(tmp_path: Path) -> None:
    graph = inner(constant(elsewhere()))
    for _ in range(15):
        graph = inner(branch(graph))
    model = onnx.load(write_network(tmp_path / "small.onnx"))
    model.graph.node.append(branch(graph))
    (tmp_path / "small.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match="keeps weights in other files"):
        ModelFile(tmp_path / "small.onnx")


def chosen(path: Path) -> tuple[ExtractorConfig, Path]:
    """Choose a model with the usual settings for the small network."""
    path.with_suffix(".toml").write_text(f'size = {SIDE}\noutput = "out"\n')
    config, model = parse_extractor(f"cnn:{path}", ExtractorConfig())
    assert model is not None
    return config, model


def endless(path: Path) -> Path:
    """A network that counts to 2**62 before it answers."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", FLOAT, ["n", 3, SIDE, SIDE]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", FLOAT, ["n", 3, SIDE, SIDE]),
        ],
    )
    node = helper.make_node("Loop", ["many", "true", "image"], ["out"], body=body)
    return network(path, [node], [3, SIDE, SIDE], many=np.array(2**62), true=np.array(True))


def greedy(path: Path) -> Path:
    """A network that wants 64 GiB."""
    nodes = [
        helper.make_node("ConstantOfShape", ["lengths"], ["large"]),
        helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Add", ["flat", "sum"], ["out"]),
    ]
    return network(path, nodes, ["d"], lengths=np.array([2**34]))


def network(path: Path, nodes: list[onnx.NodeProto], shape: list[object], **arrays: object) -> Path:
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()]
    image = helper.make_tensor_value_info("image", FLOAT, ["n", 3, SIDE, SIDE])
    out = helper.make_tensor_value_info("out", FLOAT, ["n", *shape])
    return save(helper.make_graph(nodes, "odd", [image], [out], tensors), path)


def test_a_model_that_computes_without_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "TRIAL_SECONDS", 4)
    monkeypatch.setattr(trial, "STARVED", 150)
    with pytest.raises(ConfigError, match="it cannot be tried within 4 s of processor time"):
        try_model(*chosen(endless(tmp_path / "endless.onnx")))


def test_a_model_that_takes_all_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"greedy.onnx"):
        try_model(*chosen(greedy(tmp_path / "greedy.onnx")))


def test_a_good_model_passes_and_a_wrong_one_says_what_is_wrong(tmp_path: Path) -> None:
    path = write_network(tmp_path / "small.onnx")
    path.with_suffix(".toml").write_text(f"size = {SIDE}\n")
    config, model = parse_extractor(f"cnn:{path}", ExtractorConfig())
    assert model is not None
    try_model(config, model)
    path.with_suffix(".toml").write_text("size = 99\n")
    config, model = parse_extractor(f"cnn:{path}", ExtractorConfig())
    assert model is not None
    with pytest.raises(ConfigError, match="does not fit the input"):
        try_model(config, model)
