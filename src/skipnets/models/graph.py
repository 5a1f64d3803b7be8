"""Networks as graphs of named operations, derived from a configuration. Nothing here needs torch.

This is the one description of an architecture besides the torch module: tensor names, summary, memory,
diagrams, rewrites, attribution targets and the native engine read it, and tests hold the two equal. An
operation's `name` is the path of the torch module that computes it; its tensors are the state dict's entries
below that path. Operations are listed in the order in which they run, which is also the state dict's.

Shapes: N batch, C channels, H height, W width. Maps (N, C, H, W) are (N, C, L) of signals and (N, C, D, H, W)
    of volumes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

from skipnets.models.operations import (
    Activation,
    ActivationFunction,
    Add,
    Affine,
    Blur,
    Border,
    CellMean,
    ChannelConvolution,
    Concatenate,
    Convolution,
    Dropout,
    GlobalPool,
    Linear,
    Mean,
    Multiply,
    Norm,
    Operation,
    Pad,
    PointwiseLinear,
    Pool,
    Scale,
    Shape,
    Squeeze,
    StandardizedConvolution,
    Threshold,
    Value,
    norm_eps,
    norm_groups,
)
from skipnets.models.registry import NormKind, Pooling

BlockExecution = Literal["plain", "linear", "linear-recompute"]
"""How blocks run in training: operation by operation, or each as one operation that saves less, of a dense
block in proportion to its depth; it may recompute 1×1 convolutions in the backward pass to save still less.
"""
BLOCK_EXECUTIONS: tuple[BlockExecution, ...] = get_args(BlockExecution)
ExecutionPolicy = Literal["auto", BlockExecution]
"""What can be asked for: one of these, or what is fastest on the device that they run on."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """A module that consists of several operations.

    Attributes:
        path: The module's path. Only a "stem" is not a module: it groups operations that some executions run
            as one.
        kind: Kind of module: "dense block", "dense layer", "transition", "stage",
            "residual block", "shortcut", "squeeze-excitation", "channel attention", "convolutions",
            "pooling", "stem".
        start: Index of its first operation.
        stop: Index after its last operation.
        comes_first: Whether its tensors are the first of the module that contains it, although others of
            that module's operations run before.
    """

    path: str
    kind: str
    start: int
    stop: int
    comes_first: bool = False


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A network: its operations in execution order, with scopes, stages and outputs.

    Attributes:
        name: Name of the configuration.
        dims: Spatial axes of the input: 1 of signals, 2 of images, 3 of volumes.
        values: Value 0 is the input, (N, in_chans, H, W).
        operations: In the order in which they run.
        scopes: Modules of several operations, outer ones before those inside them.
        stages: Path of every module between the input and the last map → its output value, in order.
        features: Index of the pooled features, (N, head_hidden_size).
        logits: Index of the head's output; without a head, of the pooled features after dropout.
    """

    name: str
    values: tuple[Value, ...]
    operations: tuple[Operation, ...]
    scopes: tuple[Scope, ...]
    stages: Mapping[str, int]
    features: int
    logits: int
    dims: int = 2

    def tensors(self) -> dict[str, Shape]:
        """Names and shapes of the state dict, in its order."""
        starts = {scope.path: scope.start for scope in self.scopes}
        first = {
            index: starts[scope.path.rpartition(".")[0]]
            for scope in self.scopes
            if scope.comes_first
            for index in range(scope.start, scope.stop)
        }

        def place(entry: tuple[int, Operation]) -> tuple[int, int]:
            """A module's own parameters come before those of its parts."""
            index, operation = entry
            if isinstance(operation, Scale):
                return starts[operation.name.rpartition(".")[0]], 0
            return (first[index], 1) if index in first else (index, 2)

        ordered = sorted(enumerate(self.operations), key=place)
        return {name: shape for _, operation in ordered for name, shape in operation.tensors().items()}

    @property
    def first_convolution(self) -> Convolution:
        """The convolution that reads the input."""
        return next(operation for operation in self.operations if isinstance(operation, Convolution))

    @functools.cached_property
    def _readers(self) -> dict[int, list[Operation]]:
        readers: dict[int, list[Operation]] = {}
        for operation in self.operations:
            for index in operation.inputs:
                readers.setdefault(index, []).append(operation)
        return readers

    def readers(self, value: int) -> list[Operation]:
        """The operations that read a value."""
        return self._readers.get(value, [])

    @functools.cached_property
    def _producers(self) -> dict[int, Operation]:
        return {operation.output: operation for operation in self.operations}

    def producer(self, value: int) -> Operation | None:
        """The operation that outputs a value; None for the input."""
        return self._producers.get(value)

    def inside(self, scope: Scope) -> tuple[Operation, ...]:
        """The operations of a scope."""
        return self.operations[scope.start : scope.stop]

    def parameter_count(self) -> int:
        """Number of trainable parameters; running statistics do not count."""
        return sum(operation.parameter_count() for operation in self.operations)

    def shapes(self, size: Sequence[int]) -> list[Shape]:
        """The shape of every value for one image: (C, H, W), or (C,).

        Args:
            size: Height and width of the image; length of a signal; depth, height and width of a volume.
        """
        shapes: list[Shape] = [()] * len(self.values)
        shapes[0] = (self.values[0].channels, *size)
        for operation in self.operations:
            value, (_, *size) = self.values[operation.output], shapes[operation.inputs[0]]
            spatial = tuple(operation.output_size(side) for side in size) if value.spatial else ()
            shapes[operation.output] = (value.channels, *spatial)
        return shapes


@dataclass(kw_only=True)
class GraphBuilder:
    """Builds a graph operation by operation; every method returns the index of its output value.

    Args:
        name: Name of the network.
        in_chans: Channels of the input, value 0.
        dims: Spatial axes of the input.
    """

    name: str
    in_chans: int
    dims: int = 2
    _values: list[Value] = field(default_factory=list)
    _operations: list[Operation] = field(default_factory=list)
    _scopes: list[Scope] = field(default_factory=list)
    _stages: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._values.append(Value(channels=self.in_chans))

    def channels(self, value: int) -> int:
        """Channels of a value."""
        return self._values[value].channels

    @contextmanager
    def scope(self, path: str, kind: str, *, comes_first: bool = False) -> Iterator[None]:
        """Group the operations added within the block as one module; `comes_first` as in `Scope`."""
        place, start = len(self._scopes), len(self._operations)
        yield
        stop = len(self._operations)
        self._scopes.insert(
            place, Scope(path=path, kind=kind, start=start, stop=stop, comes_first=comes_first)
        )

    def stage(self, path: str, value: int) -> int:
        """Record a value as the output of the stage at `path`."""
        self._stages[path] = value
        return value

    def convolution(
        self,
        name: str,
        x: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        standardized: bool = False,
    ) -> int:
        """Add a convolution; without `padding` it keeps the map's size at stride 1."""
        kind = StandardizedConvolution if standardized else Convolution
        return self._add(
            kind(
                name=name,
                inputs=(x,),
                output=self._value(out_channels),
                in_channels=self.channels(x),
                out_channels=out_channels,
                kernel=kernel,
                stride=stride,
                padding=dilation * (kernel - 1) // 2 if padding is None else padding,
                dilation=dilation,
                groups=groups,
                bias=bias,
                dims=self.dims,
            )
        )

    def norm(self, name: str, x: int, norm: NormKind | None, *, activated: bool = True) -> int:
        """Add a norm; None adds nothing.

        Args:
            name: Of its module.
            x: What it normalizes.
            norm: Its kind.
            activated: Whether a nonlinearity comes behind it, which some kinds contain.
        """
        if norm is None:
            return x
        channels = self.channels(x)
        output = self._value(channels, spatial=self._values[x].spatial)
        if norm == "evonorm-s0" and not activated:
            return self._add(Affine(name=name, inputs=(x,), output=output, channels=channels))
        normalized = self._add(
            Norm(
                name=name,
                inputs=(x,),
                output=output,
                norm=norm,
                channels=channels,
                groups=norm_groups(channels) if norm in ("group", "evonorm-s0") else 1,
                eps=norm_eps(norm),
            )
        )
        if norm != "filter-response" or not activated:
            return normalized
        threshold = Threshold(
            name=name, inputs=(normalized,), output=self._value(channels), channels=channels
        )
        return self._add(threshold)

    def relu(self, name: str, x: int) -> int:
        """Add a ReLU."""
        return self.activation(name, x, "relu")

    def activation(self, name: str, x: int, function: ActivationFunction) -> int:
        """Add an activation."""
        output = self._value(self.channels(x))
        return self._add(Activation(name=name, inputs=(x,), output=output, function=function))

    def squeeze(self, name: str, x: int) -> int:
        """Add the mean of each channel, as a map of one pixel."""
        return self._add(Squeeze(name=name, inputs=(x,), output=self._value(self.channels(x))))

    def channel_convolution(self, name: str, x: int, kernel: int) -> int:
        """Add a convolution along the channels."""
        output = self._value(self.channels(x))
        return self._add(ChannelConvolution(name=name, inputs=(x,), output=output, kernel=kernel))

    def blur(self, name: str, x: int) -> int:
        """Add a blur that halves the map."""
        output = self._value(self.channels(x))
        return self._add(
            Blur(name=name, inputs=(x,), output=output, kernel=3, stride=2, padding=1, dims=self.dims)
        )

    def cell_mean(self, name: str, x: int) -> int:
        """Add the mean over cells of 2×2 pixels, which halves the map rounding up."""
        output = self._value(self.channels(x))
        return self._add(CellMean(name=name, inputs=(x,), output=output, kernel=2, stride=2, dims=self.dims))

    def multiply(self, name: str, x: int, factors: int) -> int:
        """Multiply each channel by its factor, a map of one pixel."""
        return self._add(Multiply(name=name, inputs=(x, factors), output=self._value(self.channels(x))))

    def scale(self, name: str, x: int) -> int:
        """Add a learned factor for each channel; `name` is its parameter's."""
        channels = self.channels(x)
        return self._add(Scale(name=name, inputs=(x,), output=self._value(channels), channels=channels))

    def pool(
        self,
        name: str,
        x: int,
        mode: Literal["max", "average"],
        kernel: int,
        *,
        stride: int,
        padding: int = 0,
    ) -> int:
        """Add pooling."""
        return self._add(
            Pool(
                name=name,
                inputs=(x,),
                output=self._value(self.channels(x)),
                mode=mode,
                kernel=kernel,
                stride=stride,
                padding=padding,
                dims=self.dims,
            )
        )

    def border(self, name: str, x: int, width: int) -> int:
        """Add pixels of zeros around the map."""
        output = self._value(self.channels(x))
        return self._add(
            Border(name=name, inputs=(x,), output=output, kernel=1, padding=width, dims=self.dims)
        )

    def pad(self, name: str, x: int, before: int, after: int) -> int:
        """Add channels of zeros before and after those of `x`."""
        output = self._value(before + self.channels(x) + after)
        return self._add(Pad(name=name, inputs=(x,), output=output, before=before, after=after))

    def concatenate(self, name: str, *values: int) -> int:
        """Concatenate the channels of several values."""
        output = self._value(sum(map(self.channels, values)))
        return self._add(Concatenate(name=name, inputs=values, output=output))

    def add(self, name: str, x: int, y: int) -> int:
        """Add two values."""
        return self._add(Add(name=name, inputs=(x, y), output=self._value(self.channels(x))))

    def dropout(self, name: str, x: int, rate: float, mode: Literal["value", "row"] = "value") -> int:
        """Add dropout or stochastic depth; a rate of 0 adds nothing."""
        if rate == 0:
            return x
        output = self._value(self.channels(x), spatial=self._values[x].spatial)
        return self._add(Dropout(name=name, inputs=(x,), output=output, rate=rate, mode=mode))

    def finish(
        self,
        x: int,
        *,
        head: str,
        global_pool: Pooling,
        num_classes: int,
        drop_rate: float,
        head_norm: tuple[str, NormKind | None] | None = None,
        pointwise: bool = False,
    ) -> Graph:
        """Add global pooling and the linear head, and return the graph.

        Args:
            x: The last map.
            head: Name of the linear layer.
            global_pool: How the map is pooled; "" for none.
            num_classes: Outputs of the head; 0 for none.
            drop_rate: Rate of the dropout before it.
            head_norm: Name and kind of a norm of the pooled features; None for none.
            pointwise: Whether the linear layer's weight is stored as that of a 1×1 convolution.
        """
        features = self._global_pool(x, global_pool)
        if head_norm is not None:
            features = self.norm(head_norm[0], features, head_norm[1])
        logits = dropped = self.dropout("head_drop", features, drop_rate)
        if num_classes:
            kind = PointwiseLinear if pointwise else Linear
            logits = self._add(
                kind(
                    name=head,
                    inputs=(dropped,),
                    output=self._value(num_classes, spatial=False),
                    in_features=self.channels(features),
                    out_features=num_classes,
                )
            )
        return Graph(
            name=self.name,
            values=tuple(self._values),
            operations=tuple(self._operations),
            scopes=tuple(self._scopes),
            stages=dict(self._stages),
            features=features,
            logits=logits,
            dims=self.dims,
        )

    def _global_pool(self, x: int, mode: Pooling) -> int:
        if mode == "":
            return x
        output = self._value(self.channels(x) * (2 if mode == "catavgmax" else 1), spatial=False)
        if mode == "avg":
            return self._add(Mean(name="global_pool", inputs=(x,), output=output))
        return self._add(
            GlobalPool(name="global_pool", inputs=(x,), output=output, mode=mode, channels=self.channels(x))
        )

    def _value(self, channels: int, *, spatial: bool = True) -> int:
        self._values.append(Value(channels=channels, spatial=spatial))
        return len(self._values) - 1

    def _add(self, operation: Operation) -> int:
        self._operations.append(operation)
        return operation.output
