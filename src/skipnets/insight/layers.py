"""A network's graph as a list of layers with shapes and costs for one image: the rows of a summary.

Shapes: C channels, H height, W width, of one image; (C, L) of a signal, (C, D, H, W) of a volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skipnets.models.accounting import grids, macs, steps, value_bytes
from skipnets.models.graph import Graph
from skipnets.models.operations import (
    Activation,
    Affine,
    ChannelConvolution,
    Convolution,
    Dropout,
    Linear,
    Norm,
    Operation,
    Pool,
    Scale,
    Shape,
    Threshold,
    Window,
)

_PLAIN_KINDS = {
    "concatenate": "concatenation",
    "add": "addition",
    "mean": "global average",
    "global pool": "global pooling",
    "scale": "layer scale",
    "cell mean": "average pooling",
    "pointwise linear": "linear",
    "border": "border of zeros",
}
_ACTIVATIONS = {
    "relu": "ReLU",
    "gelu": "GELU",
    "silu": "SiLU",
    "hard_swish": "hard-swish",
    "sigmoid": "sigmoid",
    "hard_sigmoid": "hard-sigmoid",
}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of the network, with its shapes and costs for one image.

    Attributes:
        path: Path of the module.
        kind: Kind of layer, for example "dense block" or "convolution".
        depth: 1 for a stage, 2 for the layers in a stage, and so on.
        parts: Whether it consists of other layers, which follow it.
        kernel: Height and width of the window, or as many numbers as the maps have axes; None where there is
            none.
        stride: Stride of the window.
        input: Shape of the input: (C, H, W) or (C,).
        output: Shape of the output.
        parameters: Number of trainable parameters.
        formula: How `parameters` is computed; "" if there are none or the layer has parts.
        macs: Multiply-accumulates of convolutions and linear layers; additions of a bias do not count.
        kept: Bytes per image that autograd saves for this layer's backward pass, unless an earlier layer's
            already does.
        step: Pixels of the input between neighboring values of the output; None without spatial dimensions.
        receptive_field: Width, in pixels of the input, that one output value depends on; None for all of it.
    """

    path: str
    kind: str
    depth: int
    parts: bool
    kernel: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    input: Shape
    output: Shape
    parameters: int
    formula: str
    macs: int
    kept: int
    step: int | None
    receptive_field: int | None


def layers(graph: Graph, size: Sequence[int]) -> list[Layer]:
    """List a network's layers in execution order, each before its parts.

    Dropout is left out; a concatenation or addition is part of the block that contains it.

    Args:
        graph: The network.
        size: Height and width of an image.
    """
    rows = _Rows(graph, size)
    scopes = [scope for scope in graph.scopes if scope.kind != "stem"]
    result: list[Layer] = []
    stops: list[tuple[str, int]] = []  # Open scopes: path, and index after their last operation.
    for place, operation in enumerate(graph.operations):
        stops = [(path, stop) for path, stop in stops if stop > place]
        while scopes and scopes[0].start == place:
            scope = scopes.pop(0)
            inside = range(scope.start, scope.stop)
            result.append(rows.layer(scope.path, scope.kind, inside, depth=len(stops) + 1))
            stops.append((scope.path, scope.stop))
        if operation.name not in dict(stops) and not isinstance(operation, Dropout):
            depth = len(stops) + 1
            result.append(rows.layer(operation.name, _kind(operation), range(place, place + 1), depth=depth))
    return result


class _Rows:
    """Builds the rows of one network."""

    def __init__(self, graph: Graph, size: Sequence[int]) -> None:
        self._graph = graph
        self._shapes = graph.shapes(size)
        self._grids = grids(graph)
        self._macs = macs(graph, size)
        sizes, kept = value_bytes(self._shapes), set[int]()
        self._kept = []
        for step in steps(graph, size):
            self._kept.append(sum(sizes[index] for index in {*step.keeps} - kept) + step.keeps_besides)
            kept |= {*step.keeps}

    def layer(self, path: str, kind: str, inside: range, *, depth: int) -> Layer:
        """The row for the operations in a range."""
        operations = [self._graph.operations[place] for place in inside]
        output = operations[-1].output
        parts = any(operation.name != path for operation in operations)
        window = next((operation for operation in operations if isinstance(operation, Window)), None)
        if parts or window is None:
            kernel = stride = None
        else:
            kernel, stride = (window.kernel,) * window.dims, (window.stride,) * window.dims
        return Layer(
            path=path,
            kind=kind,
            depth=depth,
            parts=parts,
            kernel=kernel,
            stride=stride,
            input=self._shapes[operations[0].inputs[0]],
            output=self._shapes[output],
            parameters=sum(operation.parameter_count() for operation in operations),
            formula="" if parts else _formula(operations[0]),
            macs=sum(self._macs[place] for place in inside),
            kept=sum(self._kept[place] for place in inside),
            step=self._grids[output].step if len(self._shapes[output]) > 1 else None,
            receptive_field=self._grids[output].receptive_field,
        )


def inside(found: Sequence[Layer], outer: Layer) -> list[Layer]:
    """The parts of a layer, one level down."""
    parts = []
    for layer in found[found.index(outer) + 1 :]:
        if layer.depth <= outer.depth:
            break
        if layer.depth == outer.depth + 1:
            parts.append(layer)
    return parts


def _kind(operation: Operation) -> str:
    if isinstance(operation, Norm):
        names = {"layer2d": "layer norm", "evonorm-s0": "EvoNorm-S0"}
        return names.get(operation.norm, f"{operation.norm} norm")
    if isinstance(operation, Activation):
        return _ACTIVATIONS[operation.function]
    if isinstance(operation, Pool):
        return f"{operation.mode} pooling"
    return _PLAIN_KINDS.get(operation.kind, operation.kind)


def _formula(operation: Operation) -> str:
    total = f"{operation.parameter_count():,}"
    if isinstance(operation, Convolution):
        groups = operation.groups
        inputs = f"{operation.in_channels}" if groups == 1 else f"({operation.in_channels}÷{groups})"
        weights = "×".join([*[str(operation.kernel)] * operation.dims, inputs])
        return f"{f'({weights} + 1)' if operation.bias else weights}×{operation.out_channels} = {total}"
    if isinstance(operation, Linear):
        return f"({operation.in_features} + 1)×{operation.out_features} = {total}"
    if isinstance(operation, Norm | Affine | Threshold | Scale):
        return f"{operation.parameter_count() // operation.channels}×{operation.channels} = {total}"
    if isinstance(operation, ChannelConvolution):
        return f"1×{operation.kernel} = {total}"
    return ""
