"""A whole dense block as one differentiable operation, in memory proportional to its depth.

Layer l of a dense block (Huang et al. 2017, arXiv 1608.06993, equation 2) sees all features before it,
x_l = H_l([x_0, …, x_{l−1}]). Executed layer by layer it copies, normalizes and rectifies all of them and
autograd keeps each result: memory and traffic grow with the square of the depth. Pleiss et al. (2017, arXiv
1707.06990) share the storage of those results and recompute them. Here

1. one channels-last buffer (M, C) holds all features, and each layer writes its k columns; concatenating is
   a view;
2. mean and variance of a feature are computed once, when it is made; every norm that sees it shares them;
3. scale, shift and ReLU are repeated in the backward pass; kept are the buffer and the bottleneck's
   outputs, or, with `keep_bottleneck=False`, the buffer alone;
4. all layers' gradients for a feature meet in one buffer, and the gradient through its mean and variance is
   added once, when all of them have arrived: with g_l the gradient behind the ReLU of norm l, and the
   norm's gradient as in `skipnets.ops.batch_norm`,

       dx = D + Σ_l γ_l s_l g_l − (1/M) Σ_l γ_l s_l dβ_l − (x − μ) (1/M) Σ_l γ_l s_l² dγ_l,

   where D is the gradient from outside the block. The last two sums are vectors of C numbers.

Everything is computed a few images at a time, so that what is made between two passes stays in the cache.

Shapes: N images, H×W positions, M = N·H·W rows, C₀ channels of the input, k growth rate, L layers, C = C₀ +
    L·k, K channels of the bottleneck. Layer l (from 0) reads columns [0, C₀ + l·k) and writes the next k.
    Signals (N, C, L) and volumes (N, C, D, H, W) are the same with other positions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from skipnets.ops.autograd import differentiable_once, separate_graph, without_autocast
from skipnets.ops.batch_norm import (
    Affine,
    Correction,
    NormGradient,
    Statistics,
    StatisticsCollector,
    accumulation_dtype,
    explicit_columns,
    relu_backward,
    scale_shift_relu,
    weight_product,
)
from skipnets.ops.choices import CHOICES
from skipnets.ops.chunks import MapShape, Workspace, as_matrix, empty_maps
from skipnets.ops.convolution import DEFAULT_WAYS, convolve, convolve_backward, pointwise_ways
from skipnets.ops.native import unsupported_block as unsupported_natively
from skipnets.ops.triton import unsupported_block

Chunks = list[Tensor]
"""A matrix split between rows, all chunks but the last equally large."""


class LayerParameters(NamedTuple):
    """A dense layer: norm → ReLU → convolution, once (3×3) or twice (1×1 to the bottleneck, then 3×3)."""

    gamma1: Tensor
    beta1: Tensor
    weight1: Tensor
    gamma2: Tensor | None = None
    beta2: Tensor | None = None
    weight2: Tensor | None = None


@dataclass(frozen=True)
class DenseBlockPlan:
    """The settings of a block's execution.

    Args:
        eps1: ε of each layer's first norm.
        eps2: ε of each layer's second norm; empty without bottlenecks.
        keep_bottleneck: Keep the outputs of the 1×1 convolutions for the backward pass instead of repeating
            them.
        dtype: Of the features and of what the convolutions compute in.
    """

    eps1: tuple[float, ...]
    eps2: tuple[float, ...]
    keep_bottleneck: bool
    dtype: torch.dtype

    def layers(self, parameters: Sequence[Tensor]) -> list[LayerParameters]:
        """Group a flat list of parameters by layer."""
        per_layer = 6 if self.eps2 else 3
        return [
            LayerParameters(*parameters[start : start + per_layer])
            for start in range(0, len(parameters), per_layer)
        ]


class DenseBlockResult(NamedTuple):
    """The features (N, C, H, W), their statistics (C,), and those of the bottlenecks' outputs (L, K)."""

    features: Tensor
    statistics: Statistics
    bottleneck_statistics: Statistics


class Executor(NamedTuple):
    """A way to compute a block's forward and backward pass.

    Attributes:
        forward: From x, plan and layers to the result, and what `backward` needs beside it.
        backward: From plan, result, what was kept beside it, layers, the gradient of the features, and
            whether that of x is needed, to the gradients of x and of all parameters in their order.
        reads_parameters: Whether `backward` reads the layers' values; otherwise it takes their sizes alone.
    """

    forward: Callable[
        [Tensor, DenseBlockPlan, Sequence[LayerParameters]], tuple[DenseBlockResult, list[Tensor]]
    ]
    backward: Callable[
        [DenseBlockPlan, DenseBlockResult, list[Tensor], Sequence[LayerParameters], Tensor, bool],
        tuple[Tensor | None, list[Tensor]],
    ]
    reads_parameters: bool


def dense_block(x: Tensor, plan: DenseBlockPlan, layers: Sequence[LayerParameters]) -> DenseBlockResult:
    """Run a dense block in training mode; running statistics are left to the caller.

    Args:
        x: (N, C₀, H, W), in any memory format.
        plan: Fixed properties.
        layers: Parameters of the L layers.

    Returns:
        The concatenation of x and all layers' outputs, in channels-last order (on a GPU with rows padded to
        a multiple of 16 channels), and the batch statistics.
    """
    way = executor(
        x,
        plan.dtype,
        layers,
        fused=unsupported_block(x.device, x.dtype, widths=growth_widths(layers), dims=x.ndim - 2) is None,
    )
    return execute(way, x, plan, layers)


def execute(
    way: Executor, x: Tensor, plan: DenseBlockPlan, layers: Sequence[LayerParameters]
) -> DenseBlockResult:
    """`dense_block` by one of the executors."""
    flat = [tensor for layer in layers for tensor in layer if tensor is not None]
    features, *statistics = _DenseBlockFunction.apply(x, plan, way, *flat)
    return DenseBlockResult(features, Statistics(*statistics[:2]), Statistics(*statistics[2:]))


def executor(x: Tensor, dtype: torch.dtype, layers: Sequence[LayerParameters], *, fused: bool) -> Executor:
    """The executor of a block: the kernels of `skipnets.ops.triton`, or the fastest of the others."""
    if fused:
        from skipnets.ops.triton.dense_block import FUSED

        return FUSED
    if cpu_executor(x, dtype, layers) == "native":
        from skipnets.ops.native.dense_block import NATIVE

        return NATIVE
    return REFERENCE


def growth_widths(layers: Sequence[LayerParameters]) -> tuple[int, int] | None:
    """Growth rate and channels of the bottleneck; None without a bottleneck."""
    weight = layers[0].weight2
    return None if weight is None else (weight.shape[0], weight.shape[1])


def cpu_executor(
    x: Tensor, dtype: torch.dtype, layers: Sequence[LayerParameters]
) -> Literal["native", "pytorch"]:
    """What runs a block on a CPU: native code where there is some and, when measured, it is faster."""
    if unsupported_natively(x, layers[0].weight2, dtype=dtype) is not None:
        return "pytorch"
    from skipnets.ops.native.dense_block import NATIVE

    first, last = layers[0].weight1.shape[:2], layers[-1].weight1.shape[1]
    problem = f"dense block {first[1]}-{last}>{first[0]} {x.shape[2]}x{x.shape[3]}"
    probe = functools.cache(lambda: _Probe(x, dtype, layers))
    ways = {"native": lambda: probe().step(NATIVE), "pytorch": lambda: probe().step(REFERENCE)}
    return cast(Literal["native", "pytorch"], CHOICES.choose(problem, ways))


class _Probe:
    """Forward and backward passes of a block, for a few images and copies of its parameters."""

    def __init__(self, x: Tensor, dtype: torch.dtype, layers: Sequence[LayerParameters]) -> None:
        images = min(len(x), max(torch.get_num_threads(), 2))
        size = (images, *x.shape[1:])
        self._x = torch.linspace(-1, 1, math.prod(size), dtype=dtype, device=x.device).view(size)
        self._layers = [
            [tensor.detach().clone() for tensor in layer if tensor is not None] for layer in layers
        ]
        self._plan = DenseBlockPlan((1e-5,) * len(layers), (1e-5,) * len(layers), True, dtype)

    def step(self, way: Executor) -> None:
        with separate_graph(), without_autocast(self._x.device):
            layers = [LayerParameters(*map(_leaf, layer)) for layer in self._layers]
            features = execute(way, _leaf(self._x), self._plan, layers).features
            torch.autograd.backward(features, torch.ones_like(features))


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


class _DenseBlockFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plan: DenseBlockPlan, way: Executor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        layers = plan.layers(parameters)
        result, saved = way.forward(x, plan, layers)
        statistics = (*result.statistics, *result.bottleneck_statistics)
        ctx.plan, ctx.way, ctx.saved = plan, way, len(saved)
        # Not all of them as saved tensors where nobody reads them: to check their versions takes time.
        ctx.layers = None if way.reads_parameters else layers
        ctx.save_for_backward(
            result.features, *statistics, *saved, *(parameters if way.reads_parameters else ())
        )
        ctx.mark_non_differentiable(*statistics)
        return (result.features, *statistics)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        features, *rest = ctx.saved_tensors
        result = DenseBlockResult(features, Statistics(*rest[:2]), Statistics(*rest[2:4]))
        saved = rest[4 : 4 + ctx.saved]
        layers = ctx.layers or ctx.plan.layers(rest[4 + ctx.saved :])
        x_gradient, gradients = ctx.way.backward(
            ctx.plan, result, saved, layers, gradient, ctx.needs_input_grad[0]
        )
        return (x_gradient, None, None, *gradients)


def _forward(
    x: Tensor, plan: DenseBlockPlan, layers: Sequence[LayerParameters]
) -> tuple[DenseBlockResult, list[Tensor]]:
    with without_autocast(x.device):
        run = _Forward(x, plan, list(layers))
        run.run()
    statistics = Statistics(run.mean, run.variance)
    return DenseBlockResult(run.maps, statistics, run.bottleneck_statistics()), run.kept


def _backward(
    plan: DenseBlockPlan,
    result: DenseBlockResult,
    saved: list[Tensor],
    layers: Sequence[LayerParameters],
    gradient: Tensor,
    needs_input_gradient: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    with without_autocast(gradient.device):
        run = _Backward(plan, result, gradient, kept=saved, layers=list(layers))
        parameter_gradients = run.run()
        return run.input_gradient() if needs_input_gradient else None, parameter_gradients


REFERENCE = Executor(_forward, _backward, reads_parameters=True)
"""By PyTorch's operators, on any device."""


class _Pass:
    """The state that the forward and the backward pass of a block share.

    All layers are worked through in the same chunks of rows, of a size that suits the layer of mean width;
    what a bottleneck makes is therefore kept as a list of chunks (or, by an operator, as one matrix).
    """

    def __init__(
        self, plan: DenseBlockPlan, maps: Tensor, input_channels: int, layers: list[LayerParameters]
    ) -> None:
        self.plan, self.layers = plan, layers
        self.maps = maps
        self.shape = MapShape.of(maps)
        self.features = as_matrix(maps)
        self.dtype, self.sum_dtype = plan.dtype, accumulation_dtype(plan.dtype)
        self.workspace = Workspace(maps.device)
        mean_width = (input_channels + maps.shape[1]) // 2
        self.chunks = list(self.shape.chunks(mean_width, self.dtype.itemsize, maps.device))
        self.ways = DEFAULT_WAYS
        if layers[0].weight2 is not None:
            outputs, rows = layers[0].weight1.shape[0], self.chunks[0].stop
            self.ways = pointwise_ways(mean_width, outputs, self.shape, rows, maps.device, self.dtype)

    def read(self, channels: int) -> Chunks:
        """The first features."""
        return [self.features[rows, :channels] for rows in self.chunks]

    def activate(self, source: Tensor, affine: Affine) -> Tensor:
        """relu(norm(source)) of a chunk (m, c), in scratch."""
        scratch = self.workspace.matrix("activated", source.shape, self.dtype)
        return scale_shift_relu(source, affine, scratch)

    def bottleneck(self, source: Chunks, affine: Affine, weight: Tensor) -> Iterator[Tensor]:
        """Norm → ReLU → 1×1 convolution, chunk by chunk: (m, c) → (m, K)."""
        weight = weight.to(self.dtype)
        for chunk in source:
            yield convolve(self.activate(chunk, affine), weight, self.shape, self.ways.forward)


class _Forward(_Pass):
    def __init__(self, x: Tensor, plan: DenseBlockPlan, layers: list[LayerParameters]) -> None:
        shape = MapShape.of(x)
        growth_rate = (layers[0].weight1 if layers[0].weight2 is None else layers[0].weight2).shape[0]
        channels = x.shape[1] + len(layers) * growth_rate
        super().__init__(plan, empty_maps(shape, channels, like=x, dtype=plan.dtype), x.shape[1], layers)
        self.input_channels, self.growth_rate = x.shape[1], growth_rate
        self.mean = torch.empty(channels, dtype=self.sum_dtype, device=x.device)
        self.variance = torch.empty_like(self.mean)
        self.kept: list[Tensor] = []
        self._bottleneck_statistics: list[Statistics] = []
        self.maps[:, : x.shape[1]].copy_(x)

    def run(self) -> None:
        self._take_statistics_of_input()
        for index, layer in enumerate(self.layers):
            channels = self.input_channels + index * self.growth_rate
            source = self.read(channels)
            statistics = Statistics(self.mean, self.variance).first(channels)
            affine = Affine.of(statistics, layer.gamma1, layer.beta1, self.plan.eps1[index])
            weight = layer.weight1
            if layer.gamma2 is not None and layer.beta2 is not None and layer.weight2 is not None:
                source, statistics = self._bottleneck(source, affine, layer.weight1)
                affine = Affine.of(statistics, layer.gamma2, layer.beta2, self.plan.eps2[index])
                weight = layer.weight2
            self._grow(source, affine, weight, slice(channels, channels + self.growth_rate))

    def bottleneck_statistics(self) -> Statistics:
        """Those of the bottlenecks' outputs, (L, K) each; (0,) without bottlenecks."""
        if not self._bottleneck_statistics:
            return Statistics(self.mean.new_empty(0), self.mean.new_empty(0))
        means, variances = zip(*self._bottleneck_statistics, strict=True)
        return Statistics(torch.stack(means), torch.stack(variances))

    def _take_statistics_of_input(self) -> None:
        collector = StatisticsCollector()
        for chunk in self.read(self.input_channels):
            collector.add(chunk.contiguous())
        self._set_statistics(slice(0, self.input_channels), collector.merged())

    def _set_statistics(self, columns: slice, statistics: Statistics) -> None:
        self.mean[columns], self.variance[columns] = statistics

    def _bottleneck(self, source: Chunks, affine: Affine, weight: Tensor) -> tuple[Chunks, Statistics]:
        """The 1×1 convolution's output (M, K), and its statistics."""
        bottleneck, collector = [], StatisticsCollector()
        for chunk in self.bottleneck(source, affine, weight):
            collector.add(chunk)
            bottleneck.append(chunk)
        if self.plan.keep_bottleneck:
            self.kept += bottleneck
        self._bottleneck_statistics.append(collector.merged())
        return bottleneck, self._bottleneck_statistics[-1]

    def _grow(self, source: Chunks, affine: Affine, weight: Tensor, columns: slice) -> None:
        """Norm → ReLU → 3×3 convolution: (M, C or K) → the layer's k columns, and their statistics."""
        weight = weight.to(self.dtype)
        collector = StatisticsCollector()
        for rows, chunk in zip(self.chunks, source, strict=True):
            grown = convolve(self.activate(chunk, affine), weight, self.shape)
            self.features[rows, columns] = grown
            collector.add(grown)
        self._set_statistics(columns, collector.merged())


class _Backward(_Pass):
    def __init__(
        self,
        plan: DenseBlockPlan,
        result: DenseBlockResult,
        gradient: Tensor,
        *,
        kept: list[Tensor],
        layers: list[LayerParameters],
    ) -> None:
        maps, statistics, self.bottleneck_statistics = result
        super().__init__(plan, maps, layers[0].gamma1.shape[0], layers)
        self.statistics = statistics
        self.input_channels, self.kept = layers[0].gamma1.shape[0], kept
        gradient_maps = empty_maps(self.shape, maps.shape[1], like=maps, dtype=self.sum_dtype)
        self.gradient = as_matrix(gradient_maps.copy_(gradient))
        # Sums over the layers of the two vectors of the correction, for every feature.
        self.correction = Correction(torch.zeros_like(statistics.mean), torch.zeros_like(statistics.mean))
        self.explicit1 = explicit_columns([layer.gamma1 for layer in layers], self.dtype)
        self.explicit2 = explicit_columns(
            [layer.gamma2 for layer in layers if layer.gamma2 is not None], self.dtype
        )

    def run(self) -> list[Tensor]:
        """The gradients of all parameters, in the order in which they were given."""
        by_layer = [self._layer(index) for index in reversed(range(len(self.layers)))]
        return [gradient for layer in reversed(by_layer) for gradient in layer]

    def input_gradient(self) -> Tensor:
        """The gradient of the block's input (N, C₀, H, W), once those of all layers have arrived."""
        maps = empty_maps(self.shape, self.input_channels, like=self.maps, dtype=self.dtype)
        matrix, columns = as_matrix(maps), slice(0, self.input_channels)
        slope, offset = self._correction_line(columns)
        for rows in self.chunks:
            self._complete(rows, columns, slope, offset, out=matrix[rows])
        return maps

    def _layer(self, index: int) -> list[Tensor]:
        """The gradients of one layer's parameters; those of its inputs are added to the buffer."""
        layer = self.layers[index]
        weight2 = layer.weight1 if layer.weight2 is None else layer.weight2
        growth_rate = weight2.shape[0]
        channels = self.input_channels + index * growth_rate
        produced = slice(channels, channels + growth_rate)
        source = self.read(channels)
        norm1 = NormGradient(
            self.statistics.first(channels),
            layer.gamma1,
            layer.beta1,
            self.plan.eps1[index],
            self.explicit1[index],
        )
        growth_gradient = self._produced_gradient(produced)
        if layer.gamma2 is None or layer.beta2 is None:
            weight1_gradient = self._into_buffer(growth_gradient, source, norm1, layer.weight1)
            return [*self._finish_norm1(norm1, layer.weight1, weight1_gradient), weight1_gradient]

        bottleneck = self._bottleneck(index, source, norm1.affine)
        statistics = self.bottleneck_statistics.row(index)
        norm2 = NormGradient(
            statistics, layer.gamma2, layer.beta2, self.plan.eps2[index], self.explicit2[index]
        )
        weight2_gradient = torch.zeros_like(weight2)
        masked = list(self._back(growth_gradient, bottleneck, norm2, weight2, weight2_gradient))
        gamma2, beta2, correction2 = norm2.finish(weight_product(weight2_gradient, weight2))
        line = correction2.as_line(statistics.mean, self.shape.rows)
        bottleneck_gradient = self._behind_norm(masked, bottleneck, norm2.affine.scale, line)
        weight1_gradient = self._into_buffer(bottleneck_gradient, source, norm1, layer.weight1)
        gamma1, beta1 = self._finish_norm1(norm1, layer.weight1, weight1_gradient)
        return [gamma1, beta1, weight1_gradient, gamma2, beta2, weight2_gradient]

    def _bottleneck(self, index: int, source: Chunks, affine: Affine) -> Chunks:
        """The 1×1 convolution's output (M, K): kept, or recomputed."""
        if self.plan.keep_bottleneck:
            count = len(self.kept) // len(self.layers)
            kept = self.kept[index * count : (index + 1) * count]
            return kept if count == len(self.chunks) else [kept[0][rows] for rows in self.chunks]
        return list(self.bottleneck(source, affine, self.layers[index].weight1))

    def _produced_gradient(self, columns: slice) -> Iterator[Tensor]:
        """The whole gradient of a layer's columns (m, k), chunk by chunk, in scratch."""
        slope, offset = self._correction_line(columns)
        for rows in self.chunks:
            shape = self.features[rows, columns].shape
            gradient = self.workspace.matrix("growth gradient", shape, self.dtype)
            self._complete(rows, columns, slope, offset, out=gradient)
            yield gradient

    def _back(
        self,
        gradients: Iterable[Tensor],
        source: Chunks,
        norm: NormGradient,
        weight: Tensor,
        weight_gradient: Tensor,
    ) -> Iterator[Tensor]:
        """Back through norm → ReLU → convolution, chunk by chunk: (m, k or K) → the gradient behind the norm.

        Args:
            gradients: Of the convolution's output.
            source: What the norm reads (M, c).
            norm: Takes up the sums of its gradient.
            weight: Of the convolution.
            weight_gradient: Its gradient is added to this.
        """
        weight = weight.to(self.dtype)
        for gradient, chunk in zip(gradients, source, strict=True):
            activated = self.activate(chunk, norm.affine)
            incoming = convolve_backward(
                gradient, activated, weight, self.shape, self.ways.backward, weight_gradient=weight_gradient
            )
            masked = relu_backward(incoming, activated, out=incoming)
            norm.add(masked, chunk)
            yield masked

    def _behind_norm(
        self, masked: Chunks, x: Chunks, scale: Tensor, line: tuple[Tensor, Tensor]
    ) -> Iterator[Tensor]:
        """Back through the second norm itself, chunk by chunk: (m, K) → (m, K), in scratch."""
        for gradient, chunk in zip(masked, x, strict=True):
            out = self.workspace.matrix("bottleneck gradient", chunk.shape, self.dtype)
            yield torch.addcmul(self._line(chunk, *line, out), gradient, scale, out=out)

    def _into_buffer(
        self, gradients: Iterable[Tensor], source: Chunks, norm: NormGradient, weight: Tensor
    ) -> Tensor:
        """`_back` for a layer's first norm, and γ_l s_l g_l added to the buffer; the weights' gradient."""
        weight_gradient = torch.zeros_like(weight)
        masked = self._back(gradients, source, norm, weight, weight_gradient)
        for rows, chunk in zip(self.chunks, masked, strict=True):
            self.gradient[rows, : chunk.shape[1]].addcmul_(chunk, norm.affine.scale)
        return weight_gradient

    def _finish_norm1(
        self, norm: NormGradient, weight: Tensor, weight_gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of γ and β; what the statistics contribute is added to the features' correction."""
        gamma, beta, correction = norm.finish(weight_product(weight_gradient, weight))
        for total, own in zip(self.correction, correction, strict=True):
            total[: own.shape[0]] += own
        return gamma, beta

    def _correction_line(self, columns: slice) -> tuple[Tensor, Tensor]:
        """The correction as slope and offset, for features whose later layers have all been treated."""
        correction = Correction(self.correction.mean_term[columns], self.correction.projection[columns])
        return correction.as_line(self.statistics.mean[columns], self.shape.rows)

    def _complete(self, rows: slice, columns: slice, slope: Tensor, offset: Tensor, out: Tensor) -> None:
        """The whole gradient of some features: what has accumulated, and the correction."""
        line = self._line(self.features[rows, columns], slope, offset, out)
        torch.add(line, self.gradient[rows, columns], out=out)

    def _line(self, x: Tensor, slope: Tensor, offset: Tensor, out: Tensor) -> Tensor:
        """x·slope + offset, the norm's correction: in `out` unless its type would round what cancels."""
        if out.dtype != self.sum_dtype:
            out = self.workspace.matrix("line", out.shape, self.sum_dtype)
        return torch.addcmul(offset, x, slope, out=out)
