"""Runtimes of networks: onnxruntime, or OpenCV's network module.

docs/decisions/0007-cnn-runtime.md compares them.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.extraction.cnn.model_file import FLOAT, FLOAT16, UINT8

_ELEMENTS: dict[int, type[np.generic]] = {FLOAT: np.float32, FLOAT16: np.float16, UINT8: np.uint8}


class Network(Protocol):
    """A network with one input and one output; safe in threads."""

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the output (N, ...) for a batch (N, ...)."""


class OnnxRuntimeNetwork:
    """A network computed by onnxruntime on the CPU.

    Parameters
    ----------
    model : bytes
        ONNX, with one output.
    input_name : str
    element : int
        Element type of the input; see `input_dtype`.
    threads : int
        Threads of a `run`. With 1 it starts none: there are as many worker processes as cores.

    Raises
    ------
    ConfigError
        onnxruntime is not installed.
    Exception
        It cannot load the model; its exceptions have no other common base.
    """

    def __init__(self, model: bytes, input_name: str, element: int, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as exc:
            raise ConfigError(
                "runtime", "onnxruntime", f"is not installed ({exc}); pip install onnxruntime"
            ) from exc
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Spinning idle threads would take a core from other work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Errors are raised; warnings are about the file, which users cannot change.
        options.log_severity_level = 4
        self._dtype = input_dtype(element)
        self._name = input_name
        self._session: Any = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the output (N, ...) for a batch (N, ...)."""
        (output,) = self._session.run(None, {self._name: _as_type(batch, self._dtype)})
        return np.asarray(output, np.float32)


class OpenCvNetwork:
    """A network computed by OpenCV; one `run` at a time, with OpenCV's threads (`setNumThreads`).

    Parameters
    ----------
    model : bytes
        ONNX, with one output of declared type.

    Raises
    ------
    cv2.error
        OpenCV cannot load the model.
    """

    def __init__(self, model: bytes) -> None:
        self._lock = threading.Lock()
        self._net = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the output (N, ...) for a batch (N, ...)."""
        with self._lock:
            self._net.setInput(batch)
            # A copy: the next run writes into the same memory.
            return np.array(self._net.forward(), np.float32)


def input_dtype(element: int) -> type[np.generic]:
    """Return the dtype of an input's element type.

    Raises
    ------
    ConfigError
        Pictures cannot be converted to this type.
    """
    if element not in _ELEMENTS:
        raise ConfigError(
            "element type of the network's input", element, "must be float32, float16 or uint8"
        )
    return _ELEMENTS[element]


def _as_type(batch: NDArray[np.float32], dtype: type[np.generic]) -> NDArray[Any]:
    """Convert a batch; whole numbers are rounded, not cut."""
    if dtype is np.uint8:
        return np.clip(np.rint(batch), 0, 255).astype(np.uint8)
    return batch.astype(dtype, copy=False)


def first_line(error: Exception) -> str:
    """Return the first line of a runtime's message; the rest are source code locations."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
