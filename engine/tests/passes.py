"""What the tests of training passes share: random numbers, slow versions in double precision, differences.

Shapes: N images, H×W positions, C channels; maps are (N, H, W, C) here, as the engine has them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Case(ABC):
    """Random numbers of one operation, and the loss Σ y ⊙ downstream as a function of them.

    Attributes:
        downstream: The gradient of y.
    """

    downstream: Floats

    def __init__(self) -> None:
        self._random = np.random.default_rng(1)

    def normal(self, *size: int) -> Floats:
        """Numbers that single precision holds."""
        return self._random.standard_normal(size).astype(np.float32).astype(np.float64)

    @abstractmethod
    def y(self) -> Floats:
        """The slow and obvious way."""

    def difference(self, numbers: Floats, step: float = 1e-6) -> Floats:
        """The gradient of the loss by some of its numbers, which are changed one by one."""
        gradient = np.empty_like(numbers)
        for index in np.ndindex(numbers.shape):
            before = numbers[index]
            losses = []
            for changed in (before + step, before - step):
                numbers[index] = changed
                losses.append(float((self.y() * self.downstream).sum()))
            gradient[index] = (losses[0] - losses[1]) / (2 * step)
            numbers[index] = before
        return gradient


def convolution(x: Floats, weight: Floats, stride: int = 1) -> Floats:
    """Of (N, H, W, C) with (K, C, s, s), padded by half the kernel's size."""
    size = weight.shape[2]
    around = (size // 2, size // 2)
    bordered = np.pad(x, ((0, 0), around, around, (0, 0)))
    height, width = x.shape[1:3]
    taps = (
        bordered[:, y : y + height : stride, x : x + width : stride] @ weight[:, :, y, x].T
        for y in range(size)
        for x in range(size)
    )
    return np.asarray(sum(taps))


def normed(x: Floats, gamma: Floats, beta: Floats, eps: float) -> Floats:
    """A batch norm."""
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return gamma * (x - mean) / np.sqrt(variance + eps) + beta


def matrix(maps: Floats) -> NDArray[np.float32]:
    """(N, H, W, C) → (N·H·W, C)."""
    return maps.reshape(-1, maps.shape[-1]).astype(np.float32)


def assert_close(own: NDArray[np.float32], wanted: Floats, bound: float) -> None:
    """Up to a share of the largest number."""
    assert np.abs(own.reshape(wanted.shape) - wanted).max() <= bound * max(np.abs(wanted).max(), 1e-2)
