"""A dense block's forward and backward pass by fused kernels.

The mathematics is that of `skipnets.ops.dense_block`; what each kernel does is said in
`skipnets.ops.triton.kernels`. Here are the buffers between the kernels, and the launches.

Shapes: as in `skipnets.ops.dense_block`. The features' rows are padded to a multiple of 16 channels where C
    is none, because wide loads need aligned rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from skipnets.ops.batch_norm import Statistics
from skipnets.ops.chunks import MapShape
from skipnets.ops.dense_block import DenseBlockPlan, DenseBlockResult, Executor, LayerParameters
from skipnets.ops.triton import kernels
from skipnets.ops.triton.device import on_device, processors, product_precision, rows_of
from skipnets.ops.triton.launches import LAUNCHES, Compiler, Recorder
from skipnets.ops.triton.tuning import Config

_ALIGNMENT = 16
"""Channels: 32 bytes of the smallest type. Triton knows of divisibility by 16 alone."""


def _config(num_warps: int, num_stages: int, waves: int, **blocks: int) -> Config:
    return {**blocks, "num_warps": num_warps, "num_stages": num_stages, "waves": waves}


# By kernel; for float32, which takes twice the shared memory, rows are halved. Few, as each takes seconds to
# compile: on an H200, the best of them is within 1% (bottleneck_backward: 7%) of the best of twice as many.
CONFIGS: dict[str, tuple[Config, ...]] = {
    "bottleneck_forward": (
        _config(4, 3, 4, BLOCK_M=64, BLOCK_C=64),
        _config(4, 4, 3, BLOCK_M=128, BLOCK_C=32),
        _config(4, 3, 6, BLOCK_M=64, BLOCK_C=32),
    ),
    "growth_forward": (
        _config(4, 3, 4, BLOCK_M=128, BLOCK_K=32),
        _config(8, 2, 1, BLOCK_M=128, BLOCK_K=128),
        _config(4, 2, 4, BLOCK_M=64, BLOCK_K=128),
    ),
    "growth_input_gradient": (
        _config(4, 3, 4, BLOCK_M=64),
        _config(4, 4, 4, BLOCK_M=64),
    ),
    "growth_weight_gradient": (
        _config(8, 3, 1, BLOCK_M=64, BLOCK_K=128),
        _config(8, 3, 1, BLOCK_M=64, BLOCK_K=64),
        _config(4, 2, 2, BLOCK_M=32, BLOCK_K=32),  # The others spill registers on compute capability 8.0.
    ),
    "bottleneck_backward": (
        _config(8, 3, 1, BLOCK_M=32, BLOCK_C=128),
        _config(4, 3, 3, BLOCK_M=32, BLOCK_C=64),
        _config(4, 3, 2, BLOCK_M=64, BLOCK_C=32),
    ),
}


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass; or, while it runs, all of its buffers.

    Attributes:
        rows: The features (M, C), padded.
        vectors: Statistics, scales and shifts; see `Vectors`.
        weights: Packed; see `Pass.packed`.
        bottlenecks: Of all layers (L, M, K), or of one after the other (1, M, K).
    """

    rows: Tensor
    vectors: Tensor
    weights: Tensor
    bottlenecks: Tensor


class Vectors(NamedTuple):
    """Views of what is known of each channel; rows are padded where C is.

    Attributes:
        mean: Of the features (C,).
        variance: Of the features (C,).
        bottleneck_mean: Of the bottlenecks (L, K).
        bottleneck_variance: Of the bottlenecks (L, K).
        affine1: Scale and shift of each layer's first norm (L, 2, C).
        affine2: Scale and shift of each layer's second norm (L, 2, K).
    """

    mean: Tensor
    variance: Tensor
    bottleneck_mean: Tensor
    bottleneck_variance: Tensor
    affine1: Tensor
    affine2: Tensor


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
        shape = MapShape(x_shape[0], (x_shape[2], x_shape[3]))
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


def empty_results(
    x: Tensor, plan: DenseBlockPlan, layers: Sequence[LayerParameters]
) -> tuple[DenseBlockResult, list[Tensor]]:
    """What a forward pass returns, and what it keeps, without values."""
    return _results(run := Pass(Extent.of(x.shape, layers), plan, x.device), run.buffers())


def _results(run: Pass, saved: Saved) -> tuple[DenseBlockResult, list[Tensor]]:
    mean, variance, mean2, variance2, *_ = run.vectors(saved.vectors)
    maps = as_maps(saved.rows, run.extent, run.extent.channels)
    result = DenseBlockResult(maps, Statistics(mean, variance), Statistics(mean2, variance2))
    return result, [saved.vectors, saved.weights, *([saved.bottlenecks] if run.plan.keep_bottleneck else [])]


def _forward(
    x: Tensor, plan: DenseBlockPlan, layers: Sequence[LayerParameters]
) -> tuple[DenseBlockResult, list[Tensor]]:
    run = Forward(x, plan, layers)
    with on_device(x.device):
        return _results(run, run.run())


def _backward(
    plan: DenseBlockPlan,
    result: DenseBlockResult,
    saved: list[Tensor],
    layers: Sequence[LayerParameters],
    gradient: Tensor,
    needs_input_gradient: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    maps, (vectors, weights, *kept) = result.features, saved
    input_channels = layers[0].gamma1.shape[0]
    extent = Extent.of((maps.shape[0], input_channels, *maps.shape[2:]), layers)
    with on_device(maps.device):
        bottlenecks = kept[0] if kept else maps.new_empty(1, extent.shape.rows, extent.bottleneck)
        buffers = Saved(_padded_rows(maps, extent), vectors, weights, bottlenecks)
        return Backward(plan, buffers, extent, gradient, input_gradient=needs_input_gradient).run()


FUSED = Executor(_forward, _backward, reads_parameters=False)
"""For layers with bottlenecks on a GPU."""


class Pass:
    """What the passes share: sizes, buffers, tuning, and the number of programs."""

    def __init__(self, extent: Extent, plan: DenseBlockPlan, device: torch.device) -> None:
        self.extent, self.plan, self.dtype, self.device = extent, plan, plan.dtype, device
        self.M, self.H, self.W = extent.shape.rows, extent.shape.height, extent.shape.width
        self.K, self.G = extent.bottleneck, extent.growth_rate
        self.KP, self.GP = _power_of_two(self.K), _power_of_two(self.G)
        self.precision = product_precision(plan.dtype, device)
        self.processors = processors(device)
        self.launch: Recorder | Compiler

    def empty(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A buffer on the device."""
        return torch.empty(size, dtype=dtype, device=self.device)

    def buffers(self) -> Saved:
        """What the forward pass makes."""
        extent = self.extent
        return Saved(
            self.empty(self.M, extent.stride, dtype=self.dtype),
            self.empty(sum(map(_padded, self.vector_sizes))),
            self.empty(sum(map(_padded, self.weight_sizes)), dtype=self.dtype),
            self.empty(extent.layers if self.plan.keep_bottleneck else 1, self.M, self.K, dtype=self.dtype),
        )

    def vectors(self, flat: Tensor) -> Vectors:
        """Its parts."""
        layers, stride = self.extent.layers, self.extent.stride
        mean, variance, mean2, variance2, affine1, affine2 = _parts(flat, self.vector_sizes)
        return Vectors(
            mean[: self.extent.channels],
            variance[: self.extent.channels],
            mean2.view(layers, self.K),
            variance2.view(layers, self.K),
            affine1.view(layers, 2, stride),
            affine2.view(layers, 2, self.K),
        )

    @property
    def vector_sizes(self) -> tuple[int, ...]:
        """Values of each part of the vectors."""
        layers, stride = self.extent.layers, self.extent.stride
        return stride, stride, layers * self.K, layers * self.K, 2 * layers * stride, 2 * layers * self.K

    @property
    def weight_sizes(self) -> list[int]:
        """Values of each packed weight, a layer's 1×1 and 3×3 after each other."""
        return [
            size
            for index in range(self.extent.layers)
            for size in (self.K * _padded(self.extent.seen_by(index)), self.G * 9 * self.K)
        ]

    def packed(self, flat: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The weights as the kernels read them: 1×1 as (K, C), padded with zeros; 3×3 as (G, 9, K)."""
        parts = _parts(flat, self.weight_sizes)
        return [part.view(self.K, -1) for part in parts[::2]], [
            part.view(self.G, 9, self.K) for part in parts[1::2]
        ]

    def programs(self, tiles: int, waves: int) -> int:
        """How many programs share so many tiles."""
        return max(min(tiles, self.processors * waves), 1)

    def configs(self, kernel: str) -> tuple[Config, ...]:
        """The candidates that make sense for these sizes."""
        return _configs(kernel, self.dtype, self.KP, self.GP, self.device.type)

    def problem(self, channels: int = 0) -> tuple[object, ...]:
        """What the choice of a configuration depends on; widths of the features by powers of two."""
        wide = triton.next_power_of_2(channels) if channels else 0
        return str(self.dtype)[6:], self.precision, self.M, self.W, wide, self.K, self.G

    def tuned(self, kernel: str, problem: tuple[object, ...], run: Callable[[Config], object]) -> Config:
        """The fastest of the kernel's configurations."""
        return self.launch.tune(kernel, problem, self.configs(kernel), run, self.device)

    def bottleneck(
        self, rows: Tensor, affine: Tensor, weight: Tensor, channels: int, out: Tensor, partial: Tensor | None
    ) -> int:
        """norm1 → ReLU → 1×1; returns the number of partial statistics."""
        scratch = partial if partial is not None else out

        def run(config: Config) -> int:
            blocks, options, waves = _split(config)
            programs = self.programs(triton.cdiv(self.M, blocks["BLOCK_M"]), waves)
            self.launch(
                kernels.bottleneck_forward,
                (programs,),
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


class Forward(Pass):
    """The forward pass of one block."""

    def __init__(self, x: Tensor, plan: DenseBlockPlan, layers: Sequence[LayerParameters]) -> None:
        super().__init__(Extent.of(x.shape, layers), plan, x.device)
        self.layers, self.x = layers, rows_of(x)

    def run(self) -> Saved:
        """All layers."""
        extent, saved = self.extent, self.buffers()
        self._pack(saved.weights)
        # Room for the partial statistics of any configuration: (3, programs, width).
        most = self.programs(triton.cdiv(self.M, 14), 8)
        partial = self.empty(3 * most * max(extent.input_channels, self.K, self.G))
        vectors = [
            tensor
            for layer in self.layers
            for tensor in (layer.gamma1, layer.beta1, layer.gamma2, layer.beta2)
            if tensor is not None
        ]

        def build(launch: Recorder | Compiler) -> None:
            self.launch = launch
            self._run(saved, partial)

        key = ("forward", self.device, self.plan, self.precision, extent, self.x.stride(0))
        LAUNCHES.run(key, [self.x, *saved, partial, *vectors], build)
        return saved

    def _pack(self, flat: Tensor) -> None:
        """Fill `packed`; one copy for all where the parameters' order in memory is the same."""
        needs_padding = False
        targets, sources = [], []
        for index, (layer, first, second) in enumerate(zip(self.layers, *self.packed(flat), strict=True)):
            assert layer.weight2 is not None
            channels = self.extent.seen_by(index)
            needs_padding |= first.shape[1] != channels
            weight1 = layer.weight1
            stride = first.shape[1] if first.shape[1] == channels else 0
            targets.append(
                first.as_strided(weight1.shape, weight1.stride())
                if weight1.stride()[:2] == (stride, 1)
                else first[:, :channels, None, None]
            )
            targets.append(second.view(self.G, 3, 3, self.K).permute(0, 3, 1, 2))
            sources += [weight1, layer.weight2]
        if needs_padding:
            flat.zero_()
        torch._foreach_copy_(targets, sources)

    def _run(self, saved: Saved, partial: Tensor) -> None:
        extent, layers, rows = self.extent, self.layers, saved.rows
        mean, variance, mean2, variance2, affine1, affine2 = self.vectors(saved.vectors)
        weights1, weights2 = self.packed(saved.weights)

        def next_norm(index: int) -> tuple[Any, ...]:
            """Of the layer that reads what has just been made: what `finish_statistics` needs of it."""
            if index == extent.layers:
                return mean, mean, 0.0, mean, mean, extent.channels, False
            layer, scale_shift = layers[index], affine1[index]
            return layer.gamma1, layer.beta1, self.plan.eps1[index], *scale_shift, extent.seen_by(index), True

        programs = self._input(rows, partial)
        self._finish(partial, programs, mean, variance, 0, extent.input_channels, *next_norm(0))
        for index, layer in enumerate(layers):
            channels = extent.seen_by(index)
            bottleneck = saved.bottlenecks[index % len(saved.bottlenecks)]
            programs = self.bottleneck(rows, affine1[index], weights1[index], channels, bottleneck, partial)
            norm2 = (layer.gamma2, layer.beta2, self.plan.eps2[index], *affine2[index], self.K, True)
            self._finish(partial, programs, mean2[index], variance2[index], 0, self.K, *norm2)
            programs = self._grow(bottleneck, affine2[index], weights2[index], rows[:, channels:], partial)
            self._finish(partial, programs, mean, variance, channels, self.G, *next_norm(index + 1))

    def _input(self, rows: Tensor, partial: Tensor) -> int:
        x, channels = self.x, self.extent.input_channels
        block_c, block_m = 64, 128 if self.device.type == "cuda" else 16
        chunks = triton.cdiv(channels, block_c)
        programs = self.programs(triton.cdiv(self.M, block_m), max(8 // chunks, 1))
        self.launch(
            kernels.input_columns,
            (chunks, programs),
            x,
            x.stride(0),
            rows,
            rows.stride(0),
            partial,
            self.M,
            channels,
            block_c,
            block_m,
            COPIES=True,
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
        self.launch(
            kernels.finish_statistics,
            (triton.cdiv(channels, block),),
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
            self.launch(
                kernels.growth_forward,
                (programs,),
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


class Backward(Pass):
    """The backward pass of one block.

    Args:
        plan: As in the forward pass.
        saved: From the forward pass; a bottleneck that was not kept is made here.
        extent: The block's sizes.
        gradient: Of the features (N, C, H, W).
        input_gradient: Whether that of x is needed.
    """

    def __init__(
        self, plan: DenseBlockPlan, saved: Saved, extent: Extent, gradient: Tensor, *, input_gradient: bool
    ) -> None:
        super().__init__(extent, plan, gradient.device)
        self.saved = saved
        self.incoming = rows_of(gradient.to(plan.dtype))
        self.gradient = self.empty(self.M, extent.stride, dtype=self.dtype)
        self.line = torch.zeros(2, extent.stride, dtype=torch.float32, device=self.device)
        self.growth_gradient = self.empty(self.M, self.GP, dtype=self.dtype)
        self.masked = self.empty(self.M, self.K, dtype=self.dtype)
        self.scratch = self.empty(sum(map(_padded, self.scratch_sizes)))
        self.gradients = self.empty(sum(map(_padded, self.gradient_sizes)))
        channels = extent.input_channels if input_gradient else 0
        self.x_gradient = self.empty(self.M, channels, dtype=self.dtype)

    @functools.cached_property
    def gradient_sizes(self) -> list[int]:
        """Values of the gradients of each layer: β₁ and γ₁, 1×1 weights, β₂ and γ₂, 3×3 weights."""
        return [
            size
            for index in range(self.extent.layers)
            for size in (
                2 * self.extent.seen_by(index),
                self.K * self.extent.seen_by(index),
                2 * self.K,
                self.G * 9 * self.K,
            )
        ]

    @functools.cached_property
    def scratch_sizes(self) -> tuple[int, int, int, int]:
        """Most values of a layer's partial sums: of norm2, 3×3 weights, norm1, 1×1 weights."""
        return _scratch_sizes(self.extent, self.dtype, self.device)

    def run(self) -> tuple[Tensor | None, list[Tensor]]:
        """The gradients of x and of all parameters, in the order in which they were given."""
        x_gradient = self.x_gradient if self.x_gradient.shape[1] else None

        def build(launch: Recorder | Compiler) -> None:
            self.launch = launch
            parts = _parts(self.gradients, self.gradient_sizes)
            for index in reversed(range(self.extent.layers)):
                self._layer(index, *parts[4 * index : 4 * index + 4])
            if x_gradient is not None:
                self._complete(self.gradient, 0, self.extent.input_channels, x_gradient)

        own = [self.gradient, self.line, self.growth_gradient, self.masked, self.scratch, self.gradients]
        tensors = [self.incoming, *self.saved, *own, *([] if x_gradient is None else [x_gradient])]
        variant = (self.device, self.plan, self.precision, self.extent)
        key = ("backward", *variant, self.incoming.stride(0), len(tensors))
        LAUNCHES.run(key, tensors, build)
        maps = None if x_gradient is None else as_maps(x_gradient, self.extent, self.extent.input_channels)
        return maps, self._by_parameter()

    def _by_parameter(self) -> list[Tensor]:
        found = []
        parts = _parts(self.gradients, self.gradient_sizes)
        for index in range(self.extent.layers):
            norm1, weight1, norm2, weight2 = parts[4 * index : 4 * index + 4]
            beta1, gamma1 = norm1.chunk(2)
            beta2, gamma2 = norm2.chunk(2)
            channels = self.extent.seen_by(index)
            # Growth weights' gradients are made in channels-last order.
            found += [gamma1, beta1, weight1.view(self.K, channels, 1, 1), gamma2, beta2]
            found.append(weight2.as_strided((self.G, self.K, 3, 3), (9 * self.K, 1, 3 * self.K, self.K)))
        return found

    def _layer(self, index: int, norm1: Tensor, weight1: Tensor, norm2: Tensor, weight2: Tensor) -> None:
        """One layer, whose parameters' gradients go into the given tensors."""
        vectors, channels = self._vectors, self.extent.seen_by(index)
        last = index == self.extent.layers - 1
        source = self.incoming if last else self.gradient
        self._complete(source, channels, self.G, self.growth_gradient)
        bottleneck = self.saved.bottlenecks[index % len(self.saved.bottlenecks)]
        if not self.plan.keep_bottleneck:
            affine, weight = vectors.affine1[index], self._weights[0][index]
            self.bottleneck(self.saved.rows, affine, weight, channels, bottleneck, partial=None)
        self._back_through_growth(index, bottleneck, norm2)
        programs2 = self._growth_weight(index, bottleneck, norm2)
        programs1 = self._back_through_bottleneck(index, source)
        _, weight2_partial, sums_partial, weight1_partial = self._scratch
        block = 64
        blocks = sum(triton.cdiv(n, block) for n in (channels, channels * self.K, weight2.numel()))
        self.launch(
            kernels.finish_layer,
            (blocks,),
            sums_partial,
            weight1_partial,
            programs1,
            weight2_partial,
            programs2,
            norm1,
            weight1,
            weight2,
            weight2.numel(),
            vectors.mean,
            vectors.variance,
            self.plan.eps1[index],
            vectors.affine1[index, 0],
            self.line[0],
            self.line[1],
            self.M,
            channels,
            self.K,
            BLOCK_P=32,
            BLOCK=block,
        )

    @functools.cached_property
    def _vectors(self) -> Vectors:
        return self.vectors(self.saved.vectors)

    @functools.cached_property
    def _weights(self) -> tuple[list[Tensor], list[Tensor]]:
        return self.packed(self.saved.weights)

    @functools.cached_property
    def _scratch(self) -> list[Tensor]:
        return _parts(self.scratch, self.scratch_sizes)

    def _complete(self, source: Tensor, first: int, width: int, out: Tensor) -> None:
        """A matrix's columns [first, first + width) with the correction, into `out`."""
        block_c = min(_power_of_two(width), 64)
        block_m = 4096 // block_c
        self.launch(
            kernels.complete_gradient,
            (triton.cdiv(self.M, block_m), triton.cdiv(width, block_c)),
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

    def _back_through_growth(self, index: int, bottleneck: Tensor, sums: Tensor) -> None:
        """Fills `masked`, and `sums` with dβ₂ and dγ₂ (2, K)."""
        vectors, partial = self._vectors, self._scratch[0]

        def run(config: Config) -> int:
            blocks, options, waves = _split(config)
            programs = self.programs(triton.cdiv(self.M, blocks["BLOCK_M"]), waves)
            self.launch(
                kernels.growth_input_gradient,
                (programs,),
                self.growth_gradient,
                self._weights[1][index],
                bottleneck,
                vectors.bottleneck_mean[index],
                vectors.bottleneck_variance[index],
                self.plan.eps2[index],
                vectors.affine2[index, 0],
                vectors.affine2[index, 1],
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
        grid = (triton.cdiv(self.K, 16), 2)
        self.launch(kernels.finish_sums, grid, partial, programs, sums, self.K, BLOCK_P=128, BLOCK=16)

    def _growth_weight(self, index: int, bottleneck: Tensor, sums: Tensor) -> int:
        """Partial gradients of the 3×3 weights (programs, G, 9, K), how many; `masked` through norm2."""
        vectors, partial = self._vectors, self._scratch[1]
        scale, shift = vectors.affine2[index]

        def launch(config: Config, out: Tensor) -> int:
            blocks, options, _ = _split(config)
            chunks = triton.cdiv(self.K, blocks["BLOCK_K"])
            programs, rows = _shares(self.M, self.processors, config, chunks)
            self.launch(
                kernels.growth_weight_gradient,
                (chunks, programs),
                bottleneck,
                scale,
                shift,
                self.growth_gradient,
                partial,
                self.masked,
                vectors.bottleneck_mean[index],
                vectors.bottleneck_variance[index],
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
        return launch(config, self.masked)

    def _back_through_bottleneck(self, index: int, source: Tensor) -> int:
        """Into the gradient buffer; partial gradients of the 1×1 weights and of norm1, how many."""
        vectors, channels, weight = self._vectors, self.extent.seen_by(index), self._weights[0][index]
        _, _, sums_partial, weight_partial = self._scratch

        def launch(config: Config, out: Tensor) -> int:
            blocks, options, _ = _split(config)
            chunks = triton.cdiv(channels, blocks["BLOCK_C"])
            programs, rows = _shares(self.M, self.processors, config, chunks)
            self.launch(
                kernels.bottleneck_backward,
                (chunks, programs),
                self.masked,
                weight,
                weight.stride(0),
                self.saved.rows,
                self.saved.rows.stride(0),
                vectors.mean,
                vectors.variance,
                self.plan.eps1[index],
                vectors.affine1[index, 0],
                vectors.affine1[index, 1],
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
        return launch(config, self.gradient)


@functools.cache
def _configs(
    kernel: str, dtype: torch.dtype, bottleneck: int, growth: int, device: str
) -> tuple[Config, ...]:
    """See `Pass.configs`; sizes are the padded ones."""
    found: list[Config] = []
    for candidate in CONFIGS[kernel]:
        config = dict(candidate)
        if dtype == torch.float32:
            config["BLOCK_M"] = max(config["BLOCK_M"] // 2, 16)
        if "BLOCK_K" in config:
            widest = 64 if growth > 32 and kernel == "growth_weight_gradient" else bottleneck
            config["BLOCK_K"] = min(config["BLOCK_K"], bottleneck, widest)
        if device != "cuda":
            config["BLOCK_M"] = 16
        if config not in found:
            found.append(config)
    return tuple(found)


@functools.lru_cache(256)
def _scratch_sizes(extent: Extent, dtype: torch.dtype, device: torch.device) -> tuple[int, int, int, int]:
    """See `Backward.scratch_sizes`."""
    rows, available, bottleneck = extent.shape.rows, processors(device), extent.bottleneck
    sizes = (dtype, _power_of_two(bottleneck), _power_of_two(extent.growth_rate), device.type)
    growth = max(
        _shares(rows, available, config, triton.cdiv(bottleneck, config["BLOCK_K"]))[0]
        for config in _configs("growth_weight_gradient", *sizes)
    )
    norm1 = max(
        _shares(rows, available, config, triton.cdiv(channels, config["BLOCK_C"]))[0] * channels
        for config in _configs("bottleneck_backward", *sizes)
        for channels in map(extent.seen_by, range(extent.layers))
    )
    norm2 = min(triton.cdiv(rows, 16), 8 * available) * bottleneck
    return 2 * norm2, growth * extent.growth_rate * 9 * bottleneck, 2 * norm1, norm1 * bottleneck


def _shares(rows: int, processors: int, config: Config, chunks: int) -> tuple[int, int]:
    """Into how many shares the rows are cut beside so many chunks of columns, and the rows of each."""
    tiles = triton.cdiv(rows, config["BLOCK_M"])
    wanted = max(min(processors * config["waves"] // chunks, tiles), 1)
    each = triton.cdiv(tiles, wanted) * config["BLOCK_M"]
    return triton.cdiv(rows, each), each


def _parts(flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Vectors of these sizes; each begins at a multiple of `_ALIGNMENT` values."""
    parts = torch.split(flat, [_padded(size) for size in sizes])
    return [part if len(part) == size else part[:size] for part, size in zip(parts, sizes, strict=True)]


def _split(config: Config) -> tuple[dict[str, int], dict[str, int], int]:
    """Tile sizes, the compiler's options, and waves."""
    blocks = {name: value for name, value in config.items() if name.startswith("BLOCK")}
    options = {name: config[name] for name in ("num_warps", "num_stages")}
    return blocks, options, config["waves"]


def _padded_rows(maps: Tensor, extent: Extent) -> Tensor:
    """The features (N, C, H, W) as rows (M, C), padded as the forward pass made them.

    Hooks on saved tensors (`save_on_cpu`, …) may give them back without the padding. But kernels read into
    that of the last row, and the launches of the backward pass are recorded for one distance of rows.
    """
    rows = rows_of(maps)
    if rows.stride(0) == extent.stride:
        return rows
    return rows.new_empty(extent.shape.rows, extent.stride)[:, : extent.channels].copy_(rows)


def _padded(channels: int) -> int:
    return -(-channels // _ALIGNMENT) * _ALIGNMENT


def _power_of_two(width: int) -> int:
    """The next power of two that a matrix product takes."""
    return max(int(triton.next_power_of_2(width)), 16)
