"""The fused executor for NVIDIA GPUs: the same operations as `skipnets.ops`, as Triton kernels."""

from __future__ import annotations

import functools

import torch

__all__ = [
    "OLDEST",
    "WIDEST_BOTTLENECK",
    "WIDEST_GROWTH",
    "slower_launches",
    "unavailable",
    "unsupported_block",
    "unsupported_kernels",
]

OLDEST = (8, 0)
"""The first compute capability whose tensor cores take bfloat16 and TF32."""

WIDEST_GROWTH, WIDEST_BOTTLENECK = 64, 256
"""Wider ones do not fit into the registers."""


@functools.cache
def unavailable(device: torch.device) -> str | None:
    """Why the kernels cannot run on this device, or None."""
    if device.type != "cuda":
        return "there are fused kernels for CUDA alone"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST:
        return f"fused kernels need compute capability {OLDEST[0]}.{OLDEST[1]}"
    try:
        from skipnets.ops.triton.device import try_out

        try_out(device)
    except Exception as error:  # Whatever a broken installation, compiler or driver raises.
        if isinstance(error, ModuleNotFoundError) and error.name == "triton":
            return "Triton is not installed"
        return f"Triton cannot be used: {' '.join(str(error).split())[:200]}"
    return None


def unsupported_kernels(device: torch.device, dtype: torch.dtype, *, dims: int = 2) -> str | None:
    """Why no kernel can run on this device in this type, for so many spatial axes, or None."""
    if dims != 2:
        return "there are fused kernels for images alone"
    if reason := unavailable(device):
        return reason
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"there are no fused kernels for {str(dtype).removeprefix('torch.')}"
    return None


def slower_launches() -> str | None:
    """What the installed version of Triton cannot do, which costs time alone, or None."""
    from skipnets.ops.triton.launches import SLOWER

    return "; ".join(SLOWER) or None


def unsupported_block(
    device: torch.device, dtype: torch.dtype, *, widths: tuple[int, int] | None, dims: int = 2
) -> str | None:
    """Why the kernels cannot run a dense block, or None.

    Args:
        device: Of its input.
        dtype: Of its input.
        widths: Growth rate and channels of the bottleneck; None without a bottleneck.
        dims: Spatial axes of its input.
    """
    if reason := unsupported_kernels(device, dtype, dims=dims):
        return reason
    if dtype == torch.float32 and not torch.backends.cudnn.allow_tf32:
        return "float32 without TF32"
    if widths is None:
        return "there are fused kernels for layers with a bottleneck alone"
    growth_rate, bottleneck = widths
    if growth_rate > WIDEST_GROWTH or bottleneck > WIDEST_BOTTLENECK:
        return f"the fused kernels take {WIDEST_GROWTH} channels a layer, {WIDEST_BOTTLENECK} before, at most"
    return None
