"""A whole dense block as one differentiable operation, in memory proportional to its depth.

Layer l of a dense block (Huang et al. 2017, arXiv 1608.06993, equation 2) sees all features before it,
x_l = H_l([x_0, …, x_{l−1}]). Executed layer by layer it copies, normalises and rectifies all of them and
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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skipnets.ops.autograd import differentiable_once, without_autocast
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
)
from skipnets.ops.chunks import MapShape, Workspace, as_matrix, empty_maps
from skipnets.ops.convolution import add_product, as_pointwise, convolve_3x3, convolve_3x3_backward


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
    """What is fixed about a block's execution.

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
        """Sort a flat list of parameters by layer."""
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


def dense_block(x: Tensor, plan: DenseBlockPlan, layers: Sequence[LayerParameters]) -> DenseBlockResult:
    """Run a dense block in training mode; running statistics are left to the caller.

    Args:
        x: (N, C₀, H, W), in any memory format.
        plan: Fixed properties.
        layers: Parameters of the L layers.

    Returns:
        The concatenation of x and all layers' outputs, in channels-last order, and the batch statistics.
    """
    flat = [tensor for layer in layers for tensor in layer if tensor is not None]
    features, *statistics = _DenseBlockFunction.apply(x, plan, *flat)
    return DenseBlockResult(features, Statistics(*statistics[:2]), Statistics(*statistics[2:]))


class _DenseBlockFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: DenseBlockPlan, *parameters: Tensor) -> tuple[Tensor, ...]:
        with without_autocast(x.device):
            run = _Forward(x, plan, plan.layers(parameters))
            run.run()
        statistics = (run.mean, run.variance, *run.bottleneck_statistics())
        ctx.plan = plan
        ctx.kept = len(run.kept)
        ctx.input_channels, ctx.input_dtype = x.shape[1], x.dtype
        ctx.save_for_backward(run.maps, *statistics, *run.kept, *parameters)
        ctx.mark_non_differentiable(*statistics)
        return (run.maps, *statistics)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        maps, mean, variance, bottleneck_mean, bottleneck_variance, *rest = ctx.saved_tensors
        with without_autocast(maps.device):
            run = _Backward(
                ctx.plan,
                maps,
                gradient,
                Statistics(mean, variance),
                Statistics(bottleneck_mean, bottleneck_variance),
                kept=rest[: ctx.kept],
                layers=ctx.plan.layers(rest[ctx.kept :]),
            )
            parameter_gradients = run.run()
            x_gradient = run.input_gradient(ctx.input_channels) if ctx.needs_input_grad[0] else None
        return (x_gradient, None, *parameter_gradients)


class _Pass:
    """What the forward and the backward pass of a block share."""

    def __init__(self, plan: DenseBlockPlan, maps: Tensor) -> None:
        self.plan = plan
        self.maps = maps
        self.shape = MapShape.of(maps)
        self.features = as_matrix(maps)
        self.dtype, self.sum_dtype = plan.dtype, accumulation_dtype(plan.dtype)
        self.workspace = Workspace(maps.device)

    def chunk_matrix(self, name: str, rows: slice, columns: int) -> Tensor:
        """Scratch for the rows of a chunk."""
        return self.workspace.matrix(name, rows.stop - rows.start, columns, self.dtype)

    def activate(self, source: Tensor, rows: slice, affine: Affine) -> Tensor:
        """relu(norm(source)) for the rows of a chunk, in scratch."""
        return scale_shift_relu(source[rows], affine, self.chunk_matrix("activated", rows, source.shape[1]))

    def chunks(self, *columns: int) -> list[slice]:
        """Chunks of rows for matrices with these numbers of columns."""
        return list(self.shape.chunks(max(columns), self.dtype.itemsize))

    def fill_bottleneck(
        self,
        bottleneck: Tensor,
        source: Tensor,
        affine: Affine,
        weight: Tensor,
        collector: StatisticsCollector | None = None,
    ) -> None:
        """Norm → ReLU → 1×1 convolution: (M, c) features → (M, K), written into `bottleneck`."""
        matrix = as_pointwise(weight).to(self.dtype).t()
        for rows in self.chunks(*weight.shape[:2]):
            torch.mm(self.activate(source, rows, affine), matrix, out=bottleneck[rows])
            if collector is not None:
                collector.add(bottleneck[rows])


class _Forward(_Pass):
    def __init__(self, x: Tensor, plan: DenseBlockPlan, layers: list[LayerParameters]) -> None:
        shape = MapShape.of(x)
        growth_rate = (layers[0].weight1 if layers[0].weight2 is None else layers[0].weight2).shape[0]
        channels = x.shape[1] + len(layers) * growth_rate
        super().__init__(plan, empty_maps(shape, channels, like=x, dtype=plan.dtype))
        self.layers = layers
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
            source = self.features[:, :channels]
            statistics = Statistics(self.mean, self.variance).first(channels)
            affine = Affine.of(statistics, layer.gamma1, layer.beta1, self.plan.eps1[index])
            weight = layer.weight1
            if layer.gamma2 is not None and layer.beta2 is not None and layer.weight2 is not None:
                source, statistics = self._bottleneck(source, affine, layer.weight1)
                affine = Affine.of(statistics, layer.gamma2, layer.beta2, self.plan.eps2[index])
                weight = layer.weight2
            self._grow(source, affine, weight, slice(channels, channels + self.growth_rate))

    def bottleneck_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the bottlenecks' outputs, (L, K) each; (0,) without bottlenecks."""
        if not self._bottleneck_statistics:
            return self.mean.new_empty(0), self.mean.new_empty(0)
        means, variances = zip(*self._bottleneck_statistics, strict=True)
        return torch.stack(means), torch.stack(variances)

    def _take_statistics_of_input(self) -> None:
        collector = StatisticsCollector()
        for rows in self.chunks(self.input_channels):
            collector.add(self.features[rows, : self.input_channels].contiguous())
        self._set_statistics(slice(0, self.input_channels), collector.merged())

    def _set_statistics(self, columns: slice, statistics: Statistics) -> None:
        self.mean[columns], self.variance[columns] = statistics

    def _bottleneck(self, source: Tensor, affine: Affine, weight: Tensor) -> tuple[Tensor, Statistics]:
        """The 1×1 convolution's output (M, K), and its statistics."""
        rows, width = self.shape.rows, weight.shape[0]
        if self.plan.keep_bottleneck:
            bottleneck = source.new_empty(rows, width)
            self.kept.append(bottleneck)
        else:
            bottleneck = self.workspace.matrix("bottleneck", rows, width, self.dtype)
        collector = StatisticsCollector()
        self.fill_bottleneck(bottleneck, source, affine, weight, collector)
        self._bottleneck_statistics.append(collector.merged())
        return bottleneck, self._bottleneck_statistics[-1]

    def _grow(self, source: Tensor, affine: Affine, weight: Tensor, columns: slice) -> None:
        """Norm → ReLU → 3×3 convolution: (M, C or K) → the layer's k columns, and their statistics."""
        weight = weight.to(self.dtype)
        collector = StatisticsCollector()
        for rows in self.chunks(source.shape[1]):
            grown = convolve_3x3(self.activate(source, rows, affine), weight, self.shape)
            self.features[rows, columns] = grown
            collector.add(grown)
        self._set_statistics(columns, collector.merged())


class _Backward(_Pass):
    def __init__(
        self,
        plan: DenseBlockPlan,
        maps: Tensor,
        gradient: Tensor,
        statistics: Statistics,
        bottleneck_statistics: Statistics,
        *,
        kept: list[Tensor],
        layers: list[LayerParameters],
    ) -> None:
        super().__init__(plan, maps)
        self.statistics, self.bottleneck_statistics = statistics, bottleneck_statistics
        self.kept, self.layers = kept, layers
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

    def input_gradient(self, channels: int) -> Tensor:
        """The gradient of the block's input (N, C₀, H, W), once those of all layers have arrived."""
        maps = empty_maps(self.shape, channels, like=self.maps, dtype=self.dtype)
        matrix, columns = as_matrix(maps), slice(0, channels)
        slope, offset = self._correction_line(columns)
        for rows in self.chunks(channels):
            self._complete(rows, columns, slope, offset, out=matrix[rows])
        return maps

    def _layer(self, index: int) -> list[Tensor]:
        """The gradients of one layer's parameters; those of its inputs are added to the buffer."""
        layer = self.layers[index]
        weight2 = layer.weight1 if layer.weight2 is None else layer.weight2
        growth_rate = weight2.shape[0]
        channels = self.features.shape[1] - (len(self.layers) - index) * growth_rate
        produced = slice(channels, channels + growth_rate)
        source = self.features[:, :channels]
        norm1 = NormGradient(
            self.statistics.first(channels),
            layer.gamma1,
            layer.beta1,
            self.plan.eps1[index],
            self.explicit1[index],
        )
        if layer.gamma2 is None or layer.beta2 is None:
            weight1_gradient = self._growth(source, norm1, layer.weight1, produced)
            return [*self._finish_norm1(norm1, layer.weight1, weight1_gradient), weight1_gradient]

        bottleneck = self._bottleneck(index, source, norm1.affine)
        statistics = self.bottleneck_statistics.row(index)
        norm2 = NormGradient(
            statistics, layer.gamma2, layer.beta2, self.plan.eps2[index], self.explicit2[index]
        )
        masked = self.workspace.matrix("masked gradient", self.shape.rows, bottleneck.shape[1], self.dtype)
        weight2_gradient = self._growth(bottleneck, norm2, weight2, produced, into=masked)
        gamma2, beta2, correction2 = norm2.finish((weight2_gradient * weight2).sum((0, 2, 3)))
        slope, offset = correction2.as_line(statistics.mean, self.shape.rows)

        weight1_gradient = torch.zeros_like(layer.weight1)
        for rows in self.chunks(*layer.weight1.shape[:2]):
            gradient = self.chunk_matrix("bottleneck gradient", rows, bottleneck.shape[1])
            line = self._line(bottleneck[rows], slope, offset, gradient)
            torch.addcmul(line, masked[rows], norm2.affine.scale, out=gradient)
            self._pointwise(rows, gradient, source, norm1, layer.weight1, weight1_gradient)
        gamma1, beta1 = self._finish_norm1(norm1, layer.weight1, weight1_gradient)
        return [gamma1, beta1, weight1_gradient, gamma2, beta2, weight2_gradient]

    def _bottleneck(self, index: int, source: Tensor, affine: Affine) -> Tensor:
        """The 1×1 convolution's output (M, K): kept, or made again."""
        if self.plan.keep_bottleneck:
            return self.kept[index]
        weight = self.layers[index].weight1
        bottleneck = self.workspace.matrix("bottleneck", self.shape.rows, weight.shape[0], self.dtype)
        self.fill_bottleneck(bottleneck, source, affine, weight)
        return bottleneck

    def _growth(
        self, source: Tensor, norm: NormGradient, weight: Tensor, produced: slice, into: Tensor | None = None
    ) -> Tensor:
        """Back through norm → ReLU → 3×3 convolution, from a layer's columns to the gradient behind its norm.

        Args:
            source: What the norm reads (M, C).
            norm: Takes up the sums of its gradient.
            weight: Of the convolution (k, C, 3, 3).
            produced: The layer's columns.
            into: Where the gradient behind the norm goes; None adds it to the buffer, times the norm's scale.

        Returns:
            The gradient of the weights.
        """
        weight_gradient = torch.zeros_like(weight)
        weight = weight.to(self.dtype)
        slope, offset = self._correction_line(produced)
        for rows in self.chunks(source.shape[1]):
            gradient = self.chunk_matrix("growth gradient", rows, weight.shape[0])
            self._complete(rows, produced, slope, offset, out=gradient)
            activated = self.activate(source, rows, norm.affine)
            gradient, chunk_weight_gradient = convolve_3x3_backward(gradient, activated, weight, self.shape)
            weight_gradient += chunk_weight_gradient
            masked = relu_backward(gradient, activated, out=gradient if into is None else into[rows])
            norm.add(masked, source[rows])
            if into is None:
                self._accumulate(rows, masked, norm)
        return weight_gradient

    def _pointwise(
        self,
        rows: slice,
        gradient: Tensor,
        source: Tensor,
        norm: NormGradient,
        weight: Tensor,
        weight_gradient: Tensor,
    ) -> None:
        """Back through norm → ReLU → 1×1 convolution, a chunk: (m, K) → the buffer and `weight_gradient`."""
        activated = self.activate(source, rows, norm.affine)
        add_product(as_pointwise(weight_gradient), gradient.t(), activated)
        incoming = self.chunk_matrix("incoming", rows, source.shape[1])
        torch.mm(gradient, as_pointwise(weight).to(self.dtype), out=incoming)
        masked = relu_backward(incoming, activated, out=incoming)
        norm.add(masked, source[rows])
        self._accumulate(rows, masked, norm)

    def _accumulate(self, rows: slice, masked: Tensor, norm: NormGradient) -> None:
        """Add γ_l s_l g_l of a chunk to the gradients of the features."""
        self.gradient[rows, : masked.shape[1]].addcmul_(masked, norm.affine.scale)

    def _finish_norm1(
        self, norm: NormGradient, weight: Tensor, weight_gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of γ and β; what the statistics contribute is added to the features' correction."""
        gamma, beta, correction = norm.finish((weight_gradient * weight).sum((0, 2, 3)))
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
            out = self.workspace.matrix("line", out.shape[0], out.shape[1], self.sum_dtype)
        return torch.addcmul(offset, x, slope, out=out)
