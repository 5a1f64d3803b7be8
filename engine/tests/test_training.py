"""A dense block's training passes against NumPy in float64; gradients against differences of the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from passes import Case, Floats, assert_close, convolution, normed
from skipnets_engine import training


class Block(Case):
    """Random numbers of one block: images × height × width × channels, then growth, bottleneck, layers."""

    def __init__(
        self, maps: tuple[int, int, int], channels: int, growth: int, bottleneck: int, layers: int
    ) -> None:
        super().__init__()
        self.maps, self.channels, self.growth, self.bottleneck = maps, channels, growth, bottleneck
        self.parameters: list[Floats] = []
        for layer in range(layers):
            seen = channels + layer * growth
            self.parameters += [self.normal(seen), self.normal(seen), self.normal(bottleneck, seen)]
            self.parameters += [
                self.normal(bottleneck),
                self.normal(bottleneck),
                self.normal(growth, bottleneck, 3, 3),
            ]
        self.eps = [1e-3] * layers
        self.x = self.normal(*maps, channels)
        self.downstream = self.normal(*maps, channels + layers * growth)

    @property
    def rows(self) -> int:
        return int(np.prod(self.maps))

    @property
    def layers(self) -> int:
        return len(self.eps)

    def y(self) -> Floats:
        features = self.x
        for layer in range(self.layers):
            gamma1, beta1, weight1, gamma2, beta2, weight2 = self.parameters[6 * layer : 6 * layer + 6]
            activated = np.maximum(normed(features, gamma1, beta1, self.eps[layer]), 0)
            bottleneck = activated @ weight1.T
            activated = np.maximum(normed(bottleneck, gamma2, beta2, self.eps[layer]), 0)
            features = np.concatenate([features, convolution(activated, weight2)], axis=3)
        return features

    def run(self, isa: str, threads: int, *, recompute: bool) -> dict[str, Any]:
        """Both passes of the engine."""
        channels = self.channels + self.layers * self.growth
        features = np.full((self.rows, channels), np.nan, np.float32)
        features[:, : self.channels] = self.x.reshape(self.rows, -1)
        parameters = [numbers.astype(np.float32) for numbers in self.parameters]
        sizes = [(channels,), (channels,), *[(self.layers, self.bottleneck)] * 2]
        statistics = [np.full(size, np.nan, np.float32) for size in sizes]
        count = 1 if recompute else self.layers
        bottlenecks = [np.full((self.rows, self.bottleneck), np.nan, np.float32) for _ in range(count)]
        block = (features, list(self.maps), parameters, self.eps, self.eps, statistics, bottlenecks)
        training.dense_block_forward(*block, isa, threads)
        gradients = [np.full_like(numbers, np.nan) for numbers in parameters]
        x_gradient = np.full((self.rows, self.channels), np.nan, np.float32)
        training.dense_block_backward(
            *block,
            recompute,
            self.downstream.reshape(self.rows, -1).astype(np.float32),
            np.full((self.rows, channels), np.nan, np.float32),
            np.full((self.rows, self.bottleneck), np.nan, np.float32),
            gradients,
            x_gradient,
            isa,
            threads,
        )
        return {"features": features, "statistics": statistics, "gradients": gradients, "x": x_gradient}


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    maps=st.tuples(st.integers(1, 3), st.integers(2, 9), st.sampled_from([2, 3, 8, 15])),
    channels=st.sampled_from([1, 3, 16, 17, 31, 40]),
    growth=st.sampled_from([1, 4, 12, 16, 17, 32, 33]),
    bottleneck=st.sampled_from([1, 4, 15, 16, 48, 65]),
    layers=st.integers(1, 3),
    threads=st.integers(1, 4),
    recompute=st.booleans(),
)
def test_the_forward_pass_of_any_shape(
    isa: str,
    maps: tuple[int, int, int],
    channels: int,
    growth: int,
    bottleneck: int,
    layers: int,
    threads: int,
    recompute: bool,
) -> None:
    block = Block(maps, channels, growth, bottleneck, layers)
    made = block.run(isa, threads, recompute=recompute)
    features = block.y()
    assert_close(made["features"], features, 1e-5)
    mean, variance = made["statistics"][:2]
    assert_close(mean, features.mean((0, 1, 2)), 1e-5)
    assert_close(variance, features.var((0, 1, 2)), 1e-5)
    assert all(np.isfinite(numbers).all() for numbers in [*made["gradients"], made["x"]])


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_gradients_are_those_of_differences(isa: str, recompute: bool) -> None:
    block = Block((2, 4, 3), channels=3, growth=2, bottleneck=4, layers=2)
    made = block.run(isa, 2, recompute=recompute)
    for own, numbers in zip(made["gradients"], block.parameters, strict=True):
        assert_close(own, block.difference(numbers), 1e-4)
    assert_close(made["x"], block.difference(block.x), 1e-4)


@pytest.mark.parametrize(
    "block",
    [
        Block((1, 61, 70), channels=5, growth=3, bottleneck=40, layers=1),
        Block((1, 32, 32), channels=5, growth=33, bottleneck=1, layers=1),
    ],
    ids=["in strips", "of more growth than bottleneck"],
)
def test_large_maps(isa: str, block: Block) -> None:
    assert_close(block.run(isa, 2, recompute=False)["features"], block.y(), 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": [2, 4]}, "maps have images, height and width"),
        ({"maps": [2, 4, 4]}, "the features must be a matrix of pixels and channels"),
        ({"maps": [2, -4, 3]}, "images, height or width out of range"),
        ({"maps": [1 << 24, 1 << 24, 1 << 24]}, "the features must be a matrix"),
        ({"maps": [1 << 24, 1 << 24, 1 << 16], "features": np.empty((0, 5), np.float32)}, "must be a matrix"),
        ({"parameters": -1}, "wrong number of arguments"),
        ({"parameters": 2}, "weight1 must hold 12 numbers, not 13"),
        ({"parameters": 3}, "gamma2 must hold 4 numbers"),
        ({"eps": []}, "each norm has one"),
        ({"statistics": 2}, "mean2 must hold 4 numbers"),
        ({"bottlenecks": 0}, "bottleneck must hold 96 numbers"),
        ({"isa": "abacus"}, 'instruction set "abacus"'),
        ({"threads": 0}, "threads must be 1 to 4096"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    block = Block((2, 4, 3), channels=3, growth=2, bottleneck=4, layers=1)
    parameters = [numbers.astype(np.float32) for numbers in block.parameters]
    statistics = [np.empty(5, np.float32), np.empty(5, np.float32), *np.empty((2, 4), np.float32)]
    bottlenecks = [np.empty((24, 4), np.float32)]
    for name, lists in (("parameters", parameters), ("statistics", statistics), ("bottlenecks", bottlenecks)):
        if (place := change.get(name)) == -1:
            del lists[place]
        elif place is not None:
            lists[place] = np.empty(lists[place].size + 1, np.float32)
    with pytest.raises(ValueError, match=message):
        training.dense_block_forward(
            change.get("features", np.empty((24, 5), np.float32)),
            change.get("maps", [2, 4, 3]),
            parameters,
            change.get("eps", [1e-5]),
            change.get("eps", [1e-5]),
            statistics,
            bottlenecks,
            change.get("isa", ""),
            change.get("threads", 1),
        )


def test_openmp_is_shared_with_libraries_that_use_it_alone() -> None:
    assert not training.share_openmp("no-such-library.so")
    assert not training.share_openmp("")
