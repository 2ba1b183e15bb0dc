"""A network with its settings: checked against the file, tried, run in batches."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, InputError
from pipeline.extraction.cnn.model_file import ModelFile, TensorType
from pipeline.extraction.cnn.runtime import (
    Network,
    OnnxRuntimeNetwork,
    OpenCvNetwork,
    first_line,
    input_dtype,
)
from pipeline.extraction.cnn.settings import CnnSettings

_NAMES_SHOWN = 8


class TriedNetwork:
    """The subgraph of a model for the output in the settings.

    Parameters
    ----------
    path : Path
        The ONNX file.
    settings : CnnSettings
    threads : int
        Threads for a batch.

    Attributes
    ----------
    output_shape : tuple of int
        Of one image.
    batch : int
        Images in a batch: the number in the settings, or that of the file if the network takes no
        other.

    Raises
    ------
    ConfigError
        The file is not a model, does not fit the settings, or cannot be computed.
    """

    def __init__(self, path: Path, settings: CnnSettings, threads: int) -> None:
        self._path = path
        self._settings = settings
        self._model = ModelFile(path)
        self._output = self._chosen_output()
        self._input = self._chosen_input()
        self._check_input()
        self._network, self.batch, self.output_shape = self._tried(threads)

    def run(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Return the output of every image.

        Parameters
        ----------
        images : sequence of ndarray of shape (C, H, W), or (H, W, C) for ``NHWC``, float32

        Raises
        ------
        InputError
            The runtime fails on them.
        """
        outputs: list[NDArray[np.float32]] = []
        for first in range(0, len(images), self.batch):
            some = images[first : first + self.batch]
            # A network for a fixed number of images always gets so many.
            missing = self.batch - len(some) if self._fixed_batch else 0
            filled = [*some, *[np.zeros_like(some[0])] * missing]
            try:
                outputs.extend(_run(self._network, filled)[: len(some)])
            except Exception as exc:
                raise InputError(f"{self._path.name} failed: {first_line(exc)}") from exc
        return outputs

    def _tried(self, threads: int) -> tuple[Network, int, tuple[int, ...]]:
        """Load the network and try it; return it, its batch and the shape of one output.

        First it is tried with any number of images, whatever the file declares: most networks take
        that. If that fails (numbers are built into its operations), the declared number is used.
        """
        declared = self._input.shape[0] if self._input.shape else "?"
        as_declared = declared if isinstance(declared, int) else 1
        setting, value, reason = "model", str(self._path), ""
        for batch, fixed in ((self._settings.batch, False), (as_declared, True)):
            self._fixed_batch = fixed
            try:
                setting, value = "model", str(self._path)
                network = self._loaded(threads, free_batch=not fixed)
                setting, value = "size", str(self._settings.size)
                return network, batch, self._try(network, batch)
            except ConfigError:
                raise
            except Exception as exc:
                # Runtimes raise all kinds of errors.
                reason = first_line(exc)
        shape = " x ".join(map(str, self._one_shape))
        raise self._error(
            setting,
            value,
            f"its part up to {self._output!r} cannot be computed from {self._input.describe()}, "
            f"given {shape} for an image: {reason}",
        )

    def _loaded(self, threads: int, *, free_batch: bool) -> Network:
        """Pass the needed subgraph to the runtime."""
        if self._settings.runtime == "opencv":
            return OpenCvNetwork(self._model.cut(self._output, free_batch=free_batch, typed=True))
        model = self._model.cut(self._output, free_batch=free_batch)
        return OnnxRuntimeNetwork(model, self._input.name, self._input.element, threads)

    def _try(self, network: Network, batch: int) -> tuple[int, ...]:
        """Run two simple images in a batch, and alone if possible; return the shape.

        Raises
        ------
        ValueError
            The result is not one output for each image, or depends on the other images.
        """
        numbers = np.linspace(0, 1, int(np.prod(self._one_shape)), dtype=np.float32)
        ramp = numbers.reshape(self._one_shape)
        images = [np.zeros_like(ramp), ramp]
        together = _run(network, [images[place % 2] for place in range(batch)])
        if not self._fixed_batch:
            for place in range(min(batch, 2)):
                alone = _run(network, [images[place]])[0]
                if alone.shape != together[place].shape or not np.allclose(
                    alone, together[place], rtol=1e-2, atol=1e-3 * float(np.abs(alone).max())
                ):
                    raise ValueError("it gives other values for several images at once")
        return tuple(together.shape[1:])

    @property
    def _one_shape(self) -> tuple[int, int, int]:
        """Shape of one image of the input."""
        settings = self._settings
        if settings.layout == "NHWC":
            return settings.height, settings.width, settings.channel_count
        return settings.channel_count, settings.height, settings.width

    def _chosen_output(self) -> str:
        """Return the name of the output."""
        name, declared = self._settings.output, [t.name for t in self._model.outputs]
        if not name:
            if len(declared) == 1:
                return declared[0]
            raise self._error("output", name, f"the network has {', '.join(declared)}: choose one")
        tensors = self._model.tensors
        if name in tensors:
            return name
        near = difflib.get_close_matches(name, tensors, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        last = ", ".join(dict.fromkeys([*tensors[-_NAMES_SHOWN:], *declared]))
        raise self._error(
            "output", name, f"there is no such tensor. {hint}The last of {len(tensors)} are: {last}"
        )

    def _chosen_input(self) -> TensorType:
        """Return the input that pictures go into."""
        needed = self._model.needed_inputs(self._output)
        listing = ", ".join(t.describe() for t in needed) or "nothing: it is a constant"
        if self._settings.input not in ("", *(t.name for t in needed)):
            raise self._error(
                "input", self._settings.input, f"{self._output!r} is computed from {listing}"
            )
        if len(needed) != 1:
            raise self._error(
                "output", self._output, f"is computed from {listing}; one picture must be enough"
            )
        return needed[0]

    def _check_input(self) -> None:
        """Refuse a shape or type that the input does not have."""
        declared, wanted = self._input.shape, ("N", *self._one_shape)
        try:
            input_dtype(self._input.element)
        except ConfigError as exc:
            raise self._error(*exc.args) from exc
        if declared is None:
            return
        fits = len(declared) == len(wanted) and all(
            isinstance(length, str) or length == want
            for length, want in zip(declared[1:], wanted[1:], strict=True)
        )
        if not fits:
            raise self._error(
                "size",
                self._settings.size,
                f"does not fit the input {self._input.describe()}; with layout "
                f"{self._settings.layout} and channels {self._settings.channels} it would be "
                + " x ".join(map(str, wanted)),
            )

    def _error(self, setting: str, value: object, sentence: str) -> ConfigError:
        """Return an error that names the model."""
        return ConfigError(f"{setting} for {self._path.name}", value, sentence)


def _run(network: Network, images: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Run a batch; every image must get its own output."""
    output = network.run(np.stack(images))
    if output.ndim < 2 or len(output) != len(images):
        raise ValueError(f"its output has the shape {output.shape} for {len(images)} images")
    return output
