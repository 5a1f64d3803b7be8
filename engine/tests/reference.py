"""Obvious, slow versions of what the engine computes, in double precision.

Shapes: N images, C channels, H height, W width, O output channels, K kernel size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def convolution(x: Array, weight: Array, bias: Array, *, stride: int = 1, dilation: int = 1) -> Array:
    """(N, C, H, W), (O, C, K, K) → (N, O, ⌈H/stride⌉, ⌈W/stride⌉), padded by dilation · (K // 2)."""
    pad = dilation * (weight.shape[2] // 2)
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = -(-x.shape[2] // stride), -(-x.shape[3] // stride)
    out = np.zeros((len(x), len(weight), height, width)) + bias[:, None, None]
    for row in range(height):
        for column in range(width):
            for i in range(weight.shape[2]):
                for j in range(weight.shape[3]):
                    pixel = padded[:, :, row * stride + i * dilation, column * stride + j * dilation]
                    out[:, :, row, column] += pixel @ weight[:, :, i, j].T
    return out


def activation(x: Array, scale: Array, shift: Array) -> Array:
    """relu(scale · x + shift)."""
    return np.maximum(x * scale[:, None, None] + shift[:, None, None], 0)


def means_over_2x2(x: Array) -> Array:
    """(N, C, H, W) → (N, C, ⌊H/2⌋, ⌊W/2⌋)."""
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    x = x[:, :, :height, :width]
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def max_pool(x: Array) -> Array:
    """3×3, stride 2, padding 1."""
    height, width = -(-x.shape[2] // 2), -(-x.shape[3] // 2)
    out = np.empty((*x.shape[:2], height, width))
    for row in range(height):
        for column in range(width):
            seen = x[:, :, max(2 * row - 1, 0) : 2 * row + 2, max(2 * column - 1, 0) : 2 * column + 2]
            out[:, :, row, column] = seen.max(axis=(2, 3))
    return out
