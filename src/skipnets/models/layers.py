"""Layers that PyTorch does not have, with timm's parameter names and arithmetic.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipnets.models.operations import STANDARDIZATION_EPS, ActivationFunction
from skipnets.models.spatial import AVERAGES, CONVOLUTIONS, spatial_axes

__all__ = [
    "BlurPool",
    "CellMean",
    "ChannelAttention",
    "EffectiveSqueezeExcitation",
    "EvoNormS0",
    "FilterResponseNorm",
    "LayerNorm2d",
    "PointwiseLinear",
    "SqueezeExcitation",
    "StandardizedConvolution",
    "make_activation",
]

_ACTIVATIONS: dict[ActivationFunction, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hard_swish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
    "hard_sigmoid": nn.Hardsigmoid,
}


def make_activation(function: ActivationFunction) -> nn.Module:
    """Create the module of an activation."""
    return _ACTIVATIONS[function]()


@torch.fx.wrap
def _layer_norm_2d(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Of a map or of pooled features; `torch.fx.wrap` keeps symbolic tracing from looking at the shape."""
    return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, eps).movedim(-1, 1)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each pixel (Ba et al. 2016, arXiv 1607.06450).

    Args:
        num_channels: C.
        eps: Is added to the variance.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__(num_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), or pooled (N, C) → the same shape."""
        return _layer_norm_2d(x, self.weight, self.bias, self.eps)


class FilterResponseNorm(nn.Module):
    """Filter response normalization: divide each channel of an image by its root mean square.

    Singh and Krishnan: Filter Response Normalization Layer, 2020 (arXiv 1911.09737, equations 1 to 4), with
    the thresholded linear unit max(y, τ) that the paper puts in place of a ReLU.

    Args:
        num_channels: C.
        eps: Is added to the mean square.
        activated: Whether it ends in the threshold.
        dims: Axes behind the channels: 2 for images.
    """

    def __init__(
        self, num_channels: int, eps: float = 1e-5, *, activated: bool = True, dims: int = 2
    ) -> None:
        super().__init__()
        self.eps, self.dims = eps, dims
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.tau = nn.Parameter(torch.zeros(num_channels)) if activated else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        axes = tuple(range(2, 2 + self.dims))
        mean_square = _statistics_type(x).square().mean(axes, keepdim=True)
        factor = (mean_square + self.eps).rsqrt().to(x.dtype) * self._each(self.weight, x)
        y = x * factor + self._each(self.bias, x)
        return y if self.tau is None else torch.maximum(y, self._each(self.tau, x))

    def extra_repr(self) -> str:
        """Channels and eps, for `print(model)`."""
        return f"{len(self.weight)}, eps={self.eps}, activated={self.tau is not None}"

    def _each(self, parameter: Tensor, x: Tensor) -> Tensor:
        return _each_channel(parameter, x, self.dims)


class EvoNormS0(nn.Module):
    """EvoNorm-S0, norm and nonlinearity in one: x·sigmoid(v·x) over the deviation of groups of channels.

    Liu, Brock, Simonyan, Le: Evolving Normalization-Activation Layers, 2020 (arXiv 2004.02967, table 3).

    Args:
        num_channels: C.
        groups: Of channels, which are normalized together.
        eps: Is added to the variance.
        activated: Where no nonlinearity is wanted, only weight and bias remain, as in the authors' networks.
        dims: Axes behind the channels: 2 for images.
    """

    def __init__(
        self, num_channels: int, groups: int, eps: float = 1e-5, *, activated: bool = True, dims: int = 2
    ) -> None:
        super().__init__()
        self.grouped, self.eps, self.dims = (groups, num_channels // groups), eps, dims
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.v = nn.Parameter(torch.ones(num_channels)) if activated else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        if self.v is None:
            return x * self._each(self.weight, x) + self._each(self.bias, x)
        grouped = torch.unflatten(_statistics_type(x), 1, self.grouped)
        variance = grouped.var(tuple(range(2, 3 + self.dims)), correction=0, keepdim=True)
        deviation = (variance + self.eps).sqrt().to(x.dtype)
        weight = torch.unflatten(self._each(self.weight, x), 0, self.grouped)
        factor = (weight / deviation).flatten(1, 2)
        return x * (x * self._each(self.v, x)).sigmoid() * factor + self._each(self.bias, x)

    def extra_repr(self) -> str:
        """Channels, groups and eps, for `print(model)`."""
        return f"{len(self.weight)}, {self.grouped[0]}, eps={self.eps}, activated={self.v is not None}"

    def _each(self, parameter: Tensor, x: Tensor) -> Tensor:
        return _each_channel(parameter, x, self.dims)


def _each_channel(parameter: Tensor, x: Tensor, dims: int) -> Tensor:
    """One number for each channel of (N, C, …), in the type of its values."""
    return parameter.to(x.dtype).reshape(-1, *(1,) * dims)


@torch.fx.wrap
def _statistics_type(x: Tensor) -> Tensor:
    """At least single precision: a mean of squares overflows in half."""
    return x if x.dtype.itemsize >= 4 else x.float()


class StandardizedConvolution(nn.Conv2d):
    """A convolution whose weights are standardized to mean 0 and variance 1 for each output channel.

    Qiao et al.: Micro-Batch Training with Batch-Channel Normalization and Weight Standardization, 2019 (arXiv
    1903.10520). The parameter holds the weights before that; `eps` is added to their variance.
    """

    eps: float = STANDARDIZATION_EPS

    def standardized_weight(self) -> Tensor:
        """(out_channels, in_channels / groups, height, width): what it convolves with."""
        rows = self.weight.reshape(1, self.out_channels, -1)
        standardized = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=self.eps)
        return standardized.reshape_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, out_channels, …)."""
        return self._conv_forward(x, self.standardized_weight(), self.bias)


class PointwiseLinear(nn.Linear):
    """A linear layer whose weight is stored as that of a 1×1 convolution, (out, in, 1, 1).

    Args:
        in_features: Of the input.
        out_features: Of the output.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.weight = nn.Parameter(self.weight.detach()[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_features) → (N, out_features)."""
        return F.linear(x, self.weight.flatten(1), self.bias)


class SqueezeExcitation(nn.Module):
    """Weight channels by gates, which a small network computes from the channels' means.

    Hu, Shen, Sun: Squeeze-and-Excitation Networks, 2018 (arXiv 1709.01507).

    Args:
        channels: C.
        inner_channels: Outputs of the first of its two layers.
        dims: Spatial axes.
    """

    def __init__(self, channels: int, inner_channels: int, *, dims: int = 2) -> None:
        super().__init__()
        self.axes = spatial_axes(dims)
        self.fc1 = CONVOLUTIONS[dims](channels, inner_channels, 1)
        self.act = nn.ReLU()
        self.fc2 = CONVOLUTIONS[dims](inner_channels, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        gate: Tensor = self.gate(self.fc2(self.act(self.fc1(x.mean(self.axes, keepdim=True)))))
        return x * gate


class ChannelConvolution(nn.Conv1d):
    """A convolution along the channels of a map of one pixel, without bias.

    Args:
        kernel: Its length, odd.
        dims: Spatial axes.
    """

    def __init__(self, kernel: int, *, dims: int = 2) -> None:
        super().__init__(1, 1, kernel, padding=kernel // 2, bias=False)
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 1, 1) → (N, C, 1, 1)."""
        gates = super().forward(x.flatten(1).unsqueeze(1)).transpose(1, 2)
        for _ in range(self.dims - 1):
            gates = gates.unsqueeze(-1)
        return gates


class ChannelAttention(nn.Module):
    """Weight channels by gates, each computed from the means of a few neighboring channels.

    Wang et al.: ECA-Net, 2020 (arXiv 1910.03151).

    Args:
        kernel: How many channels a gate depends on.
        dims: Spatial axes.
    """

    def __init__(self, kernel: int, *, dims: int = 2) -> None:
        super().__init__()
        self.axes = spatial_axes(dims)
        self.conv = ChannelConvolution(kernel, dims=dims)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        gate: Tensor = self.gate(self.conv(x.mean(self.axes, keepdim=True)))
        return x * gate


class BlurPool(nn.Module):
    """Halve a map after a binomial filter of 3×3 pixels, mirrored at the edges.

    Zhang: Making Convolutional Networks Shift-Invariant Again, 2019 (arXiv 1904.11486). The filter
    (1, 2, 1)/4 is the mean of two neighbors, taken twice, so that there are no weights to store.

    Args:
        dims: Spatial axes.
    """

    def __init__(self, *, dims: int = 2) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, ⌈H/2⌉, ⌈W/2⌉)."""
        average = AVERAGES[self.dims]
        x = average(F.pad(x, (1, 1) * self.dims, "reflect"), 2, stride=1)
        halved: Tensor = average(x, 2, stride=2)
        return halved


class CellMean(nn.Module):
    """Average pooling of 2×2 cells; of those that lie half outside the map, the mean of what lies inside.

    Args:
        dims: Spatial axes.
    """

    def __init__(self, *, dims: int = 2) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, ⌈H/2⌉, ⌈W/2⌉)."""
        return _cell_mean(x, self.dims)


@torch.fx.wrap
def _cell_mean(x: Tensor, dims: int) -> Tensor:
    """Of a map; `torch.fx.wrap` keeps symbolic tracing from looking at the shape."""
    average = AVERAGES[dims]
    means: Tensor
    # torch.export takes no rounding up at any size, and pooling of volumes no axis of length 1.
    if torch.compiler.is_exporting() or (dims == 3 and min(x.shape[2:]) == 1):
        # The same: the last row and column are repeated.
        means = average(F.pad(x, (0, 1) * dims, "replicate"), 2)
    else:
        means = average(x, 2, ceil_mode=True, count_include_pad=False)
    return means


class EffectiveSqueezeExcitation(nn.Module):
    """Weight channels by a gate, one linear function of the channels' means.

    Lee and Park: CenterMask, 2020 (arXiv 1911.06667), section 3.3; the gate is a hard sigmoid.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        gate: Tensor = self.gate(self.fc(x.mean((2, 3), keepdim=True)))
        return x * gate
