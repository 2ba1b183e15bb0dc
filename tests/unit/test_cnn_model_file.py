"""Protocol Buffers and ONNX files, compared with the onnx package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from cnn_models import save, write_network
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import ConfigError
from pipeline.extraction.cnn import model_sha256
from pipeline.extraction.cnn.model_file import ModelFile
from pipeline.extraction.cnn.wire import encoded, fields, message


class TestWire:
    @given(st.integers(1, 2**29 - 1), st.integers(0, 2**64 - 1))
    def test_numbers_come_back(self, number: int, value: int) -> None:
        (field,) = fields(encoded(number, value))
        assert (field.number, field.integer()) == (number, value)

    @given(st.lists(st.tuples(st.integers(1, 99), st.binary(max_size=300)), max_size=5))
    def test_bytes_come_back(self, parts: list[tuple[int, bytes]]) -> None:
        data = message(encoded(*part) for part in parts)
        assert [(f.number, bytes(f.value)) for f in fields(data)] == parts
        assert message(fields(data)) == data

    @pytest.mark.parametrize(
        "data",
        [b"\x80", b"\x0a\x05ab", b"\x0b", b"\x00\x01", b"\x09\x01\x02", b"\x08" + b"\xff" * 11],
    )
    def test_an_invalid_message_is_refused(self, data: bytes) -> None:
        with pytest.raises(ValueError):
            list(fields(data))

    def test_a_model_is_written_as_it_was_read(self, tmp_path: Path) -> None:
        data = write_network(tmp_path / "a.onnx").read_bytes()
        assert message(fields(data)) == data


class TestReading:
    def test_it_says_what_a_model_has(self, tmp_path: Path) -> None:
        model = ModelFile(write_network(tmp_path / "a.onnx", weights_as_inputs=True))
        assert [t.describe() for t in model.inputs] == ["image (1 x 3 x 12 x 12)"]
        assert [t.name for t in model.outputs] == ["probabilities"]
        assert model.tensors == ("conv1", "relu1", "logits", "probabilities")

    def test_free_lengths_have_names(self, tmp_path: Path) -> None:
        model = ModelFile(write_network(tmp_path / "a.onnx", batch="N", side="side"))
        assert model.inputs[0].describe() == "image (N x 3 x side x side)"

    def test_the_sha256_is_that_of_the_bytes(self, tmp_path: Path) -> None:
        path = write_network(tmp_path / "a.onnx")
        assert model_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_a_missing_file_lists_the_existing_ones(self, tmp_path: Path) -> None:
        write_network(tmp_path / "resnet.onnx")
        for read in (ModelFile, model_sha256):
            with pytest.raises(ConfigError, match=r"no such file; its folder holds resnet\.onnx"):
                read(tmp_path / "resnet18.onnx")
        with pytest.raises(ConfigError, match=r"no folder that can be read"):
            ModelFile(tmp_path / "nowhere" / "a.onnx")
        with pytest.raises(ConfigError, match="cannot be read"):
            ModelFile(tmp_path)

    @pytest.mark.parametrize("kept", [0, 1, 100, 700, -1])
    def test_a_file_that_is_cut_off_is_refused(self, tmp_path: Path, kept: int) -> None:
        path = write_network(tmp_path / "a.onnx")
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(ConfigError, match="no ONNX model"):
            ModelFile(path)

    @pytest.mark.parametrize("data", [b"\xff\xd8\xff\xe0 a photograph", b"PK\x03\x04", b"{}"])
    def test_another_file_is_refused(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "a.onnx"
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="no ONNX model"):
            ModelFile(path)

    def test_weights_in_other_files_are_refused(self, tmp_path: Path) -> None:
        path = write_network(tmp_path / "a.onnx")
        model = onnx.load(path)
        onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
        with pytest.raises(ConfigError, match="keeps weights in other files"):
            ModelFile(path)


class TestCut:
    def test_only_what_leads_to_the_tensor_is_left(self, tmp_path: Path) -> None:
        model = ModelFile(write_network(tmp_path / "a.onnx", weights_as_inputs=True))
        cut = onnx.load_from_string(model.cut("relu1", free_batch=True, typed=True))
        onnx.checker.check_model(cut)
        assert [node.op_type for node in cut.graph.node] == ["Conv", "Relu"]
        assert [i.name for i in cut.graph.initializer] == ["w1", "b1"]
        assert [i.name for i in cut.graph.input] == ["image"]
        assert [o.name for o in cut.graph.output] == ["relu1"]
        lengths = cut.graph.input[0].type.tensor_type.shape.dim
        assert lengths[0].dim_param
        assert [length.dim_value for length in lengths[1:]] == [3, 12, 12]

    def test_the_declared_number_of_images_can_be_kept(self, tmp_path: Path) -> None:
        model = ModelFile(write_network(tmp_path / "a.onnx", batch=3))
        cut = onnx.load_from_string(model.cut("probabilities", free_batch=False))
        assert cut.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
        assert len(cut.graph.node) == 4

    def test_what_inner_graphs_read_is_kept(self, tmp_path: Path) -> None:
        def branch(source: str, name: str) -> onnx.GraphProto:
            node = helper.make_node("Identity", [source], [name])
            return helper.make_graph(
                [node],
                name,
                [],
                [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4])],
            )

        nodes = [
            helper.make_node("Relu", ["image"], ["positive"]),
            helper.make_node("Neg", ["image"], ["negative"]),
            helper.make_node(
                "If",
                ["choice"],
                ["chosen"],
                then_branch=branch("positive", "a"),
                else_branch=branch("negative", "b"),
            ),
            helper.make_node("Abs", ["chosen"], ["behind"]),
        ]
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 4])
        out = helper.make_tensor_value_info("behind", TensorProto.FLOAT, [1, 3, 4, 4])
        choice = numpy_helper.from_array(np.array(True), "choice")
        graph = helper.make_graph(nodes, "branches", [image], [out], [choice])
        path = save(graph, tmp_path / "a.onnx")
        cut = onnx.load_from_string(ModelFile(path).cut("chosen", free_batch=False))
        assert [node.op_type for node in cut.graph.node] == ["Relu", "Neg", "If"]
