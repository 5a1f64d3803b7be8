"""Compiles a graph and its tensors into the engine's network, and refuses what does not fit.

Shapes: N batch, O output channels, I input channels, K kernel size, h height, w width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets_engine import _engine
from skipnets_engine.fusion import (
    Concatenate,
    Convolve,
    Elementwise,
    Fusion,
    Mean,
    Pool,
    Step,
    Subsample,
)
from skipnets_engine.graph import Graph, check_graph
from skipnets_engine.layout import Layout, Place, schedule
from skipnets_engine.tensors import Affine, Array, Tensors, single

# A register tile makes 32 channels at once and reads vectors of up to 16.
_TILE = 32
_VECTOR = 16


@dataclass(frozen=True)
class Stage:
    """Where a stage's maps are found, and what is still to be done to them.

    Attributes:
        place: Where they lie.
        channels: How many they are.
        affine: The stage's last norms, where no step writes their result.
        relu: Whether a ReLU follows these.
    """

    place: Place
    channels: int
    affine: Affine | None = None
    relu: bool = False

    def finish(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, channels of the engine's value, h, w) → (N, channels, h, w)."""
        maps = maps[:, self.place.channel : self.place.channel + self.channels]
        if self.affine is None:
            return maps
        with np.errstate(all="ignore"):  # what is too large becomes infinite, as in the network
            result = maps * self.affine.scale[:, None, None] + self.affine.shift[:, None, None]
            return (np.maximum(result, 0) if self.relu else result).astype(np.float32)


@dataclass(frozen=True)
class Compiled:
    """A network with its stages, by their paths; those that no step writes and no norm gives are left out."""

    network: _engine.Network
    stages: dict[str, Stage]


def compile_graph(graph: Graph, tensors: Mapping[str, NDArray[Any]]) -> Compiled:
    """The network that a graph describes, around its tensors.

    Args:
        graph: As `skipnets_engine.graph` describes it.
        tensors: Exactly the network's state dict.

    Raises:
        UnknownArchitectureError: If the engine does not know an operation.
        InvalidGraphError: If the graph contradicts itself.
        TensorsDoNotFitError: If tensors are missing, left over, of a wrong shape or not finite.
    """
    check_graph(graph)
    checked = Tensors(graph, tensors)
    fusion = Fusion(graph, checked)
    features, logits = (fusion.aliases[value] for value in (graph.features, graph.logits))
    order = schedule(fusion.steps, (logits, features))
    views = {path: fusion.view(value) for path, value in graph.stages.items()}
    layout = Layout(graph, order, fusion.results | {view.value for view in views.values()})
    emit = _Emitter(graph, layout, checked)
    emit.network.features = emit.result(features)
    if logits != features:
        emit.network.logits = emit.result(logits)
    for value in layout.channels:
        emit.network.add_value(value)
    for step in order:
        emit.step(step)
    emit.copy_results()
    stages = {
        path: Stage(layout.places[view.value], graph.values[view.value].channels, view.affine, view.relu)
        for path, view in views.items()
        if view.value in layout.places
    }
    return Compiled(emit.network, stages)


class _Emitter:
    """Adds steps to the engine's network."""

    def __init__(self, graph: Graph, layout: Layout, tensors: Tensors) -> None:
        self.network = _engine.Network()
        self._values = graph.values
        self._layout = layout
        self._tensors = tensors
        self._results: list[tuple[int, Place]] = []  # to be copied at the end

    def result(self, value: int) -> int:
        """The engine's number of a result, which it wants to have a value of its own."""
        place, channels = self._layout.places[value], self._values[value].channels
        if place.channel != 0 or self._layout.channels[place.number] != channels:
            place = self._layout.new_value(channels)
            self._results.append((value, place))
        return place.number

    def copy_results(self) -> None:
        """The results that lie in a buffer get a value of their own."""
        for value, place in self._results:
            self._copy("copy", value, place)

    def step(self, step: Step) -> None:
        """One step, in the order in which they run."""
        match step:
            case Concatenate():
                for copy in self._layout.copies[step.output]:
                    self._copy(step.name, copy.value, copy.place)
            case Convolve():
                self._convolve(step)
            case Elementwise():
                self.network.add_elementwise(
                    step.name, **self._ends(step), **self._added(step), **_affine(step), relu=step.relu
                )
            case Pool():
                self.network.add_pool(
                    step.name,
                    **self._ends(step),
                    mode=step.mode,
                    kernel=step.kernel,
                    stride=step.stride,
                    padding=step.padding,
                )
            case Subsample():
                self.network.add_subsample(
                    step.name, **self._ends(step), stride=step.stride, before=step.before, after=step.after
                )
            case Mean():
                self.network.add_mean(step.name, **self._ends(step), **_affine(step))

    def _ends(self, step: Step) -> dict[str, int]:
        """Where a step reads and writes."""
        source, target = self._layout.places[step.inputs[0]], self._layout.places[step.output]
        return {
            "input": source.number,
            "output": target.number,
            "channels": self._values[step.inputs[0]].channels,
            "input_channel": source.channel,
            "output_channel": target.channel,
        }

    def _added(self, step: Step) -> dict[str, int]:
        if step.added is None:
            return {}
        place = self._layout.places[step.added]
        return {"added": place.number, "added_channel": place.channel}

    def _copy(self, name: str, value: int, place: Place) -> None:
        source = self._layout.places[value]
        self.network.add_subsample(
            name,
            source.number,
            place.number,
            self._values[value].channels,
            input_channel=source.channel,
            output_channel=place.channel,
        )

    def _convolve(self, step: Convolve) -> None:
        """A convolution, its groups put together to a few that fill vectors."""
        ends, added, affine = self._ends(step), self._added(step), _affine(step)
        inputs, outputs = ends.pop("channels"), self._values[step.output].channels
        weight = self._tensors.double(f"{step.name}.weight")
        if weight.ndim == 2:
            weight = weight[:, :, None, None]
        bias = self._tensors.double(f"{step.name}.bias") if step.bias else np.zeros(outputs)
        if step.folded is not None:
            with np.errstate(all="ignore"):  # `single` refuses what is not finite
                weight *= step.folded.scale[:, None, None, None]
                bias = bias * step.folded.scale + step.folded.shift
        per_input, per_output = inputs // step.groups, outputs // step.groups
        together = _groups_together(per_output, per_input, step.groups)
        for first in range(0, step.groups, together):
            last = min(first + together, step.groups)
            reads = slice(first * per_input, last * per_input)
            writes = slice(first * per_output, last * per_output)
            places = {
                "input_channel": ends["input_channel"] + reads.start,
                "output_channel": ends["output_channel"] + writes.start,
            }
            if added:
                places["added_channel"] = added["added_channel"] + writes.start
            self.network.add_convolution(
                step.name,
                weight=single(step.name, _block_diagonal(weight[writes], last - first)),
                bias=single(step.name, bias[writes]),
                stride=step.stride,
                padding=step.padding,
                dilation=step.dilation,
                relu=step.relu,
                pooled=step.pooled,
                **ends | added | places,
                **{name: numbers[reads] for name, numbers in affine.items()},
            )


def _affine(step: Step) -> dict[str, NDArray[np.float32]]:
    if step.affine is None:
        return {}
    return {"scale": single(step.name, step.affine.scale), "shift": single(step.name, step.affine.shift)}


def _groups_together(outputs: int, inputs: int, groups: int) -> int:
    """How many groups run as one convolution whose weights are 0 between groups.

    Groups of 4 channels alone would leave most of a register tile empty.

    Args:
        outputs: Channels that a group makes.
        inputs: Channels that a group reads.
        groups: How many there are.
    """
    for together in range(1, groups):
        whole = together * inputs % _VECTOR == 0 and together * outputs % _VECTOR == 0
        if whole and together * outputs >= _TILE:
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
