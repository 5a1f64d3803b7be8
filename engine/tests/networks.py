"""Graphs and tensors of small networks, and what they compute, made without torch.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import reference
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]
Network = tuple[Any, Tensors]  # a graph and its tensors


@dataclass
class Build:
    """Lists operations and draws their tensors; every method returns the value that it makes."""

    in_channels: int = 3
    seed: int = 0
    graph: Any = field(init=False)
    tensors: Tensors = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        image = SimpleNamespace(channels=self.in_channels, spatial=True)
        self.graph = SimpleNamespace(values=[image], operations=[], stages={}, features=0, logits=0)

    def channels(self, value: int) -> int:
        return int(self.graph.values[value].channels)

    def convolution(
        self, x: int, outputs: int, kernel: int, *, name: str = "", stride: int = 1, **options: Any
    ) -> int:
        inputs, name = self.channels(x), name or self._name("conv")
        options = {"padding": kernel // 2, "dilation": 1, "groups": 1, "bias": False} | options
        shape = (outputs, inputs // options["groups"], kernel, kernel)
        self._draw(f"{name}.weight", shape, scale=1 / np.sqrt(np.prod(shape[1:])))
        if options["bias"]:
            self._draw(f"{name}.bias", (outputs,))
        return self._add(
            "convolution",
            (x,),
            outputs,
            name=name,
            kernel=kernel,
            stride=stride,
            in_channels=inputs,
            out_channels=outputs,
            **options,
        )

    def standardized(self, x: int, outputs: int, kernel: int, **options: Any) -> int:
        y = self.convolution(x, outputs, kernel, **options)
        vars(self.graph.operations[-1]).update(kind="standardized convolution", eps=1e-6)
        return y

    def border(self, x: int, padding: int) -> int:
        window = {"kernel": 1, "stride": 1, "padding": padding, "dilation": 1}
        return self._add("border", (x,), self.channels(x), **window)

    def norm(self, x: int, norm: str = "batch", *, name: str = "", eps: float = 1e-5, groups: int = 1) -> int:
        channels, name = self.channels(x), name or self._name("norm")
        parts = {"weight": (0.5, 1.5), "bias": (-0.3, 0.3)}
        if norm == "batch":
            parts |= {"running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5)}
            self.tensors[f"{name}.num_batches_tracked"] = np.array(3)
        if norm == "evonorm-s0":
            parts |= {"v": (-1.5, 1.5)}
        for part, (low, high) in parts.items():
            self.tensors[f"{name}.{part}"] = self._random.uniform(low, high, channels).astype(np.float32)
        return self._add(
            "norm", (x,), channels, name=name, norm=norm, channels=channels, groups=groups, eps=eps
        )

    def affine(self, x: int, *, name: str = "") -> int:
        name = name or self._name("affine")
        for part in ("weight", "bias"):
            self._draw(f"{name}.{part}", (self.channels(x),))
        return self._add("affine", (x,), self.channels(x), name=name, channels=self.channels(x))

    def threshold(self, x: int, *, name: str = "") -> int:
        name = name or self._name("threshold")
        self._draw(f"{name}.tau", (self.channels(x),))
        return self._add("threshold", (x,), self.channels(x), name=name, channels=self.channels(x))

    def relu(self, x: int, *, name: str = "") -> int:
        return self.activation(x, "relu", name=name)

    def activation(self, x: int, function: str, *, name: str = "") -> int:
        return self._add("activation", (x,), self.channels(x), name=name, function=function)

    def squeeze(self, x: int) -> int:
        return self._add("squeeze", (x,), self.channels(x))

    def multiply(self, x: int, factors: int) -> int:
        return self._add("multiply", (x, factors), self.channels(x))

    def scale(self, x: int, *, name: str = "") -> int:
        name = name or self._name("scale")
        self._draw(name, (self.channels(x),))
        return self._add("scale", (x,), self.channels(x), name=name, channels=self.channels(x))

    def along_channels(self, x: int, kernel: int, *, name: str = "") -> int:
        name = name or self._name("channels")
        self._draw(f"{name}.weight", (1, 1, kernel))
        return self._add("channel convolution", (x,), self.channels(x), name=name, kernel=kernel)

    def blur(self, x: int) -> int:
        window = {"kernel": 3, "stride": 2, "padding": 1, "dilation": 1}
        return self._add("blur", (x,), self.channels(x), **window)

    def cell_mean(self, x: int) -> int:
        window = {"kernel": 2, "stride": 2, "padding": 0, "dilation": 1}
        return self._add("cell mean", (x,), self.channels(x), **window)

    def squeeze_excitation(self, x: int, width: int, *, gate: str = "sigmoid") -> int:
        y = self.relu(self.convolution(self.squeeze(x), width, 1, bias=True))
        y = self.convolution(y, self.channels(x), 1, bias=True)
        return self.multiply(x, self.activation(y, gate))

    def pool(self, x: int, mode: str, kernel: int, *, stride: int, padding: int = 0, name: str = "") -> int:
        window = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": 1}
        return self._add("pool", (x,), self.channels(x), name=name, mode=mode, **window)

    def pad(self, x: int, before: int, after: int) -> int:
        return self._add("pad", (x,), before + self.channels(x) + after, before=before, after=after)

    def concatenate(self, *values: int) -> int:
        return self._add("concatenate", values, sum(map(self.channels, values)))

    def add(self, x: int, y: int) -> int:
        return self._add("add", (x, y), self.channels(x))

    def dropout(self, x: int) -> int:
        return self._add("dropout", (x,), self.channels(x), rate=0.5, mode="value")

    def mean(self, x: int) -> int:
        return self._add("mean", (x,), self.channels(x), name="mean", spatial=False)

    def global_pool(self, x: int, mode: str) -> int:
        channels = self.channels(x)
        made = 2 * channels if mode == "catavgmax" else channels
        return self._add("global pool", (x,), made, mode=mode, channels=channels, spatial=False)

    def linear(self, x: int, outputs: int, *, name: str = "head") -> int:
        inputs = self.channels(x)
        self._draw(f"{name}.weight", (outputs, inputs))
        self._draw(f"{name}.bias", (outputs,))
        return self._add("linear", (x,), outputs, name=name, in_features=inputs, out_features=outputs)

    def stage(self, path: str, value: int) -> int:
        self.graph.stages[path] = value
        return value

    def finish(self, x: int, classes: int = 4) -> Network:
        """Global average pooling and a linear head."""
        self.graph.features = self.graph.logits = self.mean(x)
        if classes:
            self.graph.logits = self.linear(self.graph.features, classes)
        return self.graph, self.tensors

    def _name(self, kind: str) -> str:
        return f"{kind}{len(self.graph.operations)}"

    def _draw(self, name: str, shape: tuple[int, ...], scale: float = 1) -> None:
        self.tensors[name] = (self._random.standard_normal(shape) * scale).astype(np.float32)

    def _add(
        self,
        kind: str,
        inputs: tuple[int, ...],
        made: int,
        /,
        *,
        name: str = "",
        spatial: bool | None = None,
        **attributes: Any,
    ) -> int:
        output, name = len(self.graph.values), name or self._name(kind)
        if spatial is None:
            spatial = self.graph.values[inputs[0]].spatial
        self.graph.values.append(SimpleNamespace(channels=made, spatial=spatial))
        self.graph.operations.append(
            SimpleNamespace(kind=kind, name=name, inputs=inputs, output=output, **attributes)
        )
        return output


def dense(seed: int = 0, classes: int = 4) -> Network:
    """Two dense blocks of two layers, k = 5, bottleneck 20: nothing is a multiple of a vector."""
    build = Build(seed=seed)
    x = build.stage("stem", build.convolution(0, 10, 3, name="stem"))
    for block in (1, 2):
        for layer in (1, 2):
            path = f"block{block}.layer{layer}"
            y = build.relu(build.norm(x, name=f"{path}.norm1"))
            y = build.convolution(y, 20, 1, name=f"{path}.conv1")
            y = build.relu(build.norm(y, name=f"{path}.norm2"))
            x = build.concatenate(x, build.dropout(build.convolution(y, 5, 3, name=f"{path}.conv2")))
        build.stage(f"block{block}", x)
        if block == 1:
            y = build.relu(build.norm(x, name="transition.norm"))
            y = build.convolution(y, build.channels(x) // 2, 1, name="transition.conv")
            y = build.pool(y, "average", 2, stride=2, name="transition.pool")
            x = build.stage("transition", y)
    x = build.stage("norm", build.norm(x, name="norm"))
    return build.finish(build.stage("relu", build.relu(x, name="relu")), classes)


def residual(seed: int = 0, classes: int = 4) -> Network:
    """Two stages of one bottleneck block with projections."""
    build = Build(seed=seed)
    x = build.stage("conv", build.convolution(0, 8, 7, name="stem", stride=2))
    x = build.relu(build.norm(x, name="stem.norm"))
    x = build.stage("pool", build.pool(x, "max", 3, stride=2, padding=1))
    for number, (inner, outer) in enumerate([(8, 32), (16, 64)], start=1):
        path = f"stage{number}"
        y = build.relu(build.norm(build.convolution(x, inner, 1, name=f"{path}.conv1")))
        y = build.relu(build.norm(build.convolution(y, inner, 3, name=f"{path}.conv2", stride=number)))
        y = build.norm(build.convolution(y, outer, 1, name=f"{path}.conv3"))
        shortcut = build.norm(build.convolution(x, outer, 1, name=f"{path}.shortcut", stride=number))
        x = build.stage(path, build.relu(build.add(shortcut, y)))
    return build.finish(x, classes)


def pre_activation(seed: int = 0, classes: int = 4) -> Network:
    """Residual blocks whose norms and ReLUs come first (He et al. 2016, arXiv 1603.05027)."""
    build = Build(seed=seed)
    x = build.convolution(0, 12, 3, bias=True)
    for number, channels in enumerate((12, 12, 20, 20)):
        stride = 2 if channels != build.channels(x) else 1
        activated = build.relu(build.norm(x))
        y = build.convolution(activated, channels, 3, stride=stride)
        y = build.convolution(build.relu(build.norm(y)), channels, 3)
        shortcut = x if stride == 1 else build.convolution(activated, channels, 1, stride=stride)
        x = build.stage(f"block{number}", build.add(shortcut, y))
    return build.finish(build.relu(build.norm(x)), classes)


def squeezed(seed: int = 0, classes: int = 4) -> Network:
    """Residual blocks with grouped convolutions whose channels are weighted, in the middle or at the end."""
    build = Build(seed=seed)
    x = build.relu(build.norm(build.convolution(0, 24, 3, name="stem", stride=2)))
    for number, (groups, at_end) in enumerate([(3, False), (2, True)]):
        stride = 1 + number
        y = build.relu(build.norm(build.convolution(x, 24, 1)))
        y = build.relu(build.norm(build.convolution(y, 24, 3, groups=groups, stride=stride)))
        y = y if at_end else build.squeeze_excitation(y, 6)
        y = build.norm(build.convolution(y, 24, 1))
        if at_end:
            gate = build.activation(build.along_channels(build.squeeze(y), 3), "sigmoid")
            y = build.multiply(y, gate)
        shortcut = x if stride == 1 else build.norm(build.convolution(build.cell_mean(x), 24, 1))
        x = build.stage(f"block{number}", build.relu(build.add(shortcut, y)))
    return build.finish(x, classes)


def wide_dense(seed: int = 0, classes: int = 4) -> Network:
    """Dense blocks of layers with depthwise convolutions, layer norm and GELU; k = 9, patches of 2×2."""
    build = Build(seed=seed)
    x = build.convolution(0, 10, 2, name="stem", stride=2, padding=0, bias=True)
    x = build.stage("stem", build.norm(x, "layer2d", eps=1e-6))
    for block in (1, 2):
        if block == 2:
            x = build.convolution(build.norm(x, "layer2d"), 14, 2, stride=2, padding=0, bias=True)
        for layer in (1, 2):
            path = f"block{block}.layer{layer}"
            y = build.convolution(x, build.channels(x), 7, groups=build.channels(x), bias=True)
            y = build.norm(y, "layer2d", eps=1e-6)
            y = build.activation(build.convolution(y, 40, 1, bias=True), "gelu")
            y = build.convolution(y, 9, 1, name=f"{path}.last", bias=True)
            if block == 2:
                gate = build.convolution(build.squeeze(y), 9, 1, bias=True)
                y = build.multiply(y, build.activation(gate, "hard_sigmoid"))
            x = build.concatenate(x, build.dropout(build.scale(y, name=f"{path}.gamma")))
        build.stage(f"block{block}", x)
    features = build.norm(build.mean(x), "layer2d")
    build.graph.features = build.graph.logits = features
    if classes:
        build.graph.logits = build.linear(features, classes)
    return build.graph, build.tensors


def without_batch_norms(seed: int = 0, classes: int = 4) -> Network:
    """Layers and a block whose norms contain the nonlinearity: filter response with threshold, EvoNorm-S0."""
    build = Build(seed=seed)

    def normalized(x: int, norm: str, name: str, *, groups: int = 1) -> int:
        """A filter response norm's threshold is the second operation of one module."""
        y = build.norm(x, norm, name=name, groups=groups)
        return build.threshold(y, name=name) if norm == "filter-response" else y

    x = build.stage("stem", build.convolution(0, 10, 3, name="stem"))
    for layer, norm in enumerate(("filter-response", "evonorm-s0")):
        y = build.convolution(normalized(x, norm, f"layer{layer}.norm", groups=5), 5, 3)
        x = build.concatenate(x, y)
    x = build.stage("norm", normalized(x, "filter-response", "norm"))
    y = normalized(build.convolution(x, 24, 1), "evonorm-s0", "block.norm1", groups=8)
    y = build.affine(build.convolution(y, 20, 3, name="block.conv2"), name="block.norm2")
    x = build.stage("block", build.relu(build.add(x, y)))
    return build.finish(x, classes)


NETWORKS: dict[str, Callable[..., Network]] = {
    "dense": dense,
    "residual": residual,
    "pre-activation": pre_activation,
    "squeezed": squeezed,
    "wide dense": wide_dense,
    "without batch norms": without_batch_norms,
}


def evaluate(network: Network, images: NDArray[np.float32]) -> list[NDArray[np.float64] | None]:
    """Every value of a graph, operation by operation in double precision; None where nothing writes one."""
    graph, tensors = network
    values: list[Any] = [images.astype(float)] + [None] * (len(graph.values) - 1)
    for operation in graph.operations:
        inputs = [values[value] for value in operation.inputs]
        own = {
            name.removeprefix(f"{operation.name}."): tensor.astype(float)
            for name, tensor in tensors.items()
            if name.rpartition(".")[0] == operation.name
        }
        if operation.kind == "scale":
            own = {"scale": tensors[operation.name].astype(float)}
        values[operation.output] = reference.OPERATIONS[operation.kind](operation, inputs, own)
    return values
