"""The stem of a network as one differentiable operation that keeps one map, or only the images.

The stem of an ImageNet network is a 7×7 convolution of stride 2, norm, ReLU and 3×3 max-pooling of stride 2
(Huang et al. 2017, arXiv 1608.06993, table 1). Its maps are the largest of the network: once dense blocks
train in linear memory, what autograd keeps of the stem (the convolution's result, the ReLU's, and where each
maximum was) is half of what is left. Here the convolution's result alone is kept, or, with
`keep_convolved=False`, not even that; norm, ReLU and pooling are repeated in the backward pass (native code
and kernels on a GPU keep a byte for where each maximum was). The norm's gradient is that of
`skipnets.ops.batch_norm`; no convolution follows directly, so dγ is summed explicitly. The stem of a ResNet
for CIFAR is the same with a 3×3 convolution and without pooling.

Shapes: N images of C channels, K channels of the stem; H×W positions after the convolution, M = N·H·W rows.
    Signals (N, C, L) and volumes (N, C, D, H, W) are the same with other positions.
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
    StatisticsCollector,
    relu_backward,
    scale_shift_relu,
)
from skipnets.ops.choices import CHOICES
from skipnets.ops.chunks import MapShape, Workspace, as_maps, as_matrix, empty_maps
from skipnets.ops.convolution import CONVOLVE, convolution_gradients
from skipnets.ops.native import unsupported_device
from skipnets.ops.triton import unsupported_kernels

KERNEL, STRIDE, PADDING = 7, 2, 3
POOL_KERNEL, POOL_STRIDE, POOL_PADDING = 3, 2, 1

_MAX_POOL: Mapping[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_POOLS_WITH_INDICES: Mapping[int, tuple[Callable[..., Any], Callable[..., Any]]] = {
    2: (F.max_pool2d_with_indices, torch.ops.aten.max_pool2d_with_indices_backward),
    3: (F.max_pool3d_with_indices, torch.ops.aten.max_pool3d_with_indices_backward),
}

_PROBED_ROWS = 25088
"""Positions behind the convolution of the images on which executors are compared: of two at 224×224."""


class StemParameters(NamedTuple):
    """Weights of the convolution (K, C, s, s), γ and β of the norm (K,)."""

    weight: Tensor
    gamma: Tensor
    beta: Tensor


class StemResult(NamedTuple):
    """The maps, pooled if the stem pools, the statistics of the convolution's result (K,), and its rows M."""

    maps: Tensor
    statistics: Statistics
    rows: int


class StemPlan(NamedTuple):
    """The settings of a stem's execution.

    Args:
        eps: The norm's ε.
        keep_convolved: Keep the convolution's result for the backward pass instead of repeating it.
        dtype: Of the maps and of what the convolution computes in.
        stride: Of the convolution, which is padded by half its size.
        pools: Whether 3×3 max-pooling of stride 2 follows.
    """

    eps: float
    keep_convolved: bool
    dtype: torch.dtype
    stride: int = STRIDE
    pools: bool = True


def stem(images: Tensor, plan: StemPlan, parameters: StemParameters) -> StemResult:
    """Run the stem in training mode; running statistics are left to the caller.

    Args:
        images: (N, C, 2H or 2H−1, 2W or 2W−1) for stride 2, else (N, C, H, W), in any memory format.
        plan: Fixed properties.
        parameters: Of convolution and norm.
    """
    if cpu_executor(images, plan, parameters) == "native":
        from skipnets.ops.native.stem import NATIVE

        return execute(NATIVE, images, plan, parameters)
    unsupported = unsupported_kernels(images.device, plan.dtype, dims=images.ndim - 2)
    fused = unsupported is None and _has_fused_kernels(plan, parameters)
    return execute(executor(fused=fused), images, plan, parameters)


def execute(way: Executor, images: Tensor, plan: StemPlan, parameters: StemParameters) -> StemResult:
    """`stem` by one of the executors."""
    maps, mean, variance = _StemFunction.apply(images, plan, way, *parameters)
    return StemResult(maps, Statistics(mean, variance), convolved_shape(images, plan.stride).rows)


class Executor(NamedTuple):
    """A way to compute a stem's forward and backward pass.

    Attributes:
        forward: From images, plan and parameters to the maps, the statistics of the convolution's result, and
            what `backward` needs beside these.
        backward: From the gradient of the maps, the arguments of `forward`, the statistics, what was kept,
            and whether that of the images is needed, to the gradients of images, weights, γ and β.
    """

    forward: Callable[[Tensor, StemPlan, StemParameters], tuple[Tensor, Statistics, list[Tensor]]]
    backward: Callable[
        [Tensor, Tensor, StemPlan, StemParameters, Statistics, list[Tensor], bool],
        tuple[Tensor | None, Tensor, Tensor, Tensor],
    ]


def executor(*, fused: bool) -> Executor:
    """The executor of a stem: the kernels of `skipnets.ops.triton`, or PyTorch's operators."""
    if not fused:
        return REFERENCE
    from skipnets.ops.triton.stem import FUSED

    return FUSED


def _has_fused_kernels(plan: StemPlan, parameters: StemParameters) -> bool:
    """Whether it is the stem that `skipnets.ops.triton` has kernels for."""
    return plan.pools and (plan.stride, parameters.weight.shape[2]) == (STRIDE, KERNEL)


def cpu_executor(images: Tensor, plan: StemPlan, parameters: StemParameters) -> Literal["native", "pytorch"]:
    """What runs a stem on a CPU: native code where there is some and, when measured, it is faster."""
    weight = parameters.weight
    if (
        unsupported_device(images.device, plan.dtype, dims=images.ndim - 2) is not None
        or images.dtype != plan.dtype
        or images.requires_grad
        or not (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last))
    ):
        return "pytorch"
    from skipnets.ops.native.stem import NATIVE

    outputs, inputs, size = weight.shape[:3]
    pooling = " pooled" if plan.pools else ""
    problem = (
        f"stem {inputs}>{outputs}({size}) stride {plan.stride}{pooling} {images.shape[2]}x{images.shape[3]}"
    )
    if not weight.is_contiguous():
        problem += " channels_last"
    probe = functools.cache(lambda: _Probe(images, plan, parameters))
    ways = {"native": lambda: probe().step(NATIVE), "pytorch": lambda: probe().step(REFERENCE)}
    return cast(Literal["native", "pytorch"], CHOICES.choose(problem, ways))


class _Probe:
    """Forward and backward passes of a stem, for a few images and copies of its parameters."""

    def __init__(self, images: Tensor, plan: StemPlan, parameters: StemParameters) -> None:
        area = convolved_shape(images, plan.stride).area
        count = min(len(images), max(_PROBED_ROWS // area, 2 * torch.get_num_threads()))
        size = images[:count].shape
        values = torch.linspace(-1, 1, size.numel(), dtype=images.dtype, device=images.device)
        self._images = values.view(size)
        if images.is_contiguous(memory_format=torch.channels_last):
            self._images = self._images.contiguous(memory_format=torch.channels_last)
        self._plan = plan
        self._parameters = [tensor.detach().clone() for tensor in parameters]

    def step(self, way: Executor) -> None:
        with separate_graph(), without_autocast(self._images.device):
            parameters = StemParameters(*(tensor.detach().requires_grad_() for tensor in self._parameters))
            maps = execute(way, self._images, self._plan, parameters).maps
            torch.autograd.backward(maps, torch.ones_like(maps))


class _StemFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, plan: StemPlan, way: Executor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        maps, statistics, saved = way.forward(images, plan, StemParameters(*parameters))
        ctx.plan, ctx.way = plan, way
        ctx.save_for_backward(images, *statistics, *parameters, *saved)
        ctx.mark_non_differentiable(*statistics)
        return (maps, *statistics)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        images, mean, variance, weight, gamma, beta, *saved = ctx.saved_tensors
        image_gradient, *gradients = ctx.way.backward(
            gradient,
            images,
            ctx.plan,
            StemParameters(weight, gamma, beta),
            Statistics(mean, variance),
            saved,
            ctx.needs_input_grad[0],
        )
        return (image_gradient, None, None, *gradients)


def _forward(
    images: Tensor, plan: StemPlan, parameters: StemParameters
) -> tuple[Tensor, Statistics, list[Tensor]]:
    weight, gamma, beta = parameters
    shape = convolved_shape(images, plan.stride)
    collector = StatisticsCollector()
    with without_autocast(images.device):
        convolved = _convolve(images, weight, plan, collector)
        statistics = collector.merged()
        affine = Affine.of(statistics, gamma, beta, plan.eps)
        out_shape = pooled_shape(shape) if plan.pools else shape
        out = empty_maps(out_shape, weight.shape[0], like=images, dtype=plan.dtype)
        workspace = Workspace(images.device)
        for rows in shape.chunks(convolved.shape[1], plan.dtype.itemsize, images.device):
            maps = as_maps(_activate(convolved, rows, affine, workspace), shape)
            if plan.pools:
                maps = _max_pool(maps)
            out[_images(rows, shape)] = maps
    return out, statistics, [convolved] if plan.keep_convolved else []


def _backward(
    gradient: Tensor,
    images: Tensor,
    plan: StemPlan,
    parameters: StemParameters,
    statistics: Statistics,
    saved: list[Tensor],
    needs_image_gradient: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    with without_autocast(images.device):
        convolved = saved[0] if saved else _convolve(images, parameters.weight, plan)
        shape = convolved_shape(images, plan.stride)
        convolved_gradient, gamma_gradient, beta_gradient = _norm_backward(
            gradient, convolved, shape, statistics, parameters, plan
        )
        image_gradient, weight_gradient = _convolution_backward(
            convolved_gradient, images, parameters.weight, plan.stride, needs_image_gradient
        )
    return image_gradient, weight_gradient, gamma_gradient, beta_gradient


REFERENCE = Executor(_forward, _backward)
"""By PyTorch's operators, on any device."""


def _norm_backward(
    gradient: Tensor,
    convolved: Tensor,
    shape: MapShape,
    statistics: Statistics,
    parameters: StemParameters,
    plan: StemPlan,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of norm → ReLU → pooling: gradients of the convolution's result (M, K), of γ and of β."""
    norm = NormGradient(statistics, parameters.gamma, parameters.beta, plan.eps, explicit=slice(None))
    result = torch.empty_like(convolved)
    workspace = Workspace(convolved.device)
    chunks = list(shape.chunks(convolved.shape[1], convolved.dtype.itemsize, convolved.device))
    for rows in chunks:
        activated = _activate(convolved, rows, norm.affine, workspace)
        some = gradient[_images(rows, shape)]
        unpooled = _max_pool_backward(some, as_maps(activated, shape)) if plan.pools else some
        masked = relu_backward(as_matrix(unpooled), activated, out=result[rows])
        norm.add(masked, convolved[rows])
    gamma_gradient, beta_gradient, correction = norm.finish(torch.zeros_like(statistics.mean))
    slope, offset = correction.as_line(statistics.mean, shape.rows)
    for rows in chunks:
        line = workspace.matrix("line", convolved[rows].shape, slope.dtype)
        torch.addcmul(offset, convolved[rows], slope, out=line)
        torch.addcmul(line, result[rows], norm.affine.scale, out=result[rows])
    return result, gamma_gradient, beta_gradient


def _convolution_backward(
    gradient: Tensor, images: Tensor, weight: Tensor, stride: int, needs_image_gradient: bool
) -> tuple[Tensor | None, Tensor]:
    """Gradients of the images, if wanted, and of the weights."""
    shape = convolved_shape(images, stride)
    image_gradient = torch.empty_like(images) if needs_image_gradient else None
    weight_gradient = torch.zeros_like(weight)
    for rows in shape.chunks(gradient.shape[1], gradient.dtype.itemsize, gradient.device):
        some = _images(rows, shape)
        of_images, of_weight = convolution_gradients(
            as_maps(gradient[rows], shape),
            images[some].to(gradient.dtype),
            weight.to(gradient.dtype),
            stride=stride,
            padding=weight.shape[2] // 2,
            input_gradient=needs_image_gradient,
        )
        weight_gradient += of_weight
        if image_gradient is not None and of_images is not None:
            image_gradient[some] = of_images
    return image_gradient, weight_gradient


def _convolve(
    images: Tensor, weight: Tensor, plan: StemPlan, collector: StatisticsCollector | None = None
) -> Tensor:
    """The convolution's result as a matrix (M, K); its values are shown to `collector`."""
    shape = convolved_shape(images, plan.stride)
    result = as_matrix(empty_maps(shape, weight.shape[0], like=images, dtype=plan.dtype))
    weight = weight.to(plan.dtype)
    for rows in shape.chunks(weight.shape[0], plan.dtype.itemsize, images.device):
        some = images[_images(rows, shape)].to(plan.dtype)
        maps = CONVOLVE[images.ndim - 2](some, weight, stride=plan.stride, padding=weight.shape[2] // 2)
        result[rows] = as_matrix(maps)
        if collector is not None:
            collector.add(result[rows])
    return result


def _activate(convolved: Tensor, rows: slice, affine: Affine, workspace: Workspace) -> Tensor:
    """relu(norm) of a chunk (m, K), in scratch."""
    scratch = workspace.matrix("activated", convolved[rows].shape, convolved.dtype)
    return scale_shift_relu(convolved[rows], affine, scratch)


def _max_pool(maps: Tensor) -> Tensor:
    pooled: Tensor = _MAX_POOL[maps.ndim - 2](maps, POOL_KERNEL, POOL_STRIDE, POOL_PADDING)
    return pooled


def _max_pool_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient of max-pooling's input: each value goes to where its window's first maximum is."""
    dims = x.ndim - 2
    kernel, stride, padding = [POOL_KERNEL] * dims, [POOL_STRIDE] * dims, [POOL_PADDING] * dims
    if dims == 1:  # PyTorch pools signals as images of height 1, and has a backward operator for these alone.
        gradient, x = gradient.unsqueeze(2), x.unsqueeze(2)
        kernel, stride, padding = [1, *kernel], [1, *stride], [0, *padding]
    pool, unpool = _POOLS_WITH_INDICES[len(kernel)]
    _, indices = pool(x, kernel, stride, padding)
    result: Tensor = unpool(gradient, x, kernel, stride, padding, [1] * len(kernel), False, indices)
    return result.squeeze(2) if dims == 1 else result


def convolved_shape(images: Tensor, stride: int = STRIDE) -> MapShape:
    """The shape of the convolution's result."""
    return MapShape(images.shape[0], tuple(-(-side // stride) for side in images.shape[2:]))


def pooled_shape(shape: MapShape) -> MapShape:
    """The shape of the pooled maps, from that of the convolution's result."""
    return MapShape(shape.images, tuple((side + 1) // POOL_STRIDE for side in shape.sides))


def _images(rows: slice, shape: MapShape) -> slice:
    """The images that these rows belong to."""
    return slice(rows.start // shape.area, rows.stop // shape.area)
