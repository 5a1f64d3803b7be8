"""Costs of a network from its graph: receptive fields, MACs, activation memory for the backward pass.

Memory is in bytes and for float32. A training step is a list of steps: one per operation or, under another
execution than "plain", one for a whole stem, block or transition, which `skipnets.ops` runs as one.

Shapes: N batch, C channels, H height, W width. The `size` of an image is (H, W), that of a signal (L,), and
    that of a volume (D, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from skipnets.models.graph import BlockExecution, Graph, Scope
from skipnets.models.operations import (
    Activation,
    Add,
    Affine,
    Blur,
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
    Pool,
    Scale,
    Shape,
    Squeeze,
    StandardizedConvolution,
    Threshold,
    Window,
)

__all__ = [
    "FLOAT_BYTES",
    "Grid",
    "Step",
    "grids",
    "kept_bytes",
    "macs",
    "steps",
    "training_bytes",
    "value_bytes",
]

FLOAT_BYTES = 4
_INDEX_BYTES = 8  # Max-pooling saves the index of each maximum as a 64-bit integer.
_FROM_OUTPUT = ("relu", "sigmoid")  # activations whose gradient follows from what they return
_KEEPS_INPUTS = (
    *(Affine, Blur, CellMean, ChannelConvolution, Convolution, Linear, Multiply, Norm, Pool, Scale),
    Threshold,
)
_RUN_AS_ONE = ("stem", "dense block", "transition", "residual block")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Positions of a feature map's values in the input's pixels, the same along height and width.

    Attributes:
        step: Distance between neighboring values: the product of all strides so far.
        start: The center of the first value's receptive field, where the first pixel's center is 0. A strided
            convolution with "same" padding leaves it at 0, so its values lie towards the top left of the
            cells into which they seem to divide the image.
        receptive_field: Width, in pixels, that can influence one value; None for the whole input.
    """

    step: int = 1
    start: float = 0.0
    receptive_field: int | None = 1

    def after(self, operation: Operation) -> Grid:
        """The grid of an operation's output for this map."""
        if isinstance(operation, Mean | GlobalPool | Squeeze):
            return Grid(step=self.step, start=self.start, receptive_field=None)
        if not isinstance(operation, Window):
            return self
        reach = operation.dilation * (operation.kernel - 1)
        field = None if self.receptive_field is None else self.receptive_field + reach * self.step
        start = self.start + (reach / 2 - operation.padding) * self.step
        return Grid(step=self.step * operation.stride, start=start, receptive_field=field)


def grids(graph: Graph) -> list[Grid]:
    """Compute the grid of every value; of several inputs, the one with the largest receptive field counts."""
    result = [Grid()] * len(graph.values)
    for operation in graph.operations:
        inputs = (result[index] for index in operation.inputs)
        widest = max(inputs, key=lambda grid: math.inf if (seen := grid.receptive_field) is None else seen)
        result[operation.output] = widest.after(operation)
    return result


def macs(graph: Graph, size: Sequence[int]) -> list[int]:
    """Count multiply-accumulates of every operation for one image.

    Only convolutions and linear layers have any; bias additions do not count.
    """
    shapes = graph.shapes(size)

    def of(operation: Operation) -> int:
        if isinstance(operation, Convolution):
            area = math.prod(shapes[operation.output][1:])
            weights = operation.out_channels * (operation.in_channels // operation.groups)
            return weights * operation.kernel**operation.dims * area
        if isinstance(operation, ChannelConvolution):
            return operation.kernel * graph.values[operation.output].channels
        if isinstance(operation, Linear):
            return operation.in_features * operation.out_features
        return 0

    return [of(operation) for operation in graph.operations]


def value_bytes(shapes: Iterable[Shape]) -> list[int]:
    """Bytes of every value of one image."""
    return [math.prod(shape) * FLOAT_BYTES for shape in shapes]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A part of a training step that runs as one operation.

    Attributes:
        kind: Kind of the operation or scope.
        start: Index of its first operation.
        stop: Index after its last operation.
        inputs: Indices of its input values.
        output: Index of its output value.
        keeps: Indices of the values that it saves for the backward pass.
        keeps_besides: Further bytes per image that it saves: indices of maxima, masks, group statistics.
        keeps_once: Further bytes that it saves for any batch size: a batch norm's statistics.
        scratch: Bytes per image that its backward pass needs besides gradients of values.
    """

    kind: str
    start: int
    stop: int
    inputs: tuple[int, ...]
    output: int
    keeps: tuple[int, ...] = ()
    keeps_besides: int = 0
    keeps_once: int = 0
    scratch: int = 0


def steps(graph: Graph, size: Sequence[int], execution: BlockExecution = "plain") -> list[Step]:
    """List the steps of a forward pass in training, in order.

    Args:
        graph: The network.
        size: Of the images.
        execution: How blocks run. As in training, a block runs operation by operation if it has norms other
            than batch norms, dropout or stochastic depth; a block of wide layers (RDNet's), if it has norms
            other than layer norms, or dropout.
    """
    shapes = graph.shapes(size)
    sizes = value_bytes(shapes)
    as_one = {
        scope.start: scope
        for scope in graph.scopes
        if execution != "plain" and scope.kind in _RUN_AS_ONE
        if _is_wide(graph, scope) or _runs_as_one(graph, scope)
    }
    result: list[Step] = []
    place = 0
    while place < len(graph.operations):
        scope = as_one.get(place)
        if scope is None:
            result.append(_operation_step(graph, place, shapes))
        else:
            knows_statistics = bool(result) and result[-1].kind == "dense block"
            recompute = execution == "linear-recompute"
            result.append(
                _wide_block_step(graph, scope, sizes, recompute)
                if _is_wide(graph, scope)
                else _scope_step(graph, scope, sizes, recompute, knows_statistics=knows_statistics)
            )
        place = result[-1].stop
    return result


def kept_bytes(graph: Graph, size: Sequence[int], batch_size: int, execution: BlockExecution) -> int:
    """Bytes saved between the forward and the backward pass of a batch, without parameters and buffers."""
    made = steps(graph, size, execution)
    sizes = value_bytes(graph.shapes(size))
    an_image = sum(sizes[index] for index in {index for step in made for index in step.keeps})
    an_image += sum(step.keeps_besides for step in made)
    return batch_size * an_image + sum(step.keeps_once for step in made)


def training_bytes(
    graph: Graph,
    size: Sequence[int],
    batch_size: int,
    execution: BlockExecution,
    *,
    parameters: int,
) -> int:
    """Bytes that training takes, roughly.

    Args:
        graph: Of the network.
        size: Of an image.
        batch_size: Images of a step; with none, what does not depend on their number.
        execution: How blocks run.
        parameters: Bytes of the parameters.
    """
    # Beside the parameters: their gradients, the optimizer's state, an average; beside what is kept, as much
    # passes by.
    return 5 * parameters + 2 * kept_bytes(graph, size, batch_size, execution)


def _operation_step(graph: Graph, place: int, shapes: list[Shape]) -> Step:
    """An operation as PyTorch runs it: what autograd saves for it."""
    operation = graph.operations[place]
    keeps: tuple[int, ...] = ()
    besides = once = 0
    values = math.prod(shapes[operation.output])
    if isinstance(operation, _KEEPS_INPUTS):
        keeps = operation.inputs
    if isinstance(operation, Activation):
        keeps = (operation.output,) if operation.function in _FROM_OUTPUT else operation.inputs
    if isinstance(operation, StandardizedConvolution):  # The weights that it convolves with.
        once = FLOAT_BYTES * math.prod(operation.tensors()[f"{operation.name}.weight"])
        once += _statistics_bytes(operation.out_channels)
    if isinstance(operation, Norm) and operation.norm == "batch":
        once = _statistics_bytes(operation.channels)
    elif isinstance(operation, Norm) and operation.norm == "layer2d":
        besides = _statistics_bytes(values // operation.channels)
    elif isinstance(operation, Norm) and operation.norm == "instance":
        # Each channel of each image is a channel of its own, with its statistics and a copy of its scale.
        besides = 3 * FLOAT_BYTES * operation.channels
    elif isinstance(operation, Norm) and operation.norm == "filter-response":
        # One over each root mean square, and that times the weight.
        besides = 2 * FLOAT_BYTES * operation.channels
    elif isinstance(operation, Norm) and operation.norm == "evonorm-s0":
        # The sigmoid and what it multiplies; deviations of groups and factors of channels.
        besides = FLOAT_BYTES * (2 * values + operation.groups + operation.channels)
    elif isinstance(operation, Norm):
        besides = _statistics_bytes(operation.groups)
    elif isinstance(operation, Pool) and operation.mode == "max":
        besides = values * _INDEX_BYTES
    elif isinstance(operation, Blur):  # The map with its mirrored edges, and its means over pairs.
        channels, *sides = shapes[operation.inputs[0]]
        mirrored, means = (math.prod(side + further for side in sides) for further in (2, 1))
        besides = FLOAT_BYTES * channels * (mirrored + means)
    elif isinstance(operation, GlobalPool):  # The maxima; "max" gives nothing else.
        keeps = (*operation.inputs, *((operation.output,) if operation.mode == "max" else ()))
        besides = 0 if operation.mode == "max" else FLOAT_BYTES * operation.channels
    elif isinstance(operation, Dropout):  # A factor for every value, or one for every image.
        besides = FLOAT_BYTES * (values if operation.mode == "value" else 1)
    return Step(
        kind=operation.kind,
        start=place,
        stop=place + 1,
        inputs=operation.inputs,
        output=operation.output,
        keeps=keeps,
        keeps_besides=besides,
        keeps_once=once,
    )


def _scope_step(
    graph: Graph, scope: Scope, sizes: list[int], recompute: bool, *, knows_statistics: bool
) -> Step:
    """A scope as `skipnets.ops` runs it.

    Args:
        graph: The network.
        scope: A stem, block or transition.
        sizes: Bytes of each value of one image.
        recompute: Whether outputs of convolutions are recomputed instead of saved.
        knows_statistics: Whether the statistics of its input are saved already.
    """
    operations = graph.inside(scope)
    source, output = operations[0].inputs[0], operations[-1].output
    # Convolutions whose output a norm reads: of stems, bottlenecks of dense layers, and residual blocks.
    inner = [
        operation.output
        for operation in operations
        if isinstance(operation, Convolution)
        if any(isinstance(reader, Norm) for reader in graph.readers(operation.output))
    ]
    channels = sum(graph.values[index].channels for index in inner)
    keeps, besides, scratch = (() if recompute else tuple(inner)), 0, 0
    if scope.kind == "dense block":
        keeps = (*keeps, output)
        channels += graph.values[output].channels
        # The gradient of all features, and one layer's bottleneck.
        scratch = sizes[output] + max((sizes[index] for index in inner), default=0)
    elif scope.kind == "transition":
        keeps = (source,)
        channels = 0 if knows_statistics else graph.values[source].channels
    elif scope.kind == "residual block":
        keeps = (source, *inner, output)
        # The gradients of the sum and of the convolutions' outputs, but the last one's.
        scratch = sizes[output] + sum(sizes[index] for index in inner) - max(sizes[index] for index in inner)
    else:
        keeps = (source, *keeps)
        # Where each maximum was, a byte each: kernels for images keep it, which repeat no pooling.
        pools = isinstance(operations[-1], Pool)
        besides = sizes[output] // FLOAT_BYTES if pools and graph.dims == 2 else 0
        scratch = sum(sizes[index] for index in inner) * (2 if recompute else 1)
    return Step(
        kind=scope.kind,
        start=scope.start,
        stop=scope.stop,
        inputs=(source,),
        output=output,
        keeps=keeps,
        keeps_besides=besides,
        keeps_once=_statistics_bytes(channels),
        scratch=scratch,
    )


def _wide_block_step(graph: Graph, scope: Scope, sizes: list[int], recompute: bool) -> Step:
    """A block of wide dense layers as `skipnets.ops.wide_dense_block` runs it."""
    operations = graph.inside(scope)
    source, output = operations[0].inputs[0], operations[-1].output
    convolved = tuple(
        operation.output
        for operation in operations
        if isinstance(operation, Convolution)
        if operation.kernel == 1
    )
    return Step(
        kind=scope.kind,
        start=scope.start,
        stop=scope.stop,
        inputs=(source,),
        output=output,
        keeps=(output, *(() if recompute else convolved)),
        keeps_besides=FLOAT_BYTES * sum(isinstance(operation, Dropout) for operation in operations),
        scratch=sizes[output],  # the gradient of all features
    )


def _is_wide(graph: Graph, scope: Scope) -> bool:
    """Whether a scope is a block of wide dense layers that runs as one."""
    operations = graph.inside(scope)
    convolutions = [operation for operation in operations if isinstance(operation, Convolution)]
    norms = [operation for operation in operations if isinstance(operation, Norm)]
    return (
        scope.kind == "dense block"
        and convolutions[0].groups == convolutions[0].in_channels > 1
        and bool(norms)
        and all(norm.norm == "layer2d" for norm in norms)
        and all(
            operation.function in ("gelu", "hard_sigmoid")  # of the layers, and of their gates
            for operation in operations
            if isinstance(operation, Activation)
        )
        and not any(isinstance(operation, Dropout) and operation.mode == "value" for operation in operations)
    )


def _is_original(operation: Operation) -> bool:
    """Whether an operation is among those of the original networks, which `skipnets.ops` knows."""
    if isinstance(operation, Activation):
        return operation.function == "relu"
    return isinstance(operation, Add | Concatenate | Convolution | Dropout | Norm | Pad | Pool)


def _runs_as_one(graph: Graph, scope: Scope) -> bool:
    operations = graph.inside(scope)
    norms = [operation for operation in operations if isinstance(operation, Norm)]
    convolutions = [operation for operation in operations if isinstance(operation, Convolution)]
    return (
        all(map(_is_original, operations))
        and bool(norms)
        and all(convolution.groups == convolution.dilation == 1 for convolution in convolutions)
        and all(norm.norm == "batch" for norm in norms)
        and not any(isinstance(operation, Dropout) for operation in operations)
    )


def _statistics_bytes(channels: int) -> int:
    """Bytes of mean and variance (or inverse deviation) per channel."""
    return 2 * FLOAT_BYTES * channels
