"""An ONNX file: its content, and its subgraph for one tensor.

Runtimes compute only the declared outputs of a graph. To read an intermediate tensor, the graph is
written again with that tensor as its only output, without the nodes and weights after it, which
then cost nothing. This takes a few fields of the file (see `wire`), not the ``onnx`` package, whose
31 MB would be needed for nothing else. Field numbers are those of onnx.proto3 (ONNX IR version 3
to 13): https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.extraction.cnn.wire import BYTES, Field, encoded, fields, message

FLOAT, UINT8, FLOAT16 = 1, 2, 10
"""Element types of ONNX tensors."""

_TENSOR_ELSEWHERE = 13, 14
"""Fields of a tensor that say where else its numbers are: a list of places, the kind of place."""

_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Every way that leads to a tensor: by kind of message, field number and kind of what it holds."""

_MODEL_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_ATTRIBUTE = 1, 2, 5
_ATTRIBUTE_GRAPHS = (6, 11)
_TENSOR_NAME = 8
_FREE_BATCH = "vantage_batch"


@dataclass(frozen=True)
class TensorType:
    """A declared input or output.

    Attributes
    ----------
    name : str
    element : int
        Element type; 0 if none is declared.
    shape : tuple of (int or str), or None
        Lengths; free ones by name, or "?". None if no shape is declared.
    """

    name: str
    element: int
    shape: tuple[int | str, ...] | None

    def describe(self) -> str:
        """Return name and shape for people: ``data_0 (1 x 3 x 224 x 224)``."""
        lengths = "any shape" if self.shape is None else " x ".join(map(str, self.shape))
        return f"{self.name} ({lengths})"


@dataclass(frozen=True)
class _Node:
    """One operation of the graph."""

    field: Field
    inputs: frozenset[str]
    outputs: tuple[str, ...]


def model_sha256(path: Path) -> str:
    """Return the SHA-256 of a model file, hex: part of the identity of everything made with it.

    Raises
    ------
    ConfigError
        There is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as exc:
        raise _unreadable(path, exc) from exc


class ModelFile:
    """An ONNX model in memory.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    inputs, outputs : tuple of TensorType
        Declared inputs and outputs, without weights.
    tensors : tuple of str
        Every tensor that a node makes, in the order of computation.

    Raises
    ------
    ConfigError
        The file does not exist, is not an ONNX model, or has its weights in other files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._data = path.read_bytes()
        except OSError as exc:
            raise _unreadable(path, exc) from exc
        try:
            self._read()
        except (ValueError, UnicodeDecodeError) as exc:
            raise ConfigError("model", str(path), f"is no ONNX model, or cut off ({exc})") from exc
        if not self._nodes:
            raise ConfigError("model", str(path), "is no ONNX model: it has no operation")

    def _read(self) -> None:
        """Go through the graph once."""
        if _keeps_numbers_elsewhere(memoryview(self._data)):
            raise ConfigError(
                "model",
                str(self.path),
                "keeps weights in other files; save it as one file, which its SHA-256 then names",
            )
        self._head = list(fields(self._data))
        graphs = [f.value for f in self._head if (f.number, f.wire_type) == (_MODEL_GRAPH, BYTES)]
        if len(graphs) != 1:
            raise ValueError(f"{len(graphs)} graphs")
        self._graph = list(fields(graphs[0]))
        self._nodes = [_node(field) for field in self._graph if field.number == _NODE]
        weights = {self._weight(f) for f in self._graph if f.number == _INITIALIZER}
        self._weights = frozenset(weights)
        declared = [_tensor_type(f.value) for f in self._graph if f.number == _INPUT]
        self.inputs = tuple(t for t in declared if t.name not in self._weights)
        self.outputs = tuple(_tensor_type(f.value) for f in self._graph if f.number == _OUTPUT)
        self.tensors = tuple(name for node in self._nodes for name in node.outputs)

    def _weight(self, field: Field) -> str:
        """Return the name of a stored weight."""
        parts = {part.number: part for part in fields(field.value)}
        return parts[_TENSOR_NAME].text() if _TENSOR_NAME in parts else ""

    def needed_inputs(self, output: str) -> tuple[TensorType, ...]:
        """Return the declared inputs that a tensor is computed from."""
        _, names = self._leading_to(output)
        return tuple(tensor for tensor in self.inputs if tensor.name in names)

    def cut(self, output: str, *, free_batch: bool, typed: bool = False) -> bytes:
        """Return the model that computes one tensor and nothing else.

        Parameters
        ----------
        output : str
            One of `tensors`.
        free_batch : bool
            Declare the first length of the inputs as free, whatever the file says: most networks
            saved for one image take any number. The caller must try it.
        typed : bool
            Declare the output as float32 of unknown shape, which OpenCV requires. onnxruntime
            determines the type itself, and refuses a wrong one.
        """
        nodes, names = self._leading_to(output)
        kept: list[Field | bytes] = []
        for field in self._graph:
            if field.number in (_NODE, _OUTPUT, _VALUE_INFO):
                continue
            if field.number == _INPUT:
                tensor = _tensor_type(field.value)
                if tensor.name in names and tensor.name not in self._weights:
                    new = _with_free_batch(field.value) if free_batch else bytes(field.value)
                    kept.append(encoded(_INPUT, new))
            elif field.number != _INITIALIZER or self._weight(field) in names:
                kept.append(field)
        info = encoded(1, output)
        if typed:
            info += encoded(2, encoded(1, encoded(1, FLOAT) + encoded(2, b"")))
        graph = message([*(node.field for node in nodes), *kept, encoded(_OUTPUT, info)])
        head = [f if f.number != _MODEL_GRAPH else encoded(_MODEL_GRAPH, graph) for f in self._head]
        return message(head)

    def _leading_to(self, output: str) -> tuple[list[_Node], set[str]]:
        """Return the nodes that compute a tensor, and the names that they use."""
        names, kept = {output}, []
        for node in reversed(self._nodes):
            if names.intersection(node.outputs):
                kept.append(node)
                names |= node.inputs
        return kept[::-1], names


def _keeps_numbers_elsewhere(model: memoryview) -> bool:
    """Tell whether any tensor, however deep in inner graphs, is kept in another file.

    A runtime would read whatever file of this host the model names.
    """
    left = [("model", model)]
    while left:
        kind, content = left.pop()
        for field in fields(content):
            if kind == "tensor":
                if field.number in _TENSOR_ELSEWHERE and (
                    field.wire_type == BYTES or field.integer()
                ):
                    return True
            elif field.number in _INSIDE[kind] and field.wire_type == BYTES:
                left.append((_INSIDE[kind][field.number], field.value))
    return False


def _node(field: Field) -> _Node:
    """Read the names of a node."""
    outputs = (f.text() for f in fields(field.value) if f.number == _NODE_OUTPUT)
    # An unused output has an empty name.
    return _Node(field, frozenset(_names_used(field.value)), tuple(filter(None, outputs)))


def _names_used(node: memoryview) -> Iterator[str]:
    """Yield the tensors that a node reads, those of its inner graphs (If, Loop, Scan) included."""
    for field in fields(node):
        if field.number == _NODE_INPUT:
            yield field.text()
        elif field.number == _NODE_ATTRIBUTE:
            for part in fields(field.value):
                if part.number in _ATTRIBUTE_GRAPHS and part.wire_type == BYTES:
                    yield from _names_in_graph(part.value)


def _names_in_graph(graph: memoryview) -> Iterator[str]:
    """Yield the tensors that an inner graph reads; these include its own, which does no harm."""
    for field in fields(graph):
        if field.number == _NODE:
            yield from _names_used(field.value)
        elif field.number == _OUTPUT:
            yield _tensor_type(field.value).name


def _tensor_type(value_info: memoryview) -> TensorType:
    """Read a ValueInfoProto."""
    name, element, shape = "", 0, None
    for field in fields(value_info):
        if field.number == 1:
            name = field.text()
    for tensor in _inside(value_info, 2, 1):
        for field in fields(tensor):
            if field.number == 1:
                element = field.integer()
            elif field.number == 2:
                shape = tuple(_length(dimension) for dimension in _inside(field.value, 1))
    return TensorType(name, element, shape)


def _inside(content: memoryview, *path: int) -> Iterator[memoryview]:
    """Yield the messages at a path of field numbers."""
    for field in fields(content):
        if field.number == path[0] and field.wire_type == BYTES:
            if len(path) == 1:
                yield field.value
            else:
                yield from _inside(field.value, *path[1:])


def _length(dimension: memoryview) -> int | str:
    """Read a TensorShapeProto.Dimension."""
    for field in fields(dimension):
        if field.number == 1:
            return field.integer()
        if field.number == 2:
            return field.text()
    return "?"


def _with_free_batch(content: memoryview, path: Sequence[int] = (2, 1, 2)) -> bytes:
    """Return a ValueInfoProto whose first length is free.

    `path` leads from here to the shape: type, tensor type, shape.
    """
    parts: list[Field | bytes] = list(fields(content))
    at = path[0] if path else 1
    for place, part in enumerate(parts):
        if isinstance(part, Field) and part.number == at:
            new = _with_free_batch(part.value, path[1:]) if path else encoded(2, _FREE_BATCH)
            parts[place] = encoded(at, new)
            break
    return message(parts)


def _unreadable(path: Path, error: OSError) -> ConfigError:
    """Return the error for an unreadable file, with the existing ones."""
    if not isinstance(error, FileNotFoundError):
        return ConfigError("model", str(path), f"cannot be read ({error.strerror})")
    there = files_beside(path, ".onnx")
    return ConfigError("model", str(path), f"there is no such file; its folder holds {there}")


def files_beside(path: Path, suffix: str) -> str:
    """Name the files of a kind in the folder of a path, for messages."""
    try:
        names = sorted(p.name for p in path.parent.iterdir() if p.suffix == suffix)
    except OSError:
        return "nothing, it is no folder that can be read"
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") or f"no {suffix} file"
