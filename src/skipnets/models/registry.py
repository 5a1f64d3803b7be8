"""The model registry: one frozen config class per family, one row per name. Nothing here needs torch.

A row holds the numbers of its paper or of torchvision; numbers that follow from others (the stem's channels,
the width of a bottleneck) are derived. Sources: DenseNet, Huang et al. 2017 (arXiv 1608.06993), tables 1
and 2; ResNet, He et al. 2016 (arXiv 1512.03385), table 1 and section 4.2; ResNeXt, Xie et al. 2017 (arXiv
1611.05431); Wide ResNet, Zagoruyko and Komodakis 2016 (arXiv 1605.07146). Families beyond these two bring
their own rows (`skipnets.models.family.register_family`).
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

from skipnets.errors import UserError, near_matches

Stem = Literal["imagenet", "stride1", "small", "cifar", "deep", "tiered"]
# Stem → how much smaller its maps are than the input, and the usual input size.
STEM_REDUCTION: Mapping[str, int] = {
    **dict.fromkeys(("imagenet", "deep", "tiered"), 4),
    "stride1": 2,
    "small": 2,
    "cifar": 1,
}
_DEFAULT_SIZE: Mapping[str, int] = {
    **dict.fromkeys(("imagenet", "deep", "tiered", "stride1"), 224),
    "small": 64,
    "cifar": 32,
}
# The longest default side of volumes, and the default length of signals.
_VOLUME_SIDE, _SIGNAL_LENGTH = 96, 1024
Pooling = Literal["avg", "max", "avgmax", "catavgmax", ""]
NormKind = Literal["batch", "group", "layer2d", "instance", "filter-response", "evonorm-s0"]
Norm = NormKind | None
BlockActivation = Literal["relu", "silu", "gelu", "hard_swish"]

_ALL_NORMS: tuple[Norm, ...] = (*get_args(NormKind), None)
# Norms that end in a nonlinearity of their own where an activation would follow.
ACTIVATED_NORMS: tuple[Norm, ...] = ("filter-response", "evonorm-s0")
# Norms by statistics of few values, which need two pixels at least.
_NORMS_OVER_PIXELS: tuple[Norm, ...] = ("instance", *ACTIVATED_NORMS)


def _require_int(field: str, value: object, lowest: int, highest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise UserError(f"{field}={value!r}: must be a whole number from {lowest} to {highest}")


def _require_number(field: str, value: object, holds: Callable[[float], bool], wanted: str) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not holds(value):
        raise UserError(f"{field}={value!r}: must be {wanted}")


def _require_choice(field: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise UserError(f"{field}={value!r}: must be one of {', '.join(map(repr, choices))}")


def require_activation(activation: object, norm: Norm, *, only_after_norms: bool = False) -> None:
    """Check the field of an activation.

    Args:
        activation: Its value.
        norm: The norm of the same configuration.
        only_after_norms: Whether all activations follow norms: where these activate, there are none.

    Raises:
        UserError: If there is no such activation, or it would be nowhere.
    """
    _require_choice("activation", activation, get_args(BlockActivation))
    if only_after_norms and norm in ACTIVATED_NORMS and activation != "relu":
        raise UserError(
            f'activation={activation!r}: must be left out with norm="{norm}", which is a nonlinearity itself'
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The fields that all families share.

    Args:
        name: Name of the model in the registry.
        block_config: Dense layers or residual blocks of each stage.
        stem: `"imagenet"` is a 7×7 convolution of stride 2, norm, ReLU and 3×3 max-pooling of stride 2 (which
            reduces the maps to a quarter); `"small"` is one 3×3 convolution of stride 2 (to half their
            size); `"cifar"` is one of stride 1 (which keeps it). `"deep"` is three 3×3 convolutions in
            place of the 7×7 (DenseNets and ResNets; He et al. 2019, arXiv 1812.01187), and `"tiered"`, of
            ResNets, the same with fewer channels in the first. `"stride1"`, of ResNets, is `"imagenet"` with
            a 7×7 convolution of stride 1 (to half the size), which MONAI's ResNets have by default.
        in_chans: Channels of the input: 3 for color, 1 for gray.
        num_classes: Outputs of the head; 0 for no head, so the model returns pooled features.
        global_pool: Pooling of the last map: `"avg"`, `"max"`, `"avgmax"` (the mean of both), `"catavgmax"`
            (both, concatenated), or `""` for none, which needs `num_classes=0`.
        drop_rate: Dropout before the last linear layer.
        proj_drop_rate: Dropout in every dense layer, or before the last convolution of every residual block.
        drop_path_rate: Stochastic depth (Huang et al. 2016, arXiv 1603.09382): the probability that the last
            layer's branch is dropped, falling linearly to 0 at the first.
        norm: `"batch"`, `"group"` (32 groups, or the largest number below that divides the channels),
            `"layer2d"` (over the channels of each pixel), `"instance"` (over the pixels of each channel),
            `"filter-response"` (arXiv 1911.09737) or `"evonorm-s0"` (arXiv 2004.02967), which take the place
            of the activation behind them as well, or None; without norms every convolution has a bias.
        dims: Spatial axes of the input, in DenseNets and ResNets: 1 for signals (N, C, L), 2 for images
            (N, C, H, W), 3 for volumes (N, C, D, H, W). Windows have as many: what is 3×3 here is then 3 or
            3×3×3.
    """

    family: ClassVar[str]
    # The fields that a file holds, where these are not all of them; and those that it must hold.
    recorded: ClassVar[tuple[str, ...] | None] = None
    required: ClassVar[tuple[str, ...]] = ("name", "block_config")
    # Whether its networks, and so their exports, take images of any size.
    takes_any_size: ClassVar[bool] = True
    most_stages: ClassVar[int] = 8
    stems: ClassVar[tuple[Stem, ...]] = ("imagenet", "small", "cifar")
    norms: ClassVar[tuple[Norm, ...]] = _ALL_NORMS
    dimensions: ClassVar[tuple[int, ...]] = (2,)

    name: str
    block_config: tuple[int, ...]
    stem: Stem = "imagenet"
    in_chans: int = 3
    num_classes: int = 1000
    global_pool: Pooling = "avg"
    drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    norm: Norm = "batch"
    dims: int = 2

    def __post_init__(self) -> None:
        if self.dims not in self.dimensions or isinstance(self.dims, bool):
            possible = (
                "1, 2 or 3" if len(self.dimensions) > 1 else f"2 for {self.name}: it takes images alone"
            )
            raise UserError(f"dims={self.dims!r}: must be {possible}")
        most = self.most_stages
        if not isinstance(self.block_config, (tuple, list)) or not 1 <= len(self.block_config) <= most:
            raise UserError(f"block_config={self.block_config!r}: must list the layers of 1 to {most} stages")
        object.__setattr__(self, "block_config", tuple(self.block_config))
        for layers in self.block_config:
            _require_int("block_config", layers, 1, 1024)
        _require_choice("stem", self.stem, self.stems)
        _require_choice("norm", self.norm, self.norms)
        _require_int("in_chans", self.in_chans, 1, 4096)
        _require_int("num_classes", self.num_classes, 0, 1_000_000)
        _require_choice("global_pool", self.global_pool, get_args(Pooling))
        if self.global_pool == "" and self.num_classes:
            raise UserError(f'global_pool="": needs num_classes=0, not {self.num_classes}')
        for rate in ("drop_rate", "proj_drop_rate", "drop_path_rate"):
            _require_number(rate, getattr(self, rate), lambda value: 0 <= value < 1, "at least 0 and below 1")

    @property
    def norm_activates(self) -> bool:
        """Whether the norm is a nonlinearity as well, so that no activation follows it."""
        return self.norm in ACTIVATED_NORMS

    @property
    def norm_needs_pixels(self) -> bool:
        """Whether the norm takes at least two pixels, being over those of a channel or a small group."""
        return self.norm in _NORMS_OVER_PIXELS

    def pooled(self, channels: int) -> int:
        """Number of pooled features for the channels of the last map."""
        return channels * (2 if self.global_pool == "catavgmax" else 1)

    @property
    def smallest_size(self) -> int:
        """The smallest height and width, in pixels, that leave at least one value in the last map."""
        raise NotImplementedError

    def drop_path_rates(self) -> list[float]:
        """Stochastic depth of each layer or block, in order: 0 at the first, `drop_path_rate` at the last."""
        count = sum(self.block_config)
        return [self.drop_path_rate * index / max(count - 1, 1) for index in range(count)]

    @property
    def default_size(self) -> int:
        """Default height and width of the images, sides of volumes, or length of signals."""
        if self.dims == 1:
            return _SIGNAL_LENGTH
        size = _DEFAULT_SIZE[self.stem]
        return size if self.dims == 2 else min(size, _VOLUME_SIDE)

    @property
    def description(self) -> str:
        """A short description of its blocks for a table."""
        return self.family

    @classmethod
    def recorded_fields(cls) -> tuple[str, ...]:
        """Names of the fields that a file holds."""
        return cls.recorded or tuple(field.name for field in dataclasses.fields(cls))

    def replace(self, **fields: Any) -> Self:
        """The same configuration with some fields changed, and what is derived from them."""
        return dataclasses.replace(self, **fields)


@dataclass(frozen=True, kw_only=True)
class DenseNetConfig(ModelConfig):
    """A DenseNet, DenseNet-B, -C or -BC.

    Args:
        growth_rate: k, the feature maps that each dense layer adds.
        bottleneck: Width of the 1×1 convolution before the 3×3, in multiples of k; None for none.
        compression: θ, the share of channels that a transition keeps.
        stem_channels: Channels after the first convolution; None means 2k with a bottleneck and 16 without,
            as in the paper's sections 4.1 and 4.2. The first two convolutions of a deep stem have k.
        anti_aliasing: `"blur"`, a binomial filter where the stem's pooling halves the maps (arXiv
            1904.11486), or None.
        activation: `"relu"`, `"silu"` (x·sigmoid(x)), `"gelu"` or `"hard_swish"`, in place of every ReLU;
            there are none where the norm activates.
    """

    family: ClassVar[str] = "densenet"
    stems: ClassVar[tuple[Stem, ...]] = ("imagenet", "small", "cifar", "deep")
    dimensions: ClassVar[tuple[int, ...]] = (1, 2, 3)

    growth_rate: int = 32
    bottleneck: int | None = 4
    compression: float = 0.5
    stem_channels: int | None = None
    anti_aliasing: Literal["blur"] | None = None
    activation: BlockActivation = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_choice("anti_aliasing", self.anti_aliasing, ("blur", None))
        if self.anti_aliasing is not None and STEM_REDUCTION[self.stem] != 4:
            raise UserError(f'anti_aliasing="blur": a stem="{self.stem}" has no pooling')
        require_activation(self.activation, self.norm, only_after_norms=True)
        _require_int("growth_rate", self.growth_rate, 1, 1024)
        if self.bottleneck is not None:
            _require_int("bottleneck", self.bottleneck, 1, 64)
        _require_number(
            "compression", self.compression, lambda value: 0 < value <= 1, "above 0 and at most 1"
        )
        if self.stem_channels is None:
            stem_channels = 16 if self.bottleneck is None else 2 * self.growth_rate
            object.__setattr__(self, "stem_channels", stem_channels)
        _require_int("stem_channels", self.stem_channels, 1, 4096)

    @property
    def has_simple_stem(self) -> bool:
        """Whether the stem is one convolution, norm, activation and pooling."""
        return self.stem == "imagenet"

    def compressed(self, channels: int) -> int:
        """Output channels of a transition for a number of input channels."""
        return max(int(channels * self.compression), 1)

    @property
    def smallest_size(self) -> int:
        """A transition halves maps rounding down, the stem rounds up; a blur and some norms need two."""
        before_transitions = 2 ** (len(self.block_config) - (not self.norm_needs_pixels))
        least = (before_transitions - 1) * STEM_REDUCTION[self.stem] + 1
        return least if self.anti_aliasing is None else max(least, 3)

    @property
    def description(self) -> str:
        """Growth rate, bottleneck and compression."""
        bottleneck = "no bottleneck" if self.bottleneck is None else f"bottleneck {self.bottleneck}k"
        return f"dense layers, k={self.growth_rate}, {bottleneck}, compression {self.compression:g}"

    def replace(self, **fields: Any) -> Self:
        """The same configuration with some fields changed; unless given, `stem_channels` follows them."""
        return super().replace(**{"stem_channels": None, **fields})


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(ModelConfig):
    """A ResNet, Wide ResNet or ResNeXt, in the form known as v1.5 unless `stride_in` says otherwise.

    Args:
        block: `"basic"` (two 3×3 convolutions) or `"bottleneck"` (1×1, 3×3, 1×1, four times wider outside).
        width: Channels of the first stage; every further stage doubles them.
        groups: Groups of the 3×3 convolution in a bottleneck block (ResNeXt's cardinality).
        width_per_group: Channels of each group in the first stage, per 64 of `width`.
        stride_in: Which convolution of a bottleneck block halves the maps: `"3x3"` (known as v1.5), or
            `"1x1"`, the first one (v1, as in the paper and in Keras).
        shortcut: Where a stage changes the shape: `"projection"` (option B, a 1×1 convolution with norm),
            `"average"` (the mean of 2×2 pixels before that convolution, arXiv 1812.01187) or `"pad"` (option
            A, every second pixel and zeros for new channels: no parameters).
        stem_channels: Channels after the stem; None means `width`. The first two convolutions of a deep stem
            have half as many.
        stem_pool: `"max"`, or `"convolution"` for a 3×3 one of stride 2 in place of max-pooling
            (ResNet-RS, arXiv 2103.07579).
        attention: At the end of every residual branch: `"se"`, squeeze-excitation (arXiv 1709.01507),
            `"eca"`, efficient channel attention (arXiv 1910.03151), or None.
        se_ratio: Channels inside a squeeze-excitation, as a share of the block's.
        anti_aliasing: Before maps are halved inside blocks and in the stem's pooling: `"blur"` (arXiv
            1904.11486), `"average"` (the mean of 2×2 pixels), or None.
        output_stride: Reduction of the last map relative to the input; further stages keep their resolution
            and dilate their convolutions instead. None halves the resolution in every stage.
        zero_init_last: Start the last norm of every residual branch at 0, so that each block begins as the
            identity (Goyal et al. 2017, arXiv 1706.02677, section 5.1).
        activation: `"relu"`, `"silu"` (x·sigmoid(x)), `"gelu"` or `"hard_swish"`, in place of every ReLU of
            stem and blocks; behind the sums alone where the norm activates.
    """

    family: ClassVar[str] = "resnet"
    stems: ClassVar[tuple[Stem, ...]] = get_args(Stem)
    dimensions: ClassVar[tuple[int, ...]] = (1, 2, 3)

    block: Literal["basic", "bottleneck"] = "bottleneck"
    width: int = 64
    groups: int = 1
    width_per_group: int = 64
    stride_in: Literal["3x3", "1x1"] = "3x3"
    shortcut: Literal["projection", "average", "pad"] = "projection"
    stem_channels: int | None = None
    stem_pool: Literal["max", "convolution"] = "max"
    attention: Literal["se", "eca"] | None = None
    se_ratio: float = 1 / 16
    anti_aliasing: Literal["blur", "average"] | None = None
    output_stride: int | None = None
    zero_init_last: bool = False
    activation: BlockActivation = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_activation(self.activation, self.norm)
        _require_choice("block", self.block, ("basic", "bottleneck"))
        _require_choice("stride_in", self.stride_in, ("3x3", "1x1"))
        if self.stride_in == "1x1" and (self.block == "basic" or self.anti_aliasing is not None):
            raise UserError('stride_in="1x1": needs block="bottleneck" and anti_aliasing=None')
        _require_choice("shortcut", self.shortcut, ("projection", "average", "pad"))
        _require_choice("stem_pool", self.stem_pool, ("max", "convolution"))
        _require_choice("attention", self.attention, ("se", "eca", None))
        _require_number("se_ratio", self.se_ratio, lambda value: 0 < value <= 1, "above 0 and at most 1")
        _require_choice("anti_aliasing", self.anti_aliasing, ("blur", "average", None))
        if self.stem_channels is not None:
            _require_int("stem_channels", self.stem_channels, 8 if self.is_deep else 1, 4096)
        _require_int("width", self.width, 1, 4096)
        _require_int("groups", self.groups, 1, 4096)
        _require_int("width_per_group", self.width_per_group, 1, 4096)
        if not isinstance(self.zero_init_last, bool):
            raise UserError(f"zero_init_last={self.zero_init_last!r}: must be true or false")
        if self.block == "basic" and (self.groups, self.width_per_group) != (1, 64):
            raise UserError(
                f"groups={self.groups}, width_per_group={self.width_per_group}: "
                'apply to block="bottleneck" only'
            )
        if self.branch_width(0) < 1:
            raise UserError(
                f"width={self.width}, width_per_group={self.width_per_group}: leave no channel in a branch"
            )
        if self.zero_init_last and self.norm is None:
            raise UserError("zero_init_last=True: needs norms, and norm=None leaves none to start at 0")
        if self.output_stride is not None:
            stem_stride = STEM_REDUCTION[self.stem]
            possible = tuple(stem_stride * 2**stage for stage in range(len(self.block_config)))
            _require_choice("output_stride", self.output_stride, (*possible, None))
            dilates = self.output_stride < possible[-1]
            if dilates and (self.anti_aliasing is not None or self.shortcut == "average"):
                raise UserError(
                    f"output_stride={self.output_stride}: needs anti_aliasing=None and another "
                    'shortcut than "average"'
                )
        if self.stem_pool == "convolution" and not self.has_stem_pool:
            raise UserError(f'stem_pool="convolution": a stem="{self.stem}" has no pooling to replace')

    @property
    def is_deep(self) -> bool:
        """Whether the stem has three convolutions."""
        return self.stem in ("deep", "tiered")

    @property
    def has_stem_pool(self) -> bool:
        """Whether the stem ends with pooling, or with the convolution in its place."""
        return STEM_REDUCTION[self.stem] == 4 or self.stem == "stride1"

    @property
    def has_simple_stem(self) -> bool:
        """Whether the stem is one convolution, norm, activation and at most 3×3 max-pooling."""
        pools = self.stem_pool == "max" and self.anti_aliasing is None
        return not self.is_deep and (pools or not self.has_stem_pool)

    def stem_widths(self) -> tuple[int, ...]:
        """Channels of the stem's convolutions, in order."""
        last = self.width if self.stem_channels is None else self.stem_channels
        inner = last // 2
        return (
            (3 * (inner // 4) if self.stem == "tiered" else inner, inner, last) if self.is_deep else (last,)
        )

    def attention_width(self, channels: int) -> int:
        """Channels inside the attention of a block of so many; for "eca", the length of its kernel."""
        if self.attention == "eca":
            length = int((math.log2(channels) + 1) / 2)
            return max(length if length % 2 else length + 1, 3)
        return max(int(channels * self.se_ratio + 4) // 8 * 8, 8)

    @property
    def smallest_size(self) -> int:
        """Every stride rounds up, so one pixel is enough; blurs, averages and some norms need more."""
        if self.norm_needs_pixels:  # at least two pixels in every map
            return 2 * STEM_REDUCTION[self.stem] * math.prod(map(self.stride, range(len(self.block_config))))
        if self.anti_aliasing == "average":
            return 3 if self.has_stem_pool and self.stem_pool == "max" else 1
        halvings = len(self.block_config) - (0 if self.has_stem_pool else 1)
        if self.anti_aliasing is None or halvings == 0:
            return 1
        before = STEM_REDUCTION[self.stem] // 2 if self.has_stem_pool else STEM_REDUCTION[self.stem]
        return before * 2 ** (halvings - 1) + 1

    @property
    def description(self) -> str:
        """Kind and width of the residual blocks."""
        blocks = f"{self.block} blocks, width {self.width}"
        if self.attention is not None:
            blocks += f", {self.attention.upper()}"
        if self.groups > 1:
            return f"{blocks}, {self.groups} groups of {self.width_per_group}"
        if self.width_per_group != 64:
            return f"{blocks}, {self.width_per_group // 64} times wider inside"
        return blocks

    def stride(self, stage: int) -> int:
        """Stride of a stage, counted from 0: 1 for the first, and for those that dilate instead."""
        return 1 if stage == 0 or self.dilation(stage) > self.dilation(stage - 1) else 2

    def dilation(self, stage: int) -> int:
        """Spacing of the 3×3 kernels in a stage; the first block of a stage uses that of the stage before."""
        stride = STEM_REDUCTION[self.stem] * 2**stage
        return max(stride // (self.output_stride or stride), 1)

    def out_channels(self, stage: int) -> int:
        """Channels of a stage's output."""
        return self.width * 2**stage * (1 if self.block == "basic" else 4)

    def changes_shape(self, stage: int, block: int) -> bool:
        """Whether a block's output has another shape than its input, so that the shortcut must adapt."""
        into = self.stem_widths()[-1] if stage == 0 else self.out_channels(stage - 1)
        return block == 0 and (self.stride(stage) != 1 or into != self.out_channels(stage))

    def branch_width(self, stage: int) -> int:
        """Channels inside a residual branch of a stage, counted from 0."""
        channels = self.width * 2**stage
        return channels if self.block == "basic" else channels * self.width_per_group // 64 * self.groups


def _densenet(name: str, growth_rate: int, block_config: tuple[int, ...]) -> DenseNetConfig:
    return DenseNetConfig(name=name, growth_rate=growth_rate, block_config=block_config)


def _cifar_densenet(name: str, growth_rate: int, depth: int) -> DenseNetConfig:
    """Three equal blocks of 3×3 layers: depth = stem + 3 blocks + 2 transitions + classifier."""
    layers = (depth - 4) // 3
    return DenseNetConfig(
        name=name,
        growth_rate=growth_rate,
        block_config=(layers,) * 3,
        bottleneck=None,
        compression=1.0,
        stem="cifar",
        num_classes=10,
    )


def _cifar_densenet_bc(name: str, growth_rate: int, depth: int) -> DenseNetConfig:
    """As `_cifar_densenet` with a bottleneck, so that each layer counts twice, and θ = 0.5."""
    layers = (depth - 4) // 6
    return DenseNetConfig(
        name=name, growth_rate=growth_rate, block_config=(layers,) * 3, stem="cifar", num_classes=10
    )


def _cifar_resnet(name: str, depth: int) -> ResNetConfig:
    """Three stages of n basic blocks at 16, 32 and 64 channels: depth = 6n + 2."""
    return ResNetConfig(
        name=name,
        block="basic",
        block_config=((depth - 2) // 6,) * 3,
        width=16,
        shortcut="pad",
        stem="cifar",
        num_classes=10,
    )


def _narrow_resnet(name: str, width: int, blocks: int, stem: Stem) -> ResNetConfig:
    """Few basic blocks with few channels, for CPUs and short trainings.

    Four stages after the stem of ImageNet, else three.
    """
    stages = 4 if stem == "imagenet" else 3
    return ResNetConfig(
        name=name,
        block="basic",
        block_config=(blocks,) * stages,
        width=width,
        stem=stem,
        num_classes=1000 if stem == "imagenet" else 10,
    )


DENSENETS: tuple[DenseNetConfig, ...] = (
    _densenet("densenet121", 32, (6, 12, 24, 16)),
    _densenet("densenet169", 32, (6, 12, 32, 32)),
    _densenet("densenet201", 32, (6, 12, 48, 32)),
    _densenet("densenet161", 48, (6, 12, 36, 24)),
    _densenet("densenet264", 32, (6, 12, 64, 48)),
    _densenet("densenet264_k48", 48, (6, 12, 64, 48)),
    _cifar_densenet("densenet40_k12", 12, depth=40),
    _cifar_densenet("densenet100_k12", 12, depth=100),
    _cifar_densenet("densenet100_k24", 24, depth=100),
    _cifar_densenet_bc("densenet_bc40_k12", 12, depth=40),
    _cifar_densenet_bc("densenet_bc40_k48", 48, depth=40),
    _cifar_densenet_bc("densenet_bc100_k12", 12, depth=100),
    _cifar_densenet_bc("densenet_bc190_k40", 40, depth=190),
    _cifar_densenet_bc("densenet_bc250_k24", 24, depth=250),
)

# timm's.
DENSENET_VARIANTS: tuple[DenseNetConfig, ...] = (
    DenseNetConfig(name="densenetblur121d", block_config=(6, 12, 24, 16), stem="deep", anti_aliasing="blur"),
    DenseNetConfig(name="densenet264d", growth_rate=48, block_config=(6, 12, 64, 48), stem="deep"),
)

_NARROW_RESNETS: tuple[ResNetConfig, ...] = (
    # 2 layers a block, the stem and the head: 8 layers are three blocks, 10 are four.
    _narrow_resnet("resnet8_w16", 16, 1, "small"),
    _narrow_resnet("resnet8_w32", 32, 1, "small"),
    _narrow_resnet("resnet8_w64", 64, 1, "small"),
    _narrow_resnet("resnet14_w32", 32, 2, "small"),
    _narrow_resnet("resnet14_w64", 64, 2, "small"),
    _narrow_resnet("resnet10_w16", 16, 1, "imagenet"),
    _narrow_resnet("resnet10_w24", 24, 1, "imagenet"),
    _narrow_resnet("resnet10_w32", 32, 1, "imagenet"),
    _narrow_resnet("resnet10_w48", 48, 1, "imagenet"),
    _narrow_resnet("resnet10", 64, 1, "imagenet"),
)

RESNETS: tuple[ResNetConfig, ...] = (
    ResNetConfig(name="resnet18", block="basic", block_config=(2, 2, 2, 2)),
    ResNetConfig(name="resnet34", block="basic", block_config=(3, 4, 6, 3)),
    ResNetConfig(name="resnet50", block_config=(3, 4, 6, 3)),
    ResNetConfig(name="resnet101", block_config=(3, 4, 23, 3)),
    ResNetConfig(name="resnet152", block_config=(3, 8, 36, 3)),
    ResNetConfig(name="wide_resnet50_2", block_config=(3, 4, 6, 3), width_per_group=128),
    ResNetConfig(name="wide_resnet101_2", block_config=(3, 4, 23, 3), width_per_group=128),
    ResNetConfig(name="resnext50_32x4d", block_config=(3, 4, 6, 3), groups=32, width_per_group=4),
    ResNetConfig(name="resnext101_32x8d", block_config=(3, 4, 23, 3), groups=32, width_per_group=8),
    ResNetConfig(name="resnext101_64x4d", block_config=(3, 4, 23, 3), groups=64, width_per_group=4),
    _cifar_resnet("resnet20", depth=20),
    _cifar_resnet("resnet32", depth=32),
    _cifar_resnet("resnet44", depth=44),
    _cifar_resnet("resnet56", depth=56),
    _cifar_resnet("resnet110", depth=110),
    _cifar_resnet("resnet1202", depth=1202),
    *_NARROW_RESNETS,
)

# Filled by `register_models`: rows by name, and each family's configuration class.
REGISTRY: dict[str, ModelConfig] = {}
_CONFIG_CLASSES: dict[str, type[ModelConfig]] = {}
# torchvision publishes weights for all ImageNet models but the two largest of the DenseNet authors.
_PUBLISHED = {
    row.name for row in (*DENSENETS, *RESNETS) if row.stem == "imagenet" and row not in _NARROW_RESNETS
} - {"densenet264", "densenet264_k48"}


def register_models(config_class: type[ModelConfig], rows: Iterable[ModelConfig]) -> None:
    """Add a family's configurations to the registry.

    Raises:
        ValueError: If a name is taken.
    """
    rows = list(rows)
    if taken := [row.name for row in rows if row.name in REGISTRY]:
        raise ValueError(f"there are models of these names already: {', '.join(taken)}")
    _CONFIG_CLASSES[config_class.family] = config_class
    REGISTRY.update({row.name: row for row in rows})


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Names of the models that match a shell pattern, in the registry's order.

    Args:
        pattern: A pattern with `*`, `?` and `[…]`, for example `"densenet*"`.
        pretrained: Only those that `weights="imagenet"` has weights for.
    """
    return [
        name
        for name in REGISTRY
        if fnmatch.fnmatchcase(name, pattern) and (name in _PUBLISHED or not pretrained)
    ]


def model_config(name: str, **fields: Any) -> ModelConfig:
    """The configuration of a named model, with some of its fields replaced.

    Args:
        name: A name from `list_models`.
        fields: Any field of the model's configuration, by name; "none" means None. Where a DenseNet's
            `growth_rate` or `bottleneck` change, the stem's channels follow unless they are given too.

    Raises:
        UserError: For an unknown name or field, or an impossible value.
    """
    if not isinstance(name, str) or name not in REGISTRY:
        name = str(name)
        raise UserError(
            f"model={name}: must be a model's name{near_matches(name, REGISTRY)} (skipnets models lists all)"
        )
    row = REGISTRY[name]
    names = [field.name for field in dataclasses.fields(row) if field.name != "name"]
    for field in fields:
        if field not in names:
            raise UserError(
                f"{field}: must be a field of {name}{near_matches(field, names) or ': ' + ', '.join(names)}"
            )
    return row.replace(**{field: None if means_none(value) else value for field, value in fields.items()})


def parse_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Read a model's fields that come as text from a command line or a file.

    Texts are read as YAML ("12" → 12, "[2, 2]" → [2, 2]), and "none" and "null" mean None.
    """
    import yaml  # Here because YAML comes with the extra `train`, and models are listed without it.

    values = {
        str(name).replace("-", "_"): yaml.safe_load(value) if isinstance(value, str) else value
        for name, value in fields.items()
    }
    return {name: None if means_none(value) else value for name, value in values.items()}


def means_none(value: object) -> bool:
    """Whether a text from a command line or a file stands for None."""
    return isinstance(value, str) and value.lower() in ("none", "null")


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """The config as plain values for JSON or YAML, with its family; `config_from_dict` reads it back."""
    values = {key: getattr(config, key) for key in config.recorded_fields()}
    return {
        "family": config.family,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in values.items()},
    }


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """Read a config that `config_to_dict` wrote.

    Raises:
        UserError: If a family or field is unknown, a field is missing, or a value is impossible.
    """
    fields = dict(values)
    family = fields.pop("family", None)
    if not isinstance(family, str) or family not in _CONFIG_CLASSES:
        raise UserError(f"family={family!r}: must be one of {', '.join(_CONFIG_CLASSES)}")
    if wrong := sorted(set(fields) - set(_CONFIG_CLASSES[family].recorded_fields())):
        raise UserError(f"architecture: {family} has no fields {', '.join(wrong)}")
    if missing := sorted(set(_CONFIG_CLASSES[family].required) - set(fields)):
        raise UserError(f"architecture: {family} needs the fields {', '.join(missing)}")
    if not isinstance(fields["name"], str):
        raise UserError(f"name={fields['name']!r}: must be a string")
    return _CONFIG_CLASSES[family](**fields)


def rename_version_1_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Rename a model's fields from format version 1 (skipnets 0.1).

    There `drop_rate` was the layers' dropout and `head_drop_rate` the head's.
    """
    names = {"drop_rate": "proj_drop_rate", "head_drop_rate": "drop_rate"}
    return {names.get(field, field): value for field, value in fields.items()}
