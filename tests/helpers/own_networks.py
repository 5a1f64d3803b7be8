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


class Branching(nn.Module):
    """What a list of modules does not show: skips, a module that runs twice, the network's own tensors."""

    def __init__(self, num_classes: int = 3, in_chans: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 4, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.relu = nn.ReLU()
        self.more = nn.Conv2d(4, 2, 1)
        self.head = nn.Linear(6, num_classes)
        self.unused = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, K)."""
        x = self.relu(self.stem(x))
        x = self.relu(x + self.branch(x))
        x = torch.cat([x, self.more(x)], 1).mean((2, 3))
        logits: Tensor = self.head(x @ self.scale)
        return logits


class Attending(nn.Module):
    """Attention over the pixels of a map."""

    def __init__(self, num_classes: int = 3, in_chans: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 8, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, K)."""
        pixels = self.stem(x).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(pixels, pixels, pixels, need_weights=False)
        logits: Tensor = self.head(mixed.mean(1))
        return logits


class Pyramid(nn.Module):
    """A feature pyramid on a DenseNet of the registry (Lin et al. 2017)."""

    def __init__(self, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        self.backbone = skipnets.create_model(
            "densenet_bc40_k12", num_classes=0, in_chans=in_chans, block_config=(2, 2), growth_rate=4
        )
        channels = [info["num_chs"] for info in self.backbone.feature_info]
        self.lateral = nn.ModuleList(nn.Conv2d(each, 4, 1) for each in channels)
        self.head = nn.Linear(4 * len(channels), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, K)."""
        maps = self.backbone.forward_intermediates(x, intermediates_only=True)
        merged = [layer(each) for layer, each in zip(self.lateral, maps, strict=True)]
        for number in range(len(merged) - 1, 0, -1):
            finer = merged[number - 1]
            merged[number - 1] = finer + F.interpolate(merged[number], finer.shape[2:])
        logits: Tensor = self.head(torch.cat([each.mean((2, 3)) for each in merged], 1))
        return logits


def silu_densenet(num_classes: int, in_chans: int = 3) -> DenseNet:
    """A DenseNet with another activation in one of its transitions."""
    model = skipnets.create_model(
        "densenet_bc40_k12", num_classes=num_classes, in_chans=in_chans, block_config=(2, 2), growth_rate=4
    )
    assert isinstance(model, DenseNet)
    model.get_submodule("features.transition1").add_module("relu", nn.SiLU())
    return model


def group_densenet(num_classes: int, in_chans: int = 3) -> DenseNet:
    """A DenseNet, one of whose norms is a group norm instead."""
    model = skipnets.create_model(
        "densenet_bc40_k12", num_classes=num_classes, in_chans=in_chans, block_config=(2, 2), growth_rate=4
    )
    assert isinstance(model, DenseNet)
    layer = model.get_submodule("features.denseblock2.denselayer1")
    layer.add_module("norm2", nn.GroupNorm(4, 16))
    return model
