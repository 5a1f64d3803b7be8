"""A stem's forward and backward pass: fused kernels around the library's convolution.

The mathematics is that of `skipnets.ops.stem`. Kept are the convolution's result, unless it is repeated,
and where in its window each maximum was, a byte each.

Shapes: as in `skipnets.ops.stem`; P pooled rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from skipnets.ops.autograd import without_autocast
from skipnets.ops.batch_norm import Statistics
from skipnets.ops.chunks import MapShape, as_maps
from skipnets.ops.stem import PADDING, STRIDE, Executor, StemParameters, StemPlan
from skipnets.ops.triton import kernels, pooling_kernels
from skipnets.ops.triton.device import BLOCK_C, BLOCK_M, grid, on_device, rows_of, shares
from skipnets.ops.triton.launches import LAUNCHES, Compiler, Recorder

_BLOCK_M = 16
"""Rows of a tile of the kernels that read windows, which takes registers."""


def _forward(
    images: Tensor, plan: StemPlan, parameters: StemParameters
) -> tuple[Tensor, Statistics, list[Tensor]]:
    weight, gamma, beta = parameters
    with on_device(images.device), without_autocast(images.device):
        convolved = _convolve(images, weight, plan.dtype)
        shape, rows = MapShape.of(convolved), rows_of(convolved)
        pooled_shape = MapShape(shape.images, ((shape.height + 1) // 2, (shape.width + 1) // 2))
        channels = rows.shape[1]
        out = torch.empty(pooled_shape.rows, channels, dtype=plan.dtype, device=images.device)
        places = torch.empty_like(out, dtype=torch.uint8)
        programs, _ = shares(shape.rows, channels, images.device)
        partial = gamma.new_empty(3, programs, channels)
        vectors = gamma.new_empty(4, channels)

        def build(launch: Recorder | Compiler) -> None:
            mean, variance, scale, shift = vectors
            launch(
                kernels.input_columns,
                (triton.cdiv(channels, BLOCK_C), programs),
                rows,
                rows.stride(0),
                out,
                channels,
                partial,
                shape.rows,
                channels,
                BLOCK_C,
                BLOCK_M,
                COPIES=False,
            )
            launch(
                kernels.finish_statistics,
                (triton.cdiv(channels, 8),),
                partial,
                programs,
                mean,
                variance,
                0,
                channels,
                gamma,
                beta,
                plan.eps,
                scale,
                shift,
                channels,
                BLOCK_P=256,
                BLOCK_C=8,
                HAS_NORM=True,
            )
            launch(
                pooling_kernels.max_pool_activated,
                grid(out, _BLOCK_M),
                rows,
                rows.stride(0),
                scale,
                shift,
                out,
                places,
                pooled_shape.rows,
                channels,
                shape.height,
                shape.width,
                BLOCK_M=_BLOCK_M,
                BLOCK_C=BLOCK_C,
            )

        key = ("stem forward", images.device, plan.dtype, plan.eps, shape, channels, rows.stride(0))
        LAUNCHES.run(key, [rows, out, places, partial, vectors, gamma, beta], build)
    saved = [vectors, places, *([convolved] if plan.keep_convolved else [])]
    return as_maps(out, pooled_shape), Statistics(vectors[0], vectors[1]), saved


def _backward(
    gradient: Tensor,
    images: Tensor,
    plan: StemPlan,
    parameters: StemParameters,
    statistics: Statistics,  # noqa: ARG001 — they are among the vectors
    saved: list[Tensor],
    needs_image_gradient: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    weight, (vectors, places, *kept) = parameters.weight, saved
    with on_device(images.device), without_autocast(images.device):
        convolved = kept[0] if kept else _convolve(images, weight, plan.dtype)
        shape, rows = MapShape.of(convolved), rows_of(convolved)
        channels = rows.shape[1]
        incoming = gradient.to(plan.dtype).contiguous(memory_format=torch.channels_last)
        incoming = incoming.permute(0, 2, 3, 1).reshape(-1, channels)
        programs, each = shares(shape.rows, channels, images.device)
        partial, sums = vectors.new_empty(2, programs, channels), vectors.new_empty(2, channels)
        out = torch.empty(shape.rows, channels, dtype=plan.dtype, device=images.device)

        def build(launch: Recorder | Compiler) -> None:
            mean, variance, scale, shift = vectors
            norm = (mean, variance, plan.eps, scale, shift)
            blocks = {"BLOCK_M": _BLOCK_M, "BLOCK_C": BLOCK_C, "MAXIMA": True}
            sizes = (shape.rows, channels, shape.height, shape.width)
            launch(
                pooling_kernels.pool_backward_sums,
                (triton.cdiv(channels, BLOCK_C), programs),
                incoming,
                places,
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
                grid(out, _BLOCK_M),
                incoming,
                places,
                rows,
                rows.stride(0),
                *norm,
                sums,
                out,
                *sizes,
                **blocks,
            )

        key = ("stem backward", images.device, plan.dtype, plan.eps, shape, channels, rows.stride(0))
        LAUNCHES.run(key, [incoming, places, rows, vectors, partial, sums, out], build)
        image_gradient, weight_gradient, _ = torch.ops.aten.convolution_backward(
            as_maps(out, shape),
            images.to(plan.dtype),
            weight.to(plan.dtype),
            bias_sizes=None,
            stride=[STRIDE, STRIDE],
            padding=[PADDING, PADDING],
            dilation=[1, 1],
            transposed=False,
            output_padding=[0, 0],
            groups=1,
            output_mask=[needs_image_gradient, True, False],
        )
    if image_gradient is not None:
        image_gradient = image_gradient.to(images.dtype)
    return image_gradient, weight_gradient.to(weight.dtype), sums[1], sums[0]


FUSED = Executor(_forward, _backward)
"""On a GPU."""


def _convolve(images: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    convolved = F.conv2d(images.to(dtype), weight.to(dtype), stride=STRIDE, padding=PADDING)
    return convolved.contiguous(memory_format=torch.channels_last)
