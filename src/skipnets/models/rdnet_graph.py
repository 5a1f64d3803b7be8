"""Configurations, named rows and graph of RDNets. Nothing here needs torch.

The numbers of the rows are those of the authors' code; names of modules and parameters are timm's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from skipnets.errors import UserError
from skipnets.models.graph import Graph, GraphBuilder
from skipnets.models.registry import (
    STEM_REDUCTION,
    BlockActivation,
    ModelConfig,
    Norm,
    _require_int,
    _require_number,
    require_activation,
)

__all__ = ["RDNETS", "RDNetConfig", "rdnet_graph"]


@dataclass(frozen=True, kw_only=True)
class RDNetConfig(ModelConfig):
    """An RDNet: dense blocks of ConvNeXt-like layers (Kim et al. 2024, arXiv 2403.19588).

    The stem cuts images into patches: of 4×4 pixels, 2×2 or single ones, as `stem` says. Between two blocks
    comes a norm and a convolution, which halves the maps or only the channels.

    Args:
        growth_rates: The feature maps that each dense layer adds, for each block.
        halves: For each block, whether the maps are halved before it; the first is false.
        squeeze_excitation: For each block, whether its layers end in an effective squeeze-excitation.
        stem_channels: Channels after the stem.
        expansion: Channels inside a dense layer, in multiples of its input's, rounded down to whole 8s.
        compression: Share of the channels that the convolution between two blocks keeps, rounded likewise.
        layer_scale: Start of the learned factor of each channel of a layer's output; 0 for no such factor.
        norm: As in other families. No activation follows a norm: `"filter-response"` has no threshold, and
            `"evonorm-s0"`, which normalizes nothing without its own nonlinearity, keeps that. Pooled features
            have the norm of `"layer2d"`.
        activation: Between the 1×1 convolutions of a dense layer: `"gelu"`, `"relu"`, `"silu"`
            (x·sigmoid(x)) or `"hard_swish"`.
    """

    family: ClassVar[str] = "rdnet"
    most_stages: ClassVar[int] = 32

    growth_rates: tuple[int, ...] = ()
    halves: tuple[bool, ...] = ()
    squeeze_excitation: tuple[bool, ...] = ()
    stem_channels: int = 64
    expansion: float = 4.0
    compression: float = 0.5
    layer_scale: float = 1e-6
    norm: Norm = "layer2d"
    activation: BlockActivation = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_activation(self.activation, self.norm)
        for name in ("growth_rates", "halves", "squeeze_excitation"):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or len(values) != len(self.block_config):
                raise UserError(
                    f"{name}={values!r}: must have a value for each of the {len(self.block_config)} blocks "
                    "of block_config"
                )
            object.__setattr__(self, name, tuple(values))
        for rate in self.growth_rates:
            _require_int("growth_rates", rate, 1, 4096)
        for name in ("halves", "squeeze_excitation"):
            for value in getattr(self, name):
                if not isinstance(value, bool):
                    raise UserError(f"{name}={getattr(self, name)!r}: must hold true and false only")
        if self.halves[0]:
            raise UserError(f"halves={self.halves!r}: must begin with false, the stem comes before")
        _require_int("stem_channels", self.stem_channels, 1, 4096)
        _require_number("expansion", self.expansion, lambda value: 0 < value <= 64, "above 0 and at most 64")
        _require_number(
            "compression", self.compression, lambda value: 0 < value <= 1, "above 0 and at most 1"
        )
        _require_number("layer_scale", self.layer_scale, lambda value: 0 <= value <= 1, "from 0 to 1")

    @property
    def smallest_size(self) -> int:
        """The stem and every halving round down; some norms need two pixels in every map."""
        least = STEM_REDUCTION[self.stem] * 2 ** sum(self.halves)
        return 2 * least if self.norm_needs_pixels else least

    @property
    def head_norm(self) -> Norm:
        """The norm of the pooled features, over all of them: groups of one value would hold nothing."""
        return None if self.norm is None else "layer2d"

    @property
    def norm_keeps_nonlinearity(self) -> bool:
        """Whether norms keep the nonlinearity that they contain, though no activation's place is theirs."""
        return self.norm == "evonorm-s0"

    @property
    def description(self) -> str:
        """Growth rates and widths."""
        rates = f"{min(self.growth_rates)} to {max(self.growth_rates)}"
        return f"wide dense layers, k={rates}, expansion {self.expansion:g}, compression {self.compression:g}"

    def inner_channels(self, channels: int) -> int:
        """Channels between the 1×1 convolutions of a dense layer that reads so many."""
        return max(int(channels * self.expansion / 8) * 8, 8)

    def compressed(self, channels: int) -> int:
        """Channels that a block starts with after one of so many."""
        return max(int(channels * self.compression / 8) * 8, 8)


def rdnet_graph(config: RDNetConfig) -> Graph:
    """Stem, dense blocks with a norm and a convolution between them, and the head."""
    build, patch = GraphBuilder(name=config.name, in_chans=config.in_chans), STEM_REDUCTION[config.stem]
    x = build.convolution("stem.0", 0, config.stem_channels, patch, stride=patch, padding=0, bias=True)
    build.stage("stem.0", x)
    x = build.stage("stem.1", _norm(build, config, "stem.1", x))
    rates = iter(config.drop_path_rates())
    for number, layers in enumerate(config.block_config):
        path = f"dense_stages.{number}"
        if number:
            x = build.stage(f"{path}.0", _norm(build, config, f"{path}.0", x))
            size = 2 if config.halves[number] else 1
            channels = config.compressed(build.channels(x))
            x = build.convolution(f"{path}.1", x, channels, size, stride=size, padding=0, bias=True)
            build.stage(f"{path}.1", x)
        block = f"{path}.{2 if number else 0}"
        with build.scope(block, "dense block"):
            for layer in range(layers):
                new = _dense_layer(build, config, f"{block}.dense_block{layer}", x, number, next(rates))
                x = build.concatenate(block, x, new)
        build.stage(block, x)
    return build.finish(
        x,
        head="head.fc",
        global_pool=config.global_pool,
        num_classes=config.num_classes,
        drop_rate=config.drop_rate,
        head_norm=("head.norm", config.head_norm),
    )


def _norm(build: GraphBuilder, config: RDNetConfig, name: str, x: int) -> int:
    return build.norm(name, x, config.norm, activated=config.norm_keeps_nonlinearity)


def _dense_layer(
    build: GraphBuilder, config: RDNetConfig, path: str, x: int, block: int, drop_path_rate: float
) -> int:
    """Depthwise 7×7 convolution, norm, two 1×1 convolutions around an activation: k new maps, scaled."""
    channels, rate = build.channels(x), config.growth_rates[block]
    with build.scope(path, "dense layer"):
        x = build.convolution(f"{path}.layers.layers.0", x, channels, 7, groups=channels, bias=True)
        x = _norm(build, config, f"{path}.layers.layers.1", x)
        x = build.convolution(f"{path}.layers.layers.2", x, config.inner_channels(channels), 1, bias=True)
        x = build.activation(f"{path}.layers.layers.3", x, config.activation)
        x = build.convolution(f"{path}.layers.layers.4", x, rate, 1, bias=True)
        if config.squeeze_excitation[block]:
            gated = f"{path}.layers.layers.5"
            with build.scope(gated, "squeeze-excitation"):
                y = build.convolution(f"{gated}.fc", build.squeeze(gated, x), rate, 1, bias=True)
                x = build.multiply(gated, x, build.activation(f"{gated}.gate", y, "hard_sigmoid"))
        if config.layer_scale:
            x = build.scale(f"{path}.gamma", x)
        x = build.dropout(f"{path}.drop_path", x, drop_path_rate, "row")
        return build.dropout(f"{path}.dropout", x, config.proj_drop_rate)


def _rdnet(name: str, stem_channels: int, growth_rates: tuple[int, ...]) -> RDNetConfig:
    """Blocks of three layers; the maps are halved before the second and third and at one late place.

    That place is the last block in the tiny network and the one before it in the others.
    """
    count = len(growth_rates)
    late = count - 1 if name == "rdnet_tiny" else count - 2
    return RDNetConfig(
        name=name,
        block_config=(3,) * count,
        stem_channels=stem_channels,
        growth_rates=growth_rates,
        halves=tuple(number in (1, 2, late) for number in range(count)),
        squeeze_excitation=tuple(number >= 2 for number in range(count)),
    )


RDNETS: tuple[RDNetConfig, ...] = (
    _rdnet("rdnet_tiny", 64, (64, 104, *(128,) * 4, 224)),
    _rdnet("rdnet_small", 72, (64, 128, *(128,) * 7, *(240,) * 2)),
    _rdnet("rdnet_base", 120, (96, 128, *(168,) * 7, *(336,) * 2)),
    _rdnet("rdnet_large", 144, (128, 192, *(256,) * 8, *(360,) * 2)),
)
