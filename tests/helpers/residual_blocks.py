"""Residual blocks for tests: random parameters, and the layers one by one as what they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from skipnets.ops.residual_block import NormedConvolution, ResidualBlockPlan

from .rounding import random_normal

EPS = (1e-3, 1e-5, 1e-2, 1e-4)


class Shape(NamedTuple):
    """Images, height, width and channels of a block's input; outputs and strides of its convolutions."""

    images: int
    height: int
    width: int
    channels: int
    outputs: tuple[int, ...]
    strides: tuple[int, ...]
    projects: bool = False


CASES = {
    "basic": Shape(3, 7, 6, 16, (16, 16), (1, 1)),
    "basic, narrow and odd": Shape(2, 5, 9, 5, (5, 5), (1, 1)),
    "basic, zeros": Shape(3, 9, 6, 8, (20, 20), (2, 1)),
    "basic, more zeros behind": Shape(2, 4, 4, 4, (9, 9), (2, 1)),
    "basic, projection": Shape(2, 8, 5, 16, (33, 33), (2, 1), True),
    "bottleneck": Shape(2, 6, 7, 40, (17, 17, 40), (1, 1, 1)),
    "bottleneck, projection": Shape(2, 6, 4, 8, (4, 4, 16), (1, 1, 1), True),
    "bottleneck, stride": Shape(3, 7, 8, 24, (16, 16, 48), (1, 2, 1), True),
    "bottleneck, early stride": Shape(2, 6, 5, 8, (4, 4, 16), (2, 1, 1), True),
    "one pixel": Shape(5, 2, 1, 16, (16, 16), (2, 1), True),
}


class Block:
    """Random parameters, input and gradient of one block, in float64."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        normal = random_normal(seed)

        def convolution(outputs: int, inputs: int, size: int) -> list[Tensor]:
            weight = normal(outputs, inputs, size, size, scale=(inputs * size**2) ** -0.5)
            return [weight, normal(outputs), normal(outputs, scale=0.5)]

        sizes = (3, 3) if len(shape.outputs) == 2 else (1, 3, 1)
        inputs = [shape.channels, *shape.outputs]
        self.convolutions = [
            convolution(*each) for each in zip(shape.outputs, inputs[:-1], sizes, strict=True)
        ]
        stride = max(shape.strides)
        strides = shape.strides
        if shape.projects:
            self.convolutions.append(convolution(shape.outputs[-1], shape.channels, 1))
            strides = (*strides, stride)
        zeros = 0 if shape.projects else (shape.outputs[-1] - shape.channels) // 2
        self.plan = ResidualBlockPlan(strides, EPS[: len(strides)], shape.projects, zeros)
        self.x = normal(shape.images, shape.channels, shape.height, shape.width)
        side = (-(-shape.height // stride), -(-shape.width // stride))
        self.downstream = normal(shape.images, shape.outputs[-1], *side)

    def run(
        self,
        block: Callable[..., Any],
        dtype: torch.dtype,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
        needs_input_grad: bool = True,
    ) -> list[Tensor]:
        """Everything that a pass forward and backward makes, in float64: y, statistics, gradients."""

        def given(tensor: Tensor, needs_grad: bool = True) -> Tensor:
            tensor = tensor.to(dtype, copy=True)
            if tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=memory_format)
            return tensor.requires_grad_(needs_grad)

        x = given(self.x, needs_input_grad)
        convolutions = [NormedConvolution(*map(given, each)) for each in self.convolutions]
        result = block(x, self.plan, convolutions)
        result.y.backward(self.downstream.to(dtype))
        made = [result.y, *(tensor for each in result.statistics for tensor in each)]
        gradients = [tensor.grad for each in convolutions for tensor in each]
        made += [tensor for tensor in (x.grad, *gradients) if tensor is not None]
        return [tensor.detach().double() for tensor in made]


class LayerByLayer(NamedTuple):
    """As `ResidualBlockResult`."""

    y: Tensor
    statistics: list[tuple[Tensor, Tensor]]


def layer_by_layer(x: Tensor, plan: ResidualBlockPlan, convolutions: list[NormedConvolution]) -> LayerByLayer:
    """A residual block as the paper has it."""
    statistics = []

    def normed(x: Tensor, index: int) -> Tensor:
        weight, gamma, beta = convolutions[index]
        x = F.conv2d(x, weight, stride=plan.strides[index], padding=weight.shape[2] // 2)
        statistics.append((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)))
        return F.batch_norm(x, None, None, gamma, beta, training=True, eps=plan.eps[index])

    y = x
    for index in range(plan.branch):
        y = normed(y, index)
        if index + 1 < plan.branch:
            y = y.relu()
    if plan.projects:
        shortcut = normed(x, plan.branch)
    else:
        after = y.shape[1] - x.shape[1] - plan.zeros_before
        shortcut = x[:, :, :: max(plan.strides), :: max(plan.strides)]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, plan.zeros_before, after))
    return LayerByLayer((y + shortcut).relu(), statistics)
