"""Bring a signal or a volume to a network's input size: resized along each axis, cut and padded.

L length, D depth, H height, W width, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipnets.data.decoding import MAX_PIXELS

__all__ = ["AxisFit", "centered", "fit_axes", "fit_volume", "resize_axis"]


class AxisFit(NamedTuple):
    """How one axis becomes the input's.

    Attributes:
        resized: Its length after the resize.
        start: Where the input begins in that; negative where it is padded.
    """

    resized: int
    start: int


def fit_axes(
    sides: Sequence[int],
    spacing: Sequence[float],
    size: Sequence[int],
    fit: str,
    crop_fraction: float = 1.0,
) -> list[AxisFit]:
    """How the axes of a signal or a volume become those of the input.

    Args:
        sides: (L,) or (D, H, W).
        spacing: The distance between neighbors along each axis, by which proportions are kept.
        size: Of the input.
        fit: As of `Preprocessing`.
        crop_fraction: Likewise.
    """
    if fit == "stretch":
        return [AxisFit(wanted, 0) for wanted in size]
    if fit == "center":
        return [AxisFit(side, centered(side, wanted)) for side, wanted in zip(sides, size, strict=True)]
    extents = [side * step for side, step in zip(sides, spacing, strict=True)]
    if fit == "pad":
        scale = min(wanted / extent for wanted, extent in zip(size, extents, strict=True))
        resized = [max(round(extent * scale), 1) for extent in extents]
    else:
        scale = max(wanted / crop_fraction / extent for wanted, extent in zip(size, extents, strict=True))
        resized = [max(round(extent * scale), wanted) for wanted, extent in zip(size, extents, strict=True)]
    return [AxisFit(have, (have - wanted) // 2) for have, wanted in zip(resized, size, strict=True)]


def centered(side: int, wanted: int) -> int:
    """Where the middle of an axis begins, rounded as torchvision's CenterCrop does; negative where padded."""
    start = (side - wanted) / 2
    return round(start) if start > 0 else int(start)


def fit_volume(
    values: NDArray[np.float32],
    axes: Sequence[AxisFit],
    size: Sequence[int],
    *,
    interpolation: Image.Resampling,
    padding: Sequence[float],
) -> NDArray[np.float32]:
    """(…, C) values from 0 to 255 at the input's size.

    Args:
        values: (L, C) or (D, H, W, C).
        axes: From `fit_axes`.
        size: Of the input.
        interpolation: Pillow's, along each axis by itself: "bilinear" is trilinear here, and antialiased.
        padding: (C,) what fills the edges.

    Raises:
        ValueError: It is so elongated that the resized one is too large.
    """
    if math.prod(axis.resized for axis in axes) > MAX_PIXELS:
        raise ValueError(f"too elongated to be cut to {'×'.join(map(str, size))}")
    # What shrinks most comes first.
    order = sorted(range(len(axes)), key=lambda axis: axes[axis].resized / values.shape[axis])
    for axis in order:
        values = resize_axis(values, axis, axes[axis].resized, interpolation)
    if all(axis == AxisFit(wanted, 0) for axis, wanted in zip(axes, size, strict=True)):
        return values
    canvas = np.empty((*size, values.shape[-1]), dtype=np.float32)
    canvas[...] = np.asarray(padding, dtype=np.float32)
    seen = tuple(
        slice(max(axis.start, 0), max(axis.start + wanted, 0))
        for axis, wanted in zip(axes, size, strict=True)
    )
    part = values[seen]
    places = tuple(
        slice(max(-axis.start, 0), max(-axis.start, 0) + side)
        for axis, side in zip(axes, part.shape, strict=False)
    )
    canvas[places] = part
    return canvas


def resize_axis(
    values: NDArray[np.float32], axis: int, length: int, interpolation: Image.Resampling
) -> NDArray[np.float32]:
    """Values from 0 to 255 with another length along one axis, resized by Pillow."""
    before = values.shape[axis]
    if before == length:
        return values
    last = np.moveaxis(values, axis, -1)
    resized = np.empty((*last.shape[:-1], length), dtype=np.float32)
    for part, result in zip(last, resized, strict=True):  # the copies in between are small
        lines = np.ascontiguousarray(part, dtype=np.float32).reshape(-1, before)
        done = np.asarray(Image.fromarray(lines).resize((length, len(lines)), interpolation))
        result[...] = done.reshape(result.shape)
    # Bicubic and Lanczos overshoot at edges.
    return np.moveaxis(resized.clip(0, 255, out=resized), -1, axis)
