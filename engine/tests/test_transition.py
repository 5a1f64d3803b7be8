"""A transition's training passes against NumPy in float64; gradients against differences of the loss."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from passes import Case, Floats, assert_close, matrix, normed
from skipnets_engine import training


class Transition(Case):
    """Random numbers of one transition.

    Args:
        maps: Images, height and width of the input.
        inputs: Its channels.
        outputs: Channels of the output.
    """

    def __init__(self, maps: tuple[int, int, int], inputs: int, outputs: int) -> None:
        super().__init__()
        self.maps, self.eps = maps, 1e-3
        self.x = self.normal(*maps, inputs)
        self.norm = [self.normal(inputs) for _ in range(2)]
        self.weight = self.normal(outputs, inputs)
        self.downstream = self.normal(*self.y().shape)

    def y(self) -> Floats:
        """Pooling comes last."""
        maps = np.maximum(normed(self.x, *self.norm, self.eps), 0) @ self.weight.T
        height, width = maps.shape[1] // 2 * 2, maps.shape[2] // 2 * 2
        return np.asarray(sum(maps[:, y:height:2, x:width:2] for y in (0, 1) for x in (0, 1)) / 4)

    def arguments(self) -> dict[str, Any]:
        """What both passes of the engine are given."""
        return {
            "x": matrix(self.x),
            "maps": list(self.maps),
            "norm": [own.astype(np.float32) for own in self.norm],
            "eps": self.eps,
            "statistics": [
                each.astype(np.float32) for each in (self.x.mean((0, 1, 2)), self.x.var((0, 1, 2)))
            ],
            "weight": self.weight.astype(np.float32),
        }


@pytest.mark.parametrize(
    ("maps", "inputs", "outputs"), [((2, 4, 6), 3, 2), ((2, 5, 3), 17, 2), ((1, 3, 4), 4, 9)], ids=str
)
@pytest.mark.parametrize("threads", [1, 3])
def test_both_passes(isa: str, maps: tuple[int, int, int], inputs: int, outputs: int, threads: int) -> None:
    case = Transition(maps, inputs, outputs)
    given = case.arguments()
    y = np.full_like(matrix(case.downstream), np.nan)
    training.transition_forward(**given, y=y, isa=isa, threads=threads)
    assert_close(y, case.y(), 1e-5)
    made = {
        "x_gradient": np.full_like(given["x"], np.nan),
        "norm_gradients": [np.full_like(own, np.nan) for own in given["norm"]],
        "weight_gradient": np.full_like(given["weight"], np.nan),
    }
    gradient = matrix(case.downstream)
    training.transition_backward(**given, gradient=gradient, **made, isa=isa, threads=threads)
    assert_close(made["x_gradient"], case.difference(case.x), 1e-4)
    for own, numbers in zip(made["norm_gradients"], case.norm, strict=True):
        assert_close(own, case.difference(numbers), 1e-4)
    assert_close(made["weight_gradient"], case.difference(case.weight), 1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": [2, 4]}, "maps have images, height and width"),
        ({"maps": [2, 4, 4]}, "x must be a matrix of pixels and channels"),
        ({"maps": [1 << 24, 1 << 24, 1 << 24]}, "x must be a matrix of pixels and channels"),
        ({"maps": [1, 1, 24]}, "the maps are too small to pool"),
        ({"norm": [np.ones(2, np.float32)] * 2}, "gamma must hold 3 numbers, not 2"),
        ({"statistics": []}, "wrong number of arguments"),
        ({"statistics": [np.ones(4, np.float32)] * 2}, "mean must hold 3 numbers, not 4"),
        ({"weight": np.ones((2, 4), np.float32)}, "the weights must hold 6 numbers, not 8"),
        ({"weight": np.ones(6, np.float32)}, "wrong number of arguments"),
        ({"y": np.ones((4, 3), np.float32)}, "y must hold 8 numbers"),
        ({"isa": "abacus"}, 'instruction set "abacus"'),
        ({"threads": 0}, "threads must be 1 to 4096"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    case = Transition((2, 4, 3), 3, 2)
    given = {**case.arguments(), "y": matrix(case.downstream), "isa": "", "threads": 1, **change}
    with pytest.raises(ValueError, match=message):
        training.transition_forward(**given)


@pytest.mark.parametrize("name", ["x_gradient", "norm_gradients", "weight_gradient"])
def test_results_never_go_into_a_copy(name: str) -> None:
    case = Transition((2, 4, 3), 3, 2)
    given = case.arguments()
    made = {
        "x_gradient": np.empty_like(given["x"]),
        "norm_gradients": [np.empty_like(own) for own in given["norm"]],
        "weight_gradient": np.empty_like(given["weight"]),
    }
    double = [np.empty(3)] * 2 if name == "norm_gradients" else np.empty(made[name].shape)
    gradient = matrix(case.downstream)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        training.transition_backward(**given, gradient=gradient, **{**made, name: double}, isa="", threads=1)


RUNS_OUT_OF_MEMORY = """
import functools
import resource
import numpy as np
from skipnets_engine import training

def backward(channels, threads):
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal((channels, channels), np.float32) for _ in range(2))
    each = np.ones(channels, np.float32)
    made = np.empty_like(x), [np.empty_like(each), np.empty_like(each)], np.empty_like(weight)
    given = x, [1, 2, channels // 2], [each, each], 1e-5, [each, each], weight, x[: channels // 4]
    return made[0], functools.partial(training.transition_backward, *given, *made, "", threads)

def limit(size):
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))

made, small = backward(32, 1)
large = backward(512, 512)[1]  # each share takes a megabyte
small()
wanted = made.copy()
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
for call, more in ((large, 64 << 20), (small, 0)):
    limit(used + more)
    try:
        call()
    except MemoryError:
        print("no memory")
limit(resource.RLIM_INFINITY)
for _ in range(3):
    small()
    assert (made == wanted).all()
print("and again")
"""

# Vectors of many channels, each in pages of its own: there is room for those of the whole pass, but not for
# those that the members of the team make.
RUNS_OUT_OF_MEMORY_IN_A_TEAM = """
import resource
import numpy as np
from skipnets_engine import training

x = np.random.default_rng(0).standard_normal((4, 1 << 16), np.float32)
each = np.ones(1 << 16, np.float32)
weight, gradient = np.ones((2, 1 << 16), np.float32), np.ones((1, 2), np.float32)
made = np.empty_like(x), [np.empty_like(each), np.empty_like(each)], np.empty_like(weight)

def backward(threads):
    given = x, [1, 2, 2], [each, each], 1e-5, [each, each], weight, gradient
    training.transition_backward(*given, *made, "", threads)

for threads in (1, 2):
    for _ in range(3):
        backward(threads)
    wanted = made[0].copy()
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 20), resource.RLIM_INFINITY))
    try:
        backward(threads)
    except MemoryError:
        print("no memory")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    backward(threads)
    assert (made[0] == wanted).all()
print("and again")
"""


@pytest.mark.skipif(
    sys.platform != "linux" or "san.so" in os.environ.get("LD_PRELOAD", ""),
    reason="limits memory as Linux does, which sanitizers cannot bear",
)
@pytest.mark.parametrize(
    "program", [RUNS_OUT_OF_MEMORY, RUNS_OUT_OF_MEMORY_IN_A_TEAM], ids=["before", "in a team"]
)
def test_memory_that_runs_out_does_no_harm_to_the_next_call(program: str) -> None:
    command = [sys.executable, "-P", "-c", program]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n") == ["no memory", "no memory", "and again", ""], done.stderr
