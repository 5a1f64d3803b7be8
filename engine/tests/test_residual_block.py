"""A residual block's training passes against NumPy in float64; gradients against differences of the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from passes import Case, Floats, assert_close, convolution, matrix, normed
from skipnets_engine import training


class Block(Case):
    """Random numbers of one block.

    Args:
        maps: Images, height and width of the input.
        channels: Of the input.
        sizes: Of the kernels of the branch.
        outputs: Of its convolutions.
        strides: The same.
        projects: Whether the shortcut is a projection.
    """

    def __init__(
        self,
        maps: tuple[int, int, int],
        channels: int,
        sizes: tuple[int, ...],
        outputs: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        projects: bool,
    ) -> None:
        super().__init__()
        self.maps, self.channels, self.projects = maps, channels, projects
        inputs = (channels, *outputs)
        shapes = list(zip(outputs, inputs[:-1], sizes, strict=True))
        self.strides = list(strides)
        if projects:
            shapes.append((outputs[-1], channels, 1))
            self.strides.append(max(strides))
        self.weights = [self.normal(out, seen, size, size) for out, seen, size in shapes]
        self.norms = [self.normal(out) for out, _, _ in shapes for _ in range(2)]
        self.eps = [1e-3] * len(shapes)
        self.zeros = 0 if projects else (outputs[-1] - channels) // 2
        self.x = self.normal(*maps, channels)
        self.downstream = self.normal(*self.y().shape)

    def convolved(self) -> list[Floats]:
        """The convolutions' outputs, the slow and obvious way."""
        branch = len(self.weights) - self.projects
        outputs: list[Floats] = []
        for index in range(len(self.weights)):
            x = self.x if index in (0, branch) else np.maximum(self.normed(outputs[-1], index - 1), 0)
            outputs.append(convolution(x, self.weights[index], self.strides[index]))
        return outputs

    def normed(self, x: Floats, index: int) -> Floats:
        gamma, beta = self.norms[2 * index : 2 * index + 2]
        return normed(x, gamma, beta, self.eps[index])

    def y(self) -> Floats:
        outputs = self.convolved()
        branch = len(self.weights) - self.projects
        y = self.normed(outputs[branch - 1], branch - 1)
        if self.projects:
            return np.maximum(y + self.normed(outputs[branch], branch), 0)
        step = max(self.strides)
        y = y.copy()
        y[..., self.zeros : self.zeros + self.channels] += self.x[:, ::step, ::step]
        return np.maximum(y, 0)

    def arguments(self) -> dict[str, Any]:
        """What both passes of the engine are given."""
        outputs: list[NDArray[np.float32]] = []
        for own in self.convolved():
            outputs.append(np.full(own.shape, np.nan, np.float32).reshape(-1, own.shape[-1]))
            outputs += [np.full(own.shape[-1], np.nan, np.float32) for _ in range(2)]
        return {
            "x": matrix(self.x),
            "maps": list(self.maps),
            "weights": [weight.astype(np.float32) for weight in self.weights],
            "norms": [numbers.astype(np.float32) for numbers in self.norms],
            "eps": self.eps,
            "strides": self.strides,
            "projects": self.projects,
            "zeros_before": self.zeros,
            "outputs": outputs,
            "y": np.full_like(matrix(self.downstream), np.nan),
        }

    def run(self, isa: str, threads: int) -> dict[str, Any]:
        """Both passes of the engine."""
        given = self.arguments()
        training.residual_block_forward(**given, isa=isa, threads=threads)
        branch = len(self.weights) - self.projects
        made = {
            "output_gradients": [np.full_like(given["outputs"][3 * i], np.nan) for i in range(branch - 1)],
            "x_gradient": np.full_like(given["x"], np.nan),
            "weight_gradients": [np.full_like(weight, np.nan) for weight in given["weights"]],
            "norm_gradients": [np.full_like(numbers, np.nan) for numbers in given["norms"]],
        }
        training.residual_block_backward(
            **given,
            **made,
            gradient=matrix(self.downstream),
            sum_gradient=np.full_like(given["y"], np.nan),
            isa=isa,
            threads=threads,
        )
        return {**given, **made}


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    maps=st.tuples(st.integers(1, 3), st.integers(1, 9), st.sampled_from([2, 3, 8, 15])),
    channels=st.sampled_from([1, 3, 16, 17, 33]),
    width=st.sampled_from([1, 4, 15, 16, 33]),
    added=st.sampled_from([0, 1, 7]),
    bottleneck=st.booleans(),
    stride=st.integers(1, 2),
    projects=st.booleans(),
    threads=st.integers(1, 4),
)
def test_the_forward_pass_of_any_shape(
    isa: str,
    maps: tuple[int, int, int],
    channels: int,
    width: int,
    added: int,
    bottleneck: bool,
    stride: int,
    projects: bool,
    threads: int,
) -> None:
    sizes, outputs, strides = ((3, 3), (width, channels + added), (stride, 1))
    if bottleneck:
        sizes, outputs, strides = (1, 3, 1), (width, *outputs), (1, *strides)
    block = Block(maps, channels, sizes, outputs, strides, projects=projects)
    made = block.run(isa, threads)
    assert_close(made["y"], block.y(), 1e-5)
    for index, wanted in enumerate(block.convolved()):
        output, mean, variance = made["outputs"][3 * index : 3 * index + 3]
        assert_close(output, wanted, 1e-5)
        assert_close(mean, wanted.mean((0, 1, 2)), 1e-5)
        assert_close(variance, wanted.var((0, 1, 2)), 1e-5)
    gradients = [*made["weight_gradients"], *made["norm_gradients"], made["x_gradient"]]
    assert all(np.isfinite(numbers).all() for numbers in gradients)


@pytest.mark.parametrize(
    "block",
    [
        Block((2, 4, 3), 3, (3, 3), (3, 3), (1, 1), projects=False),
        Block((2, 4, 3), 2, (3, 3), (3, 5), (2, 1), projects=False),
        Block((2, 3, 4), 2, (1, 3, 1), (3, 2, 4), (1, 2, 1), projects=True),
        Block((2, 3, 4), 2, (1, 3, 1), (3, 2, 4), (2, 1, 1), projects=True),  # Some of x is read by nothing.
        Block((2, 3, 4), 2, (1, 3, 1), (3, 2, 4), (1, 1, 2), projects=True),
        Block((2, 1, 1), 2, (1, 3, 1), (3, 2, 2), (2, 1, 1), projects=False),
        Block((2, 1, 7), 2, (3, 3), (3, 5), (2, 1), projects=False),
        Block((2, 1, 7), 2, (1, 3, 1), (3, 2, 2), (1, 2, 1), projects=False),
        Block((2, 7, 1), 2, (3, 3), (3, 5), (2, 1), projects=False),
    ],
    ids=[
        "identity",
        "zeros",
        "projection",
        "early stride",
        "late stride",
        "one pixel",
        "one line",
        "one line, no more channels",
        "one column",
    ],
)
def test_gradients_are_those_of_differences(isa: str, block: Block) -> None:
    made = block.run(isa, 2)
    for own, numbers in zip(made["weight_gradients"], block.weights, strict=True):
        assert_close(own, block.difference(numbers), 1e-4)
    for own, numbers in zip(made["norm_gradients"], block.norms, strict=True):
        assert_close(own, block.difference(numbers), 1e-4)
    assert_close(made["x_gradient"], block.difference(block.x), 1e-4)


def test_weights_in_any_memory_format_give_the_same_bits(isa: str) -> None:
    block = Block((2, 5, 4), 17, (3, 3), (17, 17), (1, 1), projects=False)
    expected = block.run(isa, 2)
    block.weights = [weight.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2) for weight in block.weights]
    last = block.run(isa, 2)
    assert last["weights"][0].strides == tuple(4 * step for step in (17 * 9, 1, 17 * 3, 17))
    for name in ("y", "x_gradient"):
        np.testing.assert_array_equal(last[name], expected[name])
    for own, wanted in zip(last["weight_gradients"], expected["weight_gradients"], strict=True):
        np.testing.assert_array_equal(own, wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": [2, 4]}, "maps have images, height and width"),
        ({"maps": [2, 4, 4]}, "x must be a matrix of pixels and channels"),
        ({"maps": [2, -4, 3]}, "images, height or width out of range"),
        ({"maps": [1 << 24, 1 << 24, 1 << 24]}, "x must be a matrix of pixels and channels"),
        ({"weights": []}, "wrong number of arguments"),
        ({"weights": [np.ones((3, 3, 5, 5), np.float32)] * 2}, "convolutions must be of 1×1 or 3×3"),
        ({"weights": [np.ones((3, 4, 3, 3), np.float32)] * 2}, "channels are not those of its input"),
        ({"norms": [np.ones(2, np.float32)] * 4}, "gamma must hold 3 numbers, not 2"),
        ({"eps": []}, "wrong number of arguments"),
        ({"strides": [3, 1]}, "strides must be 1 or 2"),
        ({"strides": [2, 2]}, "must hold|does not fit"),
        ({"zeros_before": 1}, "the shortcut does not fit the branch"),
        ({"projects": True}, "must be of 1×1|of different shapes"),
        ({"outputs": [np.ones(3, np.float32)] * 6}, "an output must hold 72 numbers, not 3"),
        ({"y": np.ones((24, 4), np.float32)}, "y must hold 72 numbers"),
        ({"isa": "abacus"}, 'instruction set "abacus"'),
        ({"threads": 0}, "threads must be 1 to 4096"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    block = Block((2, 4, 3), 3, (3, 3), (3, 3), (1, 1), projects=False)
    with pytest.raises(ValueError, match=message):
        training.residual_block_forward(**{**block.arguments(), "isa": "", "threads": 1, **change})


def test_results_never_go_into_a_copy() -> None:
    given = Block((2, 4, 3), 3, (3, 3), (3, 3), (1, 1), projects=False).arguments()
    with pytest.raises(TypeError, match="incompatible function arguments"):
        training.residual_block_forward(**{**given, "y": given["y"].astype(float), "isa": "", "threads": 1})


@pytest.mark.parametrize(
    "block",
    [
        Block((2, 4, 3), 3, (3,), (3,), (1,), projects=False),
        Block((2, 4, 3), 3, (3, 3), (3, 3), (1, 1), projects=True),
    ],
    ids=["one convolution", "projection"],
)
def test_the_gradient_of_the_sum_is_not_overwritten_while_it_is_read(block: Block) -> None:
    given = block.arguments()
    shared, branch = np.empty_like(given["y"]), len(given["weights"]) - block.projects
    with pytest.raises(ValueError, match="can only be the sum's memory"):
        training.residual_block_backward(
            **given,
            gradient=matrix(block.downstream),
            sum_gradient=shared,
            output_gradients=[np.empty_like(given["outputs"][3 * i]) for i in range(branch - 1)],
            x_gradient=shared,
            weight_gradients=[np.empty_like(weight) for weight in given["weights"]],
            norm_gradients=[np.empty_like(numbers) for numbers in given["norms"]],
            isa="",
            threads=1,
        )
