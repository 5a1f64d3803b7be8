"""What every fused operation needs to know of memory and device."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
import triton
from torch import Tensor

from skipnets.ops.triton import kernels

BLOCK_M, BLOCK_C = 32, 64
"""Rows and columns of a tile of the kernels that only read and write."""

PROGRAMS = 4
"""For each multiprocessor, of those that make sums."""


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return contextlib.nullcontext()


def try_out(device: torch.device) -> None:
    """Compile and launch a small kernel.

    Raises:
        Exception: Whatever keeps Triton from working here: no C compiler, no assembler, an older driver, …
    """
    with on_device(device):
        partial = torch.zeros(2, 1, 16, dtype=torch.float32, device=device)
        kernels.finish_sums[1, 2](partial, 1, torch.empty_like(partial[:, 0]), 16, BLOCK_P=128, BLOCK=16)


@functools.cache
def processors(device: torch.device) -> int:
    """The multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def product_precision(dtype: torch.dtype, device: torch.device) -> str:
    """How Triton multiplies: float32 in TF32 where PyTorch's convolutions do, exactly where they do not.

    Without TF32 no network runs these kernels (`unsupported_block`), as they are slow then: what is left are
    comparisons. Triton's interpreter is exact.
    """
    exact = device.type != "cuda" or (dtype == torch.float32 and not torch.backends.cudnn.allow_tf32)
    return "ieee" if exact else "tf32"


def rows_of(maps: Tensor) -> Tensor:
    """(N, C, H, W) as rows (M, C) of one stride, without a copy where the memory allows it."""
    n, channels, height, width = maps.shape
    stride = maps.stride(3) if width > 1 else maps.stride(2) if height > 1 else maps.stride(0)
    fits = (
        (channels == 1 or maps.stride(1) == 1)
        and stride >= channels
        and (height == 1 or maps.stride(2) == width * stride)
        and (n == 1 or maps.stride(0) == height * width * stride)
    )
    if not fits:
        maps = maps.contiguous(memory_format=torch.channels_last)
        stride = channels
    return maps.as_strided((n * height * width, channels), (stride, 1))


def shares(rows: int, channels: int, device: torch.device) -> tuple[int, int]:
    """For a kernel that makes sums: into how many shares the rows are cut, and the rows of each."""
    most = max(PROGRAMS * processors(device) // triton.cdiv(channels, BLOCK_C), 1)
    each = triton.cdiv(triton.cdiv(rows, most), BLOCK_M) * BLOCK_M
    return triton.cdiv(rows, each), each


def grid(matrix: Tensor, block_m: int = BLOCK_M) -> tuple[int, int]:
    """Programs of a kernel that makes each value of this matrix on its own."""
    return triton.cdiv(matrix.shape[0], block_m), triton.cdiv(matrix.shape[1], BLOCK_C)
