"""Lay one image on another: the scale and shift at which they agree, and how far they are apart there.

By the least squares of Lucas and Kanade (1981), with gain and offset for brightness.

P pairs, S side of an image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_TERMS = 5  # gain, scale, shift to the right, shift down, offset


def unmoved(pairs: int) -> NDArray[np.float32]:
    """(P, 3) the placement of images that lie on one another as they are."""
    return np.tile(np.array([1, 0, 0], dtype=np.float32), (pairs, 1))


def align(
    moving: NDArray[np.floating], fixed: NDArray[np.floating], placement: NDArray[np.float32], *, steps: int
) -> NDArray[np.float32]:
    """Gauss-Newton steps towards the scale and shift at which the moving images equal the fixed ones.

    Args:
        moving: (P, S, S).
        fixed: (P, S, S).
        placement: (P, 3): scale, shift to the right, shift down; the image reaches from -1 to 1.
        steps: How many.

    Returns:
        The placement, improved.
    """
    count, side, _ = moving.shape
    across = _centers(side)
    down, right = np.gradient(moving, 2 / side, axis=(1, 2))
    # (P, S, 3, S): so laid out, the image and its slopes are resampled by one product each way.
    laid_out = np.stack([moving, right, down], axis=2).reshape(count, side, -1)
    terms = np.ones((count, _TERMS, side, side), dtype=np.float32)
    flat = terms.reshape(count, _TERMS, -1)
    for _ in range(steps):
        rows, columns, inside = resampling(placement, side)
        resampled = ((rows @ laid_out).reshape(count, -1, side) @ columns).reshape(count, side, 3, side)
        terms[:, [0, 2, 3]] = resampled.transpose(0, 2, 1, 3)
        terms[:, 1] = terms[:, 2] * across + terms[:, 3] * across[:, None]
        # fixed ≈ gain · (image + slopes · change of placement) + offset, solved by least squares.
        weighted = flat * inside.reshape(count, 1, -1)
        normal = weighted @ flat.transpose(0, 2, 1)
        ridge = 1e-5 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-6
        moments = weighted @ fixed.reshape(count, -1, 1)
        solution = np.linalg.solve(normal.astype(np.float64) + ridge * np.eye(_TERMS), moments)[..., 0]
        gain = np.maximum(np.abs(solution[:, :1]), 0.2)
        change = np.clip(solution[:, 1:4] / gain, -0.1, 0.1).astype(np.float32)
        placement = np.clip(placement + change, (0.8, -0.25, -0.25), (1.25, 0.25, 0.25)).astype(np.float32)
    return placement


def aligned_distance(
    moving: NDArray[np.floating], fixed: NDArray[np.floating], placement: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(P,) between the aligned images at half their side, each with mean 0 and length 1 where both are."""
    rows, columns, inside = resampling(placement, moving.shape[1])
    alike = correlation(halved(rows @ moving @ columns), halved(fixed), halved(inside) == 1)
    distance: NDArray[np.float32] = np.sqrt(np.maximum(2 - 2 * alike, 0))
    return distance


def correlation(
    one: NDArray[np.floating], other: NDArray[np.floating], common: NDArray[np.bool_]
) -> NDArray[np.floating]:
    """(P, S, S), (P, S, S) → (P,) Pearson's correlation over the pixels that count."""
    area = np.maximum(common.sum((1, 2), keepdims=True), 1)

    def centered(images: NDArray[np.floating]) -> NDArray[np.floating]:
        shared = images * common
        return (shared - shared.sum((1, 2), keepdims=True) / area) * common

    one, other = centered(one), centered(other)
    lengths = np.sqrt((one**2).sum((1, 2)) * (other**2).sum((1, 2)))
    alike: NDArray[np.floating] = (one * other).sum((1, 2)) / np.maximum(lengths, 1e-6)
    return alike


def resampling(
    placement: NDArray[np.float32], side: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Matrices that resample rows (P, S, S) and columns (P, S, S) bilinearly, and where that is inside."""
    across = _centers(side)
    x = placement[:, :1] * across + placement[:, 1:2]
    y = placement[:, :1] * across + placement[:, 2:3]
    inside = (np.abs(y) <= 1)[:, :, None] & (np.abs(x) <= 1)[:, None, :]
    pixels = np.arange(side, dtype=np.float32)
    half = np.float32(side / 2)
    rows, columns = (
        np.maximum(1 - np.abs(np.clip((at + 1) * half - 0.5, 0, side - 1)[..., None] - pixels), 0)
        for at in (y, x)
    )
    return rows, columns.transpose(0, 2, 1), inside.astype(np.float32)


def halved(images: NDArray[np.floating]) -> NDArray[np.floating]:
    """(P, S, S) → (P, S/2, S/2), the means of 2×2 pixels."""
    top, bottom = images[:, ::2], images[:, 1::2]
    means: NDArray[np.floating] = (top[..., ::2] + top[..., 1::2] + bottom[..., ::2] + bottom[..., 1::2]) / 4
    return means


def _centers(side: int) -> NDArray[np.float32]:
    """Where the centers of a row's pixels lie between -1 and 1."""
    return ((2 * np.arange(side) + 1) / side - 1).astype(np.float32)
