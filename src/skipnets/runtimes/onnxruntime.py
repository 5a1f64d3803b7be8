"""Runs an exported network in ONNX Runtime. Needs no torch.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from skipnets.errors import UserError, one_line
from skipnets.runtimes.graph_format import FEATURES, INPUT_NAMES, LOGITS, ONNX_METADATA
from skipnets.runtimes.runtime import InputType

__all__ = ["OnnxRuntime", "open_session"]

_DEVICES = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}
_ERRORS_ONLY = 3
_LARGEST = 1 << 16


class OnnxRuntime:
    """A `skipnets.runtimes.Runtime` around ONNX Runtime.

    A graph is free in its image size, but opened for one: ONNX Runtime reuses buffers, and adds residual
    branches in place, only where it knows the sizes (4 to 8 % of a ResNet-50's time on CPUs). Images of
    another size go through a second session.

    Args:
        path: A graph that `skipnets export` wrote.
        provider: ONNX Runtime's name for what computes.
        threads: CPU threads; None leaves it to the library.
    """

    name = "onnxruntime"
    input_type: InputType = "float32"

    def __init__(self, path: Path, provider: str, threads: int | None) -> None:
        self._open = partial(open_session, path, provider=provider, threads=threads)
        unoptimized = self._open(optimized=False)  # quick: to read what the file says
        self.metadata: str | None = None
        inputs = [given.name for given in unoptimized.get_inputs()]
        outputs = [output.name for output in unoptimized.get_outputs()]
        self._input = inputs[0] if len(inputs) == 1 else ""
        if self._input in INPUT_NAMES and LOGITS in outputs:
            self.metadata = unoptimized.get_modelmeta().custom_metadata_map.get(ONNX_METADATA)
        self._size = _image_size(self.metadata)
        self._of_size = self._open(size=self._size)
        self._lock = threading.Lock()
        self._of_any_size: onnxruntime.InferenceSession | None = None

    @classmethod
    def open(
        cls, path: Path, *, device: str = "auto", threads: int | None = None
    ) -> tuple[OnnxRuntime, str | None]:
        """Open a file; also gives the text of its metadata, if it has any.

        Raises:
            UserError: If it cannot be read, or there is no such device.
        """
        provider = _provider(device)
        try:
            opened = cls(path, provider, threads)
        except Exception as error:  # its errors have no common class of their own
            raise UserError(f"{path} is not a readable ONNX file ({one_line(error, 0)})") from error
        return opened, opened.metadata

    @property
    def device(self) -> str:
        """Where it runs."""
        provider = self._of_size.get_providers()[0]
        return _DEVICES.get(provider, provider)

    def logits(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) → (N, classes)."""
        return self._run(LOGITS, batch)

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) → (N, features): the last feature maps, pooled."""
        return self._run(FEATURES, batch)

    def _run(self, output: str, batch: NDArray[Any]) -> NDArray[np.float32]:
        session = self._of_size if batch.shape[2:] == self._size else self._any_size()
        result: NDArray[np.float32] = session.run([output], {self._input: np.ascontiguousarray(batch)})[0]
        return result

    def _any_size(self) -> onnxruntime.InferenceSession:
        with self._lock:
            if self._of_any_size is None:
                self._of_any_size = self._open()
            return self._of_any_size


def open_session(
    graph: Path | bytes,
    *,
    provider: str = "CPUExecutionProvider",
    threads: int | None = None,
    size: tuple[int, int] | None = None,
    optimized: bool = True,
) -> onnxruntime.InferenceSession:
    """A session that prints errors only.

    Args:
        graph: A file, or what is in it.
        provider: ONNX Runtime's name for what computes.
        threads: CPU threads; None leaves it to the library.
        size: Height and width of all images; None where any may come.
        optimized: Whether to simplify the graph first.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    if size is not None:
        for name, extent in zip(("height", "width"), size, strict=True):
            options.add_free_dimension_override_by_name(name, extent)
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(graph, options, providers=[provider])


def _image_size(metadata: str | None) -> tuple[int, int] | None:
    """Height and width of the images that a classifier prepares; None if damaged metadata do not tell."""
    try:
        height, width = json.loads(metadata or "")["preprocessing"]["size"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    sane = all(isinstance(extent, int) and 0 < extent <= _LARGEST for extent in (height, width))
    return (height, width) if sane else None


def _provider(device: str) -> str:
    """The execution provider behind a device's name."""
    available = onnxruntime.get_available_providers()
    if device == "cpu" or (device == "auto" and "CUDAExecutionProvider" not in available):
        return "CPUExecutionProvider"
    if device in ("auto", "cuda") and "CUDAExecutionProvider" in available:
        return "CUDAExecutionProvider"
    raise UserError(f'device "{device}" is not here: this onnxruntime has {", ".join(available)}')
