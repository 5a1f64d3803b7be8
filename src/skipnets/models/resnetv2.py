"""Pre-activation ResNets, and Big Transfer (BiT): nothing but sums lies between the blocks.

He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, 2016 (arXiv 1603.05027). Kolesnikov et al.:
Big Transfer, 2020 (arXiv 1912.11370). Parameter names and arithmetic are timm's, so its checkpoints load
unchanged.

Shapes: N batch, C channels, H height, W width, S stride.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from skipnets.models.backbone import (
    Backbone,
    FeatureMapInfo,
    activation_after,
    every_child,
    initialize_convolutions,
    make_norm,
)
from skipnets.models.layers import CellMean, PointwiseLinear, StandardizedConvolution
from skipnets.models.registry import STEM_REDUCTION
from skipnets.models.resnetv2_graph import ResNetV2Config


class PreActivationBasicBlock(nn.Module):
    """Norm, ReLU and a 3×3 convolution, twice, beside a shortcut (the paper's figure 4e)."""

    def __init__(
        self, config: ResNetV2Config, stage: int, block: int, in_channels: int, drop_path_rate: float
    ) -> None:
        super().__init__()
        stride = config.stride(stage) if block == 0 else 1
        width = config.out_channels(stage)
        self.downsample = _shortcut(config, stage, block, in_channels)
        self.norm1 = make_norm(config.norm, in_channels)
        self.act1 = activation_after(config.norm, config.activation)
        self.conv1 = _convolution(config, in_channels, width, 3, stride=stride)
        self.norm2 = make_norm(config.norm, width)
        self.act2 = activation_after(config.norm, config.activation)
        self.dropout = nn.Dropout(config.proj_drop_rate)
        self.conv2 = _convolution(config, width, width, 3)
        self.drop_path = StochasticDepth(drop_path_rate, "row")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, out_channels, ⌈H/S⌉, ⌈W/S⌉)."""
        y = self.act1(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(self.dropout(self.act2(self.norm2(y))))
        return shortcut + self.drop_path(y)


class PreActivationBottleneckBlock(nn.Module):
    """Norm, ReLU and convolution three times (1×1, 3×3, 1×1) beside a shortcut."""

    def __init__(
        self, config: ResNetV2Config, stage: int, block: int, in_channels: int, drop_path_rate: float
    ) -> None:
        super().__init__()
        stride = config.stride(stage) if block == 0 else 1
        width = config.branch_width(stage)
        self.downsample = _shortcut(config, stage, block, in_channels)
        self.norm1 = make_norm(config.norm, in_channels)
        self.act1 = activation_after(config.norm, config.activation)
        self.conv1 = _convolution(config, in_channels, width, 1)
        self.norm2 = make_norm(config.norm, width)
        self.act2 = activation_after(config.norm, config.activation)
        self.conv2 = _convolution(config, width, width, 3, stride=stride)
        self.norm3 = make_norm(config.norm, width)
        self.act3 = activation_after(config.norm, config.activation)
        self.dropout = nn.Dropout(config.proj_drop_rate)
        self.conv3 = _convolution(config, width, config.out_channels(stage), 1)
        self.drop_path = StochasticDepth(drop_path_rate, "row")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, out_channels, ⌈H/S⌉, ⌈W/S⌉)."""
        y = self.act1(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(self.act2(self.norm2(y)))
        y = self.conv3(self.dropout(self.act3(self.norm3(y))))
        return shortcut + self.drop_path(y)


class ResNetV2(Backbone[ResNetV2Config]):
    """Stem, stages of residual blocks, a last norm and ReLU, and the head.

    Args:
        config: Usually from `skipnets.models.model_config`.
    """

    head_name: ClassVar[str] = "head.fc"
    head_type: ClassVar[type[nn.Linear]] = PointwiseLinear

    def __init__(self, config: ResNetV2Config) -> None:
        super().__init__(config)
        self.stem = _stem(config)
        channels, reduction = config.stem_widths()[-1], config.stem_stride
        convolutions = [name for name, _ in self.stem.named_children() if name.startswith("conv")]
        self.feature_info = [
            FeatureMapInfo(num_chs=channels, reduction=reduction, module=f"stem.{convolutions[-1]}")
        ]
        reduction = STEM_REDUCTION[config.stem]
        self.stages = nn.Sequential()
        path_rates = iter(config.drop_path_rates())
        kind = PreActivationBasicBlock if config.block == "basic" else PreActivationBottleneckBlock
        for stage, blocks in enumerate(config.block_config):
            layers = nn.Sequential()
            for block in range(blocks):
                layers.append(kind(config, stage, block, channels, next(path_rates)))
                channels = config.out_channels(stage)
            self.stages.append(nn.Sequential(OrderedDict(blocks=layers)))
            reduction *= config.stride(stage)
            self.feature_info.append(
                FeatureMapInfo(num_chs=channels, reduction=reduction, module=f"stages.{stage}")
            )
        self.norm = make_norm(config.norm, channels)
        self.act = activation_after(config.norm, config.activation)
        self.head = nn.ModuleDict()
        self._add_head(channels)
        initialize_convolutions(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names, grouped by depth for `timm.optim`'s layer-wise learning rates.

        Args:
            coarse: One group per stage instead of one per residual block.
        """
        blocks = [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def named_stages(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the parts of `stem`, the stages, `norm` and `act` with their paths."""
        for parent in ("stem", "stages"):
            for name, module in every_child(self.get_submodule(parent)):
                yield f"{parent}.{name}", module
        yield from self._children(("norm", "act"))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """As `Backbone.forward_intermediates`; the maps of stages are sums, before the norm that follows.

        Args:
            x: (N, C, H, W) images.
            indices: Indices into `feature_info`.
            norm: Whether the map of the last stage is taken after the network's last norm and ReLU.
            stop_early: Do not run the layers after the last requested map.
            output_fmt: Layout of the maps, `"NCHW"`.
            intermediates_only: Return only the list of requested maps.
        """
        normalized = norm and len(self.feature_info) - 1 in self.feature_indices(indices)
        found = super().forward_intermediates(
            x, indices, stop_early=stop_early and not normalized, output_fmt=output_fmt
        )
        assert isinstance(found, tuple)
        last, maps = found
        if normalized:
            maps[-1] = last
        return maps if intermediates_only else (last, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As `Backbone.prune_intermediate_layers`; `prune_norm` is about the last norm, after all stages."""
        kept = self.feature_indices(indices)
        if kept[-1] < len(self.feature_info) - 1 or prune_norm:
            return super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.reset_classifier(0, "")
        return kept


def _stem(config: ResNetV2Config) -> nn.Sequential:
    """One 7×7 or 3×3 convolution or three of 3×3, and max-pooling."""
    layers: dict[str, nn.Module] = {}
    widths, into = config.stem_widths(), config.in_chans
    for index, width in enumerate(widths):
        number = index + 1 if len(widths) > 1 else ""
        kernel, stride = (7 if config.stem == "imagenet" else 3), (config.stem_stride if index == 0 else 1)
        layers[f"conv{number}"] = _convolution(config, into, width, kernel, stride=stride)
        if index + 1 < len(widths):
            layers[f"norm{number}"] = make_norm(config.norm, width)
            layers[f"act{number}"] = activation_after(config.norm, config.activation)
        into = width
    if config.has_stem_pool and config.zero_border:
        layers["pad"] = nn.ZeroPad2d(1)
    if config.has_stem_pool:
        layers["pool"] = nn.MaxPool2d(3, stride=2, padding=0 if config.zero_border else 1)
    return nn.Sequential(OrderedDict(layers))


def _shortcut(config: ResNetV2Config, stage: int, block: int, in_channels: int) -> nn.Module | None:
    if not config.has_projection(stage, block, in_channels):
        return None
    layers: dict[str, nn.Module] = {}
    stride = config.stride(stage)
    if config.shortcut == "average" and stride == 2:
        layers["pool"], stride = CellMean(), 1
    layers["conv"] = _convolution(config, in_channels, config.out_channels(stage), 1, stride=stride)
    return nn.Sequential(OrderedDict(layers))


def _convolution(
    config: ResNetV2Config, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1
) -> nn.Conv2d:
    kind = StandardizedConvolution if config.standardized_weights else nn.Conv2d
    return kind(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=config.norm is None
    )
