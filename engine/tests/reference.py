"""Obvious, slow versions of what the engine computes, in double precision.

Shapes: N batch, C channels, H height, W width, O output channels, K kernel size; h, w height and width made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def convolution(
    x: Array,
    weight: Array,
    bias: Array,
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: int | None = None,
    groups: int = 1,
) -> Array:
    """(N, C, H, W), (O, C / groups, K, K) → (N, O, h, w); by default padded by dilation · (K // 2)."""
    kernel = weight.shape[2]
    pad = dilation * (kernel // 2) if padding is None else padding
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = ((side - dilation * (kernel - 1) - 1) // stride + 1 for side in padded.shape[2:])
    inputs, outputs = weight.shape[1], len(weight) // groups
    out = np.zeros((len(x), len(weight), height, width)) + bias[:, None, None]
    for group in range(groups):
        reads = slice(group * inputs, (group + 1) * inputs)
        writes = slice(group * outputs, (group + 1) * outputs)
        for i in range(kernel):
            for j in range(kernel):
                rows = slice(i * dilation, i * dilation + (height - 1) * stride + 1, stride)
                columns = slice(j * dilation, j * dilation + (width - 1) * stride + 1, stride)
                pixels = padded[:, reads, rows, columns]
                out[:, writes] += np.einsum("nchw,oc->nohw", pixels, weight[writes, :, i, j])
    return out


def activation(x: Array, scale: Array, shift: Array) -> Array:
    """relu(scale · x + shift)."""
    return np.maximum(x * scale[:, None, None] + shift[:, None, None], 0)


def means_over_2x2(x: Array) -> Array:
    """(N, C, H, W) → (N, C, ⌊H/2⌋, ⌊W/2⌋)."""
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    x = x[:, :, :height, :width]
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def pool(x: Array, mode: str, kernel: int, stride: int, padding: int) -> Array:
    """A window's maximum, or its mean with the padding as zeros."""
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[2:])
    out = np.empty((*x.shape[:2], height, width))
    for row in range(height):
        for column in range(width):
            top, left = row * stride - padding, column * stride - padding
            seen = x[:, :, max(top, 0) : top + kernel, max(left, 0) : left + kernel]
            out[:, :, row, column] = (
                seen.max(axis=(2, 3)) if mode == "max" else seen.sum(axis=(2, 3)) / kernel**2
            )
    return out


def blur(x: Array) -> Array:
    """(1, 2, 1)/4 in both directions over the mirrored map, of every second pixel."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    x = (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:])[:, :, ::2] / 4
    return (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:])[..., ::2] / 4


def cell_mean(x: Array) -> Array:
    """Means over cells of 2×2, of which the last may hold one row or column."""
    rows = [x[:, :, y : y + 2].mean(2) for y in range(0, x.shape[2], 2)]
    halved = np.stack(rows, 2)
    return np.stack([halved[..., i : i + 2].mean(-1) for i in range(0, x.shape[3], 2)], -1)


def normalized(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    """x minus its mean, over its standard deviation, along some axes."""
    variance = x.var(axis=axes, keepdims=True)
    return np.asarray((x - x.mean(axis=axes, keepdims=True)) / np.sqrt(variance + eps))


_erf = np.vectorize(math.erf)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
}


def _convolution(operation: Any, inputs: list[Array], tensors: dict[str, Array]) -> Array:
    return convolution(
        inputs[0],
        tensors["weight"],
        tensors.get("bias", np.zeros(operation.out_channels)),
        stride=operation.stride,
        dilation=operation.dilation,
        padding=operation.padding,
        groups=operation.groups,
    )


def _standardized(operation: Any, inputs: list[Array], tensors: dict[str, Array]) -> Array:
    weight = normalized(tensors["weight"], (1, 2, 3), operation.eps)
    return _convolution(operation, inputs, tensors | {"weight": weight})


def _border(operation: Any, inputs: list[Array], tensors: dict[str, Array]) -> Array:
    width = (operation.padding, operation.padding)
    return np.pad(inputs[0], ((0, 0), (0, 0), width, width))


def _norm(operation: Any, inputs: list[Array], tensors: dict[str, Array]) -> Array:
    x = inputs[0]

    def each(name: str) -> Array:
        return tensors[name].reshape(-1, *[1] * (x.ndim - 2))

    if operation.norm == "layer2d":
        return normalized(x, (1,), operation.eps) * each("weight") + each("bias")
    if operation.norm in ("group", "instance"):
        groups = operation.groups if operation.norm == "group" else x.shape[1]
        grouped = x.reshape(len(x), groups, -1)
        return normalized(grouped, (2,), operation.eps).reshape(x.shape) * each("weight") + each("bias")
    if operation.norm == "filter-response":
        mean_square = (x**2).mean(axis=(2, 3), keepdims=True)
        return np.asarray(x / np.sqrt(mean_square + operation.eps) * each("weight") + each("bias"))
    if operation.norm == "evonorm-s0":
        variance = x.reshape(len(x), operation.groups, -1).var(axis=2)
        deviation = np.sqrt(variance + operation.eps).repeat(x.shape[1] // operation.groups, axis=1)
        swish = x / (1 + np.exp(-each("v") * x))
        return np.asarray(swish / deviation[:, :, None, None] * each("weight") + each("bias"))
    deviation = np.sqrt(each("running_var") + operation.eps)
    return (x - each("running_mean")) / deviation * each("weight") + each("bias")


def _along_channels(operation: Any, inputs: list[Array], tensors: dict[str, Array]) -> Array:
    taps = tensors["weight"][0, 0]
    half, channels = len(taps) // 2, inputs[0].shape[1]
    out = np.zeros_like(inputs[0])
    for tap, weight in enumerate(taps):
        for channel in range(channels):
            if 0 <= channel + tap - half < channels:
                out[:, channel] += weight * inputs[0][:, channel + tap - half]
    return out


def _global_pool(operation: Any, inputs: list[Array], tensors: dict[str, Array]) -> Array:
    largest, mean = inputs[0].max(axis=(2, 3)), inputs[0].mean(axis=(2, 3))
    if operation.mode == "catavgmax":
        return np.concatenate([mean, largest], axis=1)
    return largest if operation.mode == "max" else (mean + largest) / 2


def _pad(operation: Any, inputs: list[Array], tensors: dict[str, Array]) -> Array:
    others = [(0, 0)] * (inputs[0].ndim - 2)
    return np.pad(inputs[0], ((0, 0), (operation.before, operation.after), *others))


# By the kind of a graph's operation: (operation, inputs, tensors) → output.
OPERATIONS: dict[str, Callable[[Any, list[Array], dict[str, Array]], Array]] = {
    "convolution": _convolution,
    "standardized convolution": _standardized,
    "border": _border,
    "norm": _norm,
    "activation": lambda operation, inputs, tensors: ACTIVATIONS[operation.function](inputs[0]),
    "squeeze": lambda operation, inputs, tensors: inputs[0].mean(axis=(2, 3), keepdims=True),
    "multiply": lambda operation, inputs, tensors: inputs[0] * inputs[1],
    "scale": lambda operation, inputs, tensors: inputs[0] * tensors["scale"][:, None, None],
    "affine": lambda operation, inputs, tensors: (
        inputs[0] * tensors["weight"][:, None, None] + tensors["bias"][:, None, None]
    ),
    "threshold": lambda operation, inputs, tensors: np.maximum(inputs[0], tensors["tau"][:, None, None]),
    "channel convolution": _along_channels,
    "global pool": _global_pool,
    "blur": lambda operation, inputs, tensors: blur(inputs[0]),
    "cell mean": lambda operation, inputs, tensors: cell_mean(inputs[0]),
    "pool": lambda operation, inputs, tensors: pool(
        inputs[0], operation.mode, operation.kernel, operation.stride, operation.padding
    ),
    "pad": _pad,
    "concatenate": lambda operation, inputs, tensors: np.concatenate(inputs, axis=1),
    "add": lambda operation, inputs, tensors: inputs[0] + inputs[1],
    "dropout": lambda operation, inputs, tensors: inputs[0],
    "mean": lambda operation, inputs, tensors: inputs[0].mean(axis=(2, 3)),
    "linear": lambda operation, inputs, tensors: inputs[0] @ tensors["weight"].T + tensors["bias"],
}
