"""A whole residual block in training as one differentiable operation, which native code runs.

A residual block (He et al. 2016, arXiv 1512.03385, equation 1) is

    u₁ = conv₁(x),   uᵢ = convᵢ(relu(normᵢ₋₁(uᵢ₋₁))),   y = relu(normₙ(uₙ) + shortcut(x)),

with two convolutions of 3×3 in a basic block and 1×1, 3×3 and 1×1 in a bottleneck block. The shortcut is x
itself, or every S-th pixel of it between channels of zeros, or norm(conv(x)) with a 1×1 convolution, the
projection. Executed layer by layer, every norm, ReLU and sum reads and writes whole maps, and autograd keeps
the results of the ReLUs. Here norm, scale, shift and ReLU are applied where a convolution gathers its input,
statistics are taken where its output is written, and for the backward pass x, the uᵢ, the projection's output
and y are kept. The gradients of the norms are those of `skipnets.ops.batch_norm`.

By PyTorch's operators it takes about the time of the layers one by one, and less memory.

Shapes: N images, C channels of the input, K of the output, H×W positions, S stride of the block. Signals
    (N, C, L) and volumes (N, C, D, H, W) are the same with other positions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from skipnets.ops.autograd import differentiable_once, separate_graph, without_autocast
from skipnets.ops.batch_norm import Affine, Statistics, map_statistics, relu_backward
from skipnets.ops.choices import CHOICES
from skipnets.ops.chunks import MapShape
from skipnets.ops.convolution import CONVOLVE, convolution_gradients
from skipnets.ops.native import unsupported_device

_PROBED_ROWS = 4096
"""Positions in the images on which executors are compared."""


class NormedConvolution(NamedTuple):
    """A convolution without bias, (K, C, s, s), and scale and shift of the norm behind it, (K,)."""

    weight: Tensor
    gamma: Tensor
    beta: Tensor


@dataclass(frozen=True)
class ResidualBlockPlan:
    """The settings of a block's execution.

    Args:
        strides: Of the branch's convolutions, in order, and then of the projection.
        eps: ε of the norms behind them.
        projects: Whether the last convolution is the projection.
        zeros_before: Without a projection, the channels of zeros before those of x; as many as the output
            still lacks come behind them.
    """

    strides: tuple[int, ...]
    eps: tuple[float, ...]
    projects: bool = False
    zeros_before: int = 0

    @property
    def branch(self) -> int:
        """Convolutions beside the shortcut."""
        return len(self.strides) - self.projects

    @property
    def stride(self) -> int:
        """Of the block."""
        return math.prod(self.strides[: self.branch])

    def convolutions(self, parameters: Sequence[Tensor]) -> list[NormedConvolution]:
        """Group a flat list of parameters by convolution."""
        return [NormedConvolution(*parameters[start : start + 3]) for start in range(0, len(parameters), 3)]

    def shapes(self, x: Tensor) -> list[MapShape]:
        """Of the convolutions' outputs, for an input (N, C, H, W)."""
        made, current = [], MapShape.of(x)
        for index, stride in enumerate(self.strides):
            if index == self.branch:
                current = MapShape.of(x)
            current = MapShape(current.images, tuple(-(-side // stride) for side in current.sides))
            made.append(current)
        return made


class ResidualBlockResult(NamedTuple):
    """The output (N, K, ⌈H/S⌉, ⌈W/S⌉), and the statistics of each convolution's output and their counts."""

    y: Tensor
    statistics: list[Statistics]
    counts: list[int]


class Executor(NamedTuple):
    """A way to compute a block's forward and backward pass.

    Attributes:
        forward: From x, plan and convolutions to y, the statistics and the convolutions' outputs.
        backward: From plan, x, these three, convolutions, the gradient of y, and whether that of x is needed,
            to the gradients of x and of all parameters in their order.
    """

    forward: Callable[
        [Tensor, ResidualBlockPlan, Sequence[NormedConvolution]],
        tuple[Tensor, list[Statistics], list[Tensor]],
    ]
    backward: Callable[
        [
            ResidualBlockPlan,
            Tensor,
            tuple[Tensor, list[Statistics], list[Tensor]],
            Sequence[NormedConvolution],
            Tensor,
            bool,
        ],
        tuple[Tensor | None, list[Tensor]],
    ]


def residual_block(
    x: Tensor,
    plan: ResidualBlockPlan,
    convolutions: Sequence[NormedConvolution],
    way: Literal["native", "pytorch"] | None = None,
) -> ResidualBlockResult:
    """Run a residual block in training mode; running statistics are left to the caller.

    Args:
        x: (N, C, H, W), in any memory format.
        plan: Fixed properties.
        convolutions: The branch's, in order, and then the projection.
        way: What `executor` chooses; None asks it.

    Returns:
        The output and the batch statistics.
    """
    if (way or executor(x, plan, convolutions)) == "pytorch":
        return execute(REFERENCE, x, plan, convolutions)
    from skipnets.ops.native.residual_block import NATIVE

    return execute(NATIVE, x, plan, convolutions)


def execute(
    way: Executor, x: Tensor, plan: ResidualBlockPlan, convolutions: Sequence[NormedConvolution]
) -> ResidualBlockResult:
    """`residual_block` by one of the executors."""
    flat = [tensor for convolution in convolutions for tensor in convolution]
    y, *statistics = _ResidualBlockFunction.apply(x, plan, way, *flat)
    return ResidualBlockResult(y, _pairs(statistics), [shape.rows for shape in plan.shapes(x)])


def executor(
    x: Tensor, plan: ResidualBlockPlan, convolutions: Sequence[NormedConvolution]
) -> Literal["native", "pytorch"]:
    """What runs a block: native code where there is some and, when measured, it is faster."""
    if unsupported_device(x.device, x.dtype, dims=x.ndim - 2) is not None:
        return "pytorch"
    from skipnets.ops.native.residual_block import NATIVE

    shapes = "-".join(f"{each.weight.shape[0]}({each.weight.shape[2]})" for each in convolutions)
    shortcut = " projection" if plan.projects else ""
    size = f"{x.shape[2]}x{x.shape[3]}"
    problem = f"residual block {x.shape[1]}>{shapes}{shortcut} stride {plan.stride} {size}"
    if any(not each.weight.is_contiguous() for each in convolutions):
        problem += " channels_last"
    probe = functools.cache(lambda: _Probe(x, plan, convolutions))
    ways = {"native": lambda: probe().step(NATIVE), "pytorch": lambda: probe().step(REFERENCE)}
    return cast(Literal["native", "pytorch"], CHOICES.choose(problem, ways))


class _Probe:
    """Forward and backward passes of a block, for a few images and copies of its parameters."""

    def __init__(self, x: Tensor, plan: ResidualBlockPlan, convolutions: Sequence[NormedConvolution]) -> None:
        # Enough of them that weights are not packed for a handful of positions.
        images = max(_PROBED_ROWS // (x.shape[2] * x.shape[3]), 2 * torch.get_num_threads())
        size = (min(len(x), images), *x.shape[1:])
        values = torch.linspace(-1, 1, math.prod(size), dtype=x.dtype, device=x.device).view(size)
        last = x.is_contiguous(memory_format=torch.channels_last)
        self._x = values.contiguous(memory_format=torch.channels_last) if last else values
        self._plan = plan
        self._convolutions = [
            NormedConvolution(*(tensor.detach().clone() for tensor in each)) for each in convolutions
        ]

    def step(self, way: Executor) -> None:
        with separate_graph(), without_autocast(self._x.device):
            convolutions = [NormedConvolution(*map(_leaf, each)) for each in self._convolutions]
            y = execute(way, _leaf(self._x), self._plan, convolutions).y
            torch.autograd.backward(y, torch.ones_like(y))


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


class _ResidualBlockFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plan: ResidualBlockPlan, way: Executor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        y, statistics, outputs = way.forward(x, plan, plan.convolutions(parameters))
        flat = [tensor for each in statistics for tensor in each]
        ctx.plan, ctx.way = plan, way
        ctx.save_for_backward(x, y, *flat, *outputs, *parameters)
        ctx.mark_non_differentiable(*flat)
        return (y, *flat)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        plan, count = ctx.plan, len(ctx.plan.strides)
        x, y, *rest = ctx.saved_tensors
        made = (y, _pairs(rest[: 2 * count]), rest[2 * count : 3 * count])
        convolutions = plan.convolutions(rest[3 * count :])
        x_gradient, gradients = ctx.way.backward(
            plan, x, made, convolutions, gradient, ctx.needs_input_grad[0]
        )
        return (x_gradient, None, None, *gradients)


def _pairs(flat: Sequence[Tensor]) -> list[Statistics]:
    return [Statistics(*pair) for pair in zip(flat[::2], flat[1::2], strict=True)]


def _forward(
    x: Tensor, plan: ResidualBlockPlan, convolutions: Sequence[NormedConvolution]
) -> tuple[Tensor, list[Statistics], list[Tensor]]:
    outputs: list[Tensor] = []
    statistics: list[Statistics] = []
    affines: list[Affine] = []
    with without_autocast(x.device):
        for index, (weight, gamma, beta) in enumerate(convolutions):
            source = x if index in (0, plan.branch) else _scale_shift(outputs[-1], affines[-1]).relu_()
            outputs.append(_convolve(source, weight, plan.strides[index]))
            statistics.append(map_statistics(outputs[-1]))
            affines.append(Affine.of(statistics[-1], gamma, beta, plan.eps[index]))
        y = _scale_shift(outputs[plan.branch - 1], affines[plan.branch - 1])
        if plan.projects:
            y += _scale_shift(outputs[-1], affines[-1])
        else:
            _taken_over(y, x.shape[1], plan).add_(_every(x, plan.stride))
        return y.relu_(), statistics, outputs


def _backward(
    plan: ResidualBlockPlan,
    x: Tensor,
    made: tuple[Tensor, list[Statistics], list[Tensor]],
    convolutions: Sequence[NormedConvolution],
    gradient: Tensor,
    needs_input_gradient: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    y, statistics, outputs = made
    gradients: list[list[Tensor]] = [[] for _ in convolutions]

    def back(index: int, gradient: Tensor, source: Tensor, needed: bool = True) -> Tensor:
        """Back through a norm and the convolution before it; those of parameters are put into `gradients`."""
        weight, gamma, _ = convolutions[index]
        inverse = torch.rsqrt(statistics[index].variance + plan.eps[index])
        through_norm = torch.ops.aten.native_batch_norm_backward(
            gradient, outputs[index], gamma, None, None, statistics[index].mean, inverse, True,
            plan.eps[index], [True] * 3,
        )  # fmt: skip
        before, weight_gradient = convolution_gradients(
            through_norm[0],
            source,
            weight,
            stride=plan.strides[index],
            padding=weight.shape[2] // 2,
            input_gradient=needed,
        )
        gradients[index] = [weight_gradient, *through_norm[1:]]
        return cast(Tensor, before)

    with without_autocast(x.device):
        sum_gradient = relu_backward(gradient, y, out=torch.empty_like(y))
        current = sum_gradient
        for index in reversed(range(1, plan.branch)):
            _, gamma, beta = convolutions[index - 1]
            affine = Affine.of(statistics[index - 1], gamma, beta, plan.eps[index - 1])
            source = _scale_shift(outputs[index - 1], affine).relu_()
            current = back(index, current, source)
            current = relu_backward(current, source, out=current)
        x_gradient = back(0, current, x, needs_input_gradient)
        if plan.projects:
            other = back(plan.branch, sum_gradient, x, needs_input_gradient)
            if needs_input_gradient:
                x_gradient.add_(other)
        elif needs_input_gradient:
            _every(x_gradient, plan.stride).add_(_taken_over(sum_gradient, x.shape[1], plan))
    flat = [tensor for each in gradients for tensor in each]
    return x_gradient if needs_input_gradient else None, flat


REFERENCE = Executor(_forward, _backward)
"""By PyTorch's operators, on any device."""


def _scale_shift(maps: Tensor, affine: Affine) -> Tensor:
    """A norm with known statistics, of (N, C, H, W)."""
    channel = (-1, *[1] * (maps.ndim - 2))
    return torch.addcmul(affine.shift.view(channel), maps, affine.scale.view(channel))


def _convolve(maps: Tensor, weight: Tensor, stride: int) -> Tensor:
    """A convolution padded by half its kernel's size."""
    convolved: Tensor = CONVOLVE[maps.ndim - 2](maps, weight, None, stride, weight.shape[2] // 2)
    return convolved


def _every(maps: Tensor, stride: int) -> Tensor:
    """Every S-th position along each axis, as a view."""
    return maps[(slice(None), slice(None), *[slice(None, None, stride)] * (maps.ndim - 2))]


def _taken_over(maps: Tensor, channels: int, plan: ResidualBlockPlan) -> Tensor:
    """The channels of a block's output to which those of its input are added."""
    return maps[:, plan.zeros_before : plan.zeros_before + channels]
