"""What the engine asks of a graph: operations over values, read by their attributes.

`skipnets.models.graph.Graph` is one; any objects with these attributes will do. A graph may come from a
damaged file, so `check_graph` looks at everything before anything else reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

from skipnets_engine.errors import InvalidGraphError, UnknownArchitectureError

_MAX_CHANNELS = 1 << 20
_MAX_OPERATIONS = 20_000  # of values too; the deepest networks known have a quarter of it
NORMS = ("batch", "group", "layer2d", "instance", "filter-response", "evonorm-s0")
ACTIVATIONS = ("relu", "gelu", "silu", "hard_swish", "sigmoid", "hard_sigmoid")
# What the kernels are written for.
_MAX_KERNEL = 15
_MAX_STRIDE = 16
_MAX_DILATION = 4096


class Value(Protocol):
    """A tensor between operations: (N, channels, H, W), or (N, channels) where `spatial` is false."""

    @property
    def channels(self) -> int: ...  # noqa: D102
    @property
    def spatial(self) -> bool: ...  # noqa: D102


class Operation(Protocol):
    """One step of a network.

    Beside these attributes, each kind has its own:

    - "convolution": kernel, stride, padding, dilation, groups, bias, in_channels, out_channels
    - "standardized convolution" (its weights get mean 0 and variance 1 for each output channel): eps, too
    - "border" (pixels of zeros around the map): kernel (1), stride (1), padding
    - "norm": norm ("batch", "group", "layer2d", "instance", "filter-response" or "evonorm-s0"), channels,
      groups, eps
    - "affine" (a factor and a shift for each channel) and "threshold" (the least of each channel): channels
    - "activation": function ("relu", "gelu", "silu", "hard_swish", "sigmoid" or "hard_sigmoid")
    - "pool": mode ("max" or "average"), kernel, stride, padding
    - "blur" (binomial, 3×3, mirrored at the edges) and "cell mean" (2×2, of the pixels inside of the map),
      which halve a map: kernel, stride, padding
    - "pad": before, after (channels of zeros)
    - "linear", and "pointwise linear" (its weight is that of a 1×1 convolution): in_features, out_features
    - "channel convolution" (along the channels of each pixel): kernel
    - "scale" (a factor for each channel): channels
    - "global pool": mode ("max", "avgmax" or "catavgmax"), channels
    - "multiply" (a map by a map of one pixel), "concatenate", "add", "mean" and "squeeze" (over the
      whole map, to a vector or a map of one pixel) and "dropout" (which does nothing here): none
    """

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def inputs(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def output(self) -> int: ...  # noqa: D102


class Graph(Protocol):
    """A network: operations in an order in which they can run. Value 0 is the input."""

    @property
    def values(self) -> Sequence[Value]: ...  # noqa: D102
    @property
    def operations(self) -> Sequence[Operation]: ...  # noqa: D102
    @property
    def stages(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def features(self) -> int: ...  # noqa: D102
    @property
    def logits(self) -> int: ...  # noqa: D102


def check_graph(graph: Graph) -> None:
    """Refuse a graph that the engine cannot run.

    Raises:
        UnknownArchitectureError: If the engine does not know an operation's kind or one of its attributes.
        InvalidGraphError: If the graph contradicts itself.
    """
    values, operations = _items(graph, "values"), _items(graph, "operations")
    for number, value in enumerate(values):
        where = f"value {number}"
        _integer(where, value, "channels", 1, _MAX_CHANNELS)
        _boolean(where, value, "spatial")
    if not values or not values[0].spatial:
        raise InvalidGraphError("value 0 must be the input, a map")
    written = [True] + [False] * (len(values) - 1)
    for operation in operations:
        where = _name(operation)
        inputs, output = getattr(operation, "inputs", None), getattr(operation, "output", None)
        if not isinstance(inputs, (tuple, list)) or not inputs:
            raise InvalidGraphError(f"{where}: inputs={inputs!r}: must list values")
        for value in inputs:
            if not _is_index(value, values) or not written[value]:
                raise InvalidGraphError(f"{where}: reads value {value!r}, which nothing has written yet")
        if not _is_index(output, values) or written[output]:
            raise InvalidGraphError(f"{where}: writes value {output!r}, which is taken or does not exist")
        written[output] = True
        _check_operation(where, operation, [values[value] for value in inputs], values[output])
    for name in ("features", "logits"):
        value = getattr(graph, name, None)
        if not _is_index(value, values) or not written[value]:
            raise InvalidGraphError(f"{name}={value!r}: must be a value that is written")
        if values[value].spatial:
            raise UnknownArchitectureError(f"the native engine needs pooled {name}, value {value} is a map")
    stages = getattr(graph, "stages", None)
    if not isinstance(stages, Mapping) or not all(isinstance(path, str) for path in stages):
        raise InvalidGraphError("stages must map paths to values")
    for path, value in stages.items():
        if not _is_index(value, values) or not written[value]:
            raise InvalidGraphError(f"stage {path}: value {value!r} does not exist")


def _check_operation(where: str, operation: Any, inputs: list[Value], output: Value) -> None:
    kind = getattr(operation, "kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UnknownArchitectureError(f"{where}: the native engine does not know the operation {kind!r}")
    check, attributes = _KINDS[kind]
    unknown = set(getattr(operation, "__dict__", ())) - {
        "kind",
        "name",
        "inputs",
        "output",
        *attributes.split(),
    }
    if unknown:
        raise UnknownArchitectureError(
            f"{where}: the native engine does not know the attribute {min(unknown)!r} of a {kind}"
        )
    arity = {"add": 2, "multiply": 2, "concatenate": len(inputs)}.get(kind, 1)
    if len(inputs) != arity:
        raise InvalidGraphError(f"{where}: a {kind} reads {arity} values, not {len(inputs)}")
    check(where, operation, inputs, output)


def _check_convolution(where: str, operation: Any, inputs: list[Value], output: Value) -> None:
    kernel = _integer(where, operation, "kernel", 1, _MAX_KERNEL)
    dilation = _integer(where, operation, "dilation", 1, _MAX_DILATION)
    _integer(where, operation, "stride", 1, _MAX_STRIDE)
    _integer(where, operation, "padding", 0, dilation * (kernel - 1))
    _boolean(where, operation, "bias")
    _equal(where, operation, "in_channels", inputs[0].channels)
    _equal(where, operation, "out_channels", output.channels)
    groups = _integer(where, operation, "groups", 1, _MAX_CHANNELS)
    if inputs[0].channels % groups or output.channels % groups:
        raise InvalidGraphError(f"{where}: groups={groups}: must divide the channels")
    _spatial(where, inputs[0], output, True, True)


def _check_standardized(where: str, operation: Any, inputs: list[Value], output: Value) -> None:
    _check_convolution(where, operation, inputs, output)
    _check_eps(where, operation)


def _check_border(where: str, operation: Any, inputs: list[Value], output: Value) -> None:
    for name in ("kernel", "stride", "dilation"):
        if getattr(operation, name, None) != 1:
            raise UnknownArchitectureError(f"{where}: the native engine knows {name} 1 of a border only")
    _integer(where, operation, "padding", 0, _MAX_KERNEL // 2)
    _same(where, inputs, output)
    _spatial(where, inputs[0], output, True, True)


def _check_linear(where: str, operation: Any, inputs: list[Value], output: Value) -> None:
    _equal(where, operation, "in_features", inputs[0].channels)
    _equal(where, operation, "out_features", output.channels)
    _spatial(where, inputs[0], output, False, False)


def _check_eps(where: str, operation: Any) -> None:
    eps = getattr(operation, "eps", None)
    if not isinstance(eps, float) or not math.isfinite(eps) or not 1e-30 <= eps <= 1:
        raise InvalidGraphError(f"{where}: eps={eps!r}: must be a small positive number")


def _check_norm(where: str, operation: Any, inputs: list[Value], output: Value) -> None:
    _choice(where, operation, "norm", *NORMS)
    _equal(where, operation, "channels", inputs[0].channels)
    _check_eps(where, operation)
    if operation.norm in ("group", "evonorm-s0"):
        groups = _integer(where, operation, "groups", 1, _MAX_CHANNELS)
        if inputs[0].channels % groups:
            raise InvalidGraphError(f"{where}: groups={groups}: must divide the channels")
    _same(where, inputs, output)
    if operation.norm not in ("group", "layer2d"):
        _spatial(where, inputs[0], output, True, True)


def _check_activation(where: str, operation: Any, inputs: list[Value], output: Value) -> None:
    _choice(where, operation, "function", *ACTIVATIONS)
    _same(where, inputs, output)


def _check_pool(where: str, operation: Any, inputs: list[Value], output: Value) -> None:
    _choice(where, operation, "mode", "max", "average")
    kernel = _integer(where, operation, "kernel", 1, _MAX_KERNEL)
    _integer(where, operation, "stride", 1, _MAX_STRIDE)
    _integer(where, operation, "padding", 0, kernel // 2)
    if getattr(operation, "dilation", 1) != 1:
        raise UnknownArchitectureError(f"{where}: the native engine does not know dilated pooling")
    _same(where, inputs, output)
    _spatial(where, inputs[0], output, True, True)


def _check_halving(where: str, operation: Any, inputs: list[Value], output: Value) -> None:
    kernel, padding = (3, 1) if operation.kind == "blur" else (2, 0)
    for name, only in (("kernel", kernel), ("stride", 2), ("padding", padding), ("dilation", 1)):
        if getattr(operation, name, None) != only:
            raise UnknownArchitectureError(
                f"{where}: the native engine knows {name} {only} of a {operation.kind} only"
            )
    _same(where, inputs, output)
    _spatial(where, inputs[0], output, True, True)


def _check_pad(where: str, operation: Any, inputs: list[Value], output: Value) -> None:
    before = _integer(where, operation, "before", 0, _MAX_CHANNELS)
    after = _integer(where, operation, "after", 0, _MAX_CHANNELS)
    _channels(where, before + inputs[0].channels + after, output)
    _spatial(where, inputs[0], output, inputs[0].spatial, inputs[0].spatial)


def _check_concatenate(where: str, _: Any, inputs: list[Value], output: Value) -> None:
    _channels(where, sum(value.channels for value in inputs), output)
    for value in inputs:
        _spatial(where, value, output, output.spatial, output.spatial)


def _check_same(where: str, _: Any, inputs: list[Value], output: Value) -> None:
    _same(where, inputs, output)


def _check_channel_convolution(where: str, operation: Any, inputs: list[Value], output: Value) -> None:
    kernel = _integer(where, operation, "kernel", 1, 1 << 16)
    if kernel % 2 == 0:
        raise UnknownArchitectureError(f"{where}: kernel={kernel}: the native engine knows odd ones")
    _same(where, inputs, output)


def _check_scale(where: str, operation: Any, inputs: list[Value], output: Value) -> None:
    _equal(where, operation, "channels", inputs[0].channels)
    _same(where, inputs, output)


def _check_squeeze(where: str, _: Any, inputs: list[Value], output: Value) -> None:
    _channels(where, inputs[0].channels, output)
    _spatial(where, inputs[0], output, True, True)


def _check_global_pool(where: str, operation: Any, inputs: list[Value], output: Value) -> None:
    _choice(where, operation, "mode", "max", "avgmax", "catavgmax")
    _equal(where, operation, "channels", inputs[0].channels)
    _channels(where, inputs[0].channels * (2 if operation.mode == "catavgmax" else 1), output)
    _spatial(where, inputs[0], output, True, False)


def _check_mean(where: str, _: Any, inputs: list[Value], output: Value) -> None:
    _channels(where, inputs[0].channels, output)
    _spatial(where, inputs[0], output, True, False)


_KINDS: dict[str, tuple[Callable[[str, Any, list[Value], Value], None], str]] = {
    "convolution": (
        _check_convolution,
        "kernel stride padding dilation groups bias in_channels out_channels",
    ),
    "standardized convolution": (
        _check_standardized,
        "kernel stride padding dilation groups bias in_channels out_channels eps",
    ),
    "border": (_check_border, "kernel stride padding dilation"),
    "linear": (_check_linear, "in_features out_features"),
    "pointwise linear": (_check_linear, "in_features out_features"),
    "norm": (_check_norm, "norm channels groups eps"),
    "affine": (_check_scale, "channels"),
    "threshold": (_check_scale, "channels"),
    "activation": (_check_activation, "function"),
    "pool": (_check_pool, "mode kernel stride padding dilation"),
    "blur": (_check_halving, "kernel stride padding dilation"),
    "cell mean": (_check_halving, "kernel stride padding dilation"),
    "pad": (_check_pad, "before after"),
    "channel convolution": (_check_channel_convolution, "kernel"),
    "scale": (_check_scale, "channels"),
    "multiply": (_check_same, ""),
    "concatenate": (_check_concatenate, ""),
    "add": (_check_same, ""),
    "dropout": (_check_same, "rate mode"),
    "mean": (_check_mean, ""),
    "squeeze": (_check_squeeze, ""),
    "global pool": (_check_global_pool, "mode channels"),
}


def _items(graph: Graph, name: str) -> Sequence[Any]:
    items = getattr(graph, name, None)
    if not isinstance(items, (tuple, list)) or not 1 <= len(items) <= _MAX_OPERATIONS:
        raise InvalidGraphError(f"{name}: must be 1 to {_MAX_OPERATIONS}")
    return items


def _name(operation: Any) -> str:
    name = getattr(operation, "name", None)
    if not isinstance(name, str) or not name:
        raise InvalidGraphError(f"an operation's name must be text, not {name!r}")
    return name


def _is_index(value: Any, values: Sequence[Any]) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(values)


def _integer(where: str, owner: Any, name: str, lowest: int, highest: int) -> int:
    value = getattr(owner, name, None)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidGraphError(f"{where}: {name}={value!r}: must be a whole number")
    if not lowest <= value <= highest:
        raise UnknownArchitectureError(
            f"{where}: {name}={value}: the native engine knows {lowest} to {highest}"
        )
    return value


def _boolean(where: str, owner: Any, name: str) -> None:
    value = getattr(owner, name, None)
    if not isinstance(value, bool):
        raise InvalidGraphError(f"{where}: {name}={value!r}: must be True or False")


def _choice(where: str, owner: Any, name: str, *choices: str) -> None:
    value = getattr(owner, name, None)
    if not isinstance(value, str) or value not in choices:
        raise UnknownArchitectureError(
            f"{where}: the native engine knows {' and '.join(choices)} {name} only, not {name}={value!r}"
        )


def _equal(where: str, owner: Any, name: str, channels: int) -> None:
    value = getattr(owner, name, None)
    if not isinstance(value, int) or isinstance(value, bool) or value != channels:
        raise InvalidGraphError(f"{where}: {name}={value!r}: its value has {channels} channels")


def _channels(where: str, channels: int, output: Value) -> None:
    if output.channels != channels:
        raise InvalidGraphError(f"{where}: makes {channels} channels, its value has {output.channels}")


def _spatial(where: str, source: Value, output: Value, reads: bool, writes: bool) -> None:
    if source.spatial != reads or output.spatial != writes:
        raise InvalidGraphError(
            f"{where}: its values must be maps where it reads or makes maps, and only there"
        )


def _same(where: str, inputs: list[Value], output: Value) -> None:
    for value in inputs:
        if value.channels != output.channels or value.spatial != output.spatial:
            raise InvalidGraphError(f"{where}: its values must have one shape")
