"""Networks that are no part of the package, as a user would write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


class Reordering(nn.Module):
    """What programs of torch.export hold besides layers: in-place functions, constants, buffers, splits."""

    halves: Tensor

    def __init__(self, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(32, num_classes + 1)  # not the number of classes: what it reads is unknown
        self.register_buffer("halves", torch.full((8, 1, 1), 0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, K)."""
        x = torch.relu_(self.norm(self.conv(x))) * torch.tensor([2.0]) + self.halves
        first, second = F.adaptive_avg_pool2d(x, 2).chunk(2, dim=1)
        x = torch.cat([second, first], dim=1)
        logits: Tensor = self.head(x.view(x.shape[0], -1))
        return logits[:, :-1]


class Doubling(nn.Module):
    """A network that tells its features by timm's methods, and not what its head reads."""

    def __init__(self, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 6, 3)
        self.head = nn.Linear(6, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 6, H - 2, W - 2)."""
        maps: Tensor = self.stem(x)
        return maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map → (N, K)."""
        x = x.amax((2, 3))
        return x if pre_logits else self.head(2 * x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, K)."""
        return self.forward_head(self.forward_features(x))


class Deciding(TinyNet):
    """A network whose way depends on what it sees, which torch.export cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, K)."""
        return super().forward(-x if x.mean() > 0 else x)


def se_densenet(num_classes: int, in_chans: int = 3, *, blocks: tuple[int, ...] = (2, 2)) -> DenseNet:
    """A DenseNet, in the second dense layer of which the convolution is followed by channel attention."""
    model = skipnets.create_model(
        "densenet_bc40_k12", num_classes=num_classes, in_chans=in_chans, block_config=blocks, growth_rate=4
    )
    assert isinstance(model, DenseNet)
    layer = model.get_submodule("features.denseblock1.denselayer2")
    layer.add_module("conv2", nn.Sequential(layer.get_submodule("conv2"), SqueezeExcite(4)))
    return model
