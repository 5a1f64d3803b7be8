"""A transition's forward and backward pass: fused kernels around the library's matrix products.

The mathematics is that of `skipnets.ops.transition`: pooling comes first. Kept beside the input, which is the
block's output, is the pooled map, a quarter of its size.

Shapes: as in `skipnets.ops.transition`; P = N·⌊H/2⌋·⌊W/2⌋ pooled rows.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from skipnets.ops.autograd import without_autocast
from skipnets.ops.batch_norm import Affine, Statistics
from skipnets.ops.chunks import MapShape, as_maps
from skipnets.ops.transition import Executor, TransitionParameters, halved
from skipnets.ops.triton import kernels, pooling_kernels
from skipnets.ops.triton.device import BLOCK_C, BLOCK_M, grid, on_device, rows_of, shares
from skipnets.ops.triton.launches import LAUNCHES, Compiler, Recorder


def _forward(
    x: Tensor, parameters: TransitionParameters, eps: float, statistics: Statistics
) -> tuple[Tensor, list[Tensor]]:
    gamma, beta, weight = parameters
    rows, shape = rows_of(x), MapShape.of(x)
    pooled_shape = halved(shape)
    affine = torch.stack(Affine.of(statistics, gamma, beta, eps))
    pooled = torch.empty(pooled_shape.rows, x.shape[1], dtype=x.dtype, device=x.device)

    def build(launch: Recorder | Compiler) -> None:
        launch(
            pooling_kernels.pool_activated,
            grid(pooled),
            rows,
            rows.stride(0),
            affine[0],
            affine[1],
            pooled,
            *pooled.shape,
            shape.height,
            shape.width,
            BLOCK_M=BLOCK_M,
            BLOCK_C=BLOCK_C,
        )

    with on_device(x.device), without_autocast(x.device):
        key = ("transition forward", x.device, x.dtype, shape, rows.shape[1], rows.stride(0))
        LAUNCHES.run(key, [rows, affine, pooled], build)
        out = pooled @ weight.flatten(1).to(x.dtype).t()
    return as_maps(out, pooled_shape), [affine, pooled]


def _backward(
    gradient: Tensor,
    x: Tensor,
    parameters: TransitionParameters,
    eps: float,
    statistics: Statistics,
    saved: list[Tensor],
) -> tuple[Tensor, ...]:
    weight, (affine, pooled) = parameters.weight, saved
    rows, shape = rows_of(x), MapShape.of(x)
    channels = rows.shape[1]
    incoming = rows_of(gradient.to(x.dtype))
    out = torch.empty(shape.rows, channels, dtype=x.dtype, device=x.device)
    programs, each = shares(shape.rows, channels, x.device)
    mean, variance = statistics
    partial, sums = mean.new_empty(2, programs, channels), mean.new_empty(2, channels)
    with on_device(x.device), without_autocast(x.device):
        weight_gradient = (incoming.t() @ pooled).to(weight.dtype).view(weight.shape)
        spread = incoming @ weight.flatten(1).to(x.dtype)

        def build(launch: Recorder | Compiler) -> None:
            norm = (mean, variance, eps, affine[0], affine[1])
            blocks = {"BLOCK_M": BLOCK_M, "BLOCK_C": BLOCK_C, "MAXIMA": False}
            sizes = (shape.rows, channels, shape.height, shape.width)
            launch(
                pooling_kernels.pool_backward_sums,
                (triton.cdiv(channels, BLOCK_C), programs),
                spread,
                spread,  # No places.
                rows,
                rows.stride(0),
                *norm,
                partial,
                *sizes,
                each,
                **blocks,
            )
            finish = (triton.cdiv(channels, 16), 2)
            launch(kernels.finish_sums, finish, partial, programs, sums, channels, BLOCK_P=128, BLOCK=16)
            launch(
                pooling_kernels.pool_backward,
                grid(out),
                spread,
                spread,  # No places.
                rows,
                rows.stride(0),
                *norm,
                sums,
                out,
                *sizes,
                **blocks,
            )

        key = ("transition backward", x.device, x.dtype, shape, channels, rows.stride(0), eps)
        tensors = [spread, rows, mean, variance, affine, partial, sums, out]
        LAUNCHES.run(key, tensors, build)
    return (as_maps(out, shape), sums[1], sums[0], weight_gradient)


FUSED = Executor(_forward, _backward)
"""On a GPU."""
