"""Turns an architecture and its tensors into the engine's network, and refuses what does not fit.

Here the batch norms disappear: one behind a convolution is folded into its weights, one before it (DenseNet's
norm → ReLU → convolution) becomes a scale and a shift that are applied while the convolution reads its input.
All of it in double precision. Every tensor is checked before the engine sees anything.

Letters: O, I output and input channels, K kernel size, k growth rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets_engine import _engine
from skipnets_engine.errors import TensorsDoNotFitError, UnknownArchitectureError

Array = NDArray[np.float64]

_EPSILON = 1e-5  # torch.nn.BatchNorm2d's
_MOST_CHANNELS = 1 << 20


@dataclass(frozen=True)
class Stage:
    """Where a stage's maps are found, and what is still to be done to them.

    Args:
        value: The engine's number of it.
        channels: How many of its channels belong to the stage, from the first.
        scale: With `shift`, the stage's last norm, which a ReLU follows; None leaves the maps as they are.
        shift: As `scale`.
    """

    value: int
    channels: int
    scale: Array | None = None
    shift: Array | None = None

    def finish(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, value's channels, h, w) → (N, channels, h, w)."""
        maps = maps[:, : self.channels]
        if self.scale is None or self.shift is None:
            return maps
        normed = maps * self.scale[:, None, None] + self.shift[:, None, None]
        return np.maximum(normed, 0).astype(np.float32)


@dataclass(frozen=True)
class Built:
    """A network with the names of its stages."""

    network: _engine.Network
    stages: dict[str, Stage]


def build_network(architecture: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Built:
    """The network that an architecture describes, around its tensors.

    Args:
        architecture: What `skipnets.models.registry.config_to_dict` wrote.
        tensors: Exactly the network's state dict.

    Raises:
        UnknownArchitectureError: If the engine has no plan for it.
        TensorsDoNotFitError: If tensors are missing, left over, of a wrong shape or not finite.
    """
    family = architecture.get("family")
    if family not in ("densenet", "resnet"):
        raise UnknownArchitectureError(f"the native engine does not know the family {family!r}")
    if architecture.get("norm", "batch") != "batch":
        raise UnknownArchitectureError(
            f"the native engine knows batch norm only, not norm={architecture['norm']!r}"
        )
    fields = _Fields(architecture)
    layers = _Layers(tensors, fields.integer("in_chans", 3))
    built = _densenet(layers, fields) if family == "densenet" else _resnet(layers, fields)
    layers.require_all_used()
    return built


class _Fields:
    """An architecture's fields, read with checks: it may come from a damaged file."""

    def __init__(self, architecture: Mapping[str, Any]) -> None:
        self._values = architecture

    def integer(self, name: str, default: int, lowest: int = 1, highest: int = _MOST_CHANNELS) -> int:
        value = self._values.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            raise TensorsDoNotFitError(
                f"{name} must be a whole number from {lowest} to {highest}, not {value!r}"
            )
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self._values.get(name, choices[0])
        if value not in choices:
            raise UnknownArchitectureError(
                f"the native engine knows {name} {' and '.join(map(repr, choices))}, not {value!r}"
            )
        return str(value)

    def optional(self, name: str) -> Any:
        return self._values.get(name)

    def blocks(self) -> list[int]:
        value = self._values.get("block_config")
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 8:
            raise TensorsDoNotFitError(f"block_config must list the layers of 1 to 8 stages, not {value!r}")
        for layers in value:
            if not isinstance(layers, int) or isinstance(layers, bool) or not 1 <= layers <= 1024:
                raise TensorsDoNotFitError(f"block_config must hold numbers from 1 to 1024, not {layers!r}")
        return list(value)


class _Layers:
    """Adds layers to a network under their state-dict names, taking each tensor once."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]], in_chans: int) -> None:
        self._tensors = tensors
        self._used: set[str] = set()
        self.network = _engine.Network()
        self.image = self.value(in_chans)

    def value(self, channels: int) -> int:
        if channels > _MOST_CHANNELS:
            raise TensorsDoNotFitError(f"{channels} channels are more than any network here has")
        return int(self.network.add_value(channels))

    def tensor(self, name: str, *shape: int) -> Array:
        """A tensor in double precision, checked."""
        if name not in self._tensors:
            raise TensorsDoNotFitError(f"the tensors do not fit the architecture: missing: {name}")
        array = np.asarray(self._tensors[name])
        if array.shape != shape:
            raise TensorsDoNotFitError(
                f"tensor {name} has shape {array.shape}, the architecture needs {shape}"
            )
        if array.dtype != np.float32:
            raise TensorsDoNotFitError(f"tensor {name} is {array.dtype}, it should be float32")
        if not np.isfinite(array).all():
            raise TensorsDoNotFitError(
                f"tensor {name} is not finite: the training diverged or the file is damaged"
            )
        self._used.add(name)
        return array.astype(np.float64)

    def norm(self, name: str, channels: int) -> tuple[Array, Array]:
        """A batch norm as scale and shift: γ (x − μ) / √(σ² + ε) + β."""
        gamma, beta = self.tensor(f"{name}.weight", channels), self.tensor(f"{name}.bias", channels)
        mean, variance = (
            self.tensor(f"{name}.running_mean", channels),
            self.tensor(f"{name}.running_var", channels),
        )
        if (variance < 0).any():
            raise TensorsDoNotFitError(f"tensor {name}.running_var has negative variances")
        self._used.add(f"{name}.num_batches_tracked")
        scale = gamma / np.sqrt(variance + _EPSILON)
        return scale, beta - mean * scale

    def convolution(
        self,
        name: str,
        source: int,
        target: int,
        shape: tuple[int, int, int],
        *,
        norm_before: str | None = None,
        norm_after: str | None = None,
        target_channel: int = 0,
        groups: int = 1,
        **options: Any,
    ) -> None:
        """A convolution without bias, with the norm before or behind it.

        Args:
            name: Of its weight.
            source: The value it reads, from its first channel on.
            target: The value it writes, from `target_channel` on.
            shape: O, I, K.
            norm_before: The norm that, with a ReLU, is between `source` and it.
            norm_after: The norm behind it.
            target_channel: First channel written.
            groups: Of the convolution.
            options: Further ones of the engine's `add_convolution`.
        """
        outputs, inputs, kernel = shape
        weight = self.tensor(f"{name}.weight", outputs, inputs // groups, kernel, kernel)
        bias = np.zeros(outputs)
        if norm_after is not None:
            scale, bias = self.norm(norm_after, outputs)
            weight *= scale[:, None, None, None]
        if norm_before is not None:
            before, shift = self.norm(norm_before, inputs)
            options |= {"scale": _single(norm_before, before), "shift": _single(norm_before, shift)}
        together = _groups_together(outputs // groups, inputs // groups, groups)
        for first in range(0, groups, together):
            part = slice(first * outputs // groups, (first + together) * outputs // groups)
            self.network.add_convolution(
                name,
                source,
                target,
                _single(name, _block_diagonal(weight[part], together)),
                _single(name, bias[part]),
                input_channel=first * inputs // groups,
                output_channel=target_channel + first * outputs // groups,
                **options,
            )

    def head(self, name: str, features: int, inputs: int, classes: int) -> None:
        """The linear layer, where there is one."""
        self.network.features = features
        if classes == 0:
            return
        weight = self.tensor(f"{name}.weight", classes, inputs)[:, :, None, None]
        bias = self.tensor(f"{name}.bias", classes)
        logits = self.value(classes)
        self.network.add_convolution(name, features, logits, _single(name, weight), _single(name, bias))
        self.network.logits = logits

    def require_all_used(self) -> None:
        left = [name for name in self._tensors if name not in self._used]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise TensorsDoNotFitError(
                f"the tensors do not fit the architecture: left over: {', '.join(left[:3])}{more}"
            )


def _densenet(layers: _Layers, fields: _Fields) -> Built:
    network = layers.network
    growth = fields.integer("growth_rate", 32)
    bottleneck = None if fields.optional("bottleneck") is None else fields.integer("bottleneck", 4)
    channels = fields.integer("stem_channels", 2 * growth)
    compression = fields.optional("compression")
    if not isinstance(compression, (int, float)) or not 0 < compression <= 1:
        raise TensorsDoNotFitError(f"compression must be above 0 and at most 1, not {compression!r}")
    blocks = fields.blocks()
    stages: dict[str, Stage] = {}

    concatenated = layers.value(channels + blocks[0] * growth)
    stem = "features.conv0", (channels, fields.integer("in_chans", 3))
    if fields.choice("stem", ("imagenet", "cifar")) == "imagenet":
        maps = layers.value(channels)
        layers.convolution(
            stem[0], layers.image, maps, (*stem[1], 7), norm_after="features.norm0", stride=2, relu=True
        )
        network.add_max_pool("features.pool0", maps, concatenated)
        stages["features.relu0"] = Stage(maps, channels)
    else:
        layers.convolution(stem[0], layers.image, concatenated, (*stem[1], 3))
        stages["features.conv0"] = Stage(concatenated, channels)

    for number, count in enumerate(blocks, start=1):
        before = channels
        # What the 3×3 convolutions read: one value, written anew in every layer.
        inner = layers.value(bottleneck * growth if bottleneck is not None else before + (count - 1) * growth)
        for layer in range(1, count + 1):
            name = f"features.denseblock{number}.denselayer{layer}"
            if bottleneck is not None:
                layers.convolution(
                    f"{name}.conv1",
                    concatenated,
                    inner,
                    (bottleneck * growth, channels, 1),
                    norm_before=f"{name}.norm1",
                    norm_after=f"{name}.norm2",
                    relu=True,
                )
                last, inputs = f"{name}.conv2", bottleneck * growth
            else:
                scale, shift = layers.norm(f"{name}.norm1", channels)
                network.add_activation(
                    f"{name}.norm1", concatenated, inner, _single(name, scale), _single(name, shift)
                )
                last, inputs = f"{name}.conv1", channels
            layers.convolution(last, inner, concatenated, (growth, inputs, 3), target_channel=channels)
            channels += growth
        if number == len(blocks):
            break
        stages[f"features.denseblock{number}"] = Stage(concatenated, channels)
        compressed = max(int(channels * compression), 1)
        following = layers.value(compressed + blocks[number] * growth)
        transition = f"features.transition{number}"
        layers.convolution(
            f"{transition}.conv",
            concatenated,
            following,
            (compressed, channels, 1),
            norm_before=f"{transition}.norm",
            pooled=True,
        )
        concatenated, channels = following, compressed

    scale, shift = layers.norm("features.norm5", channels)
    stages["features.relu5"] = Stage(concatenated, channels, scale, shift)
    features = layers.value(channels)
    network.add_mean(
        "features.norm5",
        concatenated,
        features,
        _single("features.norm5", scale),
        _single("features.norm5", shift),
    )
    layers.head("classifier", features, channels, fields.integer("num_classes", 1000, lowest=0))
    return Built(network, stages)


def _resnet(layers: _Layers, fields: _Fields) -> Built:
    network = layers.network
    basic = fields.choice("block", ("bottleneck", "basic")) == "basic"
    pads = fields.choice("shortcut", ("projection", "pad")) == "pad"
    width = fields.integer("width", 64)
    groups = fields.integer("groups", 1)
    per_group = fields.integer("width_per_group", 64)
    output_stride = _MOST_CHANNELS  # as good as none
    if fields.optional("output_stride") is not None:
        output_stride = fields.integer("output_stride", 32)
    stages: dict[str, Stage] = {}

    channels = width
    maps = layers.value(channels)
    imagenet = fields.choice("stem", ("imagenet", "cifar")) == "imagenet"
    layers.convolution(
        "conv1",
        layers.image,
        maps,
        (channels, fields.integer("in_chans", 3), 7 if imagenet else 3),
        norm_after="bn1",
        stride=2 if imagenet else 1,
        relu=True,
    )
    stages["relu"] = Stage(maps, channels)
    reduction = 1
    if imagenet:
        pooled = layers.value(channels)
        network.add_max_pool("maxpool", maps, pooled)
        maps, reduction = pooled, 4

    dilation = 1
    for stage, count in enumerate(fields.blocks()):
        stride = 1 if stage == 0 else 2
        first_dilation = dilation
        if reduction * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reduction *= stride
        inner = width * 2**stage if basic else width * 2**stage * per_group // 64 * groups
        outputs = width * 2**stage * (1 if basic else 4)
        if inner < 1:
            raise TensorsDoNotFitError("width and width_per_group leave no channel in a branch")
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            shortcut = maps
            if stride != 1 or channels != outputs:
                shortcut = layers.value(outputs)
                if pads:
                    network.add_subsample(f"{name}.downsample", maps, shortcut, stride)
                else:
                    layers.convolution(
                        f"{name}.downsample.0",
                        maps,
                        shortcut,
                        (outputs, channels, 1),
                        norm_after=f"{name}.downsample.1",
                        stride=stride,
                    )
            first, result = layers.value(inner), layers.value(outputs)
            dilations = (first_dilation if block == 0 else dilation, dilation)
            if basic:
                layers.convolution(
                    f"{name}.conv1",
                    maps,
                    first,
                    (inner, channels, 3),
                    norm_after=f"{name}.bn1",
                    stride=stride,
                    dilation=dilations[0],
                    relu=True,
                )
                layers.convolution(
                    f"{name}.conv2",
                    first,
                    result,
                    (outputs, inner, 3),
                    norm_after=f"{name}.bn2",
                    dilation=dilations[1],
                    added=shortcut,
                    relu=True,
                )
            else:
                second = layers.value(inner)
                layers.convolution(
                    f"{name}.conv1", maps, first, (inner, channels, 1), norm_after=f"{name}.bn1", relu=True
                )
                layers.convolution(
                    f"{name}.conv2",
                    first,
                    second,
                    (inner, inner, 3),
                    norm_after=f"{name}.bn2",
                    groups=groups,
                    stride=stride,
                    dilation=dilations[0],
                    relu=True,
                )
                layers.convolution(
                    f"{name}.conv3",
                    second,
                    result,
                    (outputs, inner, 1),
                    norm_after=f"{name}.bn3",
                    added=shortcut,
                    relu=True,
                )
            maps, channels, stride = result, outputs, 1
        stages[f"layer{stage + 1}"] = Stage(maps, channels)

    features = layers.value(channels)
    network.add_mean("avgpool", maps, features)
    layers.head("fc", features, channels, fields.integer("num_classes", 1000, lowest=0))
    return Built(network, stages)


def _single(name: str, numbers: Array) -> NDArray[np.float32]:
    """Single precision, once more checked: folding may overflow where each tensor was finite."""
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(numbers, dtype=np.float32)
    if not np.isfinite(single).all():
        raise TensorsDoNotFitError(f"{name}: weights times norm are not finite in single precision")
    return single


def _groups_together(outputs: int, inputs: int, groups: int) -> int:
    """How many groups run as one convolution whose weights are 0 between groups.

    A register tile makes 32 channels at once and reads vectors of up to 16, so groups of 4 channels alone
    would leave most of it empty. Where no number of groups fits vectors, all of them run together.

    Args:
        outputs: Channels that a group makes.
        inputs: Channels that a group reads.
        groups: How many there are.
    """
    for together in range(1, groups):
        whole = groups % together == 0 and together * inputs % 16 == 0 and together * outputs % 16 == 0
        if whole and together * outputs >= 32:
            return together
    return groups


def _block_diagonal(weight: Array, groups: int) -> Array:
    """(O, I of a group, K, K) of a grouped convolution → (O, I, K, K) of an ordinary one."""
    if groups == 1:
        return weight
    outputs, inputs, *kernel = weight.shape
    dense = np.zeros((outputs, inputs * groups, *kernel))
    for group in range(groups):
        rows = slice(group * outputs // groups, (group + 1) * outputs // groups)
        dense[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return dense
