"""ResNet: every block adds a residual to its input. Includes ResNeXt and Wide ResNet.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2016 (arXiv 1512.03385). Parameter
names and arithmetic are torchvision's ("v1.5": the 3×3 convolution of a bottleneck block has the stride), so
its checkpoints load unchanged.

Shapes: N batch, C channels, H height, W width, S stride.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from skipnets.errors import UserError
from skipnets.models.backbone import (
    Backbone,
    FeatureMapInfo,
    initialize_convolutions,
    make_norm,
)
from skipnets.models.registry import STEM_REDUCTION, Norm, ResNetConfig

if TYPE_CHECKING:
    from skipnets.models.graph import ExecutionPolicy


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (the paper's figure 5, left)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        dilation: tuple[int, int],
        shortcut: nn.Module | None,
        norm: Norm,
        proj_drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, norm=norm, stride=stride, dilation=dilation[0])
        self.bn1 = make_norm(norm, out_channels)
        self.relu1 = nn.ReLU()
        self.dropout = nn.Dropout(proj_drop_rate)
        self.conv2 = _conv3x3(out_channels, out_channels, norm=norm, dilation=dilation[1])
        self.bn2 = make_norm(norm, out_channels)
        self.drop_path = StochasticDepth(drop_path_rate, "row")
        self.downsample = shortcut
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, out_channels, ⌈H/S⌉, ⌈W/S⌉)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.drop_path(self.bn2(self.conv2(self.dropout(y))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu2(shortcut + y)


class BottleneckBlock(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut (the paper's figure 5, right)."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        groups: int,
        stride: int,
        dilation: int,
        shortcut: nn.Module | None,
        norm: Norm,
        proj_drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=norm is None)
        self.bn1 = make_norm(norm, width)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(width, width, norm=norm, stride=stride, dilation=dilation, groups=groups)
        self.bn2 = make_norm(norm, width)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(proj_drop_rate)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=norm is None)
        self.bn3 = make_norm(norm, out_channels)
        self.drop_path = StochasticDepth(drop_path_rate, "row")
        self.downsample = shortcut
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, out_channels, ⌈H/S⌉, ⌈W/S⌉)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.drop_path(self.bn3(self.conv3(self.dropout(y))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu3(shortcut + y)


class PadShortcut(nn.Module):
    """The paper's option A: every S-th pixel, and zeros for new channels. It has no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        added = out_channels - in_channels
        self.padding = (0, 0, 0, 0, added // 2, added - added // 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, out_channels, ⌈H/S⌉, ⌈W/S⌉)."""
        # Pooling over single pixels is x[:, :, ::S, ::S] in a form that torch.export takes at any size.
        return F.pad(F.avg_pool2d(x, kernel_size=1, stride=self.stride), self.padding)


class ResNet(Backbone[ResNetConfig]):
    """Stem, stages of residual blocks, and the head.

    Args:
        config: Usually from `skipnets.models.model_config`.
    """

    head_name: ClassVar[str] = "fc"

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        norm, channels = config.norm, config.width
        if config.stem == "imagenet":
            self.conv1 = nn.Conv2d(config.in_chans, channels, 7, stride=2, padding=3, bias=norm is None)
        else:
            self.conv1 = _conv3x3(config.in_chans, channels, norm=norm, stride=STEM_REDUCTION[config.stem])
        self.bn1 = make_norm(norm, channels)
        self.relu = nn.ReLU()
        reduction = self.conv1.stride[0]
        self.feature_info = [FeatureMapInfo(num_chs=channels, reduction=reduction, module="relu")]
        if config.stem == "imagenet":
            self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
            reduction *= 2

        path_rates = iter(config.drop_path_rates())
        for stage, blocks in enumerate(config.block_config):
            layer = nn.Sequential()
            for block in range(blocks):
                layer.append(_block(config, stage, block, channels, next(path_rates)))
                channels = config.out_channels(stage)
            self.add_module(f"layer{stage + 1}", layer)
            reduction *= config.stride(stage)
            self.feature_info.append(
                FeatureMapInfo(num_chs=channels, reduction=reduction, module=f"layer{stage + 1}")
            )

        self._add_head(channels)
        initialize_convolutions(self)
        if config.zero_init_last:
            for module in self.modules():
                if isinstance(module, BasicBlock | BottleneckBlock):
                    last_norm = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                    assert isinstance(last_norm.weight, Tensor)
                    nn.init.zeros_(last_norm.weight)

    def set_block_execution(self, policy: ExecutionPolicy, *, warn: bool = True) -> None:
        """Choose how residual blocks run in training: memory and speed change, numbers do not.

        Args:
            policy: `"auto"`, the fastest on the device; `"plain"`, layer by layer as written here;
                `"linear"`, each as one operation that keeps no results of norms and ReLUs.
            warn: Whether to say where it will not be applied, and why.

        Raises:
            UserError: For any other policy.
        """
        if policy == "linear-recompute":
            raise UserError(
                f'block_execution="{policy}": must be auto, plain or linear for {self.config.name}'
            )
        from skipnets.models.block_execution import set_block_execution

        set_block_execution(self, policy, warn=warn)

    def block_execution_report(self) -> dict[str, str]:
        """How each block ran last, or would run now; for "plain", with the reason."""
        from skipnets.models.block_execution import execution_report

        return execution_report(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names, grouped by depth for `timm.optim`'s layer-wise learning rates.

        Args:
            coarse: One group per stage instead of one per residual block.
        """
        return {"stem": r"^(?:conv|bn)1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def stages(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield `conv1`, `bn1`, `relu`, `maxpool`, `layer1` … with their paths."""
        for name, module in self.named_children():
            if name not in ("global_pool", "head_drop", "fc"):
                yield name, module


def _block(
    config: ResNetConfig, stage: int, block: int, in_channels: int, drop_path_rate: float
) -> nn.Module:
    out_channels = config.out_channels(stage)
    stride = config.stride(stage) if block == 0 else 1
    dilation = config.dilation(stage)
    first_dilation = config.dilation(stage - 1) if block == 0 and stage > 0 else dilation
    shortcut = None
    if config.changes_shape(stage, block):
        shortcut = _shortcut(config, in_channels, out_channels, stride)
    if config.block == "basic":
        return BasicBlock(
            in_channels,
            out_channels,
            stride=stride,
            dilation=(first_dilation, dilation),
            shortcut=shortcut,
            norm=config.norm,
            proj_drop_rate=config.proj_drop_rate,
            drop_path_rate=drop_path_rate,
        )
    return BottleneckBlock(
        in_channels,
        config.branch_width(stage),
        out_channels,
        groups=config.groups,
        stride=stride,
        dilation=first_dilation,
        shortcut=shortcut,
        norm=config.norm,
        proj_drop_rate=config.proj_drop_rate,
        drop_path_rate=drop_path_rate,
    )


def _shortcut(config: ResNetConfig, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if config.shortcut == "pad":
        return PadShortcut(in_channels, out_channels, stride)
    projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=config.norm is None)
    return nn.Sequential(projection, make_norm(config.norm, out_channels))


def _conv3x3(
    in_channels: int, out_channels: int, *, norm: Norm, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels,
        out_channels,
        3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        groups=groups,
        bias=norm is None,
    )
