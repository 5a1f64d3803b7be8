"""TIFF files that Pillow does not read, or not with all their bits, through tifffile.

H height, W width, C channels.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skipnets.data.raster import Header, Values, check_page, check_size, eight_bits, turn_upright
from skipnets.errors import install_command

_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Of the tag ExtraSamples; colors have been multiplied by associated alpha.
_ASSOCIATED, _UNASSOCIATED = 1, 2


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a TIFF file."""
    return head[:4] in _MAGICS


@functools.cache
def can_read_all_tiff() -> bool:
    """Whether tifffile is there."""
    return importlib.util.find_spec("tifffile") is not None


class TiffRaster:
    """An open TIFF file; a `RasterFile`. A page is an image, with all of its samples as channels.

    Args:
        file: Open for reading; it stays open.
        max_pixels: The most that a page may have.

    Raises:
        ValueError: tifffile is not installed, or the first page is no image of numbers.
    """

    def __init__(self, file: BinaryIO, *, max_pixels: int) -> None:
        if not can_read_all_tiff():
            remedy = install_command("science")
            raise ValueError(f"a TIFF file of bands, separate planes or many bits; to read it: {remedy}")
        import tifffile

        file.seek(0)
        self._file = tifffile.TiffFile(file)
        self._max_pixels = max_pixels
        self.pages = len(self._file.pages)
        page = self._page(0)
        samples = int(page.samplesperpixel)
        turned = self._orientation(page) >= 5
        height, width = int(page.imagelength), int(page.imagewidth)
        self.header = Header(
            width=height if turned else width,
            height=width if turned else height,
            channels=samples - 1 if samples in (2, 4) and self._has_alpha(page) else samples,
            bits=_bits(page),
            format="TIFF",
            several=self.pages > 1,
        )

    def read(self, page: int | None, channels: int | None) -> Values:
        """One page; or all of them as bands, where there are as many as channels are wanted."""
        first = self._page(check_page(page or 0, self.pages))
        bands = channels not in (None, 1, 3) and page is None and first.samplesperpixel == 1
        if bands and self.pages == channels:
            parts = [self._values(self._page(number)) for number in range(self.pages)]
            if len({part.shape for part in parts}) > 1:
                raise ValueError("its pages differ in size, so they are not bands of one image")
            array = np.concatenate(parts, axis=2)
        else:
            array = self._values(first)
        alpha = self._has_alpha(first) and array.shape[2] in (2, 4) and array.dtype.kind == "u"
        white_is_low = int(first.photometric) == 0
        if first.dtype.kind == "b":
            array = array.astype(np.uint8) * np.uint8(255)
        elif array.dtype == np.uint8 and _bits(first) < 8:
            array = eight_bits(array, _bits(first))
        return Values(
            array=array,
            bits=_bits(first),
            white_is_low=white_is_low,
            alpha=alpha,
            premultiplied=alpha and _ASSOCIATED in _extra_samples(first),
        )

    def close(self) -> None:
        """Forget the file, which is the caller's."""
        self._file.close()

    def _page(self, number: int) -> Any:
        page: Any = self._file.pages[number]
        check_size(int(page.imagelength) * int(page.imagewidth), self._max_pixels)
        check_size(math.prod(page.shape), 12 * self._max_pixels)
        if page.dtype is None or page.dtype.kind not in "biuf":
            raise ValueError("a TIFF file of something else than numbers")
        if int(page.photometric) not in (0, 1, 2):
            raise ValueError(f"a TIFF file of {page.photometric.name} with {_bits(page)} bits")
        if page.imagedepth > 1:
            raise ValueError("a TIFF file of volumes; its slices must be pages")
        return page

    def _values(self, page: Any) -> NDArray[Any]:
        """(H, W, C), upright."""
        samples, height, width = int(page.samplesperpixel), int(page.imagelength), int(page.imagewidth)
        array: NDArray[Any] = page.asarray()
        separate = int(page.planarconfig) == 2 and samples > 1
        shape = (samples, height, width) if separate else (height, width, samples)
        array = array.reshape(shape)
        array = np.moveaxis(array, 0, 2) if separate else array
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        return turn_upright(array, self._orientation(page))

    @staticmethod
    def _orientation(page: Any) -> int:
        tag = page.tags.get(274)
        return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1

    @staticmethod
    def _has_alpha(page: Any) -> bool:
        return not {_ASSOCIATED, _UNASSOCIATED}.isdisjoint(_extra_samples(page))


def _extra_samples(page: Any) -> list[int]:
    """What the samples of a pixel beyond those of its color are."""
    return [int(extra) for extra in page.extrasamples]


def _bits(page: Any) -> int:
    """Of a value in the file; of signed bytes 16, as they do not run from black to white."""
    bits = page.bitspersample
    stored = int(max(bits) if isinstance(bits, tuple) else bits)
    return max(stored, 16) if page.dtype.kind == "i" or page.dtype.kind == "f" else stored
