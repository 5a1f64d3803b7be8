"""Turns a checked graph into steps, several operations in one where that saves a walk over a map.

A batch norm or a layer's factors behind a convolution are folded into its weights; an addition and an
activation behind it are done as it writes, and a layer norm as a depthwise one does. A batch norm and a ReLU
in front of 1×1 convolutions or a mean are done as those read, and so is a multiplication by gates in front of
1×1 convolutions: the map between is never written. A 1×1 convolution in front of 2×2 average pooling reads
means instead: a quarter of the work and the same result. Everything else is a step of its own. All arithmetic
is in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from skipnets_engine.graph import Graph
from skipnets_engine.tensors import Affine, Array, Tensors


@dataclass(kw_only=True, eq=False)
class Step:
    """What one walk over a map computes.

    Attributes:
        name: Of the first operation in it.
        inputs: The values that it reads.
        output: The value that it writes.
        added: A value that is added to the result.
        activation: The function that ends it; "" for none.
        affine: Norms: of an `Elementwise` before `added`; of what a `Convolve` or `Mean` reads, with a ReLU
            behind them.
        gate: A value of one pixel: factors of the channels of what an `Elementwise` or `Convolve` reads.
        floor: The least that each channel of the result may be, of an `Elementwise` or a `GroupNormalize`.
    """

    name: str
    inputs: tuple[int, ...]
    output: int
    added: int | None = None
    activation: str = ""
    affine: Affine | None = None
    gate: int | None = None
    floor: Array | None = None

    @property
    def reads(self) -> tuple[int, ...]:
        """Every value that must be there, what is added first."""
        added = () if self.added is None else (self.added,)
        gate = () if self.gate is None else (self.gate,)
        return (*added, *self.inputs, *gate)


@dataclass(kw_only=True, eq=False)
class Convolve(Step):
    """A convolution or a linear layer.

    Attributes:
        bias: Whether it has one of its own.
        standardized: What is added to the variances of weights that are to be standardized; None if not.
        folded: What is done to its result before `added`.
        pooled: Whether it reads means over 2×2 pixels.
    """

    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool
    standardized: float | None = None
    folded: Affine | None = None
    pooled: bool = False


@dataclass(kw_only=True, eq=False)
class LayerNorm:
    """A norm of each pixel's channels."""

    affine: Affine
    eps: float


@dataclass(kw_only=True, eq=False)
class Depthwise(Step):
    """A convolution of each channel for itself.

    Attributes:
        bias: Whether it has one of its own.
        standardized: What is added to the variances of weights that are to be standardized; None if not.
        folded: What is done to its result before `norm`.
        norm: A layer norm of the result, before the activation.
    """

    kernel: int
    stride: int
    padding: int
    dilation: int
    bias: bool
    standardized: float | None = None
    folded: Affine | None = None
    norm: LayerNorm | None = None


@dataclass(kw_only=True, eq=False)
class Elementwise(Step):
    """Factors, norms, an addition and an activation, each of them where it is asked for."""


@dataclass(kw_only=True, eq=False)
class Normalize(Step):
    """A layer norm and an activation."""

    norm: LayerNorm


@dataclass(kw_only=True, eq=False)
class GroupNormalize(Step):
    """A norm of groups of channels over the whole map, `affine` behind it, an addition and an activation.

    Attributes:
        groups: Of channels.
        eps: Is added to the variance, or mean square.
        moments: "centered" subtracts the mean and divides by the deviation; "variance" only divides;
            "squares" divides by the root mean square.
        slope: What is normalized is x·sigmoid(slope·x); None for x. The statistics are those of x.
    """

    groups: int
    eps: float
    moments: Literal["centered", "variance", "squares"] = "centered"
    slope: Array | None = None


@dataclass(kw_only=True, eq=False)
class AlongChannels(Step):
    """A convolution along the channels, and an activation."""


@dataclass(kw_only=True, eq=False)
class Border(Step):
    """Pixels of zeros around the map."""

    padding: int


@dataclass(kw_only=True, eq=False)
class Pool(Step):
    """Pooling by windows."""

    mode: Literal["max", "average", "cell", "blur"]
    kernel: int
    stride: int
    padding: int


@dataclass(kw_only=True, eq=False)
class Subsample(Step):
    """Every stride-th pixel, with channels of zeros before and after."""

    stride: int = 1
    before: int = 0
    after: int = 0


@dataclass(kw_only=True, eq=False)
class Mean(Step):
    """The mean over the whole map."""


@dataclass(kw_only=True, eq=False)
class GlobalPool(Step):
    """The maximum over the whole map, its mean with the mean, or both one after the other."""

    mode: Literal["max", "avgmax", "catavgmax"]


@dataclass(kw_only=True, eq=False)
class Concatenate(Step):
    """Nothing to compute: its inputs are written side by side."""


@dataclass(frozen=True)
class View:
    """A value as a function of one that a step writes.

    Attributes:
        value: The value that is written.
        affine: What norms do to it.
        relu: Whether a ReLU follows.
    """

    value: int
    affine: Affine | None = None
    relu: bool = False


class Fusion:
    """The steps of a graph.

    Attributes:
        aliases: For every value, the value that it equals: dropout does nothing here.
        steps: By the value that they write.
        results: Features and logits, without aliases.
    """

    def __init__(self, graph: Graph, tensors: Tensors) -> None:
        self._values = graph.values
        self._tensors = tensors
        self.aliases = list(range(len(graph.values)))
        self._readers: list[list[Any]] = [[] for _ in graph.values]
        for operation in graph.operations:
            inputs = self._inputs(operation)
            if operation.kind == "dropout":
                self.aliases[operation.output] = inputs[0]
            else:
                for value in inputs:
                    self._readers[value].append(operation)
        self.results = {self.aliases[graph.features], self.aliases[graph.logits]}
        self.steps: dict[int, Step] = {}
        self._views: dict[int, View] = {}  # of values that no step writes
        self._fused: set[int] = set()  # outputs of operations that an earlier step has absorbed
        for operation in graph.operations:
            if operation.kind != "dropout" and operation.output not in self._fused:
                step = self._begin(operation)
                self._extend(step)
                self.steps[step.output] = step
        self._activate_at_reading()

    def view(self, value: int) -> View:
        """A value as a function of one that a step writes; of itself where no other will do."""
        value = self.aliases[value]
        return self._views.get(value, View(value))

    def _inputs(self, operation: Any) -> tuple[int, ...]:
        return tuple(self.aliases[value] for value in operation.inputs)

    def _begin(self, operation: Any) -> Step:
        """The step that starts with an operation."""
        inputs = self._inputs(operation)
        place: dict[str, Any] = {"name": operation.name, "inputs": inputs, "output": operation.output}
        match operation.kind:
            case "convolution" | "standardized convolution" if (
                operation.groups == operation.in_channels == operation.out_channels > 1
            ):
                return Depthwise(
                    **place,
                    kernel=operation.kernel,
                    stride=operation.stride,
                    padding=operation.padding,
                    dilation=operation.dilation,
                    bias=operation.bias,
                    standardized=_eps_of_weights(operation),
                )
            case "convolution" | "standardized convolution":
                return Convolve(
                    **place,
                    kernel=operation.kernel,
                    stride=operation.stride,
                    padding=operation.padding,
                    dilation=operation.dilation,
                    groups=operation.groups,
                    bias=operation.bias,
                    standardized=_eps_of_weights(operation),
                )
            case "linear" | "pointwise linear":
                return Convolve(**place, bias=True)
            case "norm" if operation.norm == "batch":
                return Elementwise(**place, affine=self._tensors.norm(operation.name, operation.eps))
            case "norm" if operation.norm == "layer2d":
                return Normalize(**place, norm=self._layer_norm(operation))
            case "norm":
                return GroupNormalize(**place, **self._group_norm(operation))
            case "affine":
                return Elementwise(**place, affine=self._tensors.affine(operation.name))
            case "threshold":
                return Elementwise(**place, floor=self._tensors.double(f"{operation.name}.tau"))
            case "scale":
                return Elementwise(**place, affine=self._tensors.scale(operation.name))
            case "activation":
                return Elementwise(**place, activation=operation.function)
            case "multiply":
                return Elementwise(**place | {"inputs": inputs[:1]}, gate=inputs[1])
            case "channel convolution":
                return AlongChannels(**place)
            case "add":
                return Elementwise(**place | {"inputs": inputs[:1]}, added=inputs[1])
            case "pool" if operation.kernel == 1:
                return Subsample(**place, stride=operation.stride)
            case "pool":
                return Pool(
                    **place,
                    mode=operation.mode,
                    kernel=operation.kernel,
                    stride=operation.stride,
                    padding=operation.padding,
                )
            case "blur" | "cell mean":
                mode: Literal["blur", "cell"] = "blur" if operation.kind == "blur" else "cell"
                return Pool(**place, mode=mode, kernel=operation.kernel, stride=operation.stride, padding=0)
            case "border":
                return Border(**place, padding=operation.padding)
            case "pad":
                return Subsample(**place, before=operation.before, after=operation.after)
            case "mean" | "squeeze":
                return Mean(**place)
            case "global pool":
                return GlobalPool(**place, mode=operation.mode)
            case _:
                return Concatenate(**place)

    def _extend(self, step: Step) -> None:
        """Absorbs the operations behind a step as far as it can."""
        while not step.activation and step.floor is None:
            operation = self._only_reader(step.output)
            if operation is None or operation.output in self._fused or not self._absorb(step, operation):
                return
            step.output = operation.output
            self._fused.add(operation.output)

    def _absorb(self, step: Step, operation: Any) -> bool:
        adds = isinstance(step, (Convolve, Elementwise, GroupNormalize)) and step.added is None
        scales = adds or (isinstance(step, Depthwise) and step.norm is None)
        match operation.kind:
            case "norm" if scales and operation.norm == "batch":
                self._scale(step, self._tensors.norm(operation.name, operation.eps))
            case "scale" if scales:
                self._scale(step, self._tensors.scale(operation.name))
            case "affine" if scales:
                self._scale(step, self._tensors.affine(operation.name))
            case "threshold" if isinstance(step, (Elementwise, GroupNormalize)):
                self._add_view(step)
                step.floor = self._tensors.double(f"{operation.name}.tau")
            case "norm" if isinstance(step, Depthwise) and step.norm is None and operation.norm == "layer2d":
                step.norm = self._layer_norm(operation)
            case "pool" if isinstance(step, Convolve) and self._can_pool_first(step, operation):
                step.pooled = True
            case "pad" if isinstance(step, Subsample) and step.before == step.after == 0:
                step.before, step.after = operation.before, operation.after
            case "add" if adds:
                self._add_view(step)
                first, second = self._inputs(operation)
                step.added = second if first == step.output else first
            case "activation" if isinstance(step, _ACTIVATED):
                self._add_view(step)
                step.activation = operation.function
            case _:
                return False
        return True

    def _scale(self, step: Step, affine: Affine) -> None:
        """Let a step apply an affine function to its result."""
        if isinstance(step, (Convolve, Depthwise)):
            step.folded = affine if step.folded is None else step.folded.then(affine)
        else:
            self._add_view(step)
            step.affine = affine if step.affine is None else step.affine.then(affine)

    def _layer_norm(self, operation: Any) -> LayerNorm:
        return LayerNorm(affine=self._tensors.affine(operation.name), eps=operation.eps)

    def _group_norm(self, operation: Any) -> dict[str, Any]:
        """The fields of a step for a norm over the whole map."""
        by_group = operation.norm in ("group", "evonorm-s0")
        fields: dict[str, Any] = {
            "affine": self._tensors.affine(operation.name),
            "groups": operation.groups if by_group else operation.channels,
            "eps": operation.eps,
        }
        if operation.norm == "filter-response":
            fields["moments"] = "squares"
        elif operation.norm == "evonorm-s0":
            fields |= {"moments": "variance", "slope": self._tensors.double(f"{operation.name}.v")}
        return fields

    def _add_view(self, step: Step) -> None:
        """Note what a step would have written but for what comes next: an affine function of its input."""
        plain = isinstance(step, Elementwise) and step.added is None and step.gate is None
        if plain and step.affine is not None:
            self._views[step.output] = View(step.inputs[0], step.affine)

    def _only_reader(self, value: int) -> Any:
        """The operation that alone reads a value, once; None if there is none or the value is a result."""
        readers = self._readers[value]
        return readers[0] if len(readers) == 1 and value not in self.results else None

    def _can_pool_first(self, step: Convolve, pool: Any) -> bool:
        """Whether a convolution may read means over 2×2 pixels, of what it activates at reading."""
        halves = (pool.mode, pool.kernel, pool.stride, pool.padding) == ("average", 2, 2, 0)
        plain = (step.kernel, step.stride, step.groups, step.added) == (1, 1, 1, None) and not step.pooled
        return (
            halves
            and plain
            and self._only_reader(step.inputs[0]) is not None
            and self._activates(step.inputs[0])
        )

    def _activates(self, value: int) -> bool:
        """Whether a value is made by a ReLU, with norms before it, of another."""
        step = self.steps.get(value)
        plain = isinstance(step, Elementwise) and step.added is None and step.gate is None
        return plain and step is not None and step.activation == "relu"

    def _gates(self, value: int) -> bool:
        """Whether a value is another times factors of its channels, and no more."""
        step = self.steps.get(value)
        return (
            isinstance(step, Elementwise)
            and step.gate is not None
            and step.affine is None
            and step.added is None
            and not step.activation
            and step.floor is None
        )

    def _activate_at_reading(self) -> None:
        """Leaves out activations and multiplications whose every reader can do them itself."""
        readers: dict[int, list[Step]] = {}
        for step in self.steps.values():
            for value in step.reads:
                readers.setdefault(value, []).append(step)
        for value in list(self.steps):
            who = readers.get(value, [])
            if not who or value in self.results:
                continue
            if self._gates(value) and all(_can_multiply(step) and step.added != value for step in who):
                multiplication = self.steps.pop(value)
                for step in who:
                    step.inputs, step.gate = multiplication.inputs, multiplication.gate
            elif self._activates(value) and all(_can_activate(step) and step.added != value for step in who):
                activation = self.steps.pop(value)
                affine = activation.affine or Affine.identity(self._values[value].channels)
                self._views[value] = View(activation.inputs[0], affine, relu=True)
                for step in who:
                    step.inputs, step.affine = activation.inputs, affine


def _can_activate(step: Step) -> bool:
    return isinstance(step, Mean) or (
        isinstance(step, Convolve) and step.kernel == 1 and step.affine is None and step.gate is None
    )


def _eps_of_weights(operation: Any) -> float | None:
    return float(operation.eps) if operation.kind == "standardized convolution" else None


def _can_multiply(step: Step) -> bool:
    return (
        isinstance(step, Convolve)
        and (step.kernel, step.groups) == (1, 1)
        and step.affine is None
        and step.gate is None
    )


_ACTIVATED = (Convolve, Depthwise, Elementwise, Normalize, GroupNormalize, AlongChannels)
