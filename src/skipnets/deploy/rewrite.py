"""Exact rewrites that make a trained network faster in eval mode.

Each takes a network and returns a new one in eval mode that computes the same; the original is unchanged.
Rewritable operations are found in the network's graph. Constants are computed in float64 and rounded once.
Standardized weights become those of ordinary convolutions in all of them.
Norms other than batch norms cannot be folded and stay; so do norms without a convolution before them: as one
multiplication and one addition per value they were slower than the norm in PyTorch, ONNX Runtime and OpenVINO
(`benchmarks/rewrites.py` measures the rewrites).

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from skipnets.models import spatial
from skipnets.models.backbone import Backbone
from skipnets.models.family import network_graph
from skipnets.models.graph import Graph
from skipnets.models.layers import StandardizedConvolution
from skipnets.models.operations import Convolution, Norm, Operation, Pool

__all__ = [
    "CenteredConvolution",
    "fold_norms",
    "normalize_inside",
    "pool_before_convolution",
]

Network = TypeVar("Network", bound=Backbone[Any])


def fold_norms(model: Network) -> Network:
    """Fold every batch norm that is a convolution's only reader into that convolution.

    In eval mode a batch norm is s·x + t per channel, and s·(W∗x + b) + t = (s·W)∗x + (s·b + t). In a dense
    layer with a bottleneck that is norm2, in a ResNet every norm.
    """
    rewritten = _evaluated_copy(model)
    for convolution, norm in _followed_by(network_graph(model.config), Convolution, Norm):
        first, second = (rewritten.get_submodule(operation.name) for operation in (convolution, norm))
        if isinstance(first, spatial.Convolution) and isinstance(second, spatial.BatchNorm):
            dtype = first.weight.dtype
            folded = fuse_conv_bn_eval(first.double(), second.double()).to(dtype)
            rewritten.set_submodule(convolution.name, folded.requires_grad_(False))
            rewritten.set_submodule(norm.name, nn.Identity())
    return rewritten


def pool_before_convolution(model: Network) -> Network:
    """Pool before a 1×1 convolution where a transition pools after it, on a quarter of the pixels.

    Both are linear, the one over channels at each pixel, the other over pixels in each channel, so they
    commute: mean_p(Σ_c w_c·x_cp + b) = Σ_c w_c·mean_p(x_cp) + b, as the mean of a constant is that constant.
    Networks without transitions are not changed.
    """
    rewritten = _evaluated_copy(model)
    for convolution, pool in _followed_by(network_graph(model.config), Convolution, Pool):
        parent, _, name = convolution.name.rpartition(".")
        sequence = rewritten.get_submodule(parent)
        commute = (convolution.kernel, convolution.stride, pool.mode, pool.padding) == (1, 1, "average", 0)
        if commute and isinstance(sequence, nn.Sequential):
            names = [child for child, _ in sequence.named_children()]
            if names[-2:] == [name, pool.name.rpartition(".")[2]]:
                module = sequence.get_submodule(name)
                delattr(sequence, name)  # Taken out and put back, it comes last.
                sequence.add_module(name, module)
    return rewritten


def normalize_inside(model: Network, mean: Sequence[float], std: Sequence[float]) -> Network:
    """Fold input normalization into a network, so that it takes pixels 0–255 (uint8 or float).

    A network's input is x = (p/255 − mean) / std. With centered pixels c = p − 255·mean that is
    x = c/(255·std), a factor per input channel, which is folded into the first convolution:
    W∗x = (W/(255·std))∗c. The centering cannot be folded into a bias: the convolution's zero padding means
    x = 0 beyond the border, which is c = 0, but not p = 0. So it stays, as one subtraction, and borders are
    exact.

    Args:
        model: Takes (N, C, H, W) images normalized with mean and std.
        mean: Per channel, in units where white is 1.
        std: Per channel, as `mean`.
    """
    rewritten = _evaluated_copy(model)
    name = network_graph(model.config).first_convolution.name
    convolution = cast(spatial.Convolution, rewritten.get_submodule(name))
    channel = (-1, *[1] * model.config.dims)
    factor = 1 / (255 * torch.tensor(std, dtype=torch.float64).view(channel))
    center = 255 * torch.tensor(mean, dtype=torch.float64)
    dtype = convolution.weight.dtype
    scaled = copy.deepcopy(convolution)
    scaled.weight = nn.Parameter((convolution.weight.double() * factor).to(dtype), requires_grad=False)
    rewritten.set_submodule(name, CenteredConvolution(center.to(dtype), scaled))
    return rewritten


class CenteredConvolution(nn.Module):
    """A convolution that first subtracts the mean color from its input.

    Args:
        center: (C,) mean color, from 0 to 255.
        convolution: Takes centered pixels; its padding is the mean color.
    """

    def __init__(self, center: Tensor, convolution: spatial.Convolution) -> None:
        super().__init__()
        channel = (-1, *[1] * (convolution.weight.ndim - 2))
        self.center = nn.Parameter(center.view(channel), requires_grad=False)
        self.convolution = convolution

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) pixels 0–255, uint8 or float → (N, out_channels, …)."""
        convolved: Tensor = self.convolution(pixels.to(self.center.dtype) - self.center)
        return convolved


def _evaluated_copy(model: Network) -> Network:
    """A copy in eval mode, where standardized weights are constants: those of ordinary convolutions."""
    rewritten = copy.deepcopy(model)
    rewritten.eval().requires_grad_(False)
    for path, module in list(rewritten.named_modules()):
        if isinstance(module, StandardizedConvolution):
            rewritten.set_submodule(path, _with_constant_weights(module))
    return rewritten


def _with_constant_weights(convolution: StandardizedConvolution) -> nn.Conv2d:
    weight, bias = convolution.weight, convolution.bias
    constant = copy.deepcopy(convolution).double().standardized_weight().to(weight.dtype)
    with torch.device("meta"):  # its tensors are those that follow
        plain = nn.Conv2d(
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size,  # type: ignore[arg-type]
            convolution.stride,  # type: ignore[arg-type]
            convolution.padding,  # type: ignore[arg-type]
            convolution.dilation,  # type: ignore[arg-type]
            convolution.groups,
            bias=bias is not None,
        )
    plain.weight = nn.Parameter(constant, requires_grad=False)
    plain.bias = bias
    return plain.eval()


First = TypeVar("First", bound=Operation)
Second = TypeVar("Second", bound=Operation)


def _followed_by(graph: Graph, first: type[First], second: type[Second]) -> Iterator[tuple[First, Second]]:
    """Yield operations of one type whose only reader is of another type, with that reader."""
    for operation in graph.operations:
        readers = graph.readers(operation.output)
        if isinstance(operation, first) and len(readers) == 1 and isinstance(readers[0], second):
            yield operation, readers[0]
