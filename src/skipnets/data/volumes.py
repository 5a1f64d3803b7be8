"""Signals and volumes: arrays of one size, with one or three spatial axes in place of an image's two.

C channels, L length, D depth, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.data.dataset import ImageDataset
from skipnets.data.raster import Header
from skipnets.errors import UserError

__all__ = ["VolumeDataset", "value_range"]


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumeDataset(ImageDataset):
    """Labeled signals or volumes, held in memory: `images` is (N, L, C) or (N, D, H, W, C).

    The attributes are those of an `ImageDataset`.
    """

    @property
    def dims(self) -> int:
        """Spatial axes."""
        return self._arrays.ndim - 2

    @property
    def sides(self) -> tuple[int, ...]:
        """(L,) or (D, H, W)."""
        return self._arrays.shape[1:-1]

    @property
    def some_headers(self) -> list[Header]:
        """None: only images have any."""
        return []

    @property
    def channels(self) -> int:
        """As many as each position has values."""
        return self._arrays.shape[-1]

    @property
    def bands(self) -> bool:
        """Whether there are others than one or three."""
        return self.channels not in (1, 3)

    @property
    def bits(self) -> int:
        """8 where values are bytes, else more."""
        return 8 * self._arrays.itemsize

    def open(self, index: int) -> Any:  # noqa: ARG002 - of images
        """There is no image to show.

        Raises:
            UserError: Always.
        """
        raise _not_shown()

    def open_reduced(self, index: int, side: int, *, channels: int) -> Any:  # noqa: ARG002 - of images
        """There is no image to show.

        Raises:
            UserError: Always.
        """
        raise _not_shown()

    @property
    def _arrays(self) -> NDArray[Any]:
        assert self.images is not None
        return self.images


def value_range(dataset: VolumeDataset, positions: Sequence[int]) -> tuple[float, float]:
    """The lowest and the highest value of some signals or volumes: what becomes black and white.

    Args:
        dataset: Its values are finite.
        positions: Those that are looked at, at least one.
    """
    found = [np.asarray(dataset.source(position)) for position in positions]
    low = min(float(each.min()) for each in found)
    high = max(float(each.max()) for each in found)
    # Of volumes that are the same all over, any range will do.
    return (low, high) if high - low > abs(high) * 1e-6 else (low - 0.5, low + 0.5 + math.ulp(high))


def _not_shown() -> UserError:
    return UserError("signals and volumes are not shown: only images are")
