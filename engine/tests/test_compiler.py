"""Compiled graphs against their operations one by one, and what the compiler fuses."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, Build, Network, evaluate
from numpy.typing import NDArray
from skipnets_engine import Engine


def check(network: Network, images: NDArray[np.float32], *, threads: int = 2, isa: str | None = None) -> None:
    """Logits, features and all stages against the obvious evaluation."""
    graph, _ = network
    values = evaluate(network, images)
    engine = Engine(*network, threads=threads, isa=isa)
    # A mean of many large values may be small.
    rounding = 1e-6 * max(np.abs(value).max() for value in values if value is not None)
    found = {"logits": engine.logits(images), "features": engine.embed(images), **engine.stages(images)}
    for path, mine in found.items():
        wanted = values[graph.stages[path] if path in graph.stages else getattr(graph, path)]
        assert wanted is not None
        wanted = wanted if wanted.ndim == mine.ndim else wanted[:, :, None, None]
        assert mine.shape == wanted.shape, path
        assert np.abs(mine - wanted).max() <= 2e-5 * np.abs(wanted).max() + rounding, path


def images_for(build: Build, *, count: int = 3, height: int = 17, width: int = 14) -> NDArray[np.float32]:
    shape = (count, build.in_channels, height, width)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def steps_of(network: Network) -> list[tuple[str, str]]:
    """Name and algorithm of every step."""
    return [(line["name"], line["algorithm"]) for line in Engine(*network).plan((17, 14), rounds=1)]


@pytest.mark.parametrize("name", NETWORKS)
def test_small_networks(name: str, isa: str) -> None:
    check(NETWORKS[name](), images_for(Build()), isa=isa)


class RandomGraph:
    """A graph of operations drawn one by one."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.build = Build(
            in_channels=self.draw(st.sampled_from([1, 3, 16])), seed=self.draw(st.integers(0, 9))
        )
        self.size = self.draw(st.sampled_from([(9, 12), (16, 16), (23, 7)]))
        self.sizes: dict[int, tuple[int, int]] = {0: self.size}  # of maps
        for _ in range(self.draw(st.integers(1, 14))):
            self.add_operation()
        last = max(self.sizes) if len(self.sizes) > 1 else self.build.relu(0)
        others = self.draw(st.booleans())
        pooling = self.draw(st.sampled_from(["avg", "avg", "max", "avgmax", "catavgmax"]))
        mean = self.build.mean(last) if pooling == "avg" else self.build.global_pool(last, pooling)
        if others:
            other = self.build.mean(self.pick())
            mean = self.build.concatenate(mean, other) if self.draw(st.booleans()) else mean
        self.build.graph.features = self.build.graph.logits = mean
        if self.draw(st.booleans()):
            hidden = self.build.relu(self.build.linear(mean, 7, name="hidden"))
            self.build.graph.logits = self.build.linear(hidden, 3)
        often = self.draw(st.sampled_from([0, 1, 3]))
        for value in self.sizes:
            if self.draw(st.integers(0, 3)) < often:
                self.build.stage(f"value {value}", value)

    def pick(self, size: tuple[int, int] | None = None, channels: int | None = None) -> int:
        """A map, most often a late one."""
        fitting = [
            value
            for value in sorted(self.sizes)
            if size in (None, self.sizes[value]) and channels in (None, self.build.channels(value))
        ]
        return fitting[-1 - min(self.draw(st.sampled_from([0, 0, 0, 1, 2, 5])), len(fitting) - 1)]

    def add_operation(self) -> None:
        build, x = self.build, self.pick()
        size, channels = self.sizes[x], self.build.channels(x)
        kinds = (
            "conv1 conv conv grouped depthwise norm norm-relu norm-relu relu max average halve pad subsample "
            "drop activation layer-norm group-norm excite gate scale along blur cell filter-response evonorm "
            "affine threshold"
        )
        match self.draw(st.sampled_from([*kinds.split(), *["concatenate", "add"] * 2])):
            case "conv1":
                y = build.convolution(x, self.channels(), 1, bias=self.draw(st.booleans()))
            case "conv":
                kernel, dilation = self.draw(st.sampled_from([2, 3, 3, 3, 5])), self.draw(st.integers(1, 2))
                reach = dilation * (kernel - 1)
                least = max(reach + 2 - min(size), 0) // 2  # so that something is left
                padding = self.draw(st.sampled_from([max(reach // 2, least), least, reach]))
                options = {"dilation": dilation, "padding": padding, "stride": self.draw(st.integers(1, 2))}
                y = build.convolution(x, self.channels(), kernel, **options)
            case "grouped":
                groups = self.draw(st.sampled_from([g for g in (1, 2, 3, 4, 16) if channels % g == 0]))
                outputs = groups * self.draw(st.integers(1, 9))
                y = build.convolution(x, outputs, self.draw(st.sampled_from([1, 3])), groups=groups)
            case "depthwise":
                kernel = self.draw(st.sampled_from([3, 7, 9]))
                y = build.convolution(
                    x, channels, kernel, groups=channels, stride=self.draw(st.integers(1, 2))
                )
            case "activation":
                y = build.activation(x, self.draw(st.sampled_from(sorted(reference.ACTIVATIONS))))
            case "layer-norm":
                y = build.norm(x, "layer2d", eps=1e-2)
            case "group-norm":
                groups = self.draw(st.sampled_from([g for g in (1, 2, 3, 4, 16) if channels % g == 0]))
                y = build.norm(x, self.draw(st.sampled_from(["group", "instance"])), eps=1e-2, groups=groups)
            case "filter-response":
                y = build.norm(x, "filter-response", eps=1e-2)
            case "evonorm":
                groups = self.draw(st.sampled_from([g for g in (1, 2, 3, 4, 16) if channels % g == 0]))
                y = build.norm(x, "evonorm-s0", eps=1e-2, groups=groups)
            case "affine":
                y = build.affine(x)
            case "threshold":
                y = build.threshold(x)
            case "excite":
                y = build.squeeze_excitation(
                    x, 5, gate=self.draw(st.sampled_from(["sigmoid", "hard_sigmoid"]))
                )
            case "gate":
                y = build.multiply(x, build.along_channels(build.squeeze(self.pick(channels=channels)), 3))
            case "scale":
                y = build.scale(x)
            case "along":
                y = build.along_channels(x, self.draw(st.sampled_from([1, 3, 5])))
            case "blur" if min(size) > 1:
                y, size = build.blur(x), ((size[0] + 1) // 2, (size[1] + 1) // 2)
            case "cell":
                y, size = build.cell_mean(x), ((size[0] + 1) // 2, (size[1] + 1) // 2)
            case "norm":
                y = build.norm(x)
            case "norm-relu":
                y = build.norm(x)
                self.sizes[y] = size
                y = build.relu(y)
            case "relu":
                y = build.relu(x)
            case "max" | "average" as mode:
                kernel = self.draw(st.integers(1, min(3, *size)))
                padding = self.draw(st.integers(0, kernel // 2))
                y = build.pool(x, mode, kernel, stride=self.draw(st.integers(1, 2)), padding=padding)
            case "halve" if min(size) > 1:
                y = build.convolution(x, self.channels(), 1)
                self.sizes[y] = size
                y = build.pool(y, "average", 2, stride=2)
            case "subsample":
                y = build.pool(x, "average", 1, stride=2)
            case "pad":
                y = build.pad(x, self.draw(st.integers(0, 3)), self.draw(st.integers(0, 3)))
            case "concatenate":
                y = build.concatenate(x, *(self.pick(size) for _ in range(self.draw(st.integers(0, 3)))))
                if build.channels(y) > 200:
                    y = build.convolution(x, 4, 1)
            case "add":
                y = build.add(x, self.pick(size, channels))
                if self.draw(st.booleans()):
                    y = build.add(x, y)
            case _:
                y = build.dropout(x)
        operation = build.graph.operations[-1]  # those before it in its case keep the size
        if operation.output == y and operation.kind in ("convolution", "pool"):
            lost = operation.dilation * (operation.kernel - 1) - 2 * operation.padding
            height, width = ((side - lost - 1) // operation.stride + 1 for side in size)
            size = height, width
        self.sizes[y] = size

    def channels(self) -> int:
        return self.draw(st.sampled_from([1, 3, 4, 16, 17, 33]))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_random_graphs(data: st.DataObject) -> None:
    drawn = RandomGraph(data)
    network = drawn.build.graph, drawn.build.tensors
    height, width = drawn.size
    count, threads = data.draw(st.sampled_from([1, 5])), data.draw(st.integers(1, 3))
    check(network, images_for(drawn.build, count=count, height=height, width=width), threads=threads)


def test_a_dense_block_without_bottleneck_keeps_one_activation() -> None:
    """Each layer's activation is read by its 3×3 convolution alone, so all of them lie in one value."""

    def network(layers: int) -> tuple[Build, Network]:
        build = Build()
        x = build.convolution(0, 16, 3)
        for _ in range(layers):
            x = build.concatenate(x, build.convolution(build.relu(build.norm(x)), 16, 3))
        return build, build.finish(x)

    build, small = network(3)
    check(small, images_for(build))
    assert Counter(algorithm for _, algorithm in steps_of(small))["activate"] == 3
    five, ten = (Engine(*network(layers)[1])._engine.value_bytes(32, 32, 1) for layers in (5, 10))
    assert ten < 2.2 * five


def test_what_is_fused() -> None:
    build = Build()
    x = build.relu(build.norm(build.convolution(0, 16, 3, name="stem")))
    y = build.convolution(build.relu(build.norm(x)), 32, 1, name="activated at reading")
    x = build.pool(y, "average", 2, stride=2)
    y = build.dropout(build.norm(build.convolution(x, 32, 3, name="adds")))
    x = build.relu(build.add(x, y))
    network = build.finish(build.relu(build.norm(x, name="norm")))
    check(network, images_for(build))
    steps = steps_of(network)
    assert [name for name, _ in steps] == ["stem", "activated at reading", "adds", "mean", "head"]
    assert steps[1][1] == "pool, product"


def test_what_is_fused_around_gates() -> None:
    """Factors in front of a 1×1 convolution are multiplied as it reads, others as the sum is written."""
    assert [algorithm for _, algorithm in steps_of(NETWORKS["squeezed"]())] == [
        *("direct", "product", "direct", "mean", "product", "product", "product"),
        *("cell mean", "product", "product", "direct", "product", "mean", "along channels", "multiply"),
        *("mean", "product"),
    ]


def test_what_is_fused_in_layers_with_depthwise_convolutions() -> None:
    network = NETWORKS["wide dense"]()
    counts = Counter(algorithm for _, algorithm in steps_of(network))
    assert counts == {
        "direct": 2,
        "layer norm": 3,
        "depthwise, norm": 4,
        "product": 4 * 2 + 2 + 1,
        "mean": 3,
        "multiply": 2,
    }


def test_an_activation_that_two_kinds_read_is_computed_once() -> None:
    build = Build()
    x = build.convolution(0, 16, 3, name="stem")
    activated = build.relu(build.norm(x, name="norm"))
    y = build.convolution(activated, 16, 3, name="branch")
    shortcut = build.convolution(activated, 16, 1, name="shortcut")
    network = build.finish(build.add(x, build.add(shortcut, y)))
    check(network, images_for(build))
    assert [name for name, _ in steps_of(network)][:4] == ["stem", "norm", "shortcut", "branch"]


@pytest.mark.parametrize(
    ("values", "copies"),
    [
        (lambda b, x, y: b.concatenate(x, y), 0),
        (lambda b, x, y: b.concatenate(b.concatenate(x, y), b.convolution(0, 5, 1)), 0),
        (
            lambda b, x, y: b.concatenate(
                x, y, b.concatenate(b.convolution(0, 5, 1), b.convolution(0, 3, 1))
            ),
            0,
        ),
        (lambda b, x, y: b.concatenate(b.concatenate(x, y), b.relu(b.norm(b.convolution(0, 5, 1)))), 0),
        # Wanted in two buffers:
        (lambda b, x, y: b.add(b.concatenate(x, y), b.concatenate(x, b.convolution(0, 7, 1))), 1),
        (lambda b, x, y: b.concatenate(x, x), 1),
        (lambda b, x, y: b.concatenate(0, x), 1),
        # Out of order: y is there before z, which is to lie in front of it, is computed.
        (lambda b, x, y: b.concatenate(b.convolution(y, 5, 3), y), 1),
        # Computed from what lies in the same buffer:
        (lambda b, x, y: b.concatenate(x, b.relu(x)), 1),
        (lambda b, x, y: b.concatenate(b.concatenate(x, y), b.relu(b.concatenate(x, y))), 2),
    ],
)
def test_concatenations_copy_only_what_they_must(values: Any, copies: int) -> None:
    build = Build()
    x = build.convolution(0, 5, 3)
    y = build.convolution(0, 7, 3)
    network = build.finish(values(build, x, y))
    check(network, images_for(build))
    assert Counter(algorithm for _, algorithm in steps_of(network))["copy"] == copies


@pytest.mark.parametrize("groups", [2, 3, 6, 37])
def test_grouped_and_dilated_convolutions(groups: int) -> None:
    build = Build()
    x = build.convolution(0, groups * 4, 3)
    y = build.convolution(build.relu(build.norm(x)), groups * 4, 3, groups=groups, dilation=2, padding=2)
    y = build.convolution(build.relu(build.norm(y)), groups * 4, 1, groups=groups)
    check(build.finish(build.add(x, y)), images_for(build))


@pytest.mark.parametrize("groups", [1, 4, 12])
def test_standardized_weights_and_borders(groups: int) -> None:
    """The zeros of a border are pixels: where all others are negative, they are the largest."""
    build = Build()
    x = build.norm(build.standardized(0, 12, 3, bias=True))
    x = build.pool(build.border(build.scale(build.relu(x)), 2), "max", 3, stride=2)
    y = build.standardized(x, 12, 3, groups=groups)
    check(build.finish(build.norm(y, "group", groups=3)), images_for(build))


def test_features_and_logits_inside_of_concatenations() -> None:
    build = Build()
    x, y = build.convolution(0, 5, 3), build.convolution(0, 9, 1)
    mean = build.mean(x)
    both = build.concatenate(build.mean(y), mean)
    build.graph.features, build.graph.logits = mean, both
    check((build.graph, build.tensors), images_for(build, count=5))


def test_operations_that_no_result_needs_are_left_out() -> None:
    build = Build()
    x = build.convolution(0, 5, 3, name="stem")
    build.stage("dead", build.convolution(x, 9, 3, name="dead"))
    network = build.finish(build.stage("stem", x))
    assert [name for name, _ in steps_of(network)] == ["stem", "mean", "head"]
    assert set(Engine(*network).stages(images_for(build))) == {"stem"}


def test_stages_outlive_later_activations() -> None:
    """A norm that no step writes is told from an activation whose memory would otherwise be used again."""
    build = Build()
    x = build.convolution(0, 16, 3)
    activated = build.relu(build.norm(x))
    normed = build.stage("norm", build.norm(activated))
    x = build.add(x, build.convolution(activated, 16, 3))
    x = build.add(x, build.convolution(build.relu(normed), 16, 3))
    for _ in range(2):
        x = build.add(x, build.convolution(build.relu(build.norm(x)), 16, 3))
    check(build.finish(x), images_for(build))


def test_stages() -> None:
    """What a norm folded into weights had before it is never computed; the rest is there."""
    everything = {name: set(NETWORKS[name]()[0].stages) for name in NETWORKS}
    found = {name: set(Engine(*NETWORKS[name]()).stages(images_for(Build()))) for name in NETWORKS}
    assert found == everything | {"residual": everything["residual"] - {"conv"}}
