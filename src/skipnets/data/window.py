"""Which values of a dataset are to be shown black and white, where its images have more than 8 bits.

H height, W width, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skipnets.data.dataset import ImageDataset
from skipnets.data.decoding import ImageDecodeError, none_decoded
from skipnets.errors import UserError, listed

PERCENTILES = (0.5, 99.5)
# So many values of an image, over all channels, show its distribution well enough; at least so many pixels.
_VALUES_AN_IMAGE, _PIXELS_AN_IMAGE = 16_384, 256
# Bits of common detectors; a class whose images never use more than one of these may be of another source.
_DEPTHS = (8, 10, 12, 14, 16)
# As from 8 to 12 or from 12 to 16: by less, what is bright in one class may account for it.
_DEPTH_STEP = 4


@dataclass(frozen=True, kw_only=True)
class MeasuredWindow:
    """The window of a dataset.

    Attributes:
        window: (low, high) of each channel.
        percentiles: Which they are.
        lowest: The lowest finite value of all pixels of the images that were looked at; 0 without any.
        highest: The highest; likewise.
        warnings: What may make results wrong.
    """

    window: tuple[tuple[float, float], ...]
    percentiles: tuple[float, float]
    lowest: float
    highest: float
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        pairs = listed(dict.fromkeys(f"{low:g} to {high:g}" for low, high in self.window), 4)
        low, high = self.percentiles
        return f"{self.lowest:g} to {self.highest:g}; {low:g} and {high:g} percentiles {pairs}"

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values for JSON."""
        return {
            "lowest": self.lowest,
            "highest": self.highest,
            "percentiles": list(self.percentiles),
            "window": [list(pair) for pair in self.window],
        }


class _Sample(NamedTuple):
    """What was seen of an image.

    Attributes:
        position: Which image it is.
        values: (N, C) of pixels all over it.
        lowest: (C,) the lowest finite values of all its pixels; infinity where there is none.
        highest: (C,) the highest; minus infinity.
    """

    position: int
    values: NDArray[np.float64]
    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]


def measure_window(
    dataset: ImageDataset,
    positions: Sequence[int],
    *,
    channels: int,
    percentiles: tuple[float, float] = PERCENTILES,
) -> MeasuredWindow:
    """Find the percentiles of the values of some images.

    Every image counts alike. NaN and infinities do not count, nor do images of 8 bits among deeper ones.
    The channels of color images have one window, so that colors stay; bands and arrays have one each.

    Args:
        dataset: The training images.
        positions: Those that are looked at.
        channels: As many as the model takes.
        percentiles: Lower and upper.

    Raises:
        UserError: The percentiles are impossible, or none of the images can be read.
    """
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise UserError(
            f"percentiles={low:g} {high:g}: must be two numbers from 0 to 100, the lower one first"
        )
    most = dataset.bits
    wanted = max(_VALUES_AN_IMAGE // channels, _PIXELS_AN_IMAGE)

    def read(position: int) -> _Sample | ImageDecodeError | None:
        try:
            values = dataset.values(position, channels)
        except ImageDecodeError as error:
            return error
        if values.bits <= 8 < most:
            return None
        pixels = values.array.reshape(-1, channels)
        return _Sample(
            position, _spread(pixels, wanted, seed=position).astype(np.float64), *_extremes(pixels)
        )

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, positions))
    samples = [sample for sample in found if isinstance(sample, _Sample)]
    if not samples:
        first = next((error for error in found if isinstance(error, ImageDecodeError)), None)
        raise none_decoded(len(positions), first, dims=dataset.dims)
    pooled = np.concatenate([sample.values for sample in samples])
    formats = {header.format for header in dataset.some_headers}
    by_channel = channels not in (1, 3) or formats <= {"NPY", "NPZ", "array"}
    columns = list(pooled.T) if by_channel else [pooled.ravel()]
    lowest = np.min([sample.lowest for sample in samples], axis=0)
    highest = np.max([sample.highest for sample in samples], axis=0)
    extremes = list(zip(lowest, highest, strict=True)) if by_channel else [(lowest.min(), highest.max())]
    windows = [
        _window(column[np.isfinite(column)], percentiles, pair)
        for column, pair in zip(columns, extremes, strict=True)
    ]
    finite = pooled[np.isfinite(pooled)]
    whole = bool((finite == np.rint(finite)).all())
    known = bool(np.isfinite(lowest).any())
    return MeasuredWindow(
        window=tuple(windows if by_channel else windows * channels),
        percentiles=percentiles,
        lowest=float(lowest.min()) if known else 0.0,
        highest=float(highest.max()) if known else 0.0,
        warnings=tuple(_depth_warnings(dataset, samples)) if whole else (),
    )


def _spread(pixels: NDArray[Any], count: int, *, seed: int) -> NDArray[Any]:
    """(N, C) → (count, C): of as many runs of equal length, one pixel each at random; all if there are fewer.

    A fixed step would see only a few columns of an image wherever it and the width have a common divisor.
    """
    if len(pixels) <= count:
        return pixels
    places = (np.arange(count) + np.random.default_rng(seed).random(count)) * (len(pixels) / count)
    return pixels[np.minimum(places.astype(np.int64), len(pixels) - 1)]


def _extremes(pixels: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, C) → (C,), (C,): the lowest and highest finite values."""
    if pixels.dtype.kind != "f":
        return pixels.min(0).astype(np.float64), pixels.max(0).astype(np.float64)
    known = np.isfinite(pixels)
    lowest = pixels.min(0, initial=np.inf, where=known)
    highest = pixels.max(0, initial=-np.inf, where=known)
    return lowest.astype(np.float64), highest.astype(np.float64)


def _window(
    values: NDArray[np.float64], percentiles: tuple[float, float], extremes: tuple[float, float]
) -> tuple[float, float]:
    """The percentiles; where they are equal, the extremes; where these are, half a unit around them."""
    if not values.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, percentiles))
    if low == high:
        low, high = (float(value) for value in extremes)
    if low == high:
        half = max(0.5, abs(low) * 2.0**-20)  # far above what float64 tells apart
        return low - half, high + half
    # As many digits as a ten-thousandth of the range.
    digits = 4 - math.floor(math.log10(high - low))
    return round(low, digits), round(high, digits)


def _depth_warnings(dataset: ImageDataset, samples: Sequence[_Sample]) -> list[str]:
    """A class whose values never reach beyond 8, 10, … bits, while all images of another do.

    Values below 0 are in units of their own, such as Hounsfield's, and not those of a detector.
    """
    if dataset.task != "single-label" or any(sample.lowest.min() < 0 for sample in samples):
        return []
    depths: dict[int, list[int]] = {}
    for sample in samples:
        depth = next((bits for bits in _DEPTHS if sample.highest.max() < 2**bits), 32)
        depths.setdefault(int(dataset.labels[sample.position]), []).append(depth)
    known = {label: found for label, found in depths.items() if len(found) >= 3}
    for low, found in sorted(known.items()):
        for high, others in sorted(known.items()):
            if max(found) + _DEPTH_STEP <= min(others):
                return [
                    f'the values of "{dataset.classes[low]}" stay below {2 ** max(found):,} and those of '
                    f'"{dataset.classes[high]}" do not: if the images differ in how many bits were used, the '
                    "model will learn that instead of what they show"
                ]
    return []
