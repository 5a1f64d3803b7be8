"""Dense block, transition and stem as operators of `torch.library`: compilers and exporters keep them whole.

A compiler would otherwise trace into an executor, whose chunks, choices and kernels are not for it to see.
Each operation is two operators, forward and backward, that call the executor which would also run without a
compiler; the numbers are the same. Beside its results, a forward operator returns what its backward operator
needs. Two things differ: a transition takes the statistics of its input once more, a pass over it, as they
cannot travel with the tensor; and what the bottlenecks of a block make is kept as one matrix.

Shapes: as in `skipnets.ops.dense_block`, `skipnets.ops.transition` and `skipnets.ops.stem`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.library import custom_op

from skipnets.ops import dense_block as blocks
from skipnets.ops import stem as stems
from skipnets.ops import transition as transitions
from skipnets.ops import triton
from skipnets.ops.batch_norm import Statistics, accumulation_dtype, map_statistics
from skipnets.ops.chunks import MapShape
from skipnets.ops.dense_block import DenseBlockPlan, DenseBlockResult, LayerParameters
from skipnets.ops.stem import StemParameters, StemPlan, StemResult, convolved_shape
from skipnets.ops.transition import TransitionParameters, TransitionResult

Reason = TypeVar("Reason", bound=Callable[..., str | None])


def _decided_while_compiling(reason: Reason) -> Reason:
    """What a function says when the compiler meets it, which does not look into it."""

    def decided(*arguments: Any, **named: Any) -> str | None:
        with unset_fake_temporarily():  # It may try out a kernel.
            return reason(*arguments, **named)

    return cast(Reason, torch.compiler.assume_constant_result(decided))  # type: ignore[no-untyped-call]


unsupported_kernels = _decided_while_compiling(triton.unsupported_kernels)
unsupported_block = _decided_while_compiling(triton.unsupported_block)

_SETTINGS = "int layers, float[] eps, bool keep_bottleneck, bool fused"


def dense_block(
    x: Tensor, plan: DenseBlockPlan, layers: Sequence[LayerParameters], *, fused: bool
) -> DenseBlockResult:
    """As `skipnets.ops.dense_block.dense_block`, for a compiler.

    Args:
        x: (N, C₀, H, W).
        plan: Its dtype is that of x.
        layers: Parameters of the L layers.
        fused: Whether the kernels of `skipnets.ops.triton` run it; the compiler cannot find out.
    """
    flat = [tensor for layer in layers for tensor in layer if tensor is not None]
    features, *rest = _block_forward(
        x, flat, len(layers), [*plan.eps1, *plan.eps2], plan.keep_bottleneck, fused
    )
    return DenseBlockResult(features, Statistics(*rest[:2]), Statistics(*rest[2:4]))


@custom_op(
    "skipnets::dense_block",
    mutates_args=(),
    schema=f"(Tensor x, Tensor[] parameters, {_SETTINGS}) -> Tensor[]",
)
def _block_forward(
    x: Tensor,
    parameters: list[Tensor],
    layers: int,
    eps: list[float],
    keep_bottleneck: bool,
    fused: bool,
) -> list[Tensor]:
    """Features, their statistics, those of the bottlenecks, and what the executor keeps."""
    plan = _plan(layers, eps, keep_bottleneck, x.dtype)
    by_layer = plan.layers(parameters)
    result, saved = blocks.executor(x, x.dtype, by_layer, fused=fused).forward(x, plan, by_layer)
    statistics = [*result.statistics, *result.bottleneck_statistics]
    if fused:  # There, statistics are views of what is saved.
        return [result.features, *(each.clone() for each in statistics), *saved]
    return [result.features, *statistics, *([torch.cat(saved)] if saved else [])]


@_block_forward.register_fake
def _(
    x: Tensor,
    parameters: list[Tensor],
    layers: int,
    eps: list[float],
    keep_bottleneck: bool,
    fused: bool,
) -> list[Tensor]:
    plan = _plan(layers, eps, keep_bottleneck, x.dtype)
    by_layer = plan.layers(parameters)
    if fused:
        from skipnets.ops.triton.dense_block import empty_results

        result, saved = empty_results(x, plan, by_layer)
        statistics = [*result.statistics, *result.bottleneck_statistics]
        return [result.features, *(torch.empty_like(each) for each in statistics), *saved]
    n, input_channels, height, width = x.shape
    growth_rate, bottleneck = parameters[-1].shape[:2]
    channels = input_channels + layers * growth_rate
    size = (layers, bottleneck) if plan.eps2 else (0,)
    keeps = plan.eps2 and keep_bottleneck
    kept = [x.new_empty(layers * n * height * width, bottleneck)] if keeps else []
    return [
        _channels_last(x, (n, channels, height, width)),
        *_empty_statistics(x, x.dtype, channels),
        *_empty_statistics(x, x.dtype, *size),
        *kept,
    ]


@custom_op(
    "skipnets::dense_block_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor[] results, Tensor[] parameters, {_SETTINGS}, bool input_gradient)"
    " -> Tensor[]",
)
def _block_backward(
    gradient: Tensor,
    results: list[Tensor],
    parameters: list[Tensor],
    layers: int,
    eps: list[float],
    keep_bottleneck: bool,
    fused: bool,
    input_gradient: bool,
) -> list[Tensor]:
    """Gradients of x, if wanted, and of all parameters."""
    features, *rest = results
    plan = _plan(layers, eps, keep_bottleneck, features.dtype)
    by_layer, saved = plan.layers(parameters), rest[4:]
    if saved and not fused:
        saved = list(saved[0].chunk(layers))
    result = DenseBlockResult(features, Statistics(*rest[:2]), Statistics(*rest[2:4]))
    x = features[:, : parameters[0].shape[0]]
    way = blocks.executor(x, x.dtype, by_layer, fused=fused)
    x_gradient, gradients = way.backward(plan, result, saved, by_layer, gradient, input_gradient)
    return [*([] if x_gradient is None else [x_gradient]), *_like_parameters(gradients, parameters)]


@_block_backward.register_fake
def _(
    gradient: Tensor,
    results: list[Tensor],
    parameters: list[Tensor],
    layers: int,  # noqa: ARG001
    eps: list[float],  # noqa: ARG001
    keep_bottleneck: bool,  # noqa: ARG001
    fused: bool,  # noqa: ARG001
    input_gradient: bool,
) -> list[Tensor]:
    n, _, height, width = gradient.shape
    size = (n, parameters[0].shape[0], height, width)
    x_gradient = [_channels_last(results[0], size)] if input_gradient else []
    return [*x_gradient, *map(torch.empty_like, parameters)]


def _plan(layers: int, eps: list[float], keep_bottleneck: bool, dtype: torch.dtype) -> DenseBlockPlan:
    return DenseBlockPlan(tuple(eps[:layers]), tuple(eps[layers:]), keep_bottleneck, dtype)


def _keep_block(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, parameters, *ctx.settings = inputs
    ctx.results = len(output)
    ctx.save_for_backward(*output, *parameters)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_block(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    results, parameters = ctx.saved_tensors[: ctx.results], ctx.saved_tensors[ctx.results :]
    needed = ctx.needs_input_grad[0]
    found = _block_backward(gradients[0], list(results), list(parameters), *ctx.settings, needed)
    return (found[0] if needed else None, found[1:] if needed else found, None, None, None, None)


_block_forward.register_autograd(_differentiate_block, setup_context=_keep_block)


def transition(x: Tensor, parameters: TransitionParameters, eps: float, *, fused: bool) -> TransitionResult:
    """As `skipnets.ops.transition.transition`, for a compiler; see `dense_block`."""
    maps, mean, variance, *_ = _transition_forward(x, *parameters, eps, fused)
    return TransitionResult(maps, Statistics(mean, variance))


@custom_op(
    "skipnets::transition",
    mutates_args=(),
    schema="(Tensor x, Tensor gamma, Tensor beta, Tensor weight, float eps, bool fused) -> Tensor[]",
)
def _transition_forward(
    x: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, eps: float, fused: bool
) -> list[Tensor]:
    """Maps, the statistics of x, and what the executor keeps."""
    parameters, statistics = TransitionParameters(gamma, beta, weight), map_statistics(x)
    maps, saved = transitions.executor(fused=fused).forward(x, parameters, eps, statistics)
    return [maps, *statistics, *saved]


@_transition_forward.register_fake
def _(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,  # noqa: ARG001
    weight: Tensor,
    eps: float,  # noqa: ARG001
    fused: bool,
) -> list[Tensor]:
    n, channels, height, width = x.shape
    size = (n, weight.shape[0], height // 2, width // 2)
    statistics = _empty_statistics(x, x.dtype, channels)
    if fused:
        pooled = MapShape(n, (height // 2, width // 2)).rows
        saved = [gamma.new_empty(2, channels), x.new_empty(pooled, channels)]
        return [_channels_last(x, size), *statistics, *saved]
    last = x.is_contiguous(memory_format=torch.channels_last)
    return [_channels_last(x, size) if last else x.new_empty(size), *statistics]


@custom_op(
    "skipnets::transition_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor x, Tensor[] results, Tensor gamma, Tensor beta, Tensor weight, "
    "float eps, bool fused) -> Tensor[]",
)
def _transition_backward(
    gradient: Tensor,
    x: Tensor,
    results: list[Tensor],
    gamma: Tensor,
    beta: Tensor,
    weight: Tensor,
    eps: float,
    fused: bool,
) -> list[Tensor]:
    """Gradients of x and of the parameters."""
    parameters, (_, mean, variance, *saved) = TransitionParameters(gamma, beta, weight), results
    way = transitions.executor(fused=fused)
    x_gradient, *own = way.backward(gradient, x, parameters, eps, Statistics(mean, variance), saved)
    return [x_gradient, *_like_parameters(own, parameters)]


@_transition_backward.register_fake
def _(
    gradient: Tensor,  # noqa: ARG001
    x: Tensor,
    results: list[Tensor],  # noqa: ARG001
    gamma: Tensor,
    beta: Tensor,
    weight: Tensor,
    eps: float,  # noqa: ARG001
    fused: bool,  # noqa: ARG001
) -> list[Tensor]:
    return [_channels_last(x, x.shape), *map(torch.empty_like, (gamma, beta, weight))]


def _keep_transition(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, gamma, beta, weight, *ctx.settings = inputs
    ctx.save_for_backward(x, gamma, beta, weight, *output)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_transition(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    x, gamma, beta, weight, *results = ctx.saved_tensors
    found = _transition_backward(gradients[0], x, results, gamma, beta, weight, *ctx.settings)
    return (*found, None, None)


_transition_forward.register_autograd(_differentiate_transition, setup_context=_keep_transition)


def stem(images: Tensor, plan: StemPlan, parameters: StemParameters, *, fused: bool) -> StemResult:
    """As `skipnets.ops.stem.stem` of an ImageNet network, for a compiler; see `dense_block`."""
    maps, mean, variance, *_ = _stem_forward(
        images, *parameters, plan.eps, plan.keep_convolved, plan.dtype, fused
    )
    return StemResult(maps, Statistics(mean, variance), convolved_shape(images).rows)


@custom_op(
    "skipnets::stem",
    mutates_args=(),
    schema="(Tensor images, Tensor weight, Tensor gamma, Tensor beta, float eps, bool keep_convolved, "
    "ScalarType dtype, bool fused) -> Tensor[]",
)
def _stem_forward(
    images: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    keep_convolved: bool,
    dtype: torch.dtype,
    fused: bool,
) -> list[Tensor]:
    """Maps, the statistics of the convolution's result, and what the executor keeps."""
    plan, parameters = StemPlan(eps, keep_convolved, dtype), StemParameters(weight, gamma, beta)
    maps, statistics, saved = stems.executor(fused=fused).forward(images, plan, parameters)
    if fused:  # There, statistics are views of what is saved.
        statistics = Statistics(*(each.clone() for each in statistics))
    return [maps, *statistics, *saved]


@_stem_forward.register_fake
def _(
    images: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    keep_convolved: bool,
    dtype: torch.dtype,
    fused: bool,
) -> list[Tensor]:
    n, height, width = (shape := convolved_shape(images)).images, shape.height, shape.width
    channels = weight.shape[0]
    pooled = MapShape(n, ((height + 1) // 2, (width + 1) // 2))
    maps = _channels_last(images, (n, channels, pooled.height, pooled.width), dtype)
    statistics = _empty_statistics(gamma, dtype, channels)
    if not fused:
        kept = [images.new_empty(shape.rows, channels, dtype=dtype)] if keep_convolved else []
        return [maps, *statistics, *kept]
    places = images.new_empty(pooled.rows, channels, dtype=torch.uint8)
    kept = [_channels_last(images, (n, channels, height, width), dtype)] if keep_convolved else []
    return [maps, *statistics, gamma.new_empty(4, channels), places, *kept]


@custom_op(
    "skipnets::stem_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor images, Tensor[] results, Tensor weight, Tensor gamma, Tensor beta, "
    "float eps, bool keep_convolved, ScalarType dtype, bool fused, bool image_gradient) -> Tensor[]",
)
def _stem_backward(
    gradient: Tensor,
    images: Tensor,
    results: list[Tensor],
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    keep_convolved: bool,
    dtype: torch.dtype,
    fused: bool,
    image_gradient: bool,
) -> list[Tensor]:
    """Gradients of the images, if wanted, and of the parameters."""
    plan, parameters = StemPlan(eps, keep_convolved, dtype), StemParameters(weight, gamma, beta)
    _, mean, variance, *saved = results
    way = stems.executor(fused=fused)
    of_images, *own = way.backward(
        gradient, images, plan, parameters, Statistics(mean, variance), saved, image_gradient
    )
    found = [] if of_images is None else [torch.empty_like(images).copy_(of_images)]
    return [*found, *_like_parameters(own, parameters)]


@_stem_backward.register_fake
def _(
    gradient: Tensor,  # noqa: ARG001
    images: Tensor,
    results: list[Tensor],  # noqa: ARG001
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,  # noqa: ARG001
    keep_convolved: bool,  # noqa: ARG001
    dtype: torch.dtype,  # noqa: ARG001
    fused: bool,  # noqa: ARG001
    image_gradient: bool,
) -> list[Tensor]:
    made = (images, weight, gamma, beta) if image_gradient else (weight, gamma, beta)
    return [torch.empty_like(each) for each in made]


def _keep_stem(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    images, weight, gamma, beta, *ctx.settings = inputs
    ctx.save_for_backward(images, weight, gamma, beta, *output)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_stem(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    images, weight, gamma, beta, *results = ctx.saved_tensors
    needed = ctx.needs_input_grad[0]
    found = _stem_backward(gradients[0], images, results, weight, gamma, beta, *ctx.settings, needed)
    return (*(found if needed else (None, *found)), None, None, None, None)


_stem_forward.register_autograd(_differentiate_stem, setup_context=_keep_stem)


def _channels_last(like: Tensor, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Empty maps of a size in channels-last order."""
    n, channels, height, width = size
    strides = (height * width * channels, 1, width * channels, channels)
    return like.new_empty_strided((n, channels, height, width), strides, dtype=dtype or like.dtype)


def _empty_statistics(like: Tensor, dtype: torch.dtype, *size: int) -> list[Tensor]:
    """Empty mean and variance of maps of a dtype."""
    return [like.new_empty(size, dtype=accumulation_dtype(dtype)) for _ in range(2)]


def _like_parameters(gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradients in their parameters' memory format, and none a view of another, as operators must return."""
    copies = [torch.empty_like(parameter) for parameter in parameters]
    torch._foreach_copy_(copies, list(gradients))
    return copies
