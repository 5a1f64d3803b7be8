"""The transition between two dense blocks as one differentiable operation that keeps only its input.

A transition is norm → ReLU → 1×1 convolution → 2×2 average pooling (Huang et al. 2017, arXiv 1608.06993,
section 3). A 1×1 convolution acts on each position alone and pooling on each channel alone, so they commute:
pooling first leaves a quarter of the arithmetic. Kept for the backward pass is the input, which is the
block's output and exists already; norm, ReLU and pooling are repeated.

With P the gradient of the pooled map, each of its values reaches four positions as P/4 (an odd last row or
column is not pooled and gets 0, but the norm's statistics reach it all the same). The norm's gradient is
that of `skipnets.ops.batch_norm`.

Shapes: N images, H×W positions, M = N·H·W rows, C channels in, K channels out. Signals (N, C, L) and volumes
    (N, C, D, H, W) are pooled over 2 or 2×2×2 positions, and P/4 is P/2 or P/8.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from skipnets.ops.autograd import differentiable_once, separate_graph, without_autocast
from skipnets.ops.batch_norm import (
    Affine,
    NormGradient,
    Statistics,
    explicit_columns,
    map_statistics,
    relu_backward,
    scale_shift_relu,
    weight_product,
)
from skipnets.ops.choices import CHOICES
from skipnets.ops.chunks import MapShape, Workspace, as_maps, as_matrix, empty_maps, is_channels_last
from skipnets.ops.convolution import PointwiseWays, convolve, convolve_backward, pointwise_ways
from skipnets.ops.native import unsupported_device
from skipnets.ops.triton import unsupported_kernels

_AVERAGE: Mapping[int, Callable[..., Any]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}

_PROBED_ROWS = 4096
"""Positions in the images on which executors are compared."""


class TransitionParameters(NamedTuple):
    """γ and β of the norm (C,), and the weights of the 1×1 convolution (K, C, 1, 1)."""

    gamma: Tensor
    beta: Tensor
    weight: Tensor


class TransitionResult(NamedTuple):
    """The pooled maps (N, K, ⌊H/2⌋, ⌊W/2⌋), and the statistics of the input (C,)."""

    maps: Tensor
    statistics: Statistics


def transition(
    x: Tensor, parameters: TransitionParameters, eps: float, statistics: Statistics | None = None
) -> TransitionResult:
    """Run a transition in training mode; running statistics are left to the caller.

    The result has x's memory format: what follows may draw random numbers in memory order.

    Args:
        x: (N, C, H, W), in any memory format; channels-last is read in place.
        parameters: Of norm and convolution.
        eps: The norm's ε.
        statistics: Mean and variance of x where they are known.
    """
    if statistics is None:
        with torch.no_grad():
            statistics = map_statistics(x)
    if cpu_executor(x, parameters) == "native":
        from skipnets.ops.native.transition import NATIVE

        return execute(NATIVE, x, parameters, eps, statistics)
    fused = unsupported_kernels(x.device, x.dtype, dims=x.ndim - 2) is None
    return execute(executor(fused=fused), x, parameters, eps, statistics)


def execute(
    way: Executor, x: Tensor, parameters: TransitionParameters, eps: float, statistics: Statistics
) -> TransitionResult:
    """`transition` by one of the executors."""
    maps: Tensor = _TransitionFunction.apply(x, statistics, eps, way, *parameters)
    return TransitionResult(maps, statistics)


class Executor(NamedTuple):
    """A way to compute a transition's forward and backward pass.

    Attributes:
        forward: From x, parameters, ε and statistics to the pooled maps, and what `backward` needs beside
            these arguments.
        backward: From the gradient of the maps, the arguments of `forward`, and what it kept, to the
            gradients of x, γ, β and the convolution's weights.
    """

    forward: Callable[[Tensor, TransitionParameters, float, Statistics], tuple[Tensor, list[Tensor]]]
    backward: Callable[
        [Tensor, Tensor, TransitionParameters, float, Statistics, list[Tensor]], tuple[Tensor, ...]
    ]


def executor(*, fused: bool) -> Executor:
    """The executor of a transition: the kernels of `skipnets.ops.triton`, or PyTorch's operators."""
    if not fused:
        return REFERENCE
    from skipnets.ops.triton.transition import FUSED

    return FUSED


def cpu_executor(x: Tensor, parameters: TransitionParameters) -> Literal["native", "pytorch"]:
    """What runs a transition on a CPU: native code where there is some and, when measured, it is faster."""
    if unsupported_device(x.device, x.dtype, dims=x.ndim - 2) is not None:
        return "pytorch"
    from skipnets.ops.native.transition import NATIVE

    outputs, inputs = parameters.weight.shape[:2]
    problem = f"transition {inputs}>{outputs} {x.shape[2]}x{x.shape[3]}"
    probe = functools.cache(lambda: _Probe(x, parameters))
    ways = {"native": lambda: probe().step(NATIVE), "pytorch": lambda: probe().step(REFERENCE)}
    return cast(Literal["native", "pytorch"], CHOICES.choose(problem, ways))


class _Probe:
    """Forward and backward passes of a transition, for a few images and copies of its parameters."""

    def __init__(self, x: Tensor, parameters: TransitionParameters) -> None:
        images = max(_PROBED_ROWS // (x.shape[2] * x.shape[3]), 2 * torch.get_num_threads())
        shape = MapShape(min(len(x), images), tuple(x.shape[2:]))
        values = torch.linspace(-1, 1, shape.rows * x.shape[1], dtype=x.dtype, device=x.device)
        self._x = as_maps(values.view(shape.rows, -1), shape)
        self._statistics = map_statistics(self._x)
        self._parameters = [tensor.detach().clone() for tensor in parameters]

    def step(self, way: Executor) -> None:
        with separate_graph(), without_autocast(self._x.device):
            parameters = TransitionParameters(*map(_leaf, self._parameters))
            maps = execute(way, _leaf(self._x), parameters, 1e-5, self._statistics).maps
            torch.autograd.backward(maps, torch.ones_like(maps))


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


class _TransitionFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, statistics: Statistics, eps: float, way: Executor, *parameters: Tensor
    ) -> Tensor:
        maps, saved = way.forward(x, TransitionParameters(*parameters), eps, statistics)
        ctx.eps, ctx.way = eps, way
        ctx.save_for_backward(x, *statistics, *parameters, *saved)
        return maps

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, variance, gamma, beta, weight, *saved = ctx.saved_tensors
        parameters = TransitionParameters(gamma, beta, weight)
        gradients = ctx.way.backward(gradient, x, parameters, ctx.eps, Statistics(mean, variance), saved)
        return (gradients[0], None, None, None, *gradients[1:])


def _forward(
    x: Tensor, parameters: TransitionParameters, eps: float, statistics: Statistics
) -> tuple[Tensor, list[Tensor]]:
    gamma, beta, weight = parameters
    affine = Affine.of(statistics, gamma, beta, eps)
    shape = MapShape.of(x)
    pooled_shape = halved(shape)
    out = empty_maps(pooled_shape, weight.shape[0], like=x, dtype=x.dtype)
    source, target = as_matrix(x), as_matrix(out)
    compute_weight = weight.to(x.dtype)
    workspace = Workspace(x.device)
    with without_autocast(x.device):
        chunks = list(shape.chunks(x.shape[1], x.dtype.itemsize, x.device))
        way = _ways(weight, pooled_shape, _pooled_rows(chunks[0], shape, pooled_shape), x).forward
        for rows in chunks:
            scratch = workspace.matrix("activated", source[rows].shape, x.dtype)
            pooled = _pool(scale_shift_relu(source[rows], affine, scratch), shape)
            out_rows = _pooled_rows(rows, shape, pooled_shape)
            target[out_rows] = convolve(pooled, compute_weight, pooled_shape, way)
    return out if is_channels_last(x) else out.contiguous(), []


def _backward(
    gradient: Tensor,
    x: Tensor,
    parameters: TransitionParameters,
    eps: float,
    statistics: Statistics,
    saved: list[Tensor],  # noqa: ARG001 — nothing beside the arguments
) -> tuple[Tensor, ...]:
    with without_autocast(x.device):
        return _gradients(gradient, x, statistics, eps, parameters)


REFERENCE = Executor(_forward, _backward)
"""By PyTorch's operators, on any device."""


def _gradients(
    gradient: Tensor, x: Tensor, statistics: Statistics, eps: float, parameters: TransitionParameters
) -> tuple[Tensor, ...]:
    """Gradients of x, γ, β and the convolution's weights."""
    gamma, beta, weight = parameters
    shape, pooled_shape = MapShape.of(x), MapShape.of(gradient)
    source, incoming = as_matrix(x), as_matrix(gradient)
    norm = NormGradient(statistics, gamma, beta, eps, explicit_columns([gamma], x.dtype)[0])
    share = weight.to(x.dtype) / 2 ** len(shape.sides)
    weight_gradient = torch.zeros_like(weight)
    x_gradient_maps = empty_maps(shape, x.shape[1], like=x, dtype=x.dtype)
    x_gradient = as_matrix(x_gradient_maps)
    workspace = Workspace(x.device)
    chunks = list(shape.chunks(x.shape[1], x.dtype.itemsize, x.device))
    way = _ways(weight, pooled_shape, _pooled_rows(chunks[0], shape, pooled_shape), x).backward
    for rows in chunks:
        scratch = workspace.matrix("activated", source[rows].shape, x.dtype)
        activated = scale_shift_relu(source[rows], norm.affine, scratch)
        pooled_gradient = incoming[_pooled_rows(rows, shape, pooled_shape)]
        pooled = _pool(activated, shape)
        spread = convolve_backward(
            pooled_gradient, pooled, share, pooled_shape, way, weight_gradient=weight_gradient
        )
        _spread(spread, shape, out=x_gradient[rows])
        masked = relu_backward(x_gradient[rows], activated, out=x_gradient[rows])
        norm.add(masked, source[rows])

    gamma_gradient, beta_gradient, correction = norm.finish(weight_product(weight_gradient, weight))
    slope, offset = correction.as_line(statistics.mean, shape.rows)
    for rows in chunks:
        line = workspace.matrix("line", source[rows].shape, slope.dtype)
        torch.addcmul(offset, source[rows], slope, out=line)
        torch.addcmul(line, x_gradient[rows], norm.affine.scale, out=x_gradient[rows])
    return x_gradient_maps, gamma_gradient, beta_gradient, weight_gradient


def _ways(weight: Tensor, pooled_shape: MapShape, rows: slice, x: Tensor) -> PointwiseWays:
    """How the 1×1 convolution of the pooled maps is computed."""
    return pointwise_ways(weight.shape[1], weight.shape[0], pooled_shape, rows.stop, x.device, x.dtype)


def _pooled_rows(rows: slice, shape: MapShape, pooled_shape: MapShape) -> slice:
    """The rows of the pooled matrix that the images in these rows make."""
    return slice(rows.start // shape.area * pooled_shape.area, rows.stop // shape.area * pooled_shape.area)


def _pool(matrix: Tensor, shape: MapShape) -> Tensor:
    """2×2 average pooling of the images in a matrix: (n·H·W, C) → (n·⌊H/2⌋·⌊W/2⌋, C)."""
    maps: Tensor = _AVERAGE[len(shape.sides)](as_maps(matrix, shape), 2)
    return as_matrix(maps)


def _spread(pooled: Tensor, shape: MapShape, out: Tensor) -> None:
    """Copy each value to the four positions it was pooled from; 0 where nothing was pooled."""
    sides, channels = halved(shape).sides, pooled.shape[1]
    windows = out.view(-1, *shape.sides, channels)
    for axis, side in enumerate(shape.sides, 1):
        if side % 2:
            windows.select(axis, -1).zero_()
            windows = windows.narrow(axis, 0, side - 1)
    windows = windows.view(-1, *(length for side in sides for length in (side, 2)), channels)
    single = pooled.view(-1, *(length for side in sides for length in (side, 1)), channels)
    windows.copy_(single.expand_as(windows))


def halved(shape: MapShape) -> MapShape:
    """The shape behind the pooling."""
    return MapShape(shape.images, tuple(side // 2 for side in shape.sides))
