"""The operations that graphs of networks consist of. Nothing here needs torch.

An operation's `name` is the path of the torch module that computes it; its tensors are the state dict's
entries below that path.

Shapes: N batch, C channels, H height, W width. Maps (N, C, H, W) are (N, C, L) of signals and (N, C, D, H, W)
    of volumes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from skipnets.models.registry import NormKind

Shape = tuple[int, ...]
ActivationFunction = Literal["relu", "gelu", "silu", "hard_swish", "sigmoid", "hard_sigmoid"]
STANDARDIZATION_EPS = 1e-8
"""The number that is added to variances of standardized weights: that of the published ones."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor between operations: (N, channels, H, W), or (N, channels) where `spatial` is false."""

    channels: int
    spatial: bool = True


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One step of the network.

    Attributes:
        name: Path of the module that computes it; an operation without a module of its own (a concatenation,
            an addition) has the path of the module whose `forward` contains it, or the name of its one
            parameter (layer scale).
        inputs: Indices of its input values.
        output: Index of its output value.
    """

    kind: ClassVar[str]

    name: str
    inputs: tuple[int, ...]
    output: int

    def tensors(self) -> dict[str, Shape]:
        """Names and shapes of its tensors in the state dict, in its order."""
        return {}

    @property
    def activates(self) -> bool:
        """Whether it is a nonlinearity, or ends in one, as norms and activations do."""
        return False

    def parameter_count(self) -> int:
        """Number of trainable parameters; running statistics do not count."""
        return sum(
            math.prod(shape)
            for name, shape in self.tensors().items()
            if name.rpartition(".")[2] not in ("running_mean", "running_var", "num_batches_tracked")
        )

    def output_size(self, size: int) -> int:
        """Height (or width) of the output for an input of this height (or width)."""
        return size


@dataclass(frozen=True, kw_only=True)
class Window(Operation):
    """An operation that slides a window over a map, as long along each of its `dims` spatial axes."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    dims: int = 2

    def __post_init__(self) -> None:
        # The native engine refuses attributes that it does not know. It knows images, of which the class
        # tells the number of axes.
        if self.dims == 2:
            vars(self).pop("dims", None)

    def output_size(self, size: int) -> int:
        """⌊(size + 2·padding − dilation·(kernel − 1) − 1) / stride⌋ + 1."""
        return (size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1


@dataclass(frozen=True, kw_only=True)
class Convolution(Window):
    """`nn.Conv2d`, or that of signals or volumes, with a kernel as long along each axis."""

    kind: ClassVar[str] = "convolution"

    in_channels: int
    out_channels: int
    groups: int = 1
    bias: bool = False

    def tensors(self) -> dict[str, Shape]:
        """Weight (out, in / groups, kernel, kernel), and the bias where there is one."""
        shape = (self.out_channels, self.in_channels // self.groups, *(self.kernel,) * self.dims)
        return {f"{self.name}.weight": shape} | (
            {f"{self.name}.bias": (self.out_channels,)} if self.bias else {}
        )


@dataclass(frozen=True, kw_only=True)
class StandardizedConvolution(Convolution):
    """A convolution whose weights have mean 0 and variance 1 for each output channel when it runs.

    The tensors are the weights before that (Qiao et al. 2019, arXiv 1903.10520).
    """

    kind: ClassVar[str] = "standardized convolution"

    eps: float = STANDARDIZATION_EPS


@dataclass(frozen=True, kw_only=True)
class Norm(Operation):
    """`nn.BatchNorm2d` ("batch"), `nn.GroupNorm` ("group", with its number of groups) or one of four more.

    These are `LayerNorm2d` ("layer2d"), which normalizes the channels of each pixel for themselves,
    `nn.InstanceNorm2d` ("instance"), which does so with the pixels of each channel, the same without
    subtracting a mean ("filter-response"), and "evonorm-s0", which divides x·sigmoid(v·x) by the deviation of
    groups of channels.
    """

    kind: ClassVar[str] = "norm"

    norm: NormKind
    channels: int
    groups: int = 1
    eps: float = 1e-5

    def tensors(self) -> dict[str, Shape]:
        """Weight and bias; a batch norm's running statistics, and the v of EvoNorm-S0."""
        more = {"batch": ["running_mean", "running_var"], "evonorm-s0": ["v"]}
        names = ["weight", "bias", *more.get(self.norm, [])]
        shapes: dict[str, Shape] = {f"{self.name}.{name}": (self.channels,) for name in names}
        return shapes | ({f"{self.name}.num_batches_tracked": ()} if self.norm == "batch" else {})

    @property
    def activates(self) -> bool:
        """Whether the norm is a nonlinearity by itself."""
        return self.norm == "evonorm-s0"


def norm_eps(norm: NormKind) -> float:
    """The number that a norm adds to variances: PyTorch's, for layer norms that of the published weights."""
    return 1e-6 if norm == "layer2d" else 1e-5


def norm_groups(channels: int) -> int:
    """Groups of a group norm: 32, or the largest number below that divides the channels."""
    return next(groups for groups in range(32, 0, -1) if channels % groups == 0)


@dataclass(frozen=True, kw_only=True)
class Affine(Operation):
    """A factor and a shift for each channel, a norm's weight and bias without its statistics."""

    kind: ClassVar[str] = "affine"

    channels: int

    def tensors(self) -> dict[str, Shape]:
        """Weight and bias."""
        return {f"{self.name}.{name}": (self.channels,) for name in ("weight", "bias")}


@dataclass(frozen=True, kw_only=True)
class Threshold(Operation):
    """max(x, τ) with a learned τ for each channel, the second part of a module: a ReLU that begins elsewhere.

    "Thresholded linear unit", Singh and Krishnan 2020 (arXiv 1911.09737), section 3.2.
    """

    kind: ClassVar[str] = "threshold"

    channels: int

    def tensors(self) -> dict[str, Shape]:
        """The thresholds, tau."""
        return {f"{self.name}.tau": (self.channels,)}

    @property
    def activates(self) -> bool:
        """It does."""
        return True


@dataclass(frozen=True, kw_only=True)
class Activation(Operation):
    """A function of each value on its own."""

    kind: ClassVar[str] = "activation"

    function: ActivationFunction = "relu"

    @property
    def activates(self) -> bool:
        """It does."""
        return True


@dataclass(frozen=True, kw_only=True)
class Pool(Window):
    """`nn.MaxPool2d` or `nn.AvgPool2d`; a window of 1 with a stride picks every stride-th pixel."""

    kind: ClassVar[str] = "pool"

    mode: Literal["max", "average"]


@dataclass(frozen=True, kw_only=True)
class Border(Window):
    """`nn.ZeroPad2d`: pixels of zeros around the map, `padding` on each side."""

    kind: ClassVar[str] = "border"


@dataclass(frozen=True, kw_only=True)
class Pad(Operation):
    """Channels of zeros before and after the input's."""

    kind: ClassVar[str] = "pad"

    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class Concatenate(Operation):
    """The inputs' channels one after the other."""

    kind: ClassVar[str] = "concatenate"


@dataclass(frozen=True, kw_only=True)
class Add(Operation):
    """The sum of two maps of one shape; in a residual block, of the shortcut and the branch."""

    kind: ClassVar[str] = "add"


@dataclass(frozen=True, kw_only=True)
class Squeeze(Operation):
    """The mean of each channel as a map of one pixel: (N, C, H, W) → (N, C, 1, 1)."""

    kind: ClassVar[str] = "squeeze"

    def output_size(self, size: int) -> int:  # noqa: ARG002 - the same for every size
        """One pixel."""
        return 1


@dataclass(frozen=True, kw_only=True)
class ChannelConvolution(Operation):
    """A convolution along the channels of a map of one pixel, `nn.Conv1d` from one map to one."""

    kind: ClassVar[str] = "channel convolution"

    kernel: int

    def tensors(self) -> dict[str, Shape]:
        """Weight (1, 1, kernel)."""
        return {f"{self.name}.weight": (1, 1, self.kernel)}


@dataclass(frozen=True, kw_only=True)
class Blur(Window):
    """A binomial filter over a map that is mirrored at its edges, 1 pixel wide."""

    kind: ClassVar[str] = "blur"


@dataclass(frozen=True, kw_only=True)
class CellMean(Window):
    """Average pooling of 2×2 cells whose last row and column may be half outside, where only pixels count."""

    kind: ClassVar[str] = "cell mean"

    def output_size(self, size: int) -> int:
        """⌈size / 2⌉."""
        return -(-size // self.stride)


@dataclass(frozen=True, kw_only=True)
class Multiply(Operation):
    """A map (N, C, H, W) times a factor for each of its channels, (N, C, 1, 1)."""

    kind: ClassVar[str] = "multiply"


@dataclass(frozen=True, kw_only=True)
class Scale(Operation):
    """A learned factor for each channel, a parameter of the module that contains it: layer scale."""

    kind: ClassVar[str] = "scale"

    channels: int

    def tensors(self) -> dict[str, Shape]:
        """The factors (channels,), under the operation's own name."""
        return {self.name: (self.channels,)}


@dataclass(frozen=True, kw_only=True)
class Dropout(Operation):
    """Training only: `nn.Dropout` ("value"), or stochastic depth, which drops whole images ("row")."""

    kind: ClassVar[str] = "dropout"

    rate: float
    mode: Literal["value", "row"]


@dataclass(frozen=True, kw_only=True)
class Mean(Operation):
    """Global average pooling: (N, C, H, W) → (N, C)."""

    kind: ClassVar[str] = "mean"


@dataclass(frozen=True, kw_only=True)
class GlobalPool(Operation):
    """Other global pooling: (N, C, H, W) → (N, C), or (N, 2C) for "catavgmax"."""

    kind: ClassVar[str] = "global pool"

    mode: Literal["max", "avgmax", "catavgmax"]
    channels: int


@dataclass(frozen=True, kw_only=True)
class Linear(Operation):
    """`nn.Linear` with a bias."""

    kind: ClassVar[str] = "linear"

    in_features: int
    out_features: int

    def tensors(self) -> dict[str, Shape]:
        """Weight (out, in) and bias (out,)."""
        return {
            f"{self.name}.weight": (self.out_features, self.in_features),
            f"{self.name}.bias": (self.out_features,),
        }


@dataclass(frozen=True, kw_only=True)
class PointwiseLinear(Linear):
    """A linear layer whose weight is stored as that of a 1×1 convolution."""

    kind: ClassVar[str] = "pointwise linear"

    def tensors(self) -> dict[str, Shape]:
        """Weight (out, in, 1, 1) and bias (out,)."""
        weight, bias = super().tensors().items()
        return {weight[0]: (*weight[1], 1, 1), bias[0]: bias[1]}
