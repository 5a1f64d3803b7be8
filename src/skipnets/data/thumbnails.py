"""Small gray versions of a dataset's images, many at a time: what copies are looked for among.

N images, S side of a thumbnail.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipnets.data.decoding import ImageDecodeError
from skipnets.machine import usable_cores

if TYPE_CHECKING:
    from skipnets.data.dataset import ImageDataset

_IMAGES_AT_ONCE = 64
# Files of up to so many bytes are read at once: a JPEG that small is decoded in a tenth of Pillow's time.
_SMALL_FILE = 65_536
# From so many times the side on, JPEGs are decoded at half their size or less (see `open_region`).
_FINENESS = 4
_MOST_PIXELS = 1024
_COLORS = ("YCbCr", "Gray")
# EXIF and XMP say how an image is turned.
_WORDS_OF_TURNING = (b"Exif", b"tiff:Orientation")


def gray_thumbnails(
    dataset: ImageDataset,
    positions: NDArray[np.int64],
    side: int,
    *,
    at_least: int,
    progress: Callable[[float], object] | None = None,
) -> NDArray[np.uint8]:
    """(N, S, S) gray; zeros for images that are too small or cannot be read.

    Args:
        dataset: The images.
        positions: (N,) which of them.
        side: S.
        at_least: The pixels that an image must have on each side.
        progress: Called with the share of the images that is done.
    """
    found = np.zeros((len(positions), side, side), dtype=np.uint8)

    def fill(start: int) -> int:
        part = positions[start : start + _IMAGES_AT_ONCE].tolist()
        for row, position in enumerate(part, start):
            image = gray_thumbnail(dataset, position, side, at_least=at_least)
            if image is not None:
                found[row] = image
        return start + len(part)

    with ThreadPoolExecutor(min(4, usable_cores())) as pool:
        for done in pool.map(fill, range(0, len(positions), _IMAGES_AT_ONCE)):
            if progress is not None:
                progress(done / len(positions))
    return found


def gray_thumbnail(
    dataset: ImageDataset, position: int, side: int, *, at_least: int
) -> NDArray[np.uint8] | None:
    """(S, S) an image in gray; None if it has fewer pixels a side than `at_least`, or cannot be read."""
    source = dataset.source(position)
    image = _small_jpeg(source, side) if isinstance(source, Path) else None
    if image is None:
        try:
            image = dataset.open_reduced(position, side, channels=1)
        except ImageDecodeError:
            return None
    if min(image.size) < at_least:
        return None
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _small_jpeg(path: Path, side: int) -> Image.Image | None:
    """What `ImageDataset.open_reduced` makes of a small and ordinary JPEG, pixel by pixel, but faster.

    None for everything else: other formats, large ones, those that say how they are turned, and any doubt.
    """
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return None
    try:
        from simplejpeg import decode_jpeg, decode_jpeg_header
    except ImportError:  # in the core installation
        return None
    with contextlib.suppress(OSError, ValueError):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _SMALL_FILE:
            return None
        data = path.read_bytes()
        if any(word in data for word in _WORDS_OF_TURNING):
            return None
        height, width, colors, _ = decode_jpeg_header(data)
        if min(height, width) < _FINENESS * side and max(height, width) <= _MOST_PIXELS and colors in _COLORS:
            return Image.fromarray(decode_jpeg(data, colorspace="GRAY")[..., 0])
    return None
