"""Baselines: torchvision's networks with the same state dicts as ours."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models import DenseNet, ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from skipnets.models.registry import STEM_REDUCTION, DenseNetConfig, ResNetConfig

__all__ = ["torchvision_densenet", "torchvision_resnet"]


def torchvision_densenet(config: DenseNetConfig) -> nn.Module | None:
    """Build torchvision's DenseNet for a configuration; a CIFAR stem replaces its first layers."""
    if config.dims != 2 or config.stem == "deep" or config.anti_aliasing is not None:
        return None
    if (config.norm, config.activation) != ("batch", "relu"):
        return None
    if config.global_pool != "avg" or not config.num_classes:
        return None
    if config.bottleneck is None or config.compression != 0.5:
        return None
    assert config.stem_channels is not None
    network: Any = DenseNet(
        growth_rate=config.growth_rate,
        block_config=config.block_config,
        num_init_features=config.stem_channels,
        bn_size=config.bottleneck,
        num_classes=config.num_classes,
    )
    if config.stem != "imagenet":
        del network.features.norm0, network.features.relu0, network.features.pool0
        network.features.conv0 = nn.Conv2d(
            config.in_chans,
            config.stem_channels,
            3,
            stride=STEM_REDUCTION[config.stem],
            padding=1,
            bias=False,
        )
    elif config.in_chans != 3:
        network.features.conv0 = nn.Conv2d(
            config.in_chans, config.stem_channels, 7, stride=2, padding=3, bias=False
        )
    return network


def torchvision_resnet(config: ResNetConfig) -> nn.Module | None:
    """Build torchvision's ResNet for a configuration."""
    if config.dims != 2 or (config.norm, config.activation) != ("batch", "relu"):
        return None
    if config.global_pool != "avg" or not config.num_classes:
        return None
    if (config.attention, config.anti_aliasing, config.stem_pool, config.stem_channels, config.stride_in) != (
        None, None, "max", None, "3x3",
    ):  # fmt: skip
        return None
    is_standard = (config.stem, config.shortcut, config.output_stride, config.width) == (
        "imagenet", "projection", None, 64,
    )  # fmt: skip
    if not is_standard or len(config.block_config) != 4:
        return None
    network: Any = ResNet(
        BasicBlock if config.block == "basic" else Bottleneck,
        list(config.block_config),
        num_classes=config.num_classes,
        groups=config.groups,
        width_per_group=config.width_per_group,
    )
    if config.in_chans != 3:
        network.conv1 = nn.Conv2d(config.in_chans, 64, 7, stride=2, padding=3, bias=False)
    return network
