"""RDNet: a DenseNet of today, wide layers with depthwise convolutions instead of many thin ones.

Kim, Heo, Han: DenseNets Reloaded: Paradigm Shift Beyond ResNets and ViTs, 2024 (arXiv 2403.19588).
Parameter names and arithmetic are timm's, so its checkpoints load unchanged.

Shapes: N batch, C channels, H height, W width, k growth rate, L layers of a block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from skipnets.models.backbone import Backbone, FeatureMapInfo, every_child, make_norm
from skipnets.models.layers import EffectiveSqueezeExcitation, make_activation
from skipnets.models.rdnet_graph import RDNetConfig
from skipnets.models.registry import STEM_REDUCTION, BlockActivation, Pooling

if TYPE_CHECKING:
    from skipnets.models.graph import ExecutionPolicy


class RDNetLayer(nn.Module):
    """Depthwise 7×7 → norm → 1×1 → activation → 1×1, perhaps squeeze-excitation, and layer scale.

    The paper's figure 2, with the factors of layer scale (Touvron et al. 2021, arXiv 2103.17239) at its end.
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        growth_rate: int,
        *,
        squeeze_excitation: bool,
        layer_scale: float,
        norm: nn.Module,
        activation: BlockActivation,
        proj_drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((growth_rate,), layer_scale)) if layer_scale else None
        branch = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 7, padding=3, groups=in_channels),
            norm,
            nn.Conv2d(in_channels, inner_channels, 1),
            make_activation(activation),
            nn.Conv2d(inner_channels, growth_rate, 1),
        )
        if squeeze_excitation:
            branch.append(EffectiveSqueezeExcitation(growth_rate))
        self.layers = nn.Sequential(OrderedDict(layers=branch))  # as timm's checkpoints name it
        self.drop_path = StochasticDepth(drop_path_rate, "row")
        self.dropout = nn.Dropout(proj_drop_rate)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) → (N, k, H, W): the k new feature maps, not yet concatenated."""
        x = self.layers(features)
        if self.gamma is not None:
            x = x * self.gamma.reshape(1, -1, 1, 1)
        return self.dropout(self.drop_path(x))


class RDNetBlock(nn.Sequential):
    """L layers at one map size; the output is the input followed by the k maps of each layer."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C + L·k, H, W)."""
        for layer in self:
            features = torch.cat([features, layer(features)], dim=1)
        return features


class RDNet(Backbone[RDNetConfig]):
    """A stem of patches, dense blocks with a norm and a convolution between them, and the head.

    Args:
        config: Usually from `skipnets.models.model_config`.
    """

    head_name: ClassVar[str] = "head.fc"

    def __init__(self, config: RDNetConfig) -> None:
        super().__init__(config)
        channels, reduction = config.stem_channels, STEM_REDUCTION[config.stem]
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_chans, channels, reduction, stride=reduction),
            _norm(config, channels),
        )
        self.dense_stages = nn.Sequential()
        self.feature_info = []
        path_rates = iter(config.drop_path_rates())
        for number, layers in enumerate(config.block_config):
            stage = nn.Sequential()
            if number:
                size = 2 if config.halves[number] else 1
                reduction *= size
                compressed = config.compressed(channels)
                stage.append(_norm(config, channels))
                stage.append(nn.Conv2d(channels, compressed, size, stride=size))
                channels = compressed
            block = RDNetBlock()
            for layer in range(layers):
                rate = config.growth_rates[number]
                block.add_module(
                    f"dense_block{layer}",
                    RDNetLayer(
                        channels,
                        config.inner_channels(channels),
                        rate,
                        squeeze_excitation=config.squeeze_excitation[number],
                        layer_scale=config.layer_scale,
                        norm=_norm(config, channels),
                        activation=config.activation,
                        proj_drop_rate=config.proj_drop_rate,
                        drop_path_rate=next(path_rates),
                    ),
                )
                channels += rate
            stage.append(block)
            self.dense_stages.append(stage)
            if number + 1 == len(config.block_config) or config.halves[number + 1]:
                path = f"dense_stages.{number}.{len(stage) - 1}"
                self.feature_info.append(FeatureMapInfo(num_chs=channels, reduction=reduction, module=path))
        self.head = nn.ModuleDict({"norm": make_norm(config.head_norm, config.pooled(channels))})
        self._add_head(channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def set_block_execution(self, policy: ExecutionPolicy, *, warn: bool = True) -> None:
        """Choose how dense blocks run in training: memory and speed change, numbers do not.

        Args:
            policy: `"auto"`, the fastest on the device; `"plain"`, layer by layer as written here;
                `"linear"`, each as one operation that keeps no results of norms, activations and
                concatenations; `"linear-recompute"`, the same, also without those of convolutions.
            warn: Whether to say where it will not be applied, and why.

        Raises:
            UserError: For an unknown policy.
        """
        from skipnets.models.block_execution import set_block_execution

        set_block_execution(self, policy, warn=warn)

    def block_execution_report(self) -> dict[str, str]:
        """How each block ran last, or would run now; for "plain", with the reason."""
        from skipnets.models.block_execution import execution_report

        return execution_report(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002 - one grouping, as in timm
        """Patterns of parameter names, grouped by depth for `timm.optim`'s layer-wise learning rates.

        Args:
            coarse: Has no effect: the groups are the blocks.
        """
        return {"stem": r"^stem", "blocks": r"^dense_stages\.(\d+)"}

    def named_stages(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield `stem.0`, `stem.1`, and the parts of `dense_stages` with their paths."""
        for name, module in every_child(self.stem):
            yield f"stem.{name}", module
        for number, stage in every_child(self.dense_stages):
            for name, module in every_child(stage):
                yield f"dense_stages.{number}.{name}", module

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As `Backbone.prune_intermediate_layers`; with the head goes its norm."""
        before = self.num_features
        kept = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head or self.num_features != before:
            self.head["norm"] = nn.Identity()
        return kept

    def reset_classifier(self, num_classes: int, global_pool: Pooling | None = None) -> None:
        """As `Backbone.reset_classifier`; where the pooled features change in number, the norm is new."""
        super().reset_classifier(num_classes, global_pool)
        weight = getattr(self.head["norm"], "weight", None)
        if isinstance(weight, Tensor) and weight.shape != (self.head_hidden_size,):
            norm = make_norm(self.config.head_norm, self.head_hidden_size)
            self.head["norm"] = norm.to(weight.device, weight.dtype).train(self.training)

    def _pooled_features(self, x: Tensor) -> Tensor:
        """The last map (N, num_features, h, w) → its means, normalized: (N, head_hidden_size)."""
        pooled: Tensor = self.head["norm"](self.global_pool(x))
        return pooled


def _norm(config: RDNetConfig, channels: int) -> nn.Module:
    """A norm of maps."""
    return make_norm(config.norm, channels, activated=config.norm_keeps_nonlinearity)
