"""A dense block's forward and backward pass by fused kernels.

The mathematics is that of `skipnets.ops.dense_block`; what each kernel does is said in
`skipnets.ops.triton.kernels`. Here are the buffers between the kernels, and the launches.

Shapes: as in `skipnets.ops.dense_block`. The features' rows are padded to a multiple of 16 channels where C
    is none, because wide loads need aligned rows.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from skipnets.ops.autograd import differentiable_once
from skipnets.ops.batch_norm import Statistics
from skipnets.ops.chunks import MapShape
from skipnets.ops.dense_block import DenseBlockPlan, DenseBlockResult, LayerParameters
from skipnets.ops.triton import kernels
from skipnets.ops.triton.tuning import TUNER, Config

_ALIGNMENT = 16
"""Channels: 32 bytes of the smallest type. Triton knows of divisibility by 16 alone."""


def _config(num_warps: int, num_stages: int, waves: int, **blocks: int) -> Config:
    return {**blocks, "num_warps": num_warps, "num_stages": num_stages, "waves": waves}


# By kernel; for float32, which takes twice the shared memory, rows are halved.
CONFIGS: dict[str, tuple[Config, ...]] = {
    "bottleneck_forward": (
        _config(8, 3, 2, BLOCK_M=128, BLOCK_C=64),
        _config(4, 3, 4, BLOCK_M=64, BLOCK_C=64),
        _config(4, 4, 3, BLOCK_M=128, BLOCK_C=32),
        _config(8, 4, 1, BLOCK_M=128, BLOCK_C=64),
        _config(4, 3, 6, BLOCK_M=64, BLOCK_C=32),
    ),
    "growth_forward": (
        _config(8, 3, 2, BLOCK_M=128, BLOCK_K=64),
        _config(8, 2, 1, BLOCK_M=128, BLOCK_K=128),
        _config(4, 3, 4, BLOCK_M=128, BLOCK_K=32),
        _config(4, 2, 4, BLOCK_M=64, BLOCK_K=128),
        _config(8, 2, 2, BLOCK_M=256, BLOCK_K=64),
        _config(4, 3, 4, BLOCK_M=64, BLOCK_K=64),
    ),
    "growth_input_gradient": (
        _config(8, 3, 2, BLOCK_M=128),
        _config(4, 3, 4, BLOCK_M=64),
        _config(4, 4, 4, BLOCK_M=64),
        _config(8, 4, 2, BLOCK_M=64),
    ),
    "growth_weight_gradient": (
        _config(8, 3, 1, BLOCK_M=32, BLOCK_K=128),
        _config(8, 3, 2, BLOCK_M=32, BLOCK_K=64),
        _config(8, 3, 1, BLOCK_M=64, BLOCK_K=128),
        _config(8, 3, 1, BLOCK_M=64, BLOCK_K=64),
    ),
    "bottleneck_backward": (
        _config(8, 3, 1, BLOCK_M=32, BLOCK_C=128),
        _config(8, 3, 1, BLOCK_M=64, BLOCK_C=128),
        _config(8, 2, 2, BLOCK_M=64, BLOCK_C=64),
        _config(4, 3, 3, BLOCK_M=32, BLOCK_C=64),
        _config(4, 3, 2, BLOCK_M=64, BLOCK_C=32),
    ),
}


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass, besides x's shape and the parameters.

    Attributes:
        rows: The features (M, C), padded.
        mean: Of the features (C,).
        variance: Of the features (C,).
        bottleneck_mean: Of the bottlenecks (L, K).
        bottleneck_variance: Of the bottlenecks (L, K).
        affine1: Scale and shift of each layer's first norm (L, 2, C).
        affine2: Scale and shift of each layer's second norm (L, 2, K).
        bottlenecks: (M, K) of each layer, or none.
    """

    rows: Tensor
    mean: Tensor
    variance: Tensor
    bottleneck_mean: Tensor
    bottleneck_variance: Tensor
    affine1: Tensor
    affine2: Tensor
    bottlenecks: tuple[Tensor, ...]


@dataclass(frozen=True)
class Extent:
    """All sizes of a block."""

    shape: MapShape
    input_channels: int
    layers: int
    growth_rate: int
    bottleneck: int

    @classmethod
    def of(cls, x_shape: Sequence[int], layers: Sequence[LayerParameters]) -> Extent:
        """From the input's shape (N, C₀, H, W) and the parameters."""
        assert layers[0].weight2 is not None
        growth_rate, bottleneck = layers[0].weight2.shape[:2]
        shape = MapShape(x_shape[0], x_shape[2], x_shape[3])
        return cls(shape, x_shape[1], len(layers), growth_rate, bottleneck)

    @property
    def channels(self) -> int:
        """C, of the features."""
        return self.input_channels + self.layers * self.growth_rate

    @property
    def stride(self) -> int:
        """C, padded."""
        return _padded(self.channels)

    def seen_by(self, index: int) -> int:
        """Channels that a layer reads."""
        return self.input_channels + index * self.growth_rate


def as_maps(rows: Tensor, extent: Extent, channels: int) -> Tensor:
    """The first columns of (M, stride) as (N, channels, H, W), without a copy."""
    shape, stride = extent.shape, rows.stride(0)
    return rows.as_strided(
        (shape.images, channels, shape.height, shape.width),
        (shape.area * stride, 1, shape.width * stride, stride),
    )


def rows_of(maps: Tensor) -> Tensor:
    """(N, C, H, W) as rows (M, C) of one stride, without a copy where the memory allows it."""
    n, channels, height, width = maps.shape
    stride = maps.stride(3) if width > 1 else maps.stride(2) if height > 1 else maps.stride(0)
    fits = (
        (channels == 1 or maps.stride(1) == 1)
        and stride >= channels
        and (height == 1 or maps.stride(2) == width * stride)
        and (n == 1 or maps.stride(0) == height * width * stride)
    )
    if not fits:
        maps = maps.contiguous(memory_format=torch.channels_last)
        stride = channels
    return maps.as_strided((n * height * width, channels), (stride, 1))


def dense_block(x: Tensor, plan: DenseBlockPlan, layers: Sequence[LayerParameters]) -> DenseBlockResult:
    """As `skipnets.ops.dense_block.dense_block`."""
    flat = [tensor for layer in layers for tensor in layer if tensor is not None]
    features, *statistics = _DenseBlockFunction.apply(x, plan, *flat)
    return DenseBlockResult(features, Statistics(*statistics[:2]), Statistics(*statistics[2:]))


class _DenseBlockFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: DenseBlockPlan, *parameters: Tensor) -> tuple[Tensor, ...]:
        layers = plan.layers(parameters)
        with _on(x.device):
            saved = Forward(x, plan, layers).run()
        extent = Extent.of(x.shape, layers)
        maps = as_maps(saved.rows, extent, extent.channels)
        statistics = saved[1:5]
        ctx.plan, ctx.x_shape, ctx.kept = plan, x.shape, len(saved.bottlenecks)
        ctx.save_for_backward(maps, *saved[1:-1], *saved.bottlenecks, *parameters)
        ctx.mark_non_differentiable(*statistics)
        return (maps, *statistics)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        maps, *rest = ctx.saved_tensors
        fixed = len(Saved._fields) - 2
        vectors, bottlenecks, parameters = (
            rest[:fixed],
            rest[fixed : fixed + ctx.kept],
            rest[fixed + ctx.kept :],
        )
        saved = Saved._make([rows_of(maps), *vectors, tuple(bottlenecks)])
        with _on(maps.device):
            run = Backward(ctx.plan, saved, ctx.x_shape, gradient, ctx.plan.layers(parameters))
            parameter_gradients = run.run()
            x_gradient = run.input_gradient() if ctx.needs_input_grad[0] else None
        return (x_gradient, None, *parameter_gradients)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class _Launches:
    """What the passes share: sizes, tuning, and the number of programs."""

    def __init__(self, extent: Extent, dtype: torch.dtype, device: torch.device) -> None:
        self.extent, self.dtype, self.device = extent, dtype, device
        self.M, self.H, self.W = extent.shape.rows, extent.shape.height, extent.shape.width
        self.K, self.G = extent.bottleneck, extent.growth_rate
        self.KP, self.GP = _power_of_two(self.K), _power_of_two(self.G)
        # The product of float32; without TF32, this executor is not chosen (and the interpreter is exact).
        self.precision = "tf32" if device.type == "cuda" else "ieee"
        self.processors = _processors(device)

    def empty(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=self.device)

    def programs(self, tiles: int, waves: int) -> int:
        return max(min(tiles, self.processors * waves), 1)

    def configs(self, kernel: str) -> tuple[Config, ...]:
        """The candidates that make sense for these sizes."""
        found = []
        for config in CONFIGS[kernel]:
            config = dict(config)
            if self.dtype == torch.float32:
                config["BLOCK_M"] = max(config["BLOCK_M"] // 2, 16)
            if "BLOCK_K" in config:
                widest = 64 if self.GP > 32 and kernel == "growth_weight_gradient" else self.KP
                config["BLOCK_K"] = min(config["BLOCK_K"], self.KP, widest)
            if self.device.type != "cuda":
                config["BLOCK_M"] = 16
            if config not in found:
                found.append(config)
        return tuple(found)

    def problem(self, channels: int = 0) -> tuple[object, ...]:
        """What the choice of a configuration depends on; widths of the features by powers of two."""
        wide = triton.next_power_of_2(channels) if channels else 0
        return str(self.dtype)[6:], self.precision, self.M, self.W, wide, self.K, self.G

    def bottleneck(
        self, rows: Tensor, affine: Tensor, weight: Tensor, channels: int, out: Tensor, partial: Tensor | None
    ) -> int:
        """norm1 → ReLU → 1×1; returns the number of partial statistics."""
        scratch = partial if partial is not None else out

        def run(config: Config) -> int:
            blocks, options, waves = _split(config)
            programs = self.programs(triton.cdiv(self.M, blocks["BLOCK_M"]), waves)
            kernels.bottleneck_forward[(programs,)](
                rows,
                rows.stride(0),
                affine[0],
                affine[1],
                weight,
                weight.stride(0),
                out,
                scratch,
                self.M,
                channels,
                _padded(channels),
                self.K,
                self.KP,
                **blocks,
                STATISTICS=partial is not None,
                PRECISION=self.precision,
                **options,
            )
            return programs

        return run(self.tuned("bottleneck_forward", self.problem(channels), run))

    def tuned(self, kernel: str, problem: tuple[object, ...], run: Any) -> Config:
        return TUNER.choose(kernel, problem, self.configs(kernel), run, self.device)

    def partials(self, width: int) -> Tensor:
        """Room for the partial statistics of any configuration: (3, programs, width)."""
        most = self.programs(triton.cdiv(self.M, 14), 8)
        return self.empty(3 * most * width)


class Forward(_Launches):
    """The forward pass of one block."""

    def __init__(self, x: Tensor, plan: DenseBlockPlan, layers: Sequence[LayerParameters]) -> None:
        super().__init__(Extent.of(x.shape, layers), plan.dtype, x.device)
        self.plan, self.layers, self.x = plan, layers, x

    def run(self) -> Saved:
        """All layers."""
        extent, layers = self.extent, self.layers
        rows = self.empty(self.M, extent.stride, dtype=self.dtype)
        mean, variance = self.empty(2, extent.channels)
        mean2, variance2 = self.empty(2, extent.layers, self.K)
        affine1 = self.empty(extent.layers, 2, extent.channels)
        affine2 = self.empty(extent.layers, 2, self.K)
        partial = self.partials(max(extent.input_channels, self.K, self.G))
        weights1, weights2 = pack_weights(layers, self.dtype)

        def next_norm(index: int) -> tuple[Any, ...]:
            """Of the layer that reads what has just been made: what `finish_statistics` needs of it."""
            if index == extent.layers:
                return mean, mean, 0.0, mean, mean, extent.channels, False
            layer, scale_shift = layers[index], affine1[index]
            return layer.gamma1, layer.beta1, self.plan.eps1[index], *scale_shift, extent.seen_by(index), True

        programs = self._input(rows, partial)
        self._finish(partial, programs, mean, variance, 0, extent.input_channels, *next_norm(0))
        kept = []
        scratch: Tensor | None = None
        for index, layer in enumerate(layers):
            channels = extent.seen_by(index)
            if self.plan.keep_bottleneck or scratch is None:
                scratch = self.empty(self.M, self.K, dtype=self.dtype)
            if self.plan.keep_bottleneck:
                kept.append(scratch)
            programs = self.bottleneck(rows, affine1[index], weights1[index], channels, scratch, partial)
            norm2 = (layer.gamma2, layer.beta2, self.plan.eps2[index], *affine2[index], self.K, True)
            self._finish(partial, programs, mean2[index], variance2[index], 0, self.K, *norm2)
            programs = self._grow(scratch, affine2[index], weights2[index], rows[:, channels:], partial)
            self._finish(partial, programs, mean, variance, channels, self.G, *next_norm(index + 1))
        return Saved(rows, mean, variance, mean2, variance2, affine1, affine2, tuple(kept))

    def _input(self, rows: Tensor, partial: Tensor) -> int:
        x, channels = rows_of(self.x), self.extent.input_channels
        block_c, block_m = 64, 128 if self.device.type == "cuda" else 16
        chunks = triton.cdiv(channels, block_c)
        programs = self.programs(triton.cdiv(self.M, block_m), max(8 // chunks, 1))
        kernels.input_columns[(chunks, programs)](
            x, x.stride(0), rows, rows.stride(0), partial, self.M, channels, block_c, block_m
        )
        return programs

    def _finish(
        self,
        partial: Tensor,
        programs: int,
        mean: Tensor,
        variance: Tensor,
        first: int,
        width: int,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        scale: Tensor,
        shift: Tensor,
        channels: int,
        has_norm: bool,
    ) -> None:
        block = 8
        kernels.finish_statistics[(triton.cdiv(channels, block),)](
            partial,
            programs,
            mean,
            variance,
            first,
            width,
            gamma,
            beta,
            eps,
            scale,
            shift,
            channels,
            BLOCK_P=256,
            BLOCK_C=block,
            HAS_NORM=has_norm,
        )

    def _grow(self, source: Tensor, affine: Tensor, weight: Tensor, target: Tensor, partial: Tensor) -> int:
        def run(config: Config) -> int:
            blocks, options, waves = _split(config)
            programs = self.programs(triton.cdiv(self.M, blocks["BLOCK_M"] - 2), waves)
            kernels.growth_forward[(programs,)](
                source,
                affine[0],
                affine[1],
                weight,
                target,
                target.stride(0),
                partial,
                self.M,
                self.H,
                self.W,
                self.K,
                self.G,
                self.GP,
                **blocks,
                PRECISION=self.precision,
                **options,
            )
            return programs

        return run(self.tuned("growth_forward", self.problem(), run))


class Backward(_Launches):
    """The backward pass of one block.

    Args:
        plan: As in the forward pass.
        saved: From the forward pass.
        x_shape: Of the input.
        gradient: Of the features (N, C, H, W).
        layers: Their parameters.
    """

    def __init__(
        self,
        plan: DenseBlockPlan,
        saved: Saved,
        x_shape: Sequence[int],
        gradient: Tensor,
        layers: Sequence[LayerParameters],
    ) -> None:
        super().__init__(Extent.of(x_shape, layers), plan.dtype, gradient.device)
        self.plan, self.saved, self.layers = plan, saved, layers
        self.incoming = rows_of(gradient.to(plan.dtype))
        extent = self.extent
        self.gradient = self.empty(self.M, extent.stride, dtype=self.dtype)
        self.line = torch.zeros(2, extent.channels, device=self.device)
        self.weights1, self.weights2 = pack_weights(layers, self.dtype)
        self.growth_gradient = self.empty(self.M, self.GP, dtype=self.dtype)
        self.masked = self.empty(self.M, self.K, dtype=self.dtype)

    def run(self) -> list[Tensor]:
        """The gradients of all parameters, in the order in which they were given."""
        by_layer = [self._layer(index) for index in reversed(range(self.extent.layers))]
        return [gradient for layer in reversed(by_layer) for gradient in layer]

    def input_gradient(self) -> Tensor:
        """The gradient of x (N, C₀, H, W), once those of all layers have arrived."""
        channels = self.extent.input_channels
        out = self.empty(self.M, channels, dtype=self.dtype)
        self._complete(self.gradient, 0, channels, out)
        return as_maps(out, self.extent, channels)

    def _layer(self, index: int) -> list[Tensor]:
        layer, saved, channels = self.layers[index], self.saved, self.extent.seen_by(index)
        assert layer.weight2 is not None
        last = index == self.extent.layers - 1
        source = self.incoming if last else self.gradient
        self._complete(source, channels, self.G, self.growth_gradient)
        if saved.bottlenecks:
            bottleneck = saved.bottlenecks[index]
        else:
            bottleneck = self.empty(self.M, self.K, dtype=self.dtype)
            self.bottleneck(
                saved.rows, saved.affine1[index], self.weights1[index], channels, bottleneck, partial=None
            )
        sums2 = self._back_through_growth(index, bottleneck)
        weight2_partial, programs2 = self._growth_weight(index, bottleneck, sums2)
        weight1_partial, sums_partial, programs1 = self._back_through_bottleneck(index, source)
        # Growth weights' gradients are made in channels-last order.
        weight1, sums1 = self.empty(self.K, channels), self.empty(2, channels)
        weight2 = self.empty(self.G, 3, 3, self.K)
        block = 64
        blocks = sum(triton.cdiv(n, block) for n in (channels, channels * self.K, weight2.numel()))
        kernels.finish_layer[(blocks,)](
            sums_partial,
            weight1_partial,
            programs1,
            weight2_partial,
            programs2,
            sums1,
            weight1,
            weight2,
            weight2.numel(),
            saved.mean,
            saved.variance,
            self.plan.eps1[index],
            saved.affine1[index, 0],
            self.line[0],
            self.line[1],
            self.M,
            channels,
            self.K,
            BLOCK_P=32,
            BLOCK=block,
        )
        return [
            sums1[1],
            sums1[0],
            weight1.view_as(layer.weight1),
            sums2[1],
            sums2[0],
            weight2.permute(0, 3, 1, 2),
        ]

    def _complete(self, source: Tensor, first: int, width: int, out: Tensor) -> None:
        """A matrix's columns [first, first + width) with the correction, into `out`."""
        block_c = min(_power_of_two(width), 64)
        block_m = 4096 // block_c
        kernels.complete_gradient[(triton.cdiv(self.M, block_m), triton.cdiv(width, block_c))](
            source[:, first:],
            source.stride(0),
            self.saved.rows[:, first:],
            self.saved.rows.stride(0),
            self.line[0, first:],
            self.line[1, first:],
            out,
            out.stride(0),
            self.M,
            width,
            BLOCK_M=block_m,
            BLOCK_C=block_c,
        )

    def _back_through_growth(self, index: int, bottleneck: Tensor) -> Tensor:
        """Fills `masked`; returns dβ₂ and dγ₂ (2, K)."""
        saved = self.saved
        partial = self.empty(2 * self.programs(triton.cdiv(self.M, 16), 8) * self.K)

        def run(config: Config) -> int:
            blocks, options, waves = _split(config)
            programs = self.programs(triton.cdiv(self.M, blocks["BLOCK_M"]), waves)
            kernels.growth_input_gradient[(programs,)](
                self.growth_gradient,
                self.weights2[index],
                bottleneck,
                saved.bottleneck_mean[index],
                saved.bottleneck_variance[index],
                self.plan.eps2[index],
                saved.affine2[index, 0],
                saved.affine2[index, 1],
                self.masked,
                partial,
                self.M,
                self.H,
                self.W,
                self.K,
                self.KP,
                self.G,
                self.GP,
                **blocks,
                PRECISION=self.precision,
                **options,
            )
            return programs

        programs = run(self.tuned("growth_input_gradient", self.problem(), run))
        sums = self.empty(2, self.K)
        kernels.finish_sums[(triton.cdiv(self.K, 16), 2)](
            partial, programs, sums, self.K, BLOCK_P=128, BLOCK=16
        )
        return sums

    def _growth_weight(self, index: int, bottleneck: Tensor, sums: Tensor) -> tuple[Tensor, int]:
        """Partial gradients of the 3×3 weights (programs, G, 9, K), and how many; `masked` through norm2."""
        saved = self.saved
        width = self.G * 9 * self.K
        scale, shift = self.saved.affine2[index]

        def shares(config: Config) -> tuple[int, int, int]:
            chunks = triton.cdiv(self.K, config["BLOCK_K"])
            programs, rows = self._shares(config, chunks)
            return chunks, programs, rows

        most = max(shares(config)[1] for config in self.configs("growth_weight_gradient"))
        partial = self.empty(most * width)

        def launch(config: Config, out: Tensor) -> int:
            blocks, options, _ = _split(config)
            chunks, programs, rows = shares(config)
            kernels.growth_weight_gradient[(chunks, programs)](
                bottleneck,
                scale,
                shift,
                self.growth_gradient,
                partial,
                self.masked,
                saved.bottleneck_mean[index],
                saved.bottleneck_variance[index],
                self.plan.eps2[index],
                sums,
                out,
                self.M,
                self.H,
                self.W,
                rows,
                K=self.K,
                G=self.G,
                GP=self.GP,
                **blocks,
                PRECISION=self.precision,
                **options,
            )
            return programs

        # Measured without going through the norm again and again.
        config = self.tuned(
            "growth_weight_gradient",
            self.problem(),
            lambda config: launch(config, torch.empty_like(self.masked)),
        )
        return partial, launch(config, self.masked)

    def _back_through_bottleneck(self, index: int, source: Tensor) -> tuple[Tensor, Tensor, int]:
        """Into the gradient buffer; partial gradients of the 1×1 weights and of norm1, and how many."""
        saved, channels, weight = self.saved, self.extent.seen_by(index), self.weights1[index]

        def shares(config: Config) -> tuple[int, int, int]:
            chunks = triton.cdiv(channels, config["BLOCK_C"])
            programs, rows = self._shares(config, chunks)
            return chunks, programs, rows

        most = max(shares(config)[1] for config in self.configs("bottleneck_backward"))
        weight_partial, sums_partial = self.empty(most * self.K * channels), self.empty(2 * most * channels)

        def launch(config: Config, out: Tensor) -> int:
            blocks, options, _ = _split(config)
            chunks, programs, rows = shares(config)
            kernels.bottleneck_backward[(chunks, programs)](
                self.masked,
                weight,
                weight.stride(0),
                saved.rows,
                saved.rows.stride(0),
                saved.mean,
                saved.variance,
                self.plan.eps1[index],
                saved.affine1[index, 0],
                saved.affine1[index, 1],
                source,
                source.stride(0),
                _padded(channels) if source is self.gradient else channels,
                out,
                out.stride(0),
                weight_partial,
                sums_partial,
                self.M,
                channels,
                _padded(channels),
                rows,
                self.K,
                self.KP,
                **blocks,
                PRECISION=self.precision,
                **options,
            )
            return programs

        # Measured without adding to the buffer again and again.
        config = self.tuned(
            "bottleneck_backward",
            self.problem(channels),
            lambda config: launch(config, torch.empty_like(self.gradient)),
        )
        return weight_partial, sums_partial, launch(config, self.gradient)

    def _shares(self, config: Config, chunks: int) -> tuple[int, int]:
        """Into how many shares the rows are cut beside so many chunks of columns, and the rows of each."""
        tiles = triton.cdiv(self.M, config["BLOCK_M"])
        wanted = max(min(self.processors * config["waves"] // chunks, tiles), 1)
        rows = triton.cdiv(tiles, wanted) * config["BLOCK_M"]
        return triton.cdiv(self.M, rows), rows


def pack_weights(layers: Sequence[LayerParameters], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """The weights as the kernels read them: 1×1 as (K, C), padded with zeros; 3×3 as (G, 9, K).

    What has that form already is not copied.
    """
    first = [layer.weight1.flatten(1) for layer in layers]
    first = [
        weight
        if weight.shape[1] % _ALIGNMENT == 0
        else torch.nn.functional.pad(weight, (0, _padded(weight.shape[1]) - weight.shape[1]))
        for weight in first
    ]
    second = [layer.weight2.permute(0, 2, 3, 1).flatten(1) for layer in layers if layer.weight2 is not None]
    return _cast(first, dtype), _cast(second, dtype)


def _cast(matrices: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The same in another type, all in one buffer."""
    if matrices[0].dtype == dtype:
        return [matrix.contiguous() for matrix in matrices]
    flat = torch.cat([matrix.reshape(-1) for matrix in matrices]).to(dtype)
    parts = torch.split(flat, [matrix.numel() for matrix in matrices])
    return [part.view_as(matrix) for part, matrix in zip(parts, matrices, strict=True)]


def _split(config: Config) -> tuple[dict[str, int], dict[str, int], int]:
    """Tile sizes, the compiler's options, and waves."""
    blocks = {name: value for name, value in config.items() if name.startswith("BLOCK")}
    options = {name: config[name] for name in ("num_warps", "num_stages")}
    return blocks, options, config["waves"]


def _padded(channels: int) -> int:
    return -(-channels // _ALIGNMENT) * _ALIGNMENT


def _power_of_two(width: int) -> int:
    """The next power of two that a matrix product takes."""
    return max(int(triton.next_power_of_2(width)), 16)


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
