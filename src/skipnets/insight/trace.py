"""What every layer of a network does to the shape of an image, worked out without computing anything.

The walk knows the few kinds of modules that the models are made of and goes from the input to the logits, so
its time depends on the number of layers alone. Besides shapes it records a tape: which values there are,
which operation makes which, and which ones autograd keeps for the backward pass.

Shapes: C channels, H height, W width, of one image; k growth rate.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.ops import StochasticDepth

from skipnets.errors import UserError
from skipnets.models.densenet import BasicDenseLayer, DenseBlock, DenseLayer, DenseNet, Transition
from skipnets.models.factory import build_model
from skipnets.models.registry import DenseNetConfig, ResNetConfig
from skipnets.models.resnet import BasicBlock, BottleneckBlock, PadShortcut, ResNet

Shape = tuple[int, ...]
Execution = Literal["plain", "linear"]

FLOAT_BYTES = 4
SILENT = frozenset({"Dropout", "StochasticDepth", "Identity"})


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the values of a map lie in the input, along height and width alike, in the input's pixels.

    Attributes:
        step: Between neighboring values: the product of all strides before.
        start: The center of the first value's receptive field, where the first pixel's center is 0. A strided
            convolution with "same" padding leaves it at 0, so its values lie towards the top left of the
            cells into which they seem to divide the image.
        receptive_field: How many pixels across can influence one value; None for all of them.
    """

    step: int = 1
    start: float = 0.0
    receptive_field: int | None = 1

    def slid(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> Grid:
        """The grid of what a window makes that slides over this map."""
        reach = dilation * (kernel - 1)
        seen = None if self.receptive_field is None else self.receptive_field + reach * self.step
        start = self.start + (reach / 2 - padding) * self.step
        return Grid(step=self.step * stride, start=start, receptive_field=seen)


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor that exists while one image goes through: its shape without the batch, and its grid."""

    index: int
    shape: Shape
    grid: Grid

    @property
    def bytes(self) -> int:
        """Of one image, in float32."""
        return math.prod(self.shape) * FLOAT_BYTES


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A step of the tape.

    Attributes:
        path: The module that does it.
        kind: "convolution", "norm", "relu", "pool", "linear", "concatenate", "add", "other", or where a
            whole dense block or transition is one operation, "dense block" or "transition".
        inputs: Indices of values.
        output: Index of a value.
        keeps: Those of these that autograd keeps for the backward pass.
        keeps_besides: Further bytes an image that it keeps: indices of maxima, masks.
        keeps_once: Further bytes whatever the batch: batch statistics.
    """

    path: str
    kind: str
    inputs: tuple[int, ...]
    output: int
    keeps: tuple[int, ...] = ()
    keeps_besides: int = 0
    keeps_once: int = 0


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A module of the network with what it does to one image.

    Attributes:
        path: As in `model.named_modules()`; in parentheses what is no module.
        kind: Its class.
        depth: 1 for a stage, 2 for what is inside a stage, and so on.
        parts: Whether it consists of further layers, which follow it.
        kernel: Height and width of the window; None where there is none.
        stride: Of the window.
        input: Shape of what goes in: (C, H, W) or (C,).
        output: Shape of what comes out.
        parameters: Learned numbers.
        formula: The arithmetic that gives `parameters`; "" where there are none, or where the parts say it.
        macs: Multiply-accumulates of convolutions and linear layers; additions of a bias do not count.
        kept: Bytes an image that it makes autograd keep for the backward pass and no layer before it did.
        receptive_field: Pixels of the input, across, that one value of the output depends on; None for all.
    """

    path: str
    kind: str
    depth: int
    parts: bool
    kernel: tuple[int, int] | None
    stride: tuple[int, int] | None
    input: Shape
    output: Shape
    parameters: int
    formula: str
    macs: int
    kept: int
    receptive_field: int | None


@dataclass(kw_only=True)
class Trace:
    """The whole walk.

    Attributes:
        layers: In the order in which they run, each before its parts.
        values: By index; the first is the input.
        operations: In the order in which they run.
        outputs: The value that each module gives, by path.
    """

    layers: list[Layer] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    outputs: dict[str, Value] = field(default_factory=dict)

    def inside(self, outer: Layer) -> list[Layer]:
        """The parts of a layer, one level down, but for those that do nothing in evaluation."""
        first = self._places[outer.path] + 1
        parts = itertools.takewhile(
            lambda layer: layer.depth > outer.depth, itertools.islice(self.layers, first, None)
        )
        return [part for part in parts if part.depth == outer.depth + 1 and part.kind not in SILENT]

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {layer.path: place for place, layer in enumerate(self.layers)}

    def kept_bytes(self, batch_size: int) -> int:
        """What autograd keeps between the forward and the backward pass of a batch, without weights."""
        kept = {index for operation in self.operations for index in operation.keeps}
        a_image = sum(self.values[index].bytes for index in kept)
        a_image += sum(operation.keeps_besides for operation in self.operations)
        return batch_size * a_image + sum(operation.keeps_once for operation in self.operations)


def skeleton(config: DenseNetConfig | ResNetConfig) -> DenseNet | ResNet:
    """The model on the meta device: all of its modules and shapes, none of its numbers, and no memory."""
    with torch.device("meta"), _WithoutInitialization():
        return build_model(config)


def trace(model: DenseNet | ResNet, input_shape: Shape, *, execution: Execution = "plain") -> Trace:
    """Walk through a model in train mode.

    Args:
        model: On any device; its numbers are not looked at.
        input_shape: (C, H, W) of an image.
        execution: How dense blocks and transitions run: "plain", module by module, or "linear", each as the
            one operation of `skipnets.ops` wherever that applies.

    Raises:
        UserError: If the model does not take images of this shape.
    """
    channels, height, width = input_shape
    config = model.config
    if channels != config.in_chans:
        raise UserError(f"{config.name} takes images of {config.in_chans} channels, not {channels}")
    if min(height, width) < config.smallest_size:
        raise UserError(
            f"input size {height}×{width} is too small for {config.name}: "
            f"the smallest that works is {config.smallest_size}×{config.smallest_size}"
        )
    walk = _Walk(execution)
    x = walk.value(input_shape, Grid())
    for path, stage in model.stages():
        x = walk.module(path, stage, x, depth=1)
    x = walk.global_pool(x)
    x = walk.module("head_drop", model.head_drop, x, depth=1)
    walk.module(model.head_name, model.get_classifier(), x, depth=1)
    return walk.trace


class _WithoutInitialization(TorchFunctionMode):
    """Spares drawing numbers that have no memory anyway: two thirds of the time that deep models take."""

    _DRAWING = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func in self._DRAWING else func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Counts:
    """What a leaf module is, apart from shapes."""

    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    formula: str = ""
    macs: int = 0


class _Walk:
    def __init__(self, execution: Execution) -> None:
        self.trace = Trace()
        self._in_linear_memory = execution == "linear"
        self._kept: set[int] = set()
        self._kept_bytes = 0

    def value(self, shape: Shape, grid: Grid) -> Value:
        value = Value(index=len(self.trace.values), shape=shape, grid=grid)
        self.trace.values.append(value)
        return value

    def operation(
        self,
        path: str,
        kind: str,
        inputs: Iterable[Value],
        output: Value,
        *,
        keeps: Iterable[Value] = (),
        keeps_besides: int = 0,
        keeps_once: int = 0,
    ) -> Value:
        keeps = tuple(keeps)
        self.trace.operations.append(
            Operation(
                path=path,
                kind=kind,
                inputs=tuple(value.index for value in inputs),
                output=output.index,
                keeps=tuple(value.index for value in keeps),
                keeps_besides=keeps_besides,
                keeps_once=keeps_once,
            )
        )
        for value in keeps:
            if value.index not in self._kept:
                self._kept.add(value.index)
                self._kept_bytes += value.bytes
        self._kept_bytes += keeps_besides
        return output

    def module(self, path: str, module: nn.Module, x: Value, depth: int) -> Value:
        """Walk through one module and note it, before its parts, as a layer."""
        place, kept_before = len(self.trace.layers), self._kept_bytes
        inside = _INSIDE.get(type(module))
        if inside is None:
            y, counts = self._leaf(path, module, x)
        else:
            y, counts = inside(self, path, module, x, depth + 1), _Counts()
        parts = self.trace.layers[place:]
        layer = Layer(
            path=path,
            kind=type(module).__name__,
            depth=depth,
            parts=bool(parts),
            kernel=counts.kernel,
            stride=counts.stride,
            input=x.shape,
            output=y.shape,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            formula=counts.formula,
            macs=counts.macs + sum(part.macs for part in parts if not part.parts),
            kept=self._kept_bytes - kept_before,
            receptive_field=y.grid.receptive_field,
        )
        self.trace.layers.insert(place, layer)
        self.trace.outputs[path] = y
        return y

    def chain(self, path: str, module: nn.Module, x: Value, depth: int) -> Value:
        """Parts that run one after the other."""
        for name, part in module.named_children():
            x = self.module(f"{path}.{name}", part, x, depth)
        return x

    def transition(self, path: str, module: nn.Module, x: Value, depth: int) -> Value:
        """A chain, or one operation that keeps its input alone."""
        if not (self._in_linear_memory and _runs_as_one(module)):
            return self.chain(path, module, x, depth)
        with self._without_operations():
            y = self.chain(path, module, x, depth)
        statistics = 2 * FLOAT_BYTES * x.shape[0]
        return self.operation(path, "transition", (x,), y, keeps=(x,), keeps_once=statistics)

    def dense_block(self, path: str, module: nn.Module, x: Value, depth: int) -> Value:
        """Layers that each see everything before them."""
        if not (self._in_linear_memory and _runs_as_one(module)):
            return self._plain_dense_block(path, module, x, depth)
        with self._without_operations():
            y = self._plain_dense_block(path, module, x, depth)
        # Kept are the buffer of all features, which is the output, and the outputs of the 1×1 convolutions.
        bottlenecks = [
            self.trace.outputs[f"{path}.{name}.conv1"]
            for name, layer in module.named_children()
            if isinstance(layer, DenseLayer)
        ]
        statistics = 2 * FLOAT_BYTES * (y.shape[0] + sum(value.shape[0] for value in bottlenecks))
        return self.operation(path, "dense block", (x,), y, keeps=(*bottlenecks, y), keeps_once=statistics)

    def _plain_dense_block(self, path: str, module: nn.Module, x: Value, depth: int) -> Value:
        """Every concatenation is a tensor of its own."""
        for name, layer in module.named_children():
            new = self.module(f"{path}.{name}", layer, x, depth)
            channels = x.shape[0] + new.shape[0]
            together = self.value((channels, *x.shape[1:]), new.grid)
            x = self.operation(path, "concatenate", (x, new), together)
        return x

    @contextmanager
    def _without_operations(self) -> Iterator[None]:
        """Walk on for the sake of shapes, while one operation stands for all that happens."""
        operations, kept, kept_bytes = list(self.trace.operations), set(self._kept), self._kept_bytes
        yield
        self.trace.operations, self._kept, self._kept_bytes = operations, kept, kept_bytes

    def residual_block(self, path: str, module: nn.Module, x: Value, depth: int) -> Value:
        """A branch and a shortcut, added and rectified."""
        *branch, (last_name, last_relu) = (
            (name, part) for name, part in module.named_children() if name != "downsample"
        )
        y = shortcut = x
        if isinstance(module.downsample, nn.Module):  # else the block's input itself is the shortcut
            shortcut = self.module(f"{path}.downsample", module.downsample, x, depth)
        for name, part in branch:
            y = self.module(f"{path}.{name}", part, y, depth)
        total = self.operation(path, "add", (shortcut, y), self.value(y.shape, y.grid))
        return self.module(f"{path}.{last_name}", last_relu, total, depth)

    def global_pool(self, x: Value) -> Value:
        place = "(pool)"
        y = self.value(x.shape[:1], replace(x.grid, receptive_field=None))
        self.trace.outputs[place] = self.operation(place, "pool", (x,), y)
        self.trace.layers.append(
            Layer(
                path=place,
                kind="GlobalAverage",
                depth=1,
                parts=False,
                kernel=(x.shape[1], x.shape[2]),
                stride=None,
                input=x.shape,
                output=y.shape,
                parameters=0,
                formula="",
                macs=0,
                kept=0,
                receptive_field=None,
            )
        )
        return y

    def _leaf(self, path: str, module: nn.Module, x: Value) -> tuple[Value, _Counts]:
        if isinstance(module, nn.Conv2d):
            return self._convolution(path, module, x)
        if isinstance(module, nn.Linear):
            return self._linear(path, module, x)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            return self._norm(path, module, x)
        if isinstance(module, nn.ReLU):
            y = self.value(x.shape, x.grid)
            return self.operation(path, "relu", (x,), y, keeps=(y,)), _Counts()
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            return self._pool(path, module, x)
        if isinstance(module, nn.Dropout | StochasticDepth):
            return self._drop(path, module, x), _Counts()
        if isinstance(module, PadShortcut):
            return self._pad_shortcut(path, module, x)
        if isinstance(module, nn.Identity):
            return x, _Counts()
        raise TypeError(f"{path}: the walk does not know {type(module).__name__}")

    def _convolution(self, path: str, module: nn.Conv2d, x: Value) -> tuple[Value, _Counts]:
        (kernel, width), stride, groups = module.kernel_size, module.stride, module.groups
        assert kernel == width
        assert isinstance(module.padding, tuple)
        geometry = (kernel, stride[0], module.padding[0], module.dilation[0])
        height, width = (_slid_size(size, *geometry) for size in x.shape[1:])
        out = module.out_channels
        y = self.value((out, height, width), x.grid.slid(*geometry))
        self.operation(path, "convolution", (x,), y, keeps=(x,))
        inputs = f"{module.in_channels}" if groups == 1 else f"({module.in_channels}÷{groups})"
        weights = f"{kernel}×{kernel}×{inputs}"
        biased = f"({weights} + 1)" if module.bias is not None else weights
        total = sum(parameter.numel() for parameter in module.parameters())
        macs = module.weight.numel() * height * width
        return y, _Counts((kernel, kernel), (stride[0], stride[1]), f"{biased}×{out} = {total:,}", macs)

    def _linear(self, path: str, module: nn.Linear, x: Value) -> tuple[Value, _Counts]:
        y = self.value((module.out_features,), x.grid)
        self.operation(path, "linear", (x,), y, keeps=(x,))
        total = sum(parameter.numel() for parameter in module.parameters())
        weights = f"({module.in_features} + 1)" if module.bias is not None else f"{module.in_features}"
        return y, _Counts(formula=f"{weights}×{module.out_features} = {total:,}", macs=module.weight.numel())

    def _norm(self, path: str, module: nn.BatchNorm2d | nn.GroupNorm, x: Value) -> tuple[Value, _Counts]:
        y = self.value(x.shape, x.grid)
        of_batch = isinstance(module, nn.BatchNorm2d)
        # Mean and inverse deviation: of each channel in the batch, or of each group in each image.
        statistics = (
            2 * FLOAT_BYTES * (x.shape[0] if isinstance(module, nn.BatchNorm2d) else module.num_groups)
        )
        self.operation(
            path,
            "norm",
            (x,),
            y,
            keeps=(x,),
            keeps_besides=0 if of_batch else statistics,
            keeps_once=statistics if of_batch else 0,
        )
        return y, _Counts(formula=f"2×{x.shape[0]} = {2 * x.shape[0]:,}")

    def _pool(self, path: str, module: nn.MaxPool2d | nn.AvgPool2d, x: Value) -> tuple[Value, _Counts]:
        kernel, stride, padding = (_one(n) for n in (module.kernel_size, module.stride, module.padding))
        height, width = (_slid_size(size, kernel, stride, padding) for size in x.shape[1:])
        y = self.value((x.shape[0], height, width), x.grid.slid(kernel, stride, padding))
        # Maximum pooling remembers by a 64-bit index where each maximum was.
        indices = 8 * math.prod(y.shape) if isinstance(module, nn.MaxPool2d) else 0
        self.operation(path, "pool", (x,), y, keeps=(x,), keeps_besides=indices)
        return y, _Counts((kernel, kernel), (stride, stride))

    def _drop(self, path: str, module: nn.Dropout | StochasticDepth, x: Value) -> Value:
        if module.p == 0:
            return x
        # What the output is multiplied by: a number for every value, or one for every image.
        mask = x.bytes if isinstance(module, nn.Dropout) else FLOAT_BYTES
        return self.operation(path, "other", (x,), self.value(x.shape, x.grid), keeps_besides=mask)

    def _pad_shortcut(self, path: str, module: PadShortcut, x: Value) -> tuple[Value, _Counts]:
        stride, added = module.stride, sum(module.padding)
        height, width = (_slid_size(size, 1, stride, 0) for size in x.shape[1:])
        grid = x.grid.slid(1, stride, 0)
        picked = self.value((x.shape[0], height, width), grid)
        self.operation(path, "pool", (x,), picked, keeps=(x,))
        y = self.value((x.shape[0] + added, height, width), grid)
        return self.operation(path, "other", (picked,), y), _Counts((1, 1), (stride, stride))


_INSIDE = {
    nn.Sequential: _Walk.chain,
    BasicDenseLayer: _Walk.chain,
    DenseLayer: _Walk.chain,
    Transition: _Walk.transition,
    DenseBlock: _Walk.dense_block,
    BasicBlock: _Walk.residual_block,
    BottleneckBlock: _Walk.residual_block,
}


def _runs_as_one(module: nn.Module) -> bool:
    """Whether `skipnets.ops` has one operation for it: with batch norms and without anything random."""
    return any(isinstance(part, nn.BatchNorm2d) for part in module.modules()) and not any(
        isinstance(part, nn.Dropout | StochasticDepth) and part.p > 0 for part in module.modules()
    )


def _slid_size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _one(number: Any) -> int:
    return number if isinstance(number, int) else number[0]
