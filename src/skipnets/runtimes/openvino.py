"""Run an exported network in OpenVINO. Needs no torch.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import ctypes
import os
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from skipnets.errors import UserError, one_line
from skipnets.runtimes.graph_format import FEATURES, INPUT_NAMES, LOGITS, OPENVINO_GRAPH, OPENVINO_METADATA
from skipnets.runtimes.runtime import InputType, NoFeaturesError

__all__ = ["OpenVINORuntime", "compile_graph", "keeping_signal_stack", "shared_core"]


@cache
def shared_core() -> openvino.Core:
    """The process-wide OpenVINO core; it is never released.

    OpenVINO sets an alternate signal stack for the thread that first compiles a graph, and frees it with the
    core. If two cores are not released in the reverse order of their creation, the thread is left with a
    freed stack, and the next signal (Ctrl-C, SIGTERM, the end of a worker) ends the process with a
    segmentation fault. Seen with OpenVINO 2026.4.
    """
    return openvino.Core()


class _SignalStack(ctypes.Structure):
    """Linux's stack_t."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def keeping_signal_stack() -> Iterator[None]:
    """Restore this thread's alternate signal stack at the end of the block.

    For libraries that create cores of their own; see `shared_core`.
    """
    if sys.platform != "linux":
        yield
        return
    system, stack = ctypes.CDLL(None), _SignalStack()
    system.sigaltstack(None, ctypes.byref(stack))
    try:
        yield
    finally:
        system.sigaltstack(ctypes.byref(stack), None)


class OpenVINORuntime:
    """A `skipnets.runtimes.Runtime` around a compiled OpenVINO graph, for any number of threads.

    An inference request holds the input and the outputs of one call, so two calls at a time take two of them.
    There are as many as there were calls at the same time.

    Args:
        compiled: Compiled graph that `skipnets export` wrote.
        device: OpenVINO's name of the device.
    """

    name = "openvino"
    input_type: InputType = "float32"

    def __init__(self, compiled: openvino.CompiledModel, device: str) -> None:
        self.compiled = compiled
        self.device = device.lower()
        self._idle: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()
        self._process = os.getpid()

    @classmethod
    def open(
        cls, path: Path, *, device: str = "auto", threads: int | None = None
    ) -> tuple[OpenVINORuntime, str | None]:
        """Open a folder; also returns its metadata text, if there is any.

        Raises:
            UserError: If it cannot be read, or the device is not available.
        """
        core = shared_core()
        wanted = "CPU" if device == "auto" else device.upper()
        if wanted not in core.available_devices:
            raise UserError(
                f"device={device}: must be one of OpenVINO's: {', '.join(core.available_devices).lower()}"
            )
        try:
            model = core.read_model(path / OPENVINO_GRAPH)
            compiled = compile_graph(model, wanted, threads)
        except RuntimeError as error:
            raise UserError(f"{path} is not a readable OpenVINO graph ({one_line(error, -1)})") from error
        names = {name for output in compiled.outputs for name in output.names}
        inputs = compiled.inputs
        is_ours = len(inputs) == 1 and not inputs[0].names.isdisjoint(INPUT_NAMES) and LOGITS in names
        text = (
            model.get_rt_info(OPENVINO_METADATA).astype(str)
            if is_ours and model.has_rt_info(OPENVINO_METADATA)
            else None
        )
        return cls(compiled, wanted), text

    def logits(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) images → (N, classes) logits."""
        return self._run(LOGITS, batch)

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) images → (N, num_features) pooled features."""
        if not any(FEATURES in output.names for output in self.compiled.outputs):
            raise NoFeaturesError
        return self._run(FEATURES, batch)

    def _run(self, output: str, batch: NDArray[Any]) -> NDArray[np.float32]:
        if (
            self._process != os.getpid()
        ):  # forked: calls of the parent's threads hold requests that never return
            self._idle, self._process = queue.SimpleQueue(), os.getpid()
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self.compiled.create_infer_request()
        try:
            request.infer({0: np.ascontiguousarray(batch)}, share_inputs=True)
            return request.get_tensor(output).data.copy()
        finally:
            self._idle.put(request)


def compile_graph(graph: openvino.Model, device: str, threads: int | None) -> openvino.CompiledModel:
    """Compile a graph for low latency and float32 precision.

    Args:
        graph: Graph that OpenVINO read.
        device: OpenVINO's name of the device.
        threads: CPU threads; None leaves it to the library.
    """
    # Without the precision hint, OpenVINO computes in bfloat16 where the processor can, and results change.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return shared_core().compile_model(graph, device, settings)
