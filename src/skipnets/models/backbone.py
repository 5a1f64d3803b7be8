"""What a DenseNet and a ResNet have in common around their stages: input check, head, intermediate maps.

The method names and their meaning are timm's, so that code written for its models works on these.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Generic, TypedDict, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipnets.errors import UserError
from skipnets.models.registry import ModelConfig, Norm

if TYPE_CHECKING:
    from skipnets.models.graph import BlockExecution
    from skipnets.models.weights import LoadReport

ConfigT = TypeVar("ConfigT", bound=ModelConfig)


class FeatureInfo(TypedDict):
    """One intermediate map: its channels, how many times smaller it is than the input, and what makes it."""

    num_chs: int
    reduction: int
    module: str


class Backbone(nn.Module, Generic[ConfigT]):
    """An image classifier: stem and stages, global average pooling, and one linear layer.

    Attributes:
        config: The configuration that describes it.
        num_features: Channels of the last map.
        feature_info: The maps that `forward_intermediates` returns, finest first.
        weights_report: What `create_model(weights=…)` matched with what.
    """

    head_name: ClassVar[str]

    config: ConfigT
    num_features: int
    feature_info: list[FeatureInfo]
    head_drop: nn.Module

    def __init__(self, config: ConfigT) -> None:
        super().__init__()
        self.config = config
        self.weights_report: LoadReport | None = None

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return self.config.num_classes

    def stages(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules between input and last map, in the order in which they run, with their paths."""
        raise NotImplementedError

    def set_block_execution(self, policy: BlockExecution) -> None:
        """Choose how blocks run in training. Families without dense blocks run plainly only.

        Raises:
            UserError: For any other policy.
        """
        if policy != "plain":
            raise UserError(
                f'block_execution="{policy}": must be plain, {self.config.name} has no dense blocks'
            )

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images → the last map (N, num_features, h, w), after its norm and ReLU."""
        x = check_input(x, self.config.in_chans, self.config.smallest_size)
        for _, stage in self.stages():
            x = stage(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map (N, num_features, h, w) → logits (N, num_classes), or the pooled features."""
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        x = self.head_drop(x)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images → logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        stop_early: bool = False,
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps that `feature_info` lists, besides the last one.

        Args:
            x: (N, C, H, W) images.
            indices: Positions in `feature_info`; an int takes that many of the last, None takes all.
            stop_early: Do not compute what lies behind the last wanted map.
            intermediates_only: Leave out the last map.

        Returns:
            The last map (N, num_features, h, w) and the list of wanted maps, or the list alone.
        """
        wanted = self._feature_modules(indices)
        maps: list[Tensor] = []
        x = check_input(x, self.config.in_chans, self.config.smallest_size)
        for path, stage in self.stages():
            x = stage(x)
            if path in wanted:
                maps.append(x)
            if stop_early and len(maps) == len(wanted):
                break
        return maps if intermediates_only else (x, maps)

    def get_classifier(self) -> nn.Module:
        """The linear layer that makes the logits."""
        head: nn.Module = getattr(self, self.head_name)
        return head

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh head for `num_classes` in place, on the old one's device and in its dtype."""
        weight = next(self.parameters())
        head = make_head(self.num_features, num_classes).to(weight.device, weight.dtype)
        setattr(self, self.head_name, head.train(self.training))
        self.config = dataclasses.replace(self.config, num_classes=num_classes)

    def _feature_modules(self, indices: int | Sequence[int] | None) -> set[str]:
        available = [info["module"] for info in self.feature_info]
        count = len(available)
        if indices is None:
            return set(available)
        if isinstance(indices, int):
            positions: Sequence[int] = range(count - indices, count)
        else:
            positions = [index + count if index < 0 else index for index in indices]
        if not positions or min(positions) < 0 or max(positions) >= count:
            raise UserError(f"indices={indices!r} do not fit the {count} maps of {self.config.name}")
        return {available[position] for position in positions}


@torch.fx.wrap
def check_input(x: Tensor, channels: int, smallest_size: int) -> Tensor:
    """Give x back if it fits the network. Wrapped, so that symbolic tracing need not decide on shapes."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise UserError(f"the input must be (N, {channels}, H, W), not {tuple(x.shape)}")
    if x.shape[2] < smallest_size or x.shape[3] < smallest_size:
        raise UserError(
            f"images of {x.shape[2]}×{x.shape[3]} are too small for this network: "
            f"the smallest size that works is {smallest_size}×{smallest_size}"
        )
    return x


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """The norm over `channels` that a config asks for; the identity for None."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(next(groups for groups in range(32, 0, -1) if channels % groups == 0), channels)
    return nn.Identity()


def make_head(num_features: int, num_classes: int) -> nn.Module:
    """The linear layer of the head, its bias at 0; the identity for 0 classes."""
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(num_features, num_classes)
    nn.init.zeros_(head.bias)
    return head


def initialize_convolutions(model: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / (kernel area × output channels)).

    He et al. 2015 (arXiv 1502.01852, equation 14), the form for the backward pass ("fan-out"): what the
    authors' Torch code of both ResNet (fb.resnet.torch) and DenseNet does. Norms start at 1 and 0, as PyTorch
    makes them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def drop_path_rates(config: ModelConfig) -> list[float]:
    """The rate of every layer, in order: 0 at the first, `config.drop_path_rate` at the last."""
    last = max(sum(config.block_config) - 1, 1)
    return [config.drop_path_rate * index / last for index in range(sum(config.block_config))]
