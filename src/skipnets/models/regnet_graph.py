"""Configurations, named rows and graph of RegNets. Nothing here needs torch.

Names of modules and parameters are timm's.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

from skipnets.errors import UserError
from skipnets.models.graph import Graph, GraphBuilder
from skipnets.models.registry import (
    STEM_REDUCTION,
    BlockActivation,
    ModelConfig,
    _require_int,
    _require_number,
    require_activation,
)

__all__ = ["REGNETS", "RegNetConfig", "regnet_graph"]


@dataclass(frozen=True, kw_only=True)
class RegNetConfig(ModelConfig):
    """A RegNetX or RegNetY: stages of residual blocks with grouped convolutions (arXiv 2003.13678).

    The stem is one 3×3 convolution with norm and ReLU. It and the first stage halve the maps for
    `stem="imagenet"`, the stage alone for `"small"`, and neither for `"cifar"`; every further stage does.

    Args:
        widths: Channels of each stage.
        group_size: Channels of each group of the 3×3 convolutions; of a narrower stage, all of them.
        se_ratio: Channels inside the squeeze-excitation after them, as a share of the block's input; 0 for
            none (RegNetX).
        stem_channels: Channels after the stem.
        activation: `"relu"`, `"silu"` (x·sigmoid(x)), `"gelu"` or `"hard_swish"`, in place of every ReLU of
            stem and blocks; behind the sums alone where the norm activates.
    """

    family: ClassVar[str] = "regnet"

    widths: tuple[int, ...] = ()
    group_size: int = 8
    se_ratio: float = 0.0
    stem_channels: int = 32
    activation: BlockActivation = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_activation(self.activation, self.norm)
        if not isinstance(self.widths, (tuple, list)) or len(self.widths) != len(self.block_config):
            raise UserError(
                f"widths={self.widths!r}: must have a value for each of the {len(self.block_config)} stages "
                "of block_config"
            )
        object.__setattr__(self, "widths", tuple(self.widths))
        _require_int("group_size", self.group_size, 1, 4096)
        for width in self.widths:
            _require_int("widths", width, 1, 65536)
            if width % min(self.group_size, width):
                raise UserError(f"widths={width}: must be a multiple of group_size={self.group_size}")
        _require_number("se_ratio", self.se_ratio, lambda value: 0 <= value <= 1, "from 0 to 1")
        _require_int("stem_channels", self.stem_channels, 1, 4096)

    @property
    def smallest_size(self) -> int:
        """Every stride rounds up, so one pixel is enough; some norms need two in every map."""
        strides = math.prod([self.stride(stage) for stage in range(len(self.block_config))])
        return 2 * self.stem_stride * strides if self.norm_needs_pixels else 1

    @property
    def description(self) -> str:
        """Widths and groups of the residual blocks."""
        squeeze = ", SE" if self.se_ratio else ""
        return (
            f"grouped blocks, widths {'-'.join(map(str, self.widths))}, groups of {self.group_size}{squeeze}"
        )

    @property
    def stem_stride(self) -> int:
        """Stride of the stem's convolution."""
        return 2 if STEM_REDUCTION[self.stem] == 4 else 1

    def stride(self, stage: int) -> int:
        """Stride of the first block of a stage, counted from 0."""
        return 2 if stage > 0 or STEM_REDUCTION[self.stem] > 1 else 1

    def groups(self, stage: int) -> int:
        """Groups of the 3×3 convolutions of a stage."""
        return self.widths[stage] // min(self.group_size, self.widths[stage])


def squeezed_channels(config: RegNetConfig, channels: int) -> int:
    """Channels inside the squeeze-excitation of a block that reads so many."""
    return max(round(channels * config.se_ratio), 1)


def regnet_graph(config: RegNetConfig) -> Graph:
    """Stem, stages of residual blocks, and the head."""
    build = GraphBuilder(name=config.name, in_chans=config.in_chans)
    x = _convolved(build, config, "stem", 0, config.stem_channels, 3, stride=config.stem_stride)
    x = build.stage("stem", x)
    rates = iter(config.drop_path_rates())
    for stage, blocks in enumerate(config.block_config):
        path = f"s{stage + 1}"
        with build.scope(path, "stage"):
            for block in range(blocks):
                stride = config.stride(stage) if block == 0 else 1
                x = _block(build, config, f"{path}.b{block + 1}", x, stage, stride, next(rates))
        build.stage(path, x)
    return build.finish(
        x,
        head="head.fc",
        global_pool=config.global_pool,
        num_classes=config.num_classes,
        drop_rate=config.drop_rate,
    )


def _convolved(
    build: GraphBuilder,
    config: RegNetConfig,
    path: str,
    x: int,
    channels: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activated: bool = True,
    kind: str = "convolutions",
) -> int:
    """A convolution, its norm, and an activation unless it is not `activated`."""
    bias = config.norm is None
    with build.scope(path, kind):
        x = build.convolution(f"{path}.conv", x, channels, kernel, stride=stride, groups=groups, bias=bias)
        x = build.norm(f"{path}.bn", x, config.norm, activated=activated)
        if not activated or config.norm_activates:
            return x
        return build.activation(f"{path}.act", x, config.activation)


def _block(
    build: GraphBuilder,
    config: RegNetConfig,
    path: str,
    x: int,
    stage: int,
    stride: int,
    drop_path_rate: float,
) -> int:
    """1×1, grouped 3×3, perhaps squeeze-excitation, and 1×1, added to the shortcut."""
    into, width, groups = build.channels(x), config.widths[stage], config.groups(stage)
    with build.scope(path, "residual block"):
        y = _convolved(build, config, f"{path}.conv1", x, width, 1)
        y = _convolved(build, config, f"{path}.conv2", y, width, 3, stride=stride, groups=groups)
        if config.se_ratio:
            gated, inner = f"{path}.se", squeezed_channels(config, into)
            with build.scope(gated, "squeeze-excitation"):
                z = build.convolution(f"{gated}.fc1", build.squeeze(gated, y), inner, 1, bias=True)
                z = build.convolution(f"{gated}.fc2", build.relu(f"{gated}.act", z), width, 1, bias=True)
                y = build.multiply(gated, y, build.activation(f"{gated}.gate", z, "sigmoid"))
        y = build.dropout(f"{path}.dropout", y, config.proj_drop_rate)
        y = _convolved(build, config, f"{path}.conv3", y, width, 1, activated=False)
        y = build.dropout(f"{path}.drop_path", y, drop_path_rate, "row")
        if stride != 1 or into != width:
            x = _convolved(
                build,
                config,
                f"{path}.downsample",
                x,
                width,
                1,
                stride=stride,
                activated=False,
                kind="shortcut",
            )
        return build.activation(f"{path}.act3", build.add(path, x, y), config.activation)


def _regnet(
    name: str,
    initial: int,
    slope: float,
    multiplier: float,
    depth: int,
    group_size: int,
    se_ratio: float = 0.0,
) -> RegNetConfig:
    """The paper's equations 2 to 4: widths on a line, quantized to powers of a multiplier and whole 8s.

    Runs of equal widths are the stages. The widths are then rounded to multiples of the group size.
    """
    steps = [round(math.log((initial + slope * block) / initial, multiplier)) for block in range(depth)]
    quantized = [round(initial * multiplier**step / 8) * 8 for step in steps]
    runs = [(width, len(list(blocks))) for width, blocks in itertools.groupby(quantized)]
    rounded = [round(width / min(group_size, width)) * min(group_size, width) for width, _ in runs]
    return RegNetConfig(
        name=name,
        block_config=tuple(blocks for _, blocks in runs),
        widths=tuple(rounded),
        group_size=group_size,
        se_ratio=se_ratio,
    )


REGNETS: tuple[RegNetConfig, ...] = (
    _regnet("regnetx_002", 24, 36.44, 2.49, 13, 8),
    _regnet("regnetx_004", 24, 24.48, 2.54, 22, 16),
    _regnet("regnetx_006", 48, 36.97, 2.24, 16, 24),
    _regnet("regnetx_008", 56, 35.73, 2.28, 16, 16),
    _regnet("regnetx_016", 80, 34.01, 2.25, 18, 24),
    _regnet("regnetx_032", 88, 26.31, 2.25, 25, 48),
    _regnet("regnetx_040", 96, 38.65, 2.43, 23, 40),
    _regnet("regnetx_064", 184, 60.83, 2.07, 17, 56),
    _regnet("regnetx_080", 80, 49.56, 2.88, 23, 120),
    _regnet("regnetx_120", 168, 73.36, 2.37, 19, 112),
    _regnet("regnetx_160", 216, 55.59, 2.1, 22, 128),
    _regnet("regnetx_320", 320, 69.86, 2.0, 23, 168),
    _regnet("regnety_002", 24, 36.44, 2.49, 13, 8, 0.25),
    _regnet("regnety_004", 48, 27.89, 2.09, 16, 8, 0.25),
    _regnet("regnety_006", 48, 32.54, 2.32, 15, 16, 0.25),
    _regnet("regnety_008", 56, 38.84, 2.4, 14, 16, 0.25),
    _regnet("regnety_016", 48, 20.71, 2.65, 27, 24, 0.25),
    _regnet("regnety_032", 80, 42.63, 2.66, 21, 24, 0.25),
    _regnet("regnety_040", 96, 31.41, 2.24, 22, 64, 0.25),
    _regnet("regnety_064", 112, 33.22, 2.27, 25, 72, 0.25),
    _regnet("regnety_080", 192, 76.82, 2.19, 17, 56, 0.25),
    _regnet("regnety_120", 168, 73.36, 2.37, 19, 112, 0.25),
    _regnet("regnety_160", 200, 106.23, 2.48, 18, 112, 0.25),
    _regnet("regnety_320", 232, 115.89, 2.53, 20, 232, 0.25),
    _regnet("regnety_640", 352, 147.48, 2.4, 20, 328, 0.25),
    _regnet("regnety_1280", 456, 160.83, 2.52, 27, 264, 0.25),
    _regnet("regnety_2560", 640, 230.83, 2.53, 27, 373, 0.25),
)
