"""Match tensors by structure if names are unknown: by layer, kind of layer and shape.

Tensors are first grouped into layers (all that share a name up to its last word); within a layer the last
word identifies them: `weight`, `gamma`, `moving_mean` … Layers of the same name on both sides
are matched. Of the rest the convolutions are paired in order, and so are the norms and the linear
layers; where the source names its shortcuts, they are paired separately. Matched layers must have the
same shapes, and no layer may remain unmatched.

Layers of equal shapes are interchangeable, and a wrong pairing of them would load without an error. Order
alone is not enough evidence, so a match is also refused
- where the numbers in interchangeable layers' names run against the order,
- where a group of one side (`block3.…`) would be split: a pre-activation ResNet has the
  same shapes in the same order as the original one, and only this distinguishes them,
- where the source keeps no order (safetensors sorts by name), unless each shape occurs only once, or the
  names are numbered consecutively.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from skipnets.errors import listed
from skipnets.models.weights.target import AmbiguousMatchError, NoMatchError, Target

Kind = Literal["convolution", "norm", "linear"]
Shape = tuple[int, ...]

_ROLES = {
    "weight": ("weight", "weights", "kernel", "gamma", "scale"),
    "bias": ("bias", "biases", "beta", "offset"),
    "running_mean": ("running_mean", "moving_mean", "mean"),
    "running_var": ("running_var", "running_variance", "moving_var", "moving_variance", "var", "variance"),
    "num_batches_tracked": ("num_batches_tracked",),
}
_ROLE_OF = {word: role for role, words in _ROLES.items() for word in words}
# Shortest layer name first, so that "bn.running_mean" is the mean of "bn" and not of "bn.running".
_NAME = re.compile(rf"(?:(?P<layer>.*?)[./_])?(?P<word>{'|'.join(_ROLE_OF)})(?::\d+)?", re.DOTALL)
# Convolutions of signals, images and volumes.
_KIND_BY_NDIM: dict[int, Kind] = {
    **dict.fromkeys((3, 4, 5), "convolution"),
    2: "linear",
    1: "norm",
}
_SHORTCUT = {"downsample", "shortcut", "skip", "proj", "projection"}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The tensors of one convolution, norm or linear layer.

    Args:
        name: Common prefix of their names.
        kind: Kind of layer, from the weight's number of axes.
        names: Full names by role ("weight", "running_mean", …).
        shapes: Shapes by role.
    """

    name: str
    kind: Kind
    names: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)

    @property
    def is_shortcut(self) -> bool:
        """Whether its name marks it as part of a shortcut."""
        return not _SHORTCUT.isdisjoint(
            re.split(r"[^a-z]+", self.name.lower().replace("down_sample", "downsample"))
        )

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers in the name."""
        return tuple(map(int, re.findall(r"\d+", self.name)))

    @property
    def pattern(self) -> str:
        """The name without its numbers."""
        return re.sub(r"\d+", "#", self.name)

    @property
    def groups(self) -> tuple[str, ...]:
        """The modules that it is part of: `layer1` and `layer1.0` for `layer1.0.conv1`."""
        ends = [separator.start() for separator in re.finditer(r"[./]", self.name)]
        return tuple(self.name[:end] for end in ends)

    def __str__(self) -> str:
        return f"{self.names['weight']} {self.shapes['weight']}"


def match(target: Target, tensors: Mapping[str, Tensor], *, ordered: bool) -> dict[str, str]:
    """Match each tensor of a model with one of a source.

    Args:
        target: The tensors that the model expects.
        tensors: The source's, in PyTorch's order of axes.
        ordered: Whether the order of `tensors` is the order in which the source's layers were made.

    Returns:
        The model's names to the source's, in the model's order. `num_batches_tracked` may be missing.

    Raises:
        NoMatchError: If a tensor is missing or unexpected.
        AmbiguousMatchError: If a tensor could be matched in more than one way.
    """
    wanted, found = _layers(target.tensors), _layers(tensors)
    if target.num_classes == 0:
        linear = [layer for layer in found if layer.kind == "linear"]
        found = [layer for layer in found if layer.kind != "linear"] if len(linear) == 1 else found

    pairs = _pairs_by_name(target, wanted, found)
    named = {layer.name for _, layer in pairs}
    paired = {layer.name for layer, _ in pairs}
    wanted = [layer for layer in wanted if layer.name not in paired]
    found = [layer for layer in found if layer.name not in named]
    _require_same_layers(target, wanted, found)

    if not ordered and _is_count(found):
        found, ordered = sorted(found, key=lambda layer: layer.numbers), True
    pairs += _pairs_in_order(target, wanted, found) if ordered else _pairs_by_shape(target, wanted, found)
    _require_same_grouping(pairs)
    by_name = {
        name: other.names[role]
        for layer, other in pairs
        for role, name in layer.names.items()
        if role in other.names
    }
    return {name: by_name[name] for name in target.tensors if name in by_name}


def _layers(tensors: Mapping[str, Tensor]) -> list[Layer]:
    """Group tensors into layers, in the order of their first tensors."""
    gathered: dict[str, dict[str, str]] = defaultdict(dict)
    unclear: list[str] = []
    for name in tensors:
        parsed = _NAME.fullmatch(name)
        if parsed is None or _ROLE_OF[parsed["word"]] in gathered[parsed["layer"] or ""]:
            unclear.append(name)
        else:
            gathered[parsed["layer"] or ""][_ROLE_OF[parsed["word"]]] = name
    layers: list[Layer] = []
    for name, names in gathered.items():
        shapes = {
            role: tuple(tensors[full].shape) for role, full in names.items() if role != "num_batches_tracked"
        }
        kind = _KIND_BY_NDIM.get(len(shapes.get("weight", ())))
        if kind is None:
            unclear += names.values()
        else:
            layers.append(Layer(name=name, kind=kind, names=names, shapes=shapes))
    if unclear:
        raise NoMatchError(
            f"the names do not say what these tensors are (weight, bias, running_mean …): {listed(unclear)}"
        )
    return layers


def _is_count(layers: Sequence[Layer]) -> bool:
    """Whether the names share one pattern with one number, such as `layer12`, which also defines an order."""
    patterns = {layer.pattern for layer in layers}
    return len(patterns) == 1 and patterns.pop().count("#") == 1


def _fits(target: Target, wanted: Layer, found: Layer) -> bool:
    return wanted.shapes.keys() == found.shapes.keys() and all(
        target.fits(wanted.names[role], shape) for role, shape in found.shapes.items()
    )


def _signature(layer: Layer) -> Hashable:
    """Layers of equal signature are interchangeable by kind and shape."""
    return layer.kind, tuple(sorted(layer.shapes.items()))


def _pairs_by_name(
    target: Target, wanted: Iterable[Layer], found: Iterable[Layer]
) -> list[tuple[Layer, Layer]]:
    by_name = {layer.name: layer for layer in found}
    return [
        (layer, by_name[layer.name])
        for layer in wanted
        if layer.name in by_name and _fits(target, layer, by_name[layer.name])
    ]


def _require_same_layers(target: Target, wanted: Sequence[Layer], found: Sequence[Layer]) -> None:
    """Raise if the layers of the two sides differ whatever their order, listing the differences."""
    pool: dict[Hashable, list[Layer]] = defaultdict(list)
    for layer in found:
        pool[_signature(layer)].append(layer)
    lacking = [layer for layer in wanted if not (pool[_signature(layer)] and pool[_signature(layer)].pop(0))]
    left = [layer for layers in pool.values() for layer in layers]
    for layer in list(lacking):  # the stem and the head may differ in shape
        if other := next((other for other in left if _fits(target, layer, other)), None):
            lacking.remove(layer)
            left.remove(other)
    reasons = []
    if lacking:
        reasons.append(f"nothing matches {listed(map(str, lacking))}")
    if left:
        reasons.append(f"unexpected: {listed(map(str, left))}")
    if reasons:
        raise NoMatchError("; ".join(reasons))


def _pairs_in_order(
    target: Target, wanted: Sequence[Layer], found: Sequence[Layer]
) -> list[tuple[Layer, Layer]]:
    pairs: list[tuple[Layer, Layer]] = []
    highest: dict[Hashable, Layer] = {}
    apart = any(layer.is_shortcut for layer in found) and any(layer.is_shortcut for layer in wanted)
    for stream, other in zip(_streams(wanted, apart), _streams(found, apart), strict=True):
        if len(stream) != len(other):
            raise NoMatchError(
                f"the model has {len(stream)} and the source {len(other)} of {listed(map(str, stream))}"
            )
        for layer, candidate in zip(stream, other, strict=True):
            if not _fits(target, layer, candidate):
                raise NoMatchError(f"the order differs: {candidate} stands where {layer} belongs")
            key = (_signature(candidate), candidate.pattern)
            if key in highest and highest[key].numbers >= candidate.numbers:
                raise AmbiguousMatchError(
                    f"ambiguous: {candidate} comes after {highest[key]}, "
                    "so that order and numbers contradict each other"
                )
            highest[key] = candidate
            pairs.append((layer, candidate))
    return pairs


def _streams(layers: Iterable[Layer], apart: bool) -> list[list[Layer]]:
    """Convolutions, norms and linear layers, each in order; with `apart`, shortcuts in their own lists."""
    streams: dict[tuple[Kind, bool], list[Layer]] = {
        (kind, shortcut): [] for kind in _KIND_BY_NDIM.values() for shortcut in (False, True)
    }
    for layer in layers:
        streams[layer.kind, apart and layer.is_shortcut].append(layer)
    return list(streams.values())


def _pairs_by_shape(
    target: Target, wanted: Sequence[Layer], found: Sequence[Layer]
) -> list[tuple[Layer, Layer]]:
    pairs: list[tuple[Layer, Layer]] = []
    for layer in wanted:
        candidates = [other for other in found if _fits(target, layer, other)]
        if len(candidates) > 1:
            raise AmbiguousMatchError(
                "ambiguous: the source is sorted by name, and only another order distinguishes "
                f"{listed(map(str, candidates))}"
            )
        pairs.append((layer, candidates[0]))
    return pairs


def _require_same_grouping(pairs: Sequence[tuple[Layer, Layer]]) -> None:
    """Raise where groups of the two sides overlap without one containing the other."""
    sizes = Counter(group for layer, _ in pairs for group in layer.groups)
    other_sizes = Counter(group for _, other in pairs for group in other.groups)
    shared = Counter(both for layer, other in pairs for both in itertools.product(layer.groups, other.groups))
    for (group, other_group), count in shared.items():
        if count < min(sizes[group], other_sizes[other_group]):
            torn = [
                str(other)
                for layer, other in pairs
                if (group in layer.groups) != (other_group in other.groups)
            ]
            raise AmbiguousMatchError(
                f"ambiguous: by shapes and order {group} would get only part of the source's {other_group}, "
                f"so the source seems to be another architecture; this concerns {listed(torn)}"
            )
