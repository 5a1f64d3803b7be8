"""A stem's forward and backward pass in native code.

The mathematics is that of `skipnets.ops.stem`. Norm, ReLU and pooling are one pass over what the convolution
makes. Kept are that, unless it is repeated, and where in its window each maximum was, a byte each.

Shapes: as in `skipnets.ops.stem`.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from skipnets.ops.batch_norm import Statistics
from skipnets.ops.chunks import MapShape, as_matrix, empty_maps, empty_tensor_like
from skipnets.ops.native import instruction_set
from skipnets.ops.stem import Executor, StemParameters, StemPlan, convolved_shape, pooled_shape

training: Any = importlib.import_module("skipnets_engine.training")  # An optional package.


def _forward(
    images: Tensor, plan: StemPlan, parameters: StemParameters
) -> tuple[Tensor, Statistics, list[Tensor]]:
    shape, channels = convolved_shape(images, plan.stride), len(parameters.weight)
    convolved = _matrix(shape, channels, images)
    statistics = Statistics(*(images.new_empty(channels) for _ in range(2)))
    places = None
    if plan.pools:
        shape = pooled_shape(shape)
        places = images.new_empty(shape.rows, channels, dtype=torch.uint8)
    y = empty_maps(shape, channels, like=images, dtype=torch.float32)
    training.stem_forward(
        *_arguments(images, plan, parameters, statistics, convolved, places),
        as_matrix(y),
        instruction_set(),
        torch.get_num_threads(),
    )
    kept = [] if places is None else [places]
    return y, statistics, [*kept, convolved] if plan.keep_convolved else kept


def _backward(
    gradient: Tensor,
    images: Tensor,
    plan: StemPlan,
    parameters: StemParameters,
    statistics: Statistics,
    saved: list[Tensor],
    needs_image_gradient: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    assert not needs_image_gradient, "see `skipnets.ops.stem.cpu_executor`"
    channels = len(parameters.weight)
    places = saved[0] if plan.pools else None
    if plan.keep_convolved:
        convolved = saved[-1]
    else:
        convolved = _matrix(convolved_shape(images, plan.stride), channels, images)
    weight, gamma, beta = (empty_tensor_like(each) for each in parameters)
    training.stem_backward(
        *_arguments(images, plan, parameters, statistics, convolved, places),
        not plan.keep_convolved,
        as_matrix(gradient),
        weight,
        [gamma, beta],
        instruction_set(),
        torch.get_num_threads(),
    )
    return None, weight, gamma, beta


NATIVE = Executor(_forward, _backward)
"""For float32 on a CPU, and images without a gradient."""


def _arguments(
    images: Tensor,
    plan: StemPlan,
    parameters: StemParameters,
    statistics: Statistics,
    convolved: Tensor,
    places: Tensor | None,
) -> tuple[Any, ...]:
    """What the forward and the backward pass are both given."""
    weight, gamma, beta = (each.detach() for each in parameters)
    return (
        images.detach(),
        weight,
        plan.stride,
        [gamma.contiguous(), beta.contiguous()],
        plan.eps,
        list(statistics),
        convolved,
        places,
    )


def _matrix(shape: MapShape, channels: int, like: Tensor) -> Tensor:
    return as_matrix(empty_maps(shape, channels, like=like, dtype=torch.float32))
