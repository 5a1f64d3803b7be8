"""The nearest others of each image by a descriptor, of the image as it is and mirrored.

All images are compared with all others, in blocks. A mirrored image has the same numbers, but for the signs
of some; so of two products, one over the numbers that keep their sign and one over the others, the sum
compares images as they are, and the difference compares them mirrored. Both are the same from either side,
so half of the blocks do.

N images, C numbers of a descriptor, K nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCK = 512


class Nearest(NamedTuple):
    """The nearest of each image, nearest first.

    Attributes:
        positions: (N, K); -1 where fewer are near enough.
        distances: (N, K); infinite there.
    """

    positions: NDArray[np.int64]
    distances: NDArray[np.float32]


def find_nearest(
    descriptors: NDArray[np.float32],
    turns: NDArray[np.bool_],
    count: int,
    *,
    within: float,
    progress: Callable[[float], object] | None = None,
) -> tuple[Nearest, Nearest]:
    """Find the nearest of every image, which may be itself, and the nearest of every mirrored image.

    Args:
        descriptors: (N, C) of length 1.
        turns: (C,) whether a number changes its sign when the image is mirrored.
        count: K.
        within: The distance below which another counts.
        progress: Called with the share of the work that is done.

    Returns:
        Of the images as they are, and of the mirrored ones among those as they are.
    """
    kept, turned = (np.ascontiguousarray(descriptors[:, which]) for which in (~turns, turns))
    # Of length 1, the distance of images follows from this cosine: |a - b|² = 2 - 2 a·b.
    least = 1 - within**2 / 2
    as_is, mirrored = (_Best(len(descriptors), count, least) for _ in range(2))
    starts = range(0, len(descriptors), _BLOCK)
    for number, start in enumerate(starts):
        for other in starts[number:]:
            rows, columns = slice(start, start + _BLOCK), slice(other, other + _BLOCK)
            same = kept[rows] @ kept[columns].T
            opposite = turned[rows] @ turned[columns].T
            # Few are better than what was found before, one way or the other: those are looked at.
            higher = same + np.abs(opposite)
            lowest = np.minimum(as_is.lowest, mirrored.lowest)
            place = np.flatnonzero(higher > lowest[rows, None])
            row, column = np.divmod(place, higher.shape[1])
            one, two = same.ravel()[place], opposite.ravel()[place]
            as_is.offer(start + row, other + column, one + two)
            mirrored.offer(start + row, other + column, one - two)
            if start == other:
                continue
            place = np.flatnonzero(higher > lowest[columns])
            row, column = np.divmod(place, higher.shape[1])
            one, two = same.ravel()[place], opposite.ravel()[place]
            as_is.offer(other + column, start + row, one + two)
            mirrored.offer(other + column, start + row, one - two)
        if progress is not None:
            progress(1 - (1 - (number + 1) / len(starts)) ** 2)
    return as_is.nearest(), mirrored.nearest()


class _Best:
    """The highest cosines so far of each image.

    Args:
        images: N.
        count: K.
        least: What a cosine must exceed.
    """

    def __init__(self, images: int, count: int, least: float) -> None:
        self.cosines = np.full((images, count), least, dtype=np.float32)
        self.positions = np.full((images, count), -1, dtype=np.int64)

    @property
    def lowest(self) -> NDArray[np.float32]:
        """(N,) what a cosine must exceed to be taken."""
        lowest: NDArray[np.float32] = self.cosines[:, -1]
        return lowest

    def offer(
        self, images: NDArray[np.int64], others: NDArray[np.int64], cosines: NDArray[np.float32]
    ) -> None:
        """Take what is better: (P,) images, with which others they are compared, and the cosines."""
        better = cosines > self.lowest[images]
        if not better.any():
            return
        images, others, cosines = images[better], others[better], cosines[better]
        order = np.lexsort((-cosines, images))
        images, first, owner = np.unique(images[order], return_index=True, return_inverse=True)
        count = self.cosines.shape[1]
        rank = np.arange(len(order)) - first[owner]
        best = rank < count
        order, place = order[best], (owner[best], count + rank[best])
        all_cosines = np.full((len(images), 2 * count), -np.inf, dtype=np.float32)
        all_positions = np.full(all_cosines.shape, -1, dtype=np.int64)
        all_cosines[:, :count], all_positions[:, :count] = self.cosines[images], self.positions[images]
        all_cosines[place], all_positions[place] = cosines[order], others[order]
        highest = np.argsort(-all_cosines, axis=1, kind="stable")[:, :count]
        self.cosines[images] = np.take_along_axis(all_cosines, highest, 1)
        self.positions[images] = np.take_along_axis(all_positions, highest, 1)

    def nearest(self) -> Nearest:
        """The result, as distances."""
        distances = np.sqrt(np.maximum(2 - 2 * self.cosines, 0), dtype=np.float32)
        return Nearest(self.positions, np.where(self.positions < 0, np.float32(np.inf), distances))
