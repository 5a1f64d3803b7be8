"""What an image looks like in a few numbers: brightness, contrast, information, sharpness, color.

From thumbnails, so that photographs cost little more than small images, and noise little matters.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipnets.data.copies import LEAST_SIDE
from skipnets.data.dataset import ImageDataset
from skipnets.data.decoding import ImageDecodeError

_SIDE = 128
# Levels between channels that JPEG's compression leaves in an image without color.
_COLORLESS = 8
_AT_ONCE = 512


class Appearance(NamedTuple):
    """What a thumbnail of up to 128×128 pixels looks like.

    Attributes:
        brightest: The gray level that 99% of its pixels do not exceed, 0 to 1.
        darkest: The gray level that 5% of its pixels do not exceed, 0 to 1.
        contrast: Between the gray levels that 1% and 99% of its pixels do not exceed, 0 to 1.
        information: Entropy of its histogram of gray levels, in bits, 0 to 8.
        sharpness: Power of second differences over that of first differences: of white noise 5, of what was
            blurred over r pixels about 1/r². NaN below 16 pixels.
        colorless: Whether it has shades of gray only, whatever its file can hold.
    """

    brightest: float
    darkest: float
    contrast: float
    information: float
    sharpness: float
    colorless: bool


def measure_appearance(
    dataset: ImageDataset, progress: Callable[[int, int], object] | None = None
) -> list[Appearance | ImageDecodeError]:
    """Decode every image and measure it, or say why it cannot be decoded; by four threads.

    Args:
        dataset: Of any size; only numbers are kept.
        progress: Called with the number of images done and their total.
    """
    found: list[Appearance | ImageDecodeError] = []

    def measure(index: int) -> Appearance | ImageDecodeError:
        try:
            return appearance(open_small(dataset, index, _SIDE))
        except ImageDecodeError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(dataset), _AT_ONCE):
            found += pool.map(measure, range(start, min(start + _AT_ONCE, len(dataset))))
            if progress is not None:
                progress(len(found), len(dataset))
    return found


def open_small(dataset: ImageDataset, index: int, side: int) -> Image.Image:
    """An image in RGB whose longer side has at most so many pixels.

    Raises:
        ImageDecodeError: It cannot be read.
    """
    image = dataset.open_reduced(index, side, channels=3)
    scale = side / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(round(length * scale), 1) for length in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def appearance(image: Image.Image) -> Appearance:
    """Measure an image in RGB."""
    pixels = np.asarray(image)
    gray = np.asarray(image.convert("L"))
    shares = np.bincount(gray.ravel(), minlength=256) / gray.size
    cumulated = np.cumsum(shares)
    lowest, low, high = (int(np.searchsorted(cumulated, share - 1e-9)) / 255 for share in (0.01, 0.05, 0.99))
    occurring = shares[shares > 0]
    return Appearance(
        brightest=high,
        darkest=low,
        contrast=high - lowest,
        information=float(-(occurring * np.log2(occurring)).sum()),
        # Smaller ones are too coarse to be called blurred.
        sharpness=_sharpness(gray.astype(np.float32)) if min(gray.shape) >= LEAST_SIDE else float("nan"),
        colorless=float((np.ptp(pixels, axis=2) > _COLORLESS).mean()) <= 0.01,
    )


def _sharpness(gray: NDArray[np.float32]) -> float:
    right, down = np.diff(gray, axis=1), np.diff(gray, axis=0)
    second = np.diff(right, axis=1)[1:-1] + np.diff(down, axis=0)[:, 1:-1]
    # Half a level squared is what rounding leaves where there is nothing else.
    return float((second**2).mean() / ((right**2).mean() + (down**2).mean() + 0.5))
