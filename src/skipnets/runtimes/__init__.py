"""Inference runtimes for a classifier's network: one module each, with a common protocol.

A runtime turns batches into logits. It does not know class names, images or files. A runtime's library is
imported only when that runtime is requested.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from skipnets.errors import UserError, near_matches, needs_extra
from skipnets.models.custom import NoGraphError
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
    precision: str = "auto",
    network: Any = None,
) -> Runtime:
    """Open a runtime for a network.

    Args:
        kind: One of `RUNTIMES`; "auto" uses the fastest installed one that runs this network exactly.
        architecture: From `skipnets.models.registry.config_to_dict`.
        tensors: All tensors of the network by state-dict name. The runtime may keep them.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        threads: CPU threads that compute; None leaves it to the runtime.
        precision: One of `skipnets.runtimes.precision.PRECISIONS`; half precision needs torch.
        network: The torch module of an architecture that is no part of this package.

    Raises:
        UserError: If the runtime is unknown or cannot run here.
        TensorsDoNotFitError: If the tensors do not match the architecture.
    """
    if threads is not None and threads < 1:
        raise UserError(f"threads={threads}: must be at least 1")
    if kind not in RUNTIMES:
        raise UserError(f"runtime={kind}: must be one of {', '.join(RUNTIMES)}{near_matches(kind, RUNTIMES)}")
    if kind in ("onnxruntime", "openvino"):
        raise UserError(
            f"runtime={kind}: runs exports, not model files; first "
            f"skipnets export MODEL --format {kind.removesuffix('runtime')}"
        )
    half = precision not in ("auto", "32-true")
    if kind == "native" and half:
        raise UserError(f"precision={precision}: only the runtime torch computes in it")
    for_engine = network is None and not half and architecture.get("dims", 2) == 2
    if kind == "native" or (kind == "auto" and for_engine):
        from skipnets.runtimes import native

        if kind == "native" or native.prefers_native(device):
            try:
                return native.NativeRuntime.from_tensors(
                    architecture, tensors, device=device, threads=threads
                )
            except NoGraphError:  # the engine is for none of these networks, which is no news
                if kind == "native":
                    raise
            except native.NotForTheEngineError as error:
                if kind == "native":
                    raise
                _LOG.warning("running in PyTorch: %s", error)
    with needs_extra("train"):
        from skipnets.runtimes.torch import TorchRuntime
    return TorchRuntime.from_tensors(
        architecture, tensors, device=device, threads=threads, precision=precision, network=network
    )
