"""ResNet: every block adds a residual to its input. Includes ResNeXt, Wide ResNet, and later variants.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2016 (arXiv 1512.03385). Parameter
names and arithmetic are torchvision's ("v1.5": the 3×3 convolution of a bottleneck block has the stride), so
its checkpoints load unchanged.

Shapes: N batch, C channels, H height, W width, S stride. Maps (N, C, H, W) are (N, C, L) of signals and
    (N, C, D, H, W) of volumes: `dims` is the number of their spatial axes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from skipnets.errors import UserError
from skipnets.models.backbone import (
    Backbone,
    FeatureMapInfo,
    activation_after,
    initialize_convolutions,
    make_norm,
)
from skipnets.models.layers import (
    BlurPool,
    CellMean,
    ChannelAttention,
    SqueezeExcitation,
    make_activation,
)
from skipnets.models.registry import STEM_REDUCTION, BlockActivation, Norm, ResNetConfig
from skipnets.models.spatial import AVERAGE_POOLINGS, AVERAGES, CONVOLUTIONS, MAX_POOLINGS, Convolution

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
        attention: nn.Module | None,
        anti_aliasing: nn.Module | None,
        norm: Norm,
        activation: BlockActivation = "relu",
        proj_drop_rate: float,
        drop_path_rate: float,
        dims: int = 2,
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(
            in_channels, out_channels, norm=norm, stride=stride, dilation=dilation[0], dims=dims
        )
        self.bn1 = make_norm(norm, out_channels, dims=dims)
        self.relu1 = activation_after(norm, activation)
        self.aa = anti_aliasing
        self.dropout = nn.Dropout(proj_drop_rate)
        self.conv2 = _conv3x3(out_channels, out_channels, norm=norm, dilation=dilation[1], dims=dims)
        self.bn2 = make_norm(norm, out_channels, activated=False, dims=dims)
        self.se = attention
        self.drop_path = StochasticDepth(drop_path_rate, "row")
        self.downsample = shortcut
        self.relu2 = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, out_channels, ⌈H/S⌉, ⌈W/S⌉)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        if self.aa is not None:
            y = self.aa(y)
        y = self.bn2(self.conv2(self.dropout(y)))
        y = self.drop_path(y if self.se is None else self.se(y))
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
        strides: tuple[int, int],
        dilation: int,
        shortcut: nn.Module | None,
        attention: nn.Module | None,
        anti_aliasing: nn.Module | None,
        norm: Norm,
        activation: BlockActivation = "relu",
        proj_drop_rate: float,
        drop_path_rate: float,
        dims: int = 2,
    ) -> None:
        super().__init__()
        self.conv1 = CONVOLUTIONS[dims](in_channels, width, 1, stride=strides[0], bias=norm is None)
        self.bn1 = make_norm(norm, width, dims=dims)
        self.relu1 = activation_after(norm, activation)
        self.conv2 = _conv3x3(
            width, width, norm=norm, stride=strides[1], dilation=dilation, groups=groups, dims=dims
        )
        self.bn2 = make_norm(norm, width, dims=dims)
        self.relu2 = activation_after(norm, activation)
        self.aa = anti_aliasing
        self.dropout = nn.Dropout(proj_drop_rate)
        self.conv3 = CONVOLUTIONS[dims](width, out_channels, 1, bias=norm is None)
        self.bn3 = make_norm(norm, out_channels, activated=False, dims=dims)
        self.se = attention
        self.drop_path = StochasticDepth(drop_path_rate, "row")
        self.downsample = shortcut
        self.relu3 = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, out_channels, ⌈H/S⌉, ⌈W/S⌉)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        if self.aa is not None:
            y = self.aa(y)
        y = self.bn3(self.conv3(self.dropout(y)))
        y = self.drop_path(y if self.se is None else self.se(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu3(shortcut + y)


class PadShortcut(nn.Module):
    """The paper's option A: every S-th pixel, and zeros for new channels. It has no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, dims: int = 2) -> None:
        super().__init__()
        added = out_channels - in_channels
        self.padding = (*(0, 0) * dims, added // 2, added - added // 2)
        self.stride = stride
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, out_channels, ⌈H/S⌉, ⌈W/S⌉)."""
        # Pooling over single pixels is x[:, :, ::S, ::S] in a form that torch.export takes at any size.
        return F.pad(AVERAGES[self.dims](x, kernel_size=1, stride=self.stride), self.padding)


class ResNet(Backbone[ResNetConfig]):
    """Stem, stages of residual blocks, and the head.

    Args:
        config: Usually from `skipnets.models.model_config`.
    """

    head_name: ClassVar[str] = "fc"

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        norm, channels = config.norm, config.stem_widths()[-1]
        self.conv1 = _stem(config)
        self.bn1 = make_norm(norm, channels, dims=config.dims)
        self.relu = activation_after(config.norm, config.activation)
        reduction = STEM_REDUCTION[config.stem] // (2 if config.has_stem_pool else 1)
        self.feature_info = [FeatureMapInfo(num_chs=channels, reduction=reduction, module="relu")]
        if config.has_stem_pool:
            self.maxpool = _stem_pool(config, channels)
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
        return {
            "stem": r"^(?:conv1|bn1|maxpool)",
            "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)",
        }

    def named_stages(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield `conv1`, `bn1`, `relu`, `maxpool`, `layer1` … with their paths; other children do not run."""
        pool = ["maxpool"] if self.config.has_stem_pool else []
        layers = (f"layer{number}" for number in range(1, len(self.config.block_config) + 1))
        return self._children(("conv1", "bn1", "relu", *pool, *layers))


def _stem(config: ResNetConfig) -> nn.Module:
    """The convolutions of the stem, without the last one's norm."""
    *inner, channels = config.stem_widths()
    if not inner and config.stem in ("imagenet", "stride1"):
        return CONVOLUTIONS[config.dims](
            config.in_chans,
            channels,
            7,
            stride=2 if config.stem == "imagenet" else 1,
            padding=3,
            bias=config.norm is None,
        )
    shared: dict[str, Any] = {"norm": config.norm, "dims": config.dims}
    if not inner:
        return _conv3x3(config.in_chans, channels, stride=STEM_REDUCTION[config.stem], **shared)
    layers = nn.Sequential()
    for number, (width, into) in enumerate(zip(inner, (config.in_chans, *inner), strict=False)):
        layers.append(_conv3x3(into, width, stride=2 if number == 0 else 1, **shared))
        layers.append(make_norm(config.norm, width, dims=config.dims))
        layers.append(activation_after(config.norm, config.activation))
    return layers.append(_conv3x3(inner[-1], channels, **shared))


def _stem_pool(config: ResNetConfig, channels: int) -> nn.Module:
    """Max-pooling, or what stands in its place, to half the size."""
    smooth, dims = config.anti_aliasing, config.dims
    if config.stem_pool == "convolution":
        stride = 1 if smooth else 2
        layers = nn.Sequential(_conv3x3(channels, channels, norm=config.norm, stride=stride, dims=dims))
        if smooth:
            layers.append(_halving(config))
        layers.append(make_norm(config.norm, channels, dims=dims))
        return layers.append(activation_after(config.norm, config.activation))
    if smooth == "average":
        return AVERAGE_POOLINGS[dims](2)
    if smooth == "blur":
        return nn.Sequential(MAX_POOLINGS[dims](kernel_size=3, stride=1, padding=1), BlurPool(dims=dims))
    return MAX_POOLINGS[dims](kernel_size=3, stride=2, padding=1)


def _halving(config: ResNetConfig) -> nn.Module:
    return (BlurPool if config.anti_aliasing == "blur" else CellMean)(dims=config.dims)


def _attention(config: ResNetConfig, channels: int) -> nn.Module | None:
    if config.attention is None:
        return None
    width = config.attention_width(channels)
    if config.attention == "se":
        return SqueezeExcitation(channels, width, dims=config.dims)
    return ChannelAttention(width, dims=config.dims)


def _block(
    config: ResNetConfig, stage: int, block: int, in_channels: int, drop_path_rate: float
) -> nn.Module:
    out_channels = config.out_channels(stage)
    stride = config.stride(stage) if block == 0 else 1
    dilation = config.dilation(stage)
    first_dilation = config.dilation(stage - 1) if block == 0 and stage > 0 else dilation
    shortcut = anti_aliasing = None
    if config.changes_shape(stage, block):
        shortcut = _shortcut(config, in_channels, out_channels, stride)
    if config.anti_aliasing is not None and stride == 2:
        anti_aliasing, stride = _halving(config), 1
    if config.block == "basic":
        return BasicBlock(
            in_channels,
            out_channels,
            stride=stride,
            dilation=(first_dilation, dilation),
            shortcut=shortcut,
            attention=_attention(config, out_channels),
            anti_aliasing=anti_aliasing,
            norm=config.norm,
            activation=config.activation,
            proj_drop_rate=config.proj_drop_rate,
            drop_path_rate=drop_path_rate,
            dims=config.dims,
        )
    return BottleneckBlock(
        in_channels,
        config.branch_width(stage),
        out_channels,
        groups=config.groups,
        strides=(stride, 1) if config.stride_in == "1x1" else (1, stride),
        dilation=first_dilation,
        shortcut=shortcut,
        attention=_attention(config, out_channels),
        anti_aliasing=anti_aliasing,
        norm=config.norm,
        activation=config.activation,
        proj_drop_rate=config.proj_drop_rate,
        drop_path_rate=drop_path_rate,
        dims=config.dims,
    )


def _shortcut(config: ResNetConfig, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if config.shortcut == "pad":
        return PadShortcut(in_channels, out_channels, stride, dims=config.dims)
    convolution = CONVOLUTIONS[config.dims]
    norm = make_norm(config.norm, out_channels, activated=False, dims=config.dims)
    if config.shortcut == "average":
        layers: dict[str, nn.Module] = {"0": CellMean(dims=config.dims)} if stride == 2 else {}
        layers["1"] = convolution(in_channels, out_channels, 1, bias=config.norm is None)
        layers["2"] = norm
        return nn.Sequential(OrderedDict(layers))
    return nn.Sequential(
        convolution(in_channels, out_channels, 1, stride=stride, bias=config.norm is None), norm
    )


def _conv3x3(
    in_channels: int,
    out_channels: int,
    *,
    norm: Norm,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    dims: int = 2,
) -> Convolution:
    return CONVOLUTIONS[dims](
        in_channels,
        out_channels,
        3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        groups=groups,
        bias=norm is None,
    )
