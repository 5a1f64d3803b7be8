"""A residual block's forward and backward pass in native code.

Shapes: as in `skipnets.ops.residual_block`; M = N·H·W positions.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skipnets.ops.autograd import differentiable_once
from skipnets.ops.chunks import MapShape, as_matrix, empty_maps, empty_tensor_like
from skipnets.ops.native import instruction_set
from skipnets.ops.residual_block import NormedConvolution, ResidualBlockPlan, ResidualBlockResult

training: Any = importlib.import_module("skipnets_engine.training")  # An optional package.


def residual_block(
    x: Tensor, plan: ResidualBlockPlan, convolutions: Sequence[NormedConvolution]
) -> ResidualBlockResult:
    """As `skipnets.ops.residual_block.residual_block`, for float32 on a CPU."""
    y, *statistics = _ResidualBlockFunction.apply(
        x, plan, *(tensor for each in convolutions for tensor in each)
    )
    return plan.result(x, y, statistics)


class _ResidualBlockFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: ResidualBlockPlan, *parameters: Tensor) -> tuple[Tensor, ...]:
        widths = [weight.shape[0] for weight in parameters[::3]]
        outputs = [
            empty_maps(shape, width, like=x, dtype=torch.float32)
            for shape, width in zip(plan.shapes(x), widths, strict=True)
        ]
        statistics = [x.new_empty(width) for width in widths for _ in range(2)]
        y = _empty_like(outputs[plan.branch - 1])
        training.residual_block_forward(
            *_arguments(x, plan, parameters, outputs, statistics, y),
            instruction_set(),
            torch.get_num_threads(),
        )
        ctx.plan = plan
        ctx.save_for_backward(x, y, *outputs, *statistics, *parameters)
        ctx.mark_non_differentiable(*statistics)
        return (y, *statistics)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        plan, count = ctx.plan, len(ctx.plan.strides)
        x, y, *rest = ctx.saved_tensors
        outputs, statistics, parameters = rest[:count], rest[count : 3 * count], rest[3 * count :]
        made = [empty_tensor_like(parameter) for parameter in parameters]
        buffers = [_empty_like(each) for each in outputs[: plan.branch - 1]]
        sum_gradient = _empty_like(y)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            identity = not plan.projects and x.shape == y.shape
            x_gradient = sum_gradient if identity else _empty_like(x)
        training.residual_block_backward(
            *_arguments(x, plan, parameters, outputs, statistics, y),
            as_matrix(gradient),
            as_matrix(sum_gradient),
            [as_matrix(each) for each in buffers],
            None if x_gradient is None else as_matrix(x_gradient),
            made[::3],
            [each for index, each in enumerate(made) if index % 3],
            instruction_set(),
            torch.get_num_threads(),
        )
        return (x_gradient, None, *made)


def _arguments(
    x: Tensor,
    plan: ResidualBlockPlan,
    parameters: Sequence[Tensor],
    outputs: Sequence[Tensor],
    statistics: Sequence[Tensor],
    y: Tensor,
) -> tuple[Any, ...]:
    """What the forward and the backward pass are both given."""
    detached = [parameter.detach() for parameter in parameters]
    each_output = zip(map(as_matrix, outputs), statistics[::2], statistics[1::2], strict=True)
    return (
        as_matrix(x.detach()),
        [x.shape[0], x.shape[2], x.shape[3]],
        detached[::3],
        [tensor.contiguous() for index, tensor in enumerate(detached) if index % 3],
        list(plan.eps),
        list(plan.strides),
        plan.projects,
        plan.zeros_before,
        [tensor for output in each_output for tensor in output],
        as_matrix(y.detach()),
    )


def _empty_like(maps: Tensor) -> Tensor:
    return empty_maps(MapShape.of(maps), maps.shape[1], like=maps, dtype=torch.float32)
