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
    AlongChannels,
    Border,
    Concatenate,
    Convolve,
    Depthwise,
    Elementwise,
    Fusion,
    GlobalPool,
    GroupNormalize,
    Mean,
    Normalize,
    Pool,
    Step,
    Subsample,
)
from skipnets_engine.graph import Graph, check_graph
from skipnets_engine.layout import Layout, Place, schedule
from skipnets_engine.tensors import Affine, Tensors, single


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
                    step.name,
                    **self._ends(step),
                    **self._added(step),
                    **self._gate(step),
                    **_affine(step),
                    **_floor(step),
                    activation=step.activation,
                )
            case Depthwise():
                self._filter_channels(step)
            case Normalize():
                self.network.add_layer_norm(
                    step.name,
                    **self._ends(step),
                    **_numbers(step.name, step.norm.affine),
                    eps=step.norm.eps,
                    activation=step.activation,
                )
            case GroupNormalize():
                self._normalize_groups(step)
            case AlongChannels():
                weight = single(step.name, self._tensors.double(f"{step.name}.weight").ravel())
                self.network.add_along_channels(
                    step.name, **self._ends(step), weight=weight, activation=step.activation
                )
            case Border():
                self._add_border(step)
            case GlobalPool():
                self._pool_globally(step)
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

    def _gate(self, step: Step) -> dict[str, int]:
        if step.gate is None:
            return {}
        place = self._layout.places[step.gate]
        return {"gate": place.number, "gate_channel": place.channel}

    def _new_value(self, channels: int) -> int:
        """A value that the graph does not have; only while steps are added."""
        self._layout.new_value(channels)
        return self.network.add_value(channels)

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
        ends = self._ends(step)
        ends.pop("channels")  # its weight has them
        self.network.add_convolution(
            step.name,
            **ends,
            **self._weights(step),
            **self._added(step),
            **self._gate(step),
            **_affine(step),
            groups=step.groups,
            stride=step.stride,
            padding=step.padding,
            dilation=step.dilation,
            activation=step.activation,
            pooled=step.pooled,
        )

    def _filter_channels(self, step: Depthwise) -> None:
        ends = self._ends(step)
        ends.pop("channels")
        norm: dict[str, Any] = {}
        if step.norm is not None:
            norm = _numbers(step.name, step.norm.affine) | {"eps": step.norm.eps}
        self.network.add_depthwise(
            step.name,
            **ends,
            **self._weights(step),
            **norm,
            stride=step.stride,
            padding=step.padding,
            dilation=step.dilation,
            activation=step.activation,
        )

    def _add_border(self, step: Border) -> None:
        """A filter that is 1 in its middle, over a map with twice as many pixels of zeros around it."""
        ends = self._ends(step)
        channels, size = ends.pop("channels"), 2 * step.padding + 1
        weight = np.zeros((channels, 1, size, size), np.float32)
        weight[:, :, step.padding, step.padding] = 1
        bias = np.zeros(channels, np.float32)
        self.network.add_depthwise(step.name, **ends, weight=weight, bias=bias, padding=2 * step.padding)

    def _weights(self, step: Convolve | Depthwise) -> dict[str, NDArray[np.float32]]:
        """Weight and bias, with what is folded into them."""
        name = f"{step.name}.weight"
        if step.standardized is None:
            weight = self._tensors.double(name)
        else:
            weight = self._tensors.standardized(name, step.standardized)
        if weight.ndim == 2:
            weight = weight[:, :, None, None]
        bias = self._tensors.double(f"{step.name}.bias") if step.bias else np.zeros(len(weight))
        if step.folded is not None:
            with np.errstate(all="ignore"):  # `single` refuses what is not finite
                weight *= step.folded.scale[:, None, None, None]
                bias = bias * step.folded.scale + step.folded.shift
        return {"weight": single(step.name, weight), "bias": single(step.name, bias)}

    def _normalize_groups(self, step: GroupNormalize) -> None:
        """One step for the statistics, as factors and shifts of the channels, and one that applies them."""
        ends = self._ends(step)
        channels = ends["channels"]
        statistics = self._new_value(2 * channels)
        self.network.add_group_norm(
            step.name,
            ends["input"],
            statistics,
            channels,
            step.groups,
            **_affine(step),
            eps=step.eps,
            moments=step.moments,
            input_channel=ends["input_channel"],
        )
        self.network.add_elementwise(
            step.name,
            **ends,
            **self._added(step),
            gate=statistics,
            gate_shift_channel=channels,
            **({} if step.slope is None else {"slope": single(step.name, step.slope)}),
            **_floor(step),
            activation=step.activation,
        )

    def _pool_globally(self, step: GlobalPool) -> None:
        ends = self._ends(step)
        channels = ends["channels"]
        if step.mode == "max":
            self.network.add_max(step.name, **ends)
        elif step.mode == "catavgmax":
            self.network.add_mean(step.name, **ends)
            self.network.add_max(step.name, **ends | {"output_channel": ends["output_channel"] + channels})
        else:
            # Half of the maximum and half of the mean, which is added to it.
            largest, mean, half_mean = (self._new_value(channels) for _ in range(3))
            half = {"scale": np.full(channels, 0.5, np.float32), "shift": np.zeros(channels, np.float32)}
            apart = ends | {"output_channel": 0}
            self.network.add_max(step.name, **apart | {"output": largest})
            self.network.add_mean(step.name, **apart | {"output": mean})
            self.network.add_elementwise(step.name, mean, half_mean, channels, **half)
            self.network.add_elementwise(
                step.name,
                largest,
                ends["output"],
                channels,
                **half,
                output_channel=ends["output_channel"],
                added=half_mean,
            )


def _affine(step: Step) -> dict[str, NDArray[np.float32]]:
    return {} if step.affine is None else _numbers(step.name, step.affine)


def _floor(step: Step) -> dict[str, NDArray[np.float32]]:
    return {} if step.floor is None else {"floor": single(step.name, step.floor)}


def _numbers(name: str, affine: Affine) -> dict[str, NDArray[np.float32]]:
    return {"scale": single(name, affine.scale), "shift": single(name, affine.shift)}
