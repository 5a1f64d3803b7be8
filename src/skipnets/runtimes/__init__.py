"""Ways to run a classifier's network: one module each, behind one small protocol.

A runtime gets an architecture and its tensors and turns batches into logits. It knows nothing of class names,
images or files. Nothing here imports a runtime's library before that runtime is asked for.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from skipnets.errors import UserError, near_matches, needs_extra
from skipnets.runtimes.runtime import Runtime, TensorsDoNotFitError

__all__ = ["RUNTIMES", "Runtime", "TensorsDoNotFitError", "open_runtime"]

_LOG = logging.getLogger("skipnets")

RUNTIMES = ("auto", "native", "onnxruntime", "openvino", "torch")


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
        raise UserError(f"threads={threads}: must be at least 1")
    if kind not in RUNTIMES:
        raise UserError(f"runtime={kind}: must be one of {', '.join(RUNTIMES)}{near_matches(kind, RUNTIMES)}")
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
    with needs_extra("train"):
        from skipnets.runtimes.torch import TorchRuntime
    return TorchRuntime.from_tensors(architecture, tensors, device=device, threads=threads)
