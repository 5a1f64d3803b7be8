"""The native executor for CPUs: operations of `skipnets.ops` in the C++ of the package skipnets-engine."""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["instruction_set", "unavailable", "unsupported_block", "unsupported_device"]

_INTERFACE = 5  # version of skipnets_engine.training that this package uses


@functools.cache
def unavailable() -> str | None:
    """Why there are no native kernels on this machine, or None."""
    try:
        training = importlib.import_module("skipnets_engine.training")
    except ModuleNotFoundError as error:
        installed = error.name != "skipnets_engine"
        return f"skipnets-engine is {'an older version' if installed else 'not installed'}"
    except ImportError as error:
        return f"skipnets-engine cannot be loaded: {' '.join(str(error).split())[:200]}"
    if training.INTERFACE != _INTERFACE:
        return f"skipnets-engine has version {training.INTERFACE} of its interface, not {_INTERFACE}"
    training.share_openmp(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    return None


def unsupported_block(x: Tensor, growth_weight: Tensor | None, *, dtype: torch.dtype) -> str | None:
    """Why the native kernels cannot run a dense block, or None.

    Args:
        x: Its input, (N, C₀, H, W).
        growth_weight: Of a layer's second convolution, (k, K, 3, 3); None without a bottleneck.
        dtype: Computed in.
    """
    if growth_weight is None:
        return "there are native kernels for layers with a bottleneck alone"
    return unsupported_device(x.device, dtype, dims=x.ndim - 2)


def unsupported_device(device: torch.device, dtype: torch.dtype, *, dims: int = 2) -> str | None:
    """Why there are no native kernels for a device, the type computed in, and so many axes, or None."""
    if dims != 2:
        return "there are native kernels for images alone"
    if device.type != "cpu":
        return "there are native kernels for CPUs alone"
    if dtype != torch.float32:
        return f"there are no native kernels for {str(dtype).removeprefix('torch.')}"
    return unavailable()


def instruction_set() -> str:
    """The one that the environment forces; empty for the fastest."""
    return os.environ.get("SKIPNETS_ENGINE_ISA", "")
