"""Run an exported network in ONNX Runtime. Needs no torch.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import json
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from skipnets.errors import UserError, one_line
from skipnets.runtimes.graph_format import AXIS_NAMES, FEATURES, INPUT_NAMES, LOGITS, ONNX_METADATA
from skipnets.runtimes.runtime import InputType, NoFeaturesError

__all__ = ["OnnxRuntime", "open_session"]

_DEVICES = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}
_ERRORS_ONLY = 3
_LARGEST = 1 << 16
# Sessions of a forked process's parent. They are never closed there: closing takes locks that one of their
# threads, which only the parent has, may have held at the moment of the fork. (One of 130 forks hung.)
_inherited: list[object] = []


class OnnxRuntime:
    """A `skipnets.runtimes.Runtime` around ONNX Runtime.

    A graph accepts any image size, but its session is opened for one: ONNX Runtime reuses buffers, and adds
    residual branches in place, only if it knows the sizes (4 to 8% of a ResNet-50's time on CPUs). Images
    of another size use a second session.

    Args:
        path: A graph that `skipnets export` wrote.
        provider: ONNX Runtime's execution provider.
        threads: CPU threads; None leaves it to the library.
    """

    name = "onnxruntime"
    input_type: InputType = "float32"

    def __init__(self, path: Path, provider: str, threads: int | None) -> None:
        self._open = partial(open_session, path, provider=provider, threads=threads)
        unoptimized = self._open(optimized=False)  # quick, to read the file's metadata
        self.metadata: str | None = None
        inputs = [value.name for value in unoptimized.get_inputs()]
        outputs = [output.name for output in unoptimized.get_outputs()]
        self._input = inputs[0] if len(inputs) == 1 else ""
        self._has_features = FEATURES in outputs
        if self._input in INPUT_NAMES and LOGITS in outputs:
            self.metadata = unoptimized.get_modelmeta().custom_metadata_map.get(ONNX_METADATA)
        self._size = _image_size(self.metadata)
        self._begin()

    def _begin(self) -> None:
        """Open the session for the usual size."""
        self._size_session = self._open(size=self._size)
        self._lock = threading.Lock()
        self._any_size_session: onnxruntime.InferenceSession | None = None
        self._process = os.getpid()

    @classmethod
    def open(
        cls, path: Path, *, device: str = "auto", threads: int | None = None
    ) -> tuple[OnnxRuntime, str | None]:
        """Open a file; also returns its metadata text, if there is any.

        Raises:
            UserError: If it cannot be read, or the device is not available.
        """
        provider = _provider(device)
        try:
            opened = cls(path, provider, threads)
        except Exception as error:  # its errors have no common class of their own
            raise UserError(f"{path} is not a readable ONNX file ({one_line(error, 0)})") from error
        return opened, opened.metadata

    @property
    def device(self) -> str:
        """The device that it runs on."""
        provider = self._size_session.get_providers()[0]
        return _DEVICES.get(provider, provider)

    def logits(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) images → (N, classes) logits."""
        return self._run(LOGITS, batch)

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) images → (N, num_features) pooled features."""
        if not self._has_features:
            raise NoFeaturesError
        return self._run(FEATURES, batch)

    def _run(self, output: str, batch: NDArray[Any]) -> NDArray[np.float32]:
        if self._process != os.getpid():  # forked: the sessions' threads stayed in the parent
            _inherited.append((self._size_session, self._any_size_session))
            self._begin()
        session = self._size_session if batch.shape[2:] == self._size else self._any_size()
        result: NDArray[np.float32] = session.run([output], {self._input: np.ascontiguousarray(batch)})[0]
        return result

    def _any_size(self) -> onnxruntime.InferenceSession:
        with self._lock:
            if self._any_size_session is None:
                self._any_size_session = self._open()
            return self._any_size_session


def open_session(
    graph: Path | bytes,
    *,
    provider: str = "CPUExecutionProvider",
    threads: int | None = None,
    size: tuple[int, ...] | None = None,
    optimized: bool = True,
) -> onnxruntime.InferenceSession:
    """Open an inference session that logs only errors.

    Args:
        graph: A file, or its contents.
        provider: ONNX Runtime's execution provider.
        threads: CPU threads; None leaves it to the library.
        size: Height and width of all images, or the sides of all signals or volumes; None for any.
        optimized: Whether to optimize the graph first.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    if size is not None:
        for name, extent in zip(AXIS_NAMES[len(size)], size, strict=True):
            options.add_free_dimension_override_by_name(name, extent)
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(graph, options, providers=[provider])


def _image_size(metadata: str | None) -> tuple[int, ...] | None:
    """Height and width of a classifier's preprocessed images; None if the metadata are damaged."""
    try:
        size = tuple(json.loads(metadata or "")["preprocessing"]["size"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    sane = all(isinstance(extent, int) and 0 < extent <= _LARGEST for extent in size)
    return size if sane and len(size) in AXIS_NAMES else None


def _provider(device: str) -> str:
    """The execution provider for a device."""
    available = onnxruntime.get_available_providers()
    if device == "cpu" or (device == "auto" and "CUDAExecutionProvider" not in available):
        return "CPUExecutionProvider"
    if device in ("auto", "cuda") and "CUDAExecutionProvider" in available:
        return "CUDAExecutionProvider"
    raise UserError(f"device={device}: must be one that this onnxruntime supports: {', '.join(available)}")
