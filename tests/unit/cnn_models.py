"""Small real ONNX networks, and their results by numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

RNG_SEED = 7
SIDE = 12
CHANNELS = 8
FLOAT = TensorProto.FLOAT


def weights() -> dict[str, NDArray[np.float32]]:
    """Weights of a convolution (3 x 3, padded), a 1 x 1 convolution and a classifier."""
    rng = np.random.default_rng(RNG_SEED)
    shapes = {"w1": (CHANNELS, 3, 3, 3), "b1": (CHANNELS,), "w2": (5, CHANNELS, 1, 1), "b2": (5,)}
    return {name: (rng.standard_normal(s) / 3).astype(np.float32) for name, s in shapes.items()}


def write_network(
    path: Path,
    *,
    batch: int | str = 1,
    side: int | str = SIDE,
    flatten: bool = False,
    fixed_reshape: bool = False,
    half: bool = False,
    weights_as_inputs: bool = False,
) -> Path:
    """Write image -> conv1 -> relu1 -> logits -> probabilities.

    `flatten` puts a classifier (Flatten, Gemm) of a fixed input in place of the second
    convolution; `fixed_reshape` writes the number of images into an operation.
    """
    dtype, element = (np.float16, TensorProto.FLOAT16) if half else (np.float32, FLOAT)
    arrays = {name: array.astype(dtype) for name, array in weights().items()}
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["conv1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv1"], ["relu1"]),
    ]
    if flatten or fixed_reshape:
        arrays["wf"] = np.full((5, CHANNELS * SIDE * SIDE), 0.01, dtype)
        if fixed_reshape:
            arrays["shape"] = np.array([1, CHANNELS * SIDE * SIDE], np.int64)
            nodes.append(helper.make_node("Reshape", ["relu1", "shape"], ["flat"]))
        else:
            nodes.append(helper.make_node("Flatten", ["relu1"], ["flat"]))
        nodes.append(helper.make_node("Gemm", ["flat", "wf"], ["logits"], transB=1))
    else:
        nodes.append(helper.make_node("Conv", ["relu1", "w2", "b2"], ["logits"]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    used = {name for node in nodes for name in node.input}
    initializers = [numpy_helper.from_array(a, n) for n, a in arrays.items() if n in used]
    inputs = [helper.make_tensor_value_info("image", element, [batch, 3, side, side])]
    if weights_as_inputs:
        # As ONNX IR before version 4 demanded.
        inputs += [helper.make_tensor_value_info(i.name, i.data_type, i.dims) for i in initializers]
    lengths = [batch, 5] if flatten or fixed_reshape else [batch, 5, side, side]
    outputs = [helper.make_tensor_value_info("probabilities", element, lengths)]
    graph = helper.make_graph(nodes, "small", inputs, outputs, initializers)
    # Shapes of what is between, with the number of images in them, as exporters write them.
    graph.value_info.append(
        helper.make_tensor_value_info("relu1", element, [batch, CHANNELS, side, side])
    )
    return save(graph, path)


def save(graph: onnx.GraphProto, path: Path, opset: int = 17) -> Path:
    """Write a graph as a checked model."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def relu1(image: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute the tensor relu1 (CHANNELS, h, w) of an image (3, h, w)."""
    arrays = weights()
    _, height, width = image.shape
    padded = np.pad(image.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((CHANNELS, height, width))
    for dy in range(3):
        for dx in range(3):
            window = padded[:, dy : dy + height, dx : dx + width]
            out += np.einsum("oc,chw->ohw", arrays["w1"][:, :, dy, dx].astype(np.float64), window)
    return np.maximum(out + arrays["b1"][:, None, None], 0)
