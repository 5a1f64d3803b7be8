"""Configurations, named rows and graph of pre-activation ResNets. Nothing here needs torch.

Names of modules and parameters are timm's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from skipnets.errors import UserError
from skipnets.models.graph import Graph, GraphBuilder
from skipnets.models.registry import (
    STEM_REDUCTION,
    BlockActivation,
    ModelConfig,
    Stem,
    _require_choice,
    _require_int,
    require_activation,
)

__all__ = ["RESNETV2S", "ResNetV2Config", "resnetv2_graph"]


@dataclass(frozen=True, kw_only=True)
class ResNetV2Config(ModelConfig):
    """A pre-activation ResNet (He et al. 2016, arXiv 1603.05027), or BiT (arXiv 1912.11370).

    Norm and ReLU come before each convolution, so that nothing but sums lies between the blocks. As in timm
    the 3×3 convolution of a bottleneck block has the stride. Stems and their `stem_channels` are those of a
    `ResNetConfig`, without a last norm and ReLU.

    Args:
        block: `"basic"` (two 3×3 convolutions) or `"bottleneck"` (1×1, 3×3, 1×1, four times wider outside).
        width: Channels inside the blocks of the first stage; every further stage doubles them.
        shortcut: In the first block of a stage: `"projection"`, a 1×1 convolution, or `"average"`, the mean
            of 2×2 pixels before it. The first block of basic ones has it only where the shape changes.
        stem_channels: Channels after the stem; None means `width`. The first two convolutions of a deep stem
            have half as many.
        zero_border: Whether the stem's max-pooling sees zeros beyond the map (BiT) instead of nothing, which
            differs, as there is no ReLU before it.
        standardized_weights: Whether convolutions run with weights of mean 0 and variance 1 for each output
            channel (Qiao et al. 2019, arXiv 1903.10520), as BiT's do.
        activation: `"relu"`, `"silu"` (x·sigmoid(x)), `"gelu"` or `"hard_swish"`, in place of every ReLU;
            there are none where the norm activates.
    """

    family: ClassVar[str] = "resnetv2"
    stems: ClassVar[tuple[Stem, ...]] = ("imagenet", "small", "cifar", "deep", "tiered")

    block: Literal["basic", "bottleneck"] = "bottleneck"
    width: int = 64
    shortcut: Literal["projection", "average"] = "projection"
    stem_channels: int | None = None
    zero_border: bool = False
    standardized_weights: bool = False
    activation: BlockActivation = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_activation(self.activation, self.norm, only_after_norms=True)
        _require_choice("block", self.block, ("basic", "bottleneck"))
        _require_choice("shortcut", self.shortcut, ("projection", "average"))
        _require_int("width", self.width, 1, 4096)
        if self.stem_channels is not None:
            _require_int("stem_channels", self.stem_channels, 1, 4096)
        if self.stem_widths()[0] < 1:
            raise UserError(
                f'stem_channels={self.stem_channels}, width={self.width}: too few for stem="{self.stem}"'
            )
        for name in ("zero_border", "standardized_weights"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name}={getattr(self, name)!r}: must be true or false")
        if self.zero_border and not self.has_stem_pool:
            raise UserError(f'zero_border=True: a stem="{self.stem}" has no pooling')

    @property
    def has_stem_pool(self) -> bool:
        """Whether the stem ends with pooling."""
        return STEM_REDUCTION[self.stem] == 4

    @property
    def stem_stride(self) -> int:
        """Stride of the first convolution."""
        return 2 if self.has_stem_pool else STEM_REDUCTION[self.stem]

    def stem_widths(self) -> tuple[int, ...]:
        """Channels of the stem's convolutions, in order."""
        last = self.width if self.stem_channels is None else self.stem_channels
        if self.stem not in ("deep", "tiered"):
            return (last,)
        return (3 * last // 8 if self.stem == "tiered" else last // 2, last // 2, last)

    @property
    def smallest_size(self) -> int:
        """Every stride rounds up, so one pixel is enough; some norms need two in every map."""
        strides = math.prod([self.stride(stage) for stage in range(len(self.block_config))])
        return 2 * STEM_REDUCTION[self.stem] * strides if self.norm_needs_pixels else 1

    @property
    def description(self) -> str:
        """Kind and width of the residual blocks."""
        weights = ", standardized weights" if self.standardized_weights else ""
        return f"pre-activation {self.block} blocks, width {self.width}{weights}"

    def stride(self, stage: int) -> int:
        """Stride of the first block of a stage, counted from 0."""
        return 1 if stage == 0 else 2

    def branch_width(self, stage: int) -> int:
        """Channels inside a residual branch of a stage."""
        return self.width * 2**stage

    def out_channels(self, stage: int) -> int:
        """Channels of a stage's output."""
        return self.branch_width(stage) * (1 if self.block == "basic" else 4)

    def has_projection(self, stage: int, block: int, in_channels: int) -> bool:
        """Whether a block's shortcut has a convolution."""
        changes = self.stride(stage) != 1 or in_channels != self.out_channels(stage)
        return block == 0 and (changes or self.block == "bottleneck")


def resnetv2_graph(config: ResNetV2Config) -> Graph:
    """Stem, stages of residual blocks, a last norm and ReLU, and the head."""
    build = _Builder(config)
    x = build.stem()
    rates = iter(config.drop_path_rates())
    graph = build.graph
    for stage, blocks in enumerate(config.block_config):
        path = f"stages.{stage}"
        with graph.scope(path, "stage"):
            for block in range(blocks):
                x = build.block(f"{path}.blocks.{block}", x, stage, block, next(rates))
        graph.stage(path, x)
    x = graph.stage("norm", graph.norm("norm", x, config.norm))
    x = graph.stage("act", build.activation("act", x))
    return graph.finish(
        x,
        head="head.fc",
        global_pool=config.global_pool,
        num_classes=config.num_classes,
        drop_rate=config.drop_rate,
        pointwise=True,
    )


class _Builder:
    """Adds the parts of a network to its graph."""

    def __init__(self, config: ResNetV2Config) -> None:
        self._config = config
        self.graph = GraphBuilder(name=config.name, in_chans=config.in_chans)

    def stem(self) -> int:
        """One or three convolutions, and pooling."""
        config, graph, x = self._config, self.graph, 0
        widths = config.stem_widths()
        for index, width in enumerate(widths):
            number = index + 1 if len(widths) > 1 else ""
            kernel = 7 if config.stem == "imagenet" else 3
            stride = config.stem_stride if index == 0 else 1
            name = f"stem.conv{number}"
            x = graph.stage(name, self._convolution(name, x, width, kernel, stride=stride))
            if index + 1 < len(widths):
                x = graph.stage(f"stem.norm{number}", graph.norm(f"stem.norm{number}", x, config.norm))
                x = graph.stage(f"stem.act{number}", self.activation(f"stem.act{number}", x))
        if config.has_stem_pool:
            padding = 1
            if config.zero_border:
                x, padding = graph.stage("stem.pad", graph.border("stem.pad", x, 1)), 0
            x = graph.stage("stem.pool", graph.pool("stem.pool", x, "max", 3, stride=2, padding=padding))
        return x

    def block(self, path: str, x: int, stage: int, block: int, drop_path_rate: float) -> int:
        """Norm, ReLU and convolution twice (3×3) or three times (1×1, 3×3, 1×1), added to the shortcut."""
        config, graph = self._config, self.graph
        stride = config.stride(stage) if block == 0 else 1
        width, out = config.branch_width(stage), config.out_channels(stage)
        windows = [(width, 1, 1), (width, 3, stride), (out, 1, 1)]
        if config.block == "basic":
            windows = [(width, 3, stride), (out, 3, 1)]
        with graph.scope(path, "residual block"):
            shortcut = y = x
            for number, (channels, kernel, step) in enumerate(windows, start=1):
                y = graph.norm(f"{path}.norm{number}", y, config.norm)
                y = self.activation(f"{path}.act{number}", y)
                if number == 1 and config.has_projection(stage, block, graph.channels(x)):
                    shortcut = self._shortcut(f"{path}.downsample", y, out, stride)
                if number == len(windows):
                    y = graph.dropout(f"{path}.dropout", y, config.proj_drop_rate)
                y = self._convolution(f"{path}.conv{number}", y, channels, kernel, stride=step)
            y = graph.dropout(f"{path}.drop_path", y, drop_path_rate, "row")
            return graph.add(path, shortcut, y)

    def activation(self, name: str, x: int) -> int:
        """The configuration's activation behind a norm, which may be one itself."""
        if self._config.norm_activates:
            return x
        return self.graph.activation(name, x, self._config.activation)

    def _shortcut(self, path: str, x: int, out: int, stride: int) -> int:
        """A 1×1 convolution, perhaps of means; its module comes before those of the branch."""
        with self.graph.scope(path, "shortcut", comes_first=True):
            if self._config.shortcut == "average" and stride == 2:
                x, stride = self.graph.cell_mean(f"{path}.pool", x), 1
            return self._convolution(f"{path}.conv", x, out, 1, stride=stride)

    def _convolution(self, name: str, x: int, channels: int, kernel: int, *, stride: int = 1) -> int:
        return self.graph.convolution(
            name,
            x,
            channels,
            kernel,
            stride=stride,
            bias=self._config.norm is None,
            standardized=self._config.standardized_weights,
        )


_LAYERS: dict[str, tuple[int, ...]] = {
    "18": (2, 2, 2, 2),
    "34": (3, 4, 6, 3),
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
}
_LETTERS: dict[str, dict[str, Any]] = {
    "": {},
    "d": {"stem": "deep", "shortcut": "average"},
    "t": {"stem": "tiered", "shortcut": "average"},
}


def _row(ending: str, **fields: Any) -> ResNetV2Config:
    """`ending` is a number of layers and a letter of timm's, as in `skipnets.models.resnet_variants`."""
    depth, letter = ending.rstrip("dt"), ending.lstrip("0123456789")
    return ResNetV2Config(
        name=f"resnetv2_{ending}{'_gn' if fields else ''}",
        block="basic" if depth in ("18", "34") else "bottleneck",
        block_config=_LAYERS[depth],
        **_LETTERS[letter] | fields,
    )


def _bit(depth: str, factor: int) -> ResNetV2Config:
    """A network of "Big Transfer" (Kolesnikov et al. 2020, arXiv 1912.11370), `factor` times as wide."""
    return ResNetV2Config(
        name=f"resnetv2_{depth}x{factor}_bit",
        block_config=_LAYERS[depth],
        width=64 * factor,
        norm="group",
        zero_border=True,
        standardized_weights=True,
    )


RESNETV2S: tuple[ResNetV2Config, ...] = (
    *map(_row, ("18", "18d", "34", "34d", "50", "50d", "50t", "101", "101d", "152", "152d")),
    _row("50d", norm="group"),
    *(_bit(depth, factor) for depth, factor in (("50", 1), ("50", 3), ("101", 1), ("101", 3))),
    *(_bit("152", factor) for factor in (2, 4)),
)
