"""Ways to run a classifier's network: one module each, behind one small protocol.

A runtime gets an architecture and its tensors and turns batches into logits. It knows nothing of class names,
images or files. Nothing here imports a runtime's library before that runtime is asked for.

N is the images of a batch; C, H and W their channels, height and width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError, missing_extra, near_matches

__all__ = ["RUNTIMES", "Runtime", "TensorsDoNotFitError", "open_runtime"]

_LOG = logging.getLogger("skipnets")

RUNTIMES = ("auto", "native", "onnxruntime", "openvino", "torch")


class TensorsDoNotFitError(UserError):
    """Tensors and architecture do not belong together; whoever knows the file adds its name."""


class Runtime(Protocol):
    """What a classifier asks of whatever runs its network.

    Attributes:
        name: One of `RUNTIMES`, never "auto".
        input_type: What a batch holds: "float32" that `Preprocessing` has normalized, or "uint8" pixels for a
            graph that normalizes by itself.
    """

    name: str
    input_type: Literal["uint8", "float32"]

    @property
    def device(self) -> str:
        """Where it runs, for people: "cpu", "cuda:0", ..."""
        ...

    def logits(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) → (N, classes)."""
        ...

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) → (N, features): what the head sees, pooled."""
        ...


def open_runtime(
    kind: str,
    *,
    architecture: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    device: str = "auto",
    threads: int | None = None,
) -> Runtime:
    """Make a network ready to run.

    Args:
        kind: One of `RUNTIMES`; "auto" takes the fastest one here that can run this network exactly.
        architecture: What `skipnets.models.registry.config_to_dict` wrote.
        tensors: Every tensor of the network under its state-dict name. The runtime may keep them.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        threads: How many CPU threads compute; None leaves it to the runtime.

    Raises:
        UserError: If the runtime is unknown or cannot run here.
        TensorsDoNotFitError: If tensors and architecture do not belong together.
    """
    if threads is not None and threads < 1:
        raise UserError(f"threads must be at least 1, not {threads}")
    if kind not in RUNTIMES:
        raise UserError(
            f'unknown runtime "{kind}"{near_matches(kind, RUNTIMES)}; there are {", ".join(RUNTIMES)}'
        )
    if kind in ("onnxruntime", "openvino"):
        raise UserError(
            f'runtime "{kind}" runs exports, not model files: first '
            f"skipnets export MODEL --format {kind.removesuffix('runtime')}"
        )
    if kind in ("auto", "native"):
        from skipnets.runtimes import native

        if kind == "native" or native.prefers_native(device):
            try:
                return native.NativeRuntime.from_tensors(
                    architecture, tensors, device=device, threads=threads
                )
            except native.NotForTheEngineError as error:
                if kind == "native":
                    raise
                _LOG.warning("running in PyTorch: %s", error)
    try:
        from skipnets.runtimes.torch import TorchRuntime
    except ModuleNotFoundError as error:
        if error.name == "torch":
            raise missing_extra("train") from error
        raise
    return TorchRuntime.from_tensors(architecture, tensors, device=device, threads=threads)
