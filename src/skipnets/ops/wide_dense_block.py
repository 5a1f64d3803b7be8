"""A dense block of RDNet's wide layers as one differentiable operation; what is cheap is recomputed.

Layer l (Kim et al. 2024, arXiv 2403.19588, figure 2) sees all features before it,

    x_l = s_l · gate(W₂ gelu(W₁ norm(D ∗ [x_0, …, x_{l−1}]))),

with a depthwise convolution D, a layer norm over the channels of each pixel, two 1×1 convolutions and, in
some blocks, a gate computed from the means of the channels (`EffectiveSqueezeExcitation`). Executed layer by
layer, autograd keeps a copy of all features for every layer, and what each of its operations returns. Here

1. one channels-last buffer (M, C) holds all features, and each layer writes its k columns; concatenating is
   a view;
2. kept are, beside the buffer, the outputs of the 1×1 convolutions (E + k columns, and E = 4C in the named
   networks); the depthwise convolution, norm and GELU are repeated in the backward pass. With
   `keep_outputs=False` the buffer alone is kept, and the backward pass repeats all of it;
3. all layers' gradients for a feature meet in one buffer of gradients.

Nothing depends on more than one image, so that the block runs a few images at a time, all layers of it, and
what is made between two steps stays in the cache. Weights' gradients are sums over these chunks.

Shapes: N images, n of a chunk, H×W positions, m = n·H·W rows, C₀ channels of the input, k growth rate, L
    layers, C channels that a layer reads, E channels between its 1×1 convolutions. Layer l (from 0) reads
    columns [0, C₀ + l·k) and writes the next k.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from skipnets.ops.autograd import differentiable_once, without_autocast
from skipnets.ops.chunks import MapShape, Workspace, as_maps, as_matrix, empty_maps

_PADDING = 3
"""Of the depthwise 7×7 convolution."""


class WideLayerParameters(NamedTuple):
    """The tensors of a layer; those of the gate and the scale are None where it has none."""

    depthwise_weight: Tensor
    depthwise_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    gate_weight: Tensor | None
    gate_bias: Tensor | None
    scale: Tensor | None


@dataclass(frozen=True)
class WideDenseBlockPlan:
    """The settings of a block's execution.

    Args:
        eps: ε of each layer's norm.
        keep_outputs: Keep the outputs of the 1×1 convolutions for the backward pass instead of repeating
            them.
    """

    eps: tuple[float, ...]
    keep_outputs: bool

    def layers(self, parameters: Sequence[Any]) -> list[WideLayerParameters]:
        """Group a flat list of parameters by layer."""
        per_layer = len(WideLayerParameters._fields)
        return [
            WideLayerParameters(*parameters[start : start + per_layer])
            for start in range(0, len(parameters), per_layer)
        ]


def wide_dense_block(
    x: Tensor,
    plan: WideDenseBlockPlan,
    layers: Sequence[WideLayerParameters],
    factors: Sequence[Tensor | None],
) -> Tensor:
    """Run a block of wide dense layers.

    Args:
        x: (N, C₀, H, W), in any memory format.
        plan: Fixed properties.
        layers: Parameters of the L layers.
        factors: For each layer, what the outputs of each image are multiplied with (N,), as stochastic depth
            does; None for 1.

    Returns:
        The concatenation of x and all layers' outputs (N, C₀ + L·k, H, W), in channels-last order.
    """
    flat = [tensor for layer in layers for tensor in layer]
    features: Tensor = _WideDenseBlockFunction.apply(x, plan, tuple(factors), *flat)
    return features


class _WideDenseBlockFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        plan: WideDenseBlockPlan,
        factors: tuple[Tensor | None, ...],
        *parameters: Tensor | None,
    ) -> Tensor:
        with without_autocast(x.device):
            run = _Pass(plan, plan.layers(parameters), factors, _features(x, plan.layers(parameters)))
            kept = run.forward()
        ctx.plan = plan
        ctx.save_for_backward(run.features, *parameters, *factors, *itertools.chain.from_iterable(kept))
        return run.features

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, *rest = ctx.saved_tensors
        count = len(ctx.plan.eps)
        parameters = count * len(WideLayerParameters._fields)
        layers, factors = ctx.plan.layers(rest[:parameters]), rest[parameters : parameters + count]
        flat, size = rest[parameters + count :], len(_Kept._fields)
        with without_autocast(gradient.device):
            run = _Pass(ctx.plan, layers, factors, features)
            own = run.backward(gradient, [_Kept(*flat[i : i + size]) for i in range(0, len(flat), size)])
        x_gradient = own[0] if ctx.needs_input_grad[0] else None
        return (x_gradient, None, None, *own[1:])


class _Kept(NamedTuple):
    """What the 1×1 convolutions of a layer made of a chunk, that of the gate as a map of one pixel."""

    inner: Tensor  # (m, E)
    grown: Tensor  # (m, k)
    gate: Tensor  # (n, k); empty without a gate


def _features(x: Tensor, layers: Sequence[WideLayerParameters]) -> Tensor:
    """The buffer of all features, with those of x."""
    channels = x.shape[1] + sum(layer.weight2.shape[0] for layer in layers)
    features = empty_maps(MapShape.of(x), channels, like=x, dtype=x.dtype)
    features[:, : x.shape[1]].copy_(x)
    return features


def _zeros_like(tensor: Tensor | None) -> Any:
    return None if tensor is None else torch.zeros_like(tensor)


class _Pass:
    """The state that the forward and the backward pass of a block share."""

    def __init__(
        self,
        plan: WideDenseBlockPlan,
        layers: list[WideLayerParameters],
        factors: Sequence[Tensor | None],
        features: Tensor,
    ) -> None:
        self.plan, self.layers, self.factors, self.features = plan, layers, factors, features
        self.shape = MapShape.of(features)
        self.workspace = Workspace(features.device)
        area, itemsize = self.shape.area, features.element_size()
        mean_width = sum(layer.weight1.shape[1] for layer in layers) // len(layers)
        self.chunks = [
            slice(rows.start // area, rows.stop // area)
            for rows in self.shape.chunks(mean_width, itemsize, features.device)
        ]

    def forward(self) -> list[_Kept]:
        """Fill the buffer; what is kept beside it, chunk by chunk and layer by layer."""
        kept = []
        for images in self.chunks:
            for index in range(len(self.layers)):
                made = self._convolutions(index, self._depthwise(index, images))
                self._write(index, images, made)
                if self.plan.keep_outputs:
                    kept.append(made)
        return kept

    def backward(self, gradient: Tensor, kept: list[_Kept]) -> list[Tensor | None]:
        """The gradients of x and of all parameters in their order."""
        gradients = [WideLayerParameters(*map(_zeros_like, layer)) for layer in self.layers]
        total = empty_maps(self.shape, gradient.shape[1], like=gradient, dtype=gradient.dtype).copy_(gradient)
        for number, images in enumerate(self.chunks):
            for index in reversed(range(len(self.layers))):
                convolved = self._depthwise(index, images)
                made = (
                    kept[number * len(self.layers) + index]
                    if self.plan.keep_outputs
                    else self._convolutions(index, convolved)
                )
                self._layer_backward(index, images, convolved, made, total[images], gradients[index])
        return [total[:, : self._reads(0)].clone(), *(each for layer in gradients for each in layer)]

    def _reads(self, index: int) -> int:
        """Channels that a layer reads."""
        return self.layers[index].weight1.shape[1]

    def _scratch(self, name: str, rows: int, columns: int) -> Tensor:
        return self.workspace.matrix(name, torch.Size((rows, columns)), self.features.dtype)

    def _depthwise(self, index: int, images: slice) -> Tensor:
        """A layer's first convolution, of some images: (m, C)."""
        layer = self.layers[index]
        maps = F.conv2d(
            self._source(index, images),
            layer.depthwise_weight,
            layer.depthwise_bias,
            padding=_PADDING,
            groups=self._reads(index),
        )
        return as_matrix(maps)

    def _source(self, index: int, images: slice) -> Tensor:
        """What a layer reads of some images, (n, C, H, W), as a copy."""
        return self.features[images, : self._reads(index)].contiguous(memory_format=torch.channels_last)

    def _convolutions(self, index: int, convolved: Tensor) -> _Kept:
        """A layer from its norm to its second 1×1 convolution, and its gate."""
        layer, rows = self.layers[index], len(convolved)
        outputs = layer.weight1.shape[0]
        if self.plan.keep_outputs:
            shape = MapShape(rows // self.shape.area, self.shape.sides)
            inner = as_matrix(empty_maps(shape, outputs, like=convolved, dtype=convolved.dtype))
        else:
            inner = self._scratch("inner", rows, outputs)
        normalized, *_ = self._normalized(index, convolved)
        torch.addmm(layer.bias1, normalized, layer.weight1.flatten(1).t(), out=inner)
        grown = torch.addmm(layer.bias2, self._activated(inner), layer.weight2.flatten(1).t())
        gate = grown.new_empty(0)
        if layer.gate_weight is not None and layer.gate_bias is not None:
            means = self._by_image(grown).mean(1)
            gate = torch.addmm(layer.gate_bias, means, layer.gate_weight.flatten(1).t())
        return _Kept(inner, grown, gate)

    def _normalized(self, index: int, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The norm of (m, C) in scratch, with mean and inverse deviation of each row."""
        layer, rows = self.layers[index], len(convolved)
        out = self._scratch("normalized", *convolved.shape)
        mean, inverse = self._scratch("mean", rows, 1), self._scratch("inverse deviation", rows, 1)
        torch.ops.aten.native_layer_norm.out(
            convolved,
            [convolved.shape[1]],
            layer.norm_weight,
            layer.norm_bias,
            self.plan.eps[index],
            out0=out,
            out1=mean,
            out2=inverse,
        )
        return out, mean, inverse

    def _activated(self, inner: Tensor) -> Tensor:
        """GELU of (m, E), in scratch."""
        out = self._scratch("activated", *inner.shape)
        torch.ops.aten.gelu.out(inner, out=out)
        return out

    def _by_image(self, matrix: Tensor) -> Tensor:
        """(m, c) → (n, H·W, c), without a copy."""
        return matrix.view(-1, self.shape.area, matrix.shape[1])

    def _write(self, index: int, images: slice, made: _Kept) -> None:
        """A layer's k maps, from what its convolutions made."""
        layer, grown = self.layers[index], self._by_image(made.grown)
        if layer.gate_weight is not None:
            grown = grown * F.hardsigmoid(made.gate)[:, None]
        if layer.scale is not None:
            grown = grown * layer.scale
        factor = self.factors[index]
        if factor is not None:
            grown = grown * factor[images, None, None]
        first = self._reads(index)
        maps = as_maps(grown.flatten(0, 1), self.shape)
        self.features[images, first : first + maps.shape[1]] = maps

    def _layer_backward(
        self,
        index: int,
        images: slice,
        convolved: Tensor,
        made: _Kept,
        total: Tensor,
        sums: WideLayerParameters,
    ) -> None:
        """Back through a layer, of some images.

        Args:
            index: Of the layer.
            images: Of the chunk.
            convolved: What its depthwise convolution made of them (m, C).
            made: What its 1×1 convolutions made of them.
            total: Gradients of all features (n, C₀ + L·k, H, W): complete for what the layer wrote; those of
                what it reads are added.
            sums: To these the gradients of its parameters are added.
        """
        layer, reads = self.layers[index], self._reads(index)
        gradient = as_matrix(total[:, reads : reads + layer.weight2.shape[0]])
        gradient = self._behind_gate(index, images, made, gradient, sums)
        sums.bias2.add_(gradient.sum(0))
        weight1, weight2 = layer.weight1.flatten(1), layer.weight2.flatten(1)
        sums.weight2.flatten(1).addmm_(gradient.t(), self._activated(made.inner))
        inner_gradient = self._scratch("activated", *made.inner.shape)
        torch.mm(gradient, weight2, out=inner_gradient)
        torch.ops.aten.gelu_backward.grad_input(inner_gradient, made.inner, grad_input=inner_gradient)
        sums.bias1.add_(inner_gradient.sum(0))
        normalized, mean, inverse = self._normalized(index, convolved)
        sums.weight1.flatten(1).addmm_(inner_gradient.t(), normalized)
        norm_gradient = torch.mm(inner_gradient, weight1, out=normalized)
        width = [convolved.shape[1]]
        convolved_gradient, weight, bias = torch.ops.aten.native_layer_norm_backward(
            norm_gradient, convolved, width, mean, inverse, layer.norm_weight, layer.norm_bias, [True] * 3
        )
        sums.norm_weight.add_(weight)
        sums.norm_bias.add_(bias)
        source_gradient, weight, bias = torch.ops.aten.convolution_backward(
            as_maps(convolved_gradient, self.shape),
            self._source(index, images),
            layer.depthwise_weight,
            width,
            [1, 1],
            [_PADDING] * 2,
            [1, 1],
            False,
            [0, 0],
            reads,
            [True] * 3,
        )
        sums.depthwise_weight.add_(weight)
        sums.depthwise_bias.add_(bias)
        total[:, :reads].add_(source_gradient)

    def _behind_gate(
        self, index: int, images: slice, made: _Kept, gradient: Tensor, sums: WideLayerParameters
    ) -> Tensor:
        """Back through factor, scale and gate: (m, k) → the gradient of what a layer grew, (m, k)."""
        layer, grown, result = self.layers[index], self._by_image(made.grown), self._by_image(gradient)
        gated = layer.gate_weight is not None
        gate = F.hardsigmoid(made.gate)[:, None] if gated else None
        factor = self.factors[index]
        if factor is not None:
            result = result * factor[images, None, None]
        if layer.scale is not None and sums.scale is not None:
            # Sums over the positions first: the gate is the same for all of an image.
            products = (result * grown).sum(1)
            sums.scale.add_((products if gate is None else products * gate[:, 0]).sum(0))
            result = result * layer.scale
        if gate is not None and layer.gate_weight is not None:
            assert sums.gate_weight is not None
            assert sums.gate_bias is not None
            gate_gradient = torch.ops.aten.hardsigmoid_backward((result * grown).sum(1), made.gate)
            sums.gate_weight.flatten(1).addmm_(gate_gradient.t(), grown.mean(1))
            sums.gate_bias.add_(gate_gradient.sum(0))
            through_means = gate_gradient @ layer.gate_weight.flatten(1)
            result = torch.addcmul(through_means[:, None] / self.shape.area, result, gate)
        return result.flatten(0, 1)
