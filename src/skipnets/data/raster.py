"""What the readers of images with more than 8 bits, or other than 1 or 3 channels, have in common.

H height, W width, C channels. Values are as a file means them, in its own units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NO_SUCH_PAGE = "there is no such page"
# ITU-R BT.601, as in Pillow.
_LUMA = np.array([0.299, 0.587, 0.114])
_BAND_ROWS = 256


@dataclass(frozen=True)
class Header:
    """What an image's header says.

    Attributes:
        width: Of the upright image, in pixels; of a PNG, as stored.
        height: Likewise.
        channels: 1 for gray, 3 for color, else the number of bands.
        bits: Of each channel, as stored.
        format: Such as "JPEG".
        several: Whether the file holds further pages, frames or slices.
        display_window: Whether the file says which values are shown black and white (DICOM's VOI LUT).
    """

    width: int
    height: int
    channels: int
    bits: int
    format: str
    several: bool
    display_window: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Values:
    """The values of an upright image.

    Attributes:
        array: (H, W, C) numbers of any type; NaN where there is no value.
        bits: How many a value has in the file; with up to 8, values run from 0 (black) to 255 (white).
        white_is_low: Whether the lowest value is shown white.
        alpha: Whether the last channel is how opaque a pixel is.
        premultiplied: Whether the others have been multiplied by it (TIFF's associated alpha).
    """

    array: NDArray[Any]
    bits: int
    white_is_low: bool = False
    alpha: bool = False
    premultiplied: bool = False


@dataclass(frozen=True, eq=False)
class WindowedImage:
    """An upright image at its own resolution, windowed for a model: what a PIL image cannot hold.

    Args:
        values: (H, W, C) float32 from 0 (black) to 255 (white).
        as_displayed: Whether the image has 8 bits, unlike those that the model was trained on, and its values
            were taken as they are.
    """

    values: NDArray[np.float32]
    as_displayed: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as of a PIL image."""
        return self.values.shape[1], self.values.shape[0]

    def shown(self, channels: Sequence[int] = (0, 1, 2)) -> Image.Image:
        """The image in 8 bits: gray, or color from three of its channels."""
        levels = np.rint(self.values).astype(np.uint8)
        if levels.shape[2] < 3:
            return Image.fromarray(levels[:, :, 0])
        return Image.fromarray(np.ascontiguousarray(levels[:, :, list(channels)]))


class RasterFile(Protocol):
    """An open file of images that Pillow does not read.

    Attributes:
        header: Of its first image.
        pages: How many images it holds.
    """

    header: Header
    pages: int

    def read(self, page: int | None, channels: int | None) -> Values:
        """An image of it.

        Args:
            page: Counted from 0; None for the one that stands for the file.
            channels: How many are wanted, where the file leaves open what its channels are; None for unknown.
        """

    def close(self) -> None:
        """Close what was opened for it."""


def fit_channels(values: Values, channels: int | None) -> Values:
    """The image with this many channels: gray fills three, three become gray by luma, alpha is laid on white.

    Args:
        values: Any image.
        channels: How many; None leaves gray, color and bands as they are, without alpha.

    Raises:
        ValueError: Bands cannot become others.
    """
    array, have = values.array, values.array.shape[2]
    if have == channels:
        return values
    if values.alpha:
        opaque = Values(array=_on_white(values), bits=values.bits, white_is_low=values.white_is_low)
        return fit_channels(opaque, channels)
    if channels is None:
        return values
    if have == 1 and channels == 3:
        fitted = np.repeat(array, 3, axis=2)
    elif have == 3 and channels == 1:
        luma = array @ _LUMA
        whole = np.issubdtype(array.dtype, np.integer)
        fitted = (np.rint(luma).astype(array.dtype) if whole else luma)[:, :, None]
    else:
        raise ValueError(f"has {have} channels where {channels} are expected")
    return Values(array=fitted, bits=values.bits, white_is_low=values.white_is_low)


def _on_white(values: Values) -> NDArray[Any]:
    """The array without its alpha, in bands of rows, as floats take several times the memory."""
    array, top = values.array, 2 ** max(values.bits, 8) - 1
    white = 0 if values.white_is_low else top
    laid = np.empty_like(array[:, :, :-1])
    for start in range(0, len(array), _BAND_ROWS):
        band = array[start : start + _BAND_ROWS]
        opacity = band[:, :, -1:] / top
        color = band[:, :, :-1] if values.premultiplied else band[:, :, :-1] * opacity
        laid[start : start + _BAND_ROWS] = np.rint(np.minimum(color + white * (1 - opacity), top))
    return laid


def eight_bits(stored: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Values of up to 8 bits from 0 (black) to 255 (white), rounded; what is beyond is black or white.

    Args:
        stored: Integers of any type.
        bits: How many a value has.
    """
    top = 2**bits - 1
    return np.rint(np.clip(stored, 0, top) * (255 / top)).astype(np.uint8)


def turn_upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(H, W, …) pixels, stored in one of EXIF's eight orientations, upright."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
        orientation = {5: 1, 6: 2, 7: 3, 8: 4}[orientation]
    if orientation in (2, 3):
        array = array[:, ::-1]
    if orientation in (3, 4):
        array = array[::-1]
    return array


def check_page(page: int, pages: int) -> int:
    """A page that is there.

    Raises:
        ValueError: There is none of this number.
    """
    if not 0 <= page < pages:
        raise ValueError(NO_SUCH_PAGE)
    return page


def check_size(count: int, most: int) -> None:
    """Refuse more pixels than are decoded, before they take memory.

    Raises:
        TooLargeError: There are more.
    """
    if count > most:
        raise TooLargeError


class TooLargeError(ValueError):
    """An image has more pixels than are read."""
