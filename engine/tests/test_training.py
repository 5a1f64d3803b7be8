"""A dense block's training passes against NumPy in float64; gradients against differences of the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skipnets_engine import training

Floats = NDArray[np.float64]


class Block:
    """Random numbers of one block: images × height × width × channels, then growth, bottleneck, layers."""

    def __init__(
        self, maps: tuple[int, int, int], channels: int, growth: int, bottleneck: int, layers: int
    ) -> None:
        self.maps, self.channels, self.growth, self.bottleneck = maps, channels, growth, bottleneck
        random = np.random.default_rng(1)

        def normal(*size: int) -> Floats:
            return random.standard_normal(size).astype(np.float32).astype(np.float64)

        self.parameters: list[Floats] = []
        for layer in range(layers):
            seen = channels + layer * growth
            self.parameters += [normal(seen), normal(seen), normal(bottleneck, seen)]
            self.parameters += [normal(bottleneck), normal(bottleneck), normal(growth, bottleneck, 3, 3)]
        self.eps = [1e-3] * layers
        self.x = normal(*maps, channels)
        self.downstream = normal(*maps, channels + layers * growth)

    @property
    def rows(self) -> int:
        return int(np.prod(self.maps))

    @property
    def layers(self) -> int:
        return len(self.eps)

    def features(self) -> Floats:
        """The slow and obvious way."""
        features = self.x
        for layer in range(self.layers):
            gamma1, beta1, weight1, gamma2, beta2, weight2 = self.parameters[6 * layer : 6 * layer + 6]
            bottleneck = rectified_norm(features, gamma1, beta1, self.eps[layer]) @ weight1.T
            activated = rectified_norm(bottleneck, gamma2, beta2, self.eps[layer])
            bordered = np.pad(activated, ((0, 0), (1, 1), (1, 1), (0, 0)))
            _, height, width = self.maps
            grown = sum(
                bordered[:, y : y + height, x : x + width] @ weight2[:, :, y, x].T
                for y in range(3)
                for x in range(3)
            )
            features = np.concatenate([features, grown], axis=3)
        return features

    def loss(self) -> float:
        return float((self.features() * self.downstream).sum())

    def difference(self, numbers: Floats, step: float = 1e-6) -> Floats:
        """The gradient of the loss by some of its numbers, which are changed one by one."""
        gradient = np.empty_like(numbers)
        for index in np.ndindex(numbers.shape):
            before = numbers[index]
            numbers[index] = before + step
            above = self.loss()
            numbers[index] = before - step
            gradient[index] = (above - self.loss()) / (2 * step)
            numbers[index] = before
        return gradient

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
            np.empty((self.rows, self.bottleneck), np.float32),
            gradients,
            x_gradient,
            isa,
            threads,
        )
        return {"features": features, "statistics": statistics, "gradients": gradients, "x": x_gradient}


def rectified_norm(x: Floats, gamma: Floats, beta: Floats, eps: float) -> Floats:
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return np.maximum(gamma * (x - mean) / np.sqrt(variance + eps) + beta, 0)


def assert_close(own: NDArray[np.float32], wanted: Floats, bound: float) -> None:
    assert np.abs(own.reshape(wanted.shape) - wanted).max() <= bound * max(np.abs(wanted).max(), 1e-2)


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
    features = block.features()
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


def test_large_maps_are_cut_into_strips(isa: str) -> None:
    block = Block((1, 61, 70), channels=5, growth=3, bottleneck=40, layers=1)
    assert_close(block.run(isa, 2, recompute=False)["features"], block.features(), 1e-5)


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
