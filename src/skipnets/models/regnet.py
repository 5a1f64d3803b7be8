"""RegNet: ResNets with grouped convolutions whose widths follow a line.

Radosavovic et al.: Designing Network Design Spaces, 2020 (arXiv 2003.13678). Parameter names and arithmetic
are timm's, so its checkpoints load unchanged.

Shapes: N batch, C channels, H height, W width, S stride.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from skipnets.models.backbone import Backbone, FeatureMapInfo, activation_after, make_norm
from skipnets.models.layers import SqueezeExcitation, make_activation
from skipnets.models.registry import BlockActivation, Norm
from skipnets.models.regnet_graph import RegNetConfig, squeezed_channels


class RegNetBlock(nn.Module):
    """1×1, grouped 3×3, perhaps squeeze-excitation, and 1×1 beside a shortcut (the paper's figure 4)."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        groups: int,
        stride: int,
        squeezed: int,
        norm: Norm,
        activation: BlockActivation,
        proj_drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels, width, 1, norm=norm, activation=activation)
        self.conv2 = _convolution(
            width, width, 3, norm=norm, activation=activation, stride=stride, groups=groups
        )
        self.se = SqueezeExcitation(width, squeezed) if squeezed else None
        self.dropout = nn.Dropout(proj_drop_rate)
        self.conv3 = _convolution(width, width, 1, norm=norm, activation=None)
        self.drop_path = StochasticDepth(drop_path_rate, "row")
        self.downsample = None
        if stride != 1 or in_channels != width:
            self.downsample = _convolution(in_channels, width, 1, norm=norm, activation=None, stride=stride)
        self.act3 = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, width, ⌈H/S⌉, ⌈W/S⌉)."""
        y = self.conv2(self.conv1(x))
        y = self.dropout(y if self.se is None else self.se(y))
        y = self.drop_path(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.act3(shortcut + y)


class RegNet(Backbone[RegNetConfig]):
    """Stem, stages of residual blocks, and the head.

    Args:
        config: Usually from `skipnets.models.model_config`.
    """

    head_name: ClassVar[str] = "head.fc"

    def __init__(self, config: RegNetConfig) -> None:
        super().__init__(config)
        channels, reduction = config.stem_channels, config.stem_stride
        self.stem = _convolution(
            config.in_chans, channels, 3, norm=config.norm, activation=config.activation, stride=reduction
        )
        self.feature_info = [FeatureMapInfo(num_chs=channels, reduction=reduction, module="stem")]
        path_rates = iter(config.drop_path_rates())
        for stage, (blocks, width) in enumerate(zip(config.block_config, config.widths, strict=True)):
            name, layers = f"s{stage + 1}", nn.Sequential()
            for block in range(blocks):
                layers.add_module(
                    f"b{block + 1}",
                    RegNetBlock(
                        channels,
                        width,
                        groups=config.groups(stage),
                        stride=config.stride(stage) if block == 0 else 1,
                        squeezed=squeezed_channels(config, channels) if config.se_ratio else 0,
                        norm=config.norm,
                        activation=config.activation,
                        proj_drop_rate=config.proj_drop_rate,
                        drop_path_rate=next(path_rates),
                    ),
                )
                channels = width
            self.add_module(name, layers)
            reduction *= config.stride(stage)
            self.feature_info.append(FeatureMapInfo(num_chs=width, reduction=reduction, module=name))
        self.head = nn.ModuleDict()
        self._add_head(channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # the form for the backward pass, of the channels of a group
                fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names, grouped by depth for `timm.optim`'s layer-wise learning rates.

        Args:
            coarse: One group per stage instead of one per residual block.
        """
        return {"stem": r"^stem", "blocks": r"^s(\d+)" if coarse else r"^s(\d+)\.b(\d+)"}

    def named_stages(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield `stem`, `s1`, `s2` … with their paths; other children do not run."""
        stages = (f"s{number}" for number in range(1, len(self.config.block_config) + 1))
        return self._children(("stem", *stages))


def _convolution(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    norm: Norm,
    activation: BlockActivation | None,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    convolution = nn.Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2,
        groups=groups,
        bias=norm is None,
    )
    activated = activation is not None
    layers: dict[str, nn.Module] = {
        "conv": convolution,
        "bn": make_norm(norm, out_channels, activated=activated),
    }
    if activation is not None:
        layers["act"] = activation_after(norm, activation)
    return nn.Sequential(OrderedDict(layers))
