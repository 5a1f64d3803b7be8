"""Layers that PyTorch does not have, with timm's parameter names and arithmetic.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipnets.models.graph import ActivationFunction

__all__ = [
    "BlurPool",
    "CellMean",
    "ChannelAttention",
    "EffectiveSqueezeExcitation",
    "LayerNorm2d",
    "SqueezeExcitation",
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
        if x.ndim == 2:
            return super().forward(x)
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcitation(nn.Module):
    """Weight channels by gates, which a small network computes from the channels' means.

    Hu, Shen, Sun: Squeeze-and-Excitation Networks, 2018 (arXiv 1709.01507).

    Args:
        channels: C.
        inner_channels: Outputs of the first of its two layers.
    """

    def __init__(self, channels: int, inner_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, inner_channels, 1)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(inner_channels, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        gate: Tensor = self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))
        return x * gate


class ChannelConvolution(nn.Conv1d):
    """A convolution along the channels of a map of one pixel, without bias.

    Args:
        kernel: Its length, odd.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 1, 1) → (N, C, 1, 1)."""
        return super().forward(x.flatten(1).unsqueeze(1)).transpose(1, 2).unsqueeze(3)


class ChannelAttention(nn.Module):
    """Weight channels by gates, each computed from the means of a few neighboring channels.

    Wang et al.: ECA-Net, 2020 (arXiv 1910.03151).

    Args:
        kernel: How many channels a gate depends on.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = ChannelConvolution(kernel)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        gate: Tensor = self.gate(self.conv(x.mean((2, 3), keepdim=True)))
        return x * gate


class BlurPool(nn.Module):
    """Halve a map after a binomial filter of 3×3 pixels, mirrored at the edges.

    Zhang: Making Convolutional Networks Shift-Invariant Again, 2019 (arXiv 1904.11486). The filter
    (1, 2, 1)/4 is the mean of two neighbors, taken twice, so that there are no weights to store.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, ⌈H/2⌉, ⌈W/2⌉)."""
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "reflect"), 2, stride=1)
        return F.avg_pool2d(x, 2, stride=2)


class CellMean(nn.Module):
    """Average pooling of 2×2 cells; of those that lie half outside the map, the mean of what lies inside."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, ⌈H/2⌉, ⌈W/2⌉)."""
        if torch.compiler.is_exporting():
            # The same with the last row and column repeated: torch.export takes no rounding up at any size.
            return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), "replicate"), 2)
        return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


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
