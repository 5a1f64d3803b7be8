"""A residual block's forward and backward pass in native code.

Shapes: as in `skipnets.ops.residual_block`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skipnets.ops.batch_norm import Statistics
from skipnets.ops.chunks import MapShape, as_matrix, empty_maps, empty_tensor_like
from skipnets.ops.native import instruction_set
from skipnets.ops.residual_block import Executor, NormedConvolution, ResidualBlockPlan

training: Any = importlib.import_module("skipnets_engine.training")  # An optional package.


def _forward(
    x: Tensor, plan: ResidualBlockPlan, convolutions: Sequence[NormedConvolution]
) -> tuple[Tensor, list[Statistics], list[Tensor]]:
    widths = [len(weight) for weight, _, _ in convolutions]
    outputs = [
        empty_maps(shape, width, like=x, dtype=torch.float32)
        for shape, width in zip(plan.shapes(x), widths, strict=True)
    ]
    statistics = [Statistics(x.new_empty(width), x.new_empty(width)) for width in widths]
    made = (_empty_like(outputs[plan.branch - 1]), statistics, outputs)
    training.residual_block_forward(
        *_arguments(x, plan, made, convolutions), instruction_set(), torch.get_num_threads()
    )
    return made


def _backward(
    plan: ResidualBlockPlan,
    x: Tensor,
    made: tuple[Tensor, list[Statistics], list[Tensor]],
    convolutions: Sequence[NormedConvolution],
    gradient: Tensor,
    needs_input_gradient: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    y, _, outputs = made
    gradients = [empty_tensor_like(tensor) for each in convolutions for tensor in each]
    sum_gradient, x_gradient = _empty_like(y), None
    if needs_input_gradient:
        identity = not plan.projects and x.shape == y.shape
        x_gradient = sum_gradient if identity else _empty_like(x)
    training.residual_block_backward(
        *_arguments(x, plan, made, convolutions),
        as_matrix(gradient),
        as_matrix(sum_gradient),
        [as_matrix(_empty_like(each)) for each in outputs[: plan.branch - 1]],
        None if x_gradient is None else as_matrix(x_gradient),
        gradients[::3],
        [each for index, each in enumerate(gradients) if index % 3],
        instruction_set(),
        torch.get_num_threads(),
    )
    return x_gradient, gradients


NATIVE = Executor(_forward, _backward)
"""For float32 on a CPU."""


def _arguments(
    x: Tensor,
    plan: ResidualBlockPlan,
    made: tuple[Tensor, list[Statistics], list[Tensor]],
    convolutions: Sequence[NormedConvolution],
) -> tuple[Any, ...]:
    """What the forward and the backward pass are both given."""
    y, statistics, outputs = made
    each_output = zip(map(as_matrix, outputs), statistics, strict=True)
    norms = [tensor.detach().contiguous() for _, *norm in convolutions for tensor in norm]
    return (
        as_matrix(x.detach()),
        [x.shape[0], x.shape[2], x.shape[3]],
        [weight.detach() for weight, _, _ in convolutions],
        norms,
        list(plan.eps),
        list(plan.strides),
        plan.projects,
        plan.zeros_before,
        [tensor for matrix, own in each_output for tensor in (matrix, *own)],
        as_matrix(y.detach()),
    )


def _empty_like(maps: Tensor) -> Tensor:
    return empty_maps(MapShape.of(maps), maps.shape[1], like=maps, dtype=torch.float32)
