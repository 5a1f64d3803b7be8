"""A dense block's forward and backward pass in native code.

The mathematics is that of `skipnets.ops.dense_block`. Norm, scale, shift and ReLU are applied where a
convolution's input is gathered, statistics are taken where its output is written. What is kept for the
backward pass is the same as there. dγ is always summed explicitly.

Shapes: as in `skipnets.ops.dense_block`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skipnets.ops.batch_norm import Statistics
from skipnets.ops.chunks import MapShape, as_matrix, empty_maps, is_channels_last
from skipnets.ops.dense_block import DenseBlockPlan, DenseBlockResult, Executor, LayerParameters
from skipnets.ops.native import instruction_set

training: Any = importlib.import_module("skipnets_engine.training")  # An optional package.


def _forward(
    x: Tensor, plan: DenseBlockPlan, layers: Sequence[LayerParameters]
) -> tuple[DenseBlockResult, list[Tensor]]:
    shape, count, parameters = MapShape.of(x), len(layers), _flat(layers)
    growth_rate, bottleneck = parameters[5].shape[:2]
    channels = x.shape[1] + count * growth_rate
    maps = empty_maps(shape, channels, like=x, dtype=torch.float32)
    maps[:, : x.shape[1]].copy_(x)
    statistics = [x.new_empty(channels, dtype=torch.float32) for _ in range(2)]
    statistics += [x.new_empty(count, bottleneck, dtype=torch.float32) for _ in range(2)]
    bottlenecks = [_matrix(shape, bottleneck, x) for _ in range(count if plan.keep_bottleneck else 1)]
    training.dense_block_forward(
        as_matrix(maps),
        [shape.images, shape.height, shape.width],
        _contiguous(parameters),
        list(plan.eps1),
        list(plan.eps2),
        statistics,
        bottlenecks,
        instruction_set(),
        torch.get_num_threads(),
    )
    result = DenseBlockResult(maps, Statistics(*statistics[:2]), Statistics(*statistics[2:]))
    return result, bottlenecks if plan.keep_bottleneck else []


def _backward(
    plan: DenseBlockPlan,
    result: DenseBlockResult,
    saved: list[Tensor],
    layers: Sequence[LayerParameters],
    gradient: Tensor,
    needs_input_gradient: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    maps, shape, parameters = result.features, MapShape.of(result.features), _flat(layers)
    bottleneck, input_channels = parameters[5].shape[1], len(parameters[0])
    if gradient.dtype != torch.float32 or not is_channels_last(gradient):
        gradient = empty_maps(shape, maps.shape[1], like=maps, dtype=torch.float32).copy_(gradient)
    contiguous = torch.contiguous_format
    gradients = [torch.empty_like(parameter, memory_format=contiguous) for parameter in parameters]
    x_gradient = None
    if needs_input_gradient:
        x_gradient = empty_maps(shape, input_channels, like=maps, dtype=torch.float32)
    training.dense_block_backward(
        as_matrix(maps),
        [shape.images, shape.height, shape.width],
        _contiguous(parameters),
        list(plan.eps1),
        list(plan.eps2),
        [*result.statistics, *result.bottleneck_statistics],
        saved or [_matrix(shape, bottleneck, maps)],
        not saved,
        as_matrix(gradient),
        _matrix(shape, maps.shape[1], maps),
        _matrix(shape, bottleneck, maps),
        gradients,
        None if x_gradient is None else as_matrix(x_gradient),
        instruction_set(),
        torch.get_num_threads(),
    )
    # In their parameters' memory format, as DistributedDataParallel expects.
    formatted = [
        own if parameter.is_contiguous() else torch.empty_like(parameter).copy_(own)
        for own, parameter in zip(gradients, parameters, strict=True)
    ]
    return x_gradient, formatted


NATIVE = Executor(_forward, _backward, reads_parameters=True)
"""For float32 and layers with bottlenecks on a CPU."""


def _flat(layers: Sequence[LayerParameters]) -> list[Tensor]:
    return [tensor for layer in layers for tensor in layer if tensor is not None]


def _contiguous(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach().contiguous() for parameter in parameters]


def _matrix(shape: MapShape, channels: int, like: Tensor) -> Tensor:
    return as_matrix(empty_maps(shape, channels, like=like, dtype=torch.float32))
