"""Turns a checked graph into steps, several operations in one where that saves a walk over a map.

A norm behind a convolution is folded into its weights; an addition and a ReLU behind it are done as it
writes. A norm and a ReLU in front of 1×1 convolutions or a mean are done as those read, and the map between
is never written. A 1×1 convolution in front of 2×2 average pooling reads means instead: a quarter of the
work and the same result. Everything else is a step of its own. All arithmetic is in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from skipnets_engine.graph import Graph
from skipnets_engine.tensors import Affine, Tensors


@dataclass(kw_only=True, eq=False)
class Step:
    """What one walk over a map computes.

    Attributes:
        name: Of the first operation in it.
        inputs: The values that it reads.
        output: The value that it writes.
        added: A value that is added to the result.
        relu: Whether a ReLU ends it.
        affine: Norms: of an `Elementwise` before `added`; of what a `Convolve` or `Mean` reads, with a ReLU
            behind them.
    """

    name: str
    inputs: tuple[int, ...]
    output: int
    added: int | None = None
    relu: bool = False
    affine: Affine | None = None

    @property
    def reads(self) -> tuple[int, ...]:
        """Every value that must be there, what is added first."""
        return self.inputs if self.added is None else (self.added, *self.inputs)


@dataclass(kw_only=True, eq=False)
class Convolve(Step):
    """A convolution or a linear layer.

    Attributes:
        bias: Whether it has one of its own.
        folded: What is done to its result before `added`.
        pooled: Whether it reads means over 2×2 pixels.
    """

    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool
    folded: Affine | None = None
    pooled: bool = False


@dataclass(kw_only=True, eq=False)
class Elementwise(Step):
    """Norms, an addition and a ReLU, each of them where it is asked for."""


@dataclass(kw_only=True, eq=False)
class Pool(Step):
    """Max- or average pooling."""

    mode: Literal["max", "average"]
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
            case "convolution":
                return Convolve(
                    **place,
                    kernel=operation.kernel,
                    stride=operation.stride,
                    padding=operation.padding,
                    dilation=operation.dilation,
                    groups=operation.groups,
                    bias=operation.bias,
                )
            case "linear" | "pointwise linear":
                return Convolve(**place, bias=True)
            case "norm":
                return Elementwise(**place, affine=self._tensors.norm(operation.name, operation.eps))
            case "activation":
                return Elementwise(**place, relu=True)
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
            case "pad":
                return Subsample(**place, before=operation.before, after=operation.after)
            case "mean":
                return Mean(**place)
            case _:
                return Concatenate(**place)

    def _extend(self, step: Step) -> None:
        """Absorbs the operations behind a step as far as it can."""
        while not step.relu:
            operation = self._only_reader(step.output)
            if operation is None or operation.output in self._fused or not self._absorb(step, operation):
                return
            step.output = operation.output
            self._fused.add(operation.output)

    def _absorb(self, step: Step, operation: Any) -> bool:
        scales = isinstance(step, (Convolve, Elementwise)) and step.added is None
        match operation.kind:
            case "norm" if scales:
                norm = self._tensors.norm(operation.name, operation.eps)
                if isinstance(step, Convolve):
                    step.folded = norm if step.folded is None else step.folded.then(norm)
                else:
                    self._add_view(step)
                    step.affine = norm if step.affine is None else step.affine.then(norm)
            case "pool" if isinstance(step, Convolve) and self._can_pool_first(step, operation):
                step.pooled = True
            case "pad" if isinstance(step, Subsample) and step.before == step.after == 0:
                step.before, step.after = operation.before, operation.after
            case "add" if scales:
                self._add_view(step)
                first, second = self._inputs(operation)
                step.added = second if first == step.output else first
            case "activation" if isinstance(step, (Convolve, Elementwise)):
                self._add_view(step)
                step.relu = True
            case _:
                return False
        return True

    def _add_view(self, step: Step) -> None:
        if isinstance(step, Elementwise) and step.affine is not None and step.added is None:
            self._views[step.output] = View(step.inputs[0], step.affine, step.relu)

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
        return isinstance(step, Elementwise) and step.relu and step.added is None

    def _activate_at_reading(self) -> None:
        """Leaves out activations whose every reader can do them itself."""
        readers: dict[int, list[Step]] = {}
        for step in self.steps.values():
            for value in step.reads:
                readers.setdefault(value, []).append(step)
        for value in list(self.steps):
            who = readers.get(value, [])
            if not who or value in self.results or not self._activates(value):
                continue
            if all(_can_activate(step) and step.added != value for step in who):
                activation = self.steps.pop(value)
                affine = activation.affine or Affine.identity(self._values[value].channels)
                self._views[value] = View(activation.inputs[0], affine, relu=True)
                for step in who:
                    step.inputs, step.affine = activation.inputs, affine


def _can_activate(step: Step) -> bool:
    return isinstance(step, Mean) or (isinstance(step, Convolve) and step.kernel == 1)
