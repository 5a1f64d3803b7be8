"""Networks that are no part of the package, as a user would write them."""

from __future__ import annotations

from torch import Tensor, nn

import skipnets
from skipnets.models.densenet import DenseNet


class TinyNet(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self, num_classes: int, in_chans: int = 1, *, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, K)."""
        logits: Tensor = self.head(self.body(x).mean((2, 3)))
        return logits


class SqueezeExcite(nn.Module):
    """Channel attention (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same."""
        scaled: Tensor = x * self.gate(x)
        return scaled


def se_densenet(num_classes: int, in_chans: int = 3, *, blocks: tuple[int, ...] = (2, 2)) -> DenseNet:
    """A DenseNet, in the second dense layer of which the convolution is followed by channel attention."""
    model = skipnets.create_model(
        "densenet_bc40_k12", num_classes=num_classes, in_chans=in_chans, block_config=blocks, growth_rate=4
    )
    assert isinstance(model, DenseNet)
    layer = model.get_submodule("features.denseblock1.denselayer2")
    layer.add_module("conv2", nn.Sequential(layer.get_submodule("conv2"), SqueezeExcite(4)))
    return model
