"""DenseNet: every layer reads the concatenated outputs of all layers before it in its block.

Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks, 2017 (arXiv 1608.06993).
Parameter names and arithmetic are torchvision's, so its checkpoints load unchanged.

Shapes: N batch, C channels, H height, W width, k growth rate, L layers of a block. Maps (N, C, H, W) are
    (N, C, L) of signals and (N, C, D, H, W) of volumes: `dims` is the number of their spatial axes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
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
from skipnets.models.layers import BlurPool
from skipnets.models.registry import STEM_REDUCTION, BlockActivation, DenseNetConfig, Norm
from skipnets.models.spatial import AVERAGE_POOLINGS, CONVOLUTIONS, MAX_POOLINGS

if TYPE_CHECKING:
    from skipnets.models.graph import ExecutionPolicy


class BasicDenseLayer(nn.Module):
    """norm → ReLU → 3×3 convolution: the layer H of the paper's section 3, without a bottleneck."""

    def __init__(
        self,
        in_channels: int,
        growth_rate: int,
        *,
        norm: Norm,
        activation: BlockActivation = "relu",
        proj_drop_rate: float,
        drop_path_rate: float,
        dims: int = 2,
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, in_channels, dims=dims)
        self.relu1 = activation_after(norm, activation)
        self.conv1 = CONVOLUTIONS[dims](in_channels, growth_rate, 3, padding=1, bias=norm is None)
        self.dropout = nn.Dropout(proj_drop_rate)
        self.drop_path = StochasticDepth(drop_path_rate, "row")

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) → (N, k, H, W): the k new feature maps, not yet concatenated."""
        x = self.conv1(self.relu1(self.norm1(features)))
        return self.drop_path(self.dropout(x))


class DenseLayer(nn.Module):
    """norm → ReLU → 1×1 convolution → norm → ReLU → 3×3 convolution: the paper's bottleneck layer."""

    def __init__(
        self,
        in_channels: int,
        growth_rate: int,
        bottleneck: int,
        *,
        norm: Norm,
        activation: BlockActivation = "relu",
        proj_drop_rate: float,
        drop_path_rate: float,
        dims: int = 2,
    ) -> None:
        super().__init__()
        width = bottleneck * growth_rate
        convolution = CONVOLUTIONS[dims]
        self.norm1 = make_norm(norm, in_channels, dims=dims)
        self.relu1 = activation_after(norm, activation)
        self.conv1 = convolution(in_channels, width, 1, bias=norm is None)
        self.norm2 = make_norm(norm, width, dims=dims)
        self.relu2 = activation_after(norm, activation)
        self.conv2 = convolution(width, growth_rate, 3, padding=1, bias=norm is None)
        self.dropout = nn.Dropout(proj_drop_rate)
        self.drop_path = StochasticDepth(drop_path_rate, "row")

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) → (N, k, H, W): the k new feature maps, not yet concatenated."""
        x = self.conv1(self.relu1(self.norm1(features)))
        x = self.conv2(self.relu2(self.norm2(x)))
        return self.drop_path(self.dropout(x))


class DenseBlock(nn.Sequential):
    """L dense layers at one map size; the output is the input followed by the k maps of each layer."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C + L·k, H, W)."""
        for layer in self:
            features = torch.cat([features, layer(features)], dim=1)
        return features


class Transition(nn.Sequential):
    """norm → ReLU → 1×1 convolution → 2×2 average pooling, between two dense blocks.

    (N, C, H, W) → (N, out_channels, ⌊H/2⌋, ⌊W/2⌋).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: Norm,
        activation: BlockActivation = "relu",
        dims: int = 2,
    ) -> None:
        super().__init__()
        self.norm = make_norm(norm, in_channels, dims=dims)
        self.relu = activation_after(norm, activation)
        self.conv = CONVOLUTIONS[dims](in_channels, out_channels, 1, bias=norm is None)
        self.pool = AVERAGE_POOLINGS[dims](kernel_size=2, stride=2)


class DenseNet(Backbone[DenseNetConfig]):
    """Stem, dense blocks with transitions between them, a last norm and ReLU, and the head.

    Args:
        config: Usually from `skipnets.models.model_config`.
    """

    head_name: ClassVar[str] = "classifier"

    def __init__(self, config: DenseNetConfig) -> None:
        super().__init__(config)
        assert config.stem_channels is not None
        channels, reduction = config.stem_channels, STEM_REDUCTION[config.stem]
        self.features = _stem(config, channels)
        if config.stem in ("imagenet", "deep"):
            last = "features.relu0" if config.stem == "imagenet" else "features.relu2"
            self.feature_info = [FeatureMapInfo(num_chs=channels, reduction=2, module=last)]
        else:
            self.feature_info = [
                FeatureMapInfo(num_chs=channels, reduction=reduction, module="features.conv0")
            ]

        path_rates = iter(config.drop_path_rates())
        for number, layers in enumerate(config.block_config, start=1):
            block = DenseBlock()
            for layer in range(1, layers + 1):
                block.add_module(f"denselayer{layer}", _dense_layer(config, channels, next(path_rates)))
                channels += config.growth_rate
            self.features.add_module(f"denseblock{number}", block)
            if number < len(config.block_config):
                self.feature_info.append(
                    FeatureMapInfo(
                        num_chs=channels, reduction=reduction, module=f"features.denseblock{number}"
                    )
                )
                compressed = config.compressed(channels)
                self.features.add_module(
                    f"transition{number}",
                    Transition(
                        channels,
                        compressed,
                        norm=config.norm,
                        activation=config.activation,
                        dims=config.dims,
                    ),
                )
                channels, reduction = compressed, reduction * 2
        self.features.add_module("norm5", make_norm(config.norm, channels, dims=config.dims))
        self.features.add_module("relu5", activation_after(config.norm, config.activation))
        self.feature_info.append(
            FeatureMapInfo(num_chs=channels, reduction=reduction, module="features.relu5")
        )

        self._add_head(channels)
        initialize_convolutions(self)

    def set_block_execution(self, policy: ExecutionPolicy, *, warn: bool = True) -> None:
        """Choose how dense blocks and transitions run in training: memory and speed change, numbers do not.

        Args:
            policy: `"auto"`, the fastest on the device; `"plain"`, layer by layer as written here;
                `"linear"`, each as one operation in memory proportional to its depth; `"linear-recompute"`,
                in even less memory, slightly slower.
            warn: Whether to say where it will not be applied, and why.

        Raises:
            UserError: For any other policy.
        """
        from skipnets.models.block_execution import set_block_execution

        set_block_execution(self, policy, warn=warn)

    def block_execution_report(self) -> dict[str, str]:
        """How each block and transition ran last, or would run now; for "plain", with the reason."""
        from skipnets.models.block_execution import execution_report

        return execution_report(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names, grouped by depth for `timm.optim`'s layer-wise learning rates.

        Args:
            coarse: One group per dense block instead of one per dense layer.
        """
        layers = [
            (r"^features\.denseblock(\d+)\.denselayer(\d+)", None),
            (r"^features\.transition(\d+)", (99999,)),
        ]
        blocks = r"^features\.(?:denseblock|transition)(\d+)"
        return {"stem": r"^features\.(?:conv|norm)[012]", "blocks": blocks if coarse else layers}

    def _run_stages(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images → the last map; the stages are one module, so that hooks on `features` run."""
        maps: Tensor = self.features(x)
        return maps

    def named_stages(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield `features.conv0` … `features.relu5` with their paths."""
        for name, module in every_child(self.features):
            yield f"features.{name}", module


def _stem(config: DenseNetConfig, channels: int) -> nn.Sequential:
    norm, bias, dims = config.norm, config.norm is None, config.dims
    convolution, max_pooling = CONVOLUTIONS[dims], MAX_POOLINGS[dims]
    if config.stem in ("small", "cifar"):
        stride = STEM_REDUCTION[config.stem]
        conv0 = convolution(config.in_chans, channels, 3, stride=stride, padding=1, bias=bias)
        return nn.Sequential(OrderedDict(conv0=conv0))
    layers: dict[str, nn.Module] = {}
    if config.stem == "imagenet":
        layers["conv0"] = convolution(config.in_chans, channels, 7, stride=2, padding=3, bias=bias)
        layers["norm0"] = make_norm(norm, channels, dims=dims)
        layers["relu0"] = activation_after(config.norm, config.activation)
    else:
        into = config.in_chans
        for number, width in enumerate((config.growth_rate, config.growth_rate, channels)):
            stride = 2 if number == 0 else 1
            layers[f"conv{number}"] = convolution(into, width, 3, stride=stride, padding=1, bias=bias)
            layers[f"norm{number}"] = make_norm(norm, width, dims=dims)
            layers[f"relu{number}"] = activation_after(config.norm, config.activation)
            into = width
    if config.anti_aliasing == "blur":
        layers["pool0"] = nn.Sequential(max_pooling(kernel_size=3, stride=1, padding=1), BlurPool(dims=dims))
    else:
        layers["pool0"] = max_pooling(kernel_size=3, stride=2, padding=1)
    return nn.Sequential(OrderedDict(layers))


def _dense_layer(config: DenseNetConfig, in_channels: int, drop_path_rate: float) -> nn.Module:
    if config.bottleneck is None:
        return BasicDenseLayer(
            in_channels,
            config.growth_rate,
            norm=config.norm,
            activation=config.activation,
            proj_drop_rate=config.proj_drop_rate,
            drop_path_rate=drop_path_rate,
            dims=config.dims,
        )
    return DenseLayer(
        in_channels,
        config.growth_rate,
        config.bottleneck,
        norm=config.norm,
        activation=config.activation,
        proj_drop_rate=config.proj_drop_rate,
        drop_path_rate=drop_path_rate,
        dims=config.dims,
    )
