"""How much memory decoded images may take, over all threads that read images.

A file of a hundred bytes can declare an image of gigabytes. So a reader asks for the memory that the header
implies before it decodes, and waits until other readers have given back enough.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from PIL import Image, TiffImagePlugin

from skipnets.data.iso_media import StoredSizes
from skipnets.data.raster import Header
from skipnets.errors import UserError

__all__ = [
    "AbandonedError",
    "PixelBudget",
    "peak_bytes",
    "raster_peak_bytes",
    "webp_canvas",
    "webp_peak_bytes",
]

# Peak memory while an image is decoded, turned upright and converted, in bytes per pixel, as measured by
# tests/data/test_pixel_budget.py: Pillow stores color in 4 bytes, turning and converting take a second copy.
_BYTES_PER_PIXEL = 10
_BYTES_OF_FORMAT = {"WEBP": 20, "AVIF": 18, "JPEG2000": 26, "HEIF": 14}
_BYTES_OF_MODE = {"RGBA": 14, "CMYK": 14, "LA": 14, "PA": 14, "I;16": 16, "I;16B": 16, "I": 16, "F": 16}
_BYTES_OF_SEPARATE_PLANES = 34
# AVIF without subsampled color, which may have 10 or 12 bits.
_BYTES_OF_FULL_COLOR = 24
# Of a value beside itself: as float32 or, of more than 16 bits, float64, and three channels turned into gray.
_BYTES_OF_WINDOWING = {False: 13, True: 17}
# In DICOM and NIfTI, where values are scaled to units in float64, and through a file's own window.
_BYTES_OF_SCALING = 38
_BYTES_TO_RETURN = 16 * 2**20


class AbandonedError(Exception):
    """Nobody waits for this image any more."""


class PixelBudget:
    """Limits the memory of images being decoded, first come first served.

    Args:
        limit: Bytes for all readers together.

    Raises:
        UserError: If the limit is not above 0.
    """

    def __init__(self, limit: int) -> None:
        if limit <= 0:
            raise UserError(f"limit={limit}: must be above 0")
        self.limit = limit
        self._used = 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @property
    def used(self) -> int:
        """Bytes that are reserved now."""
        return self._used

    def refusal(self, size: int) -> str:
        """Why so many bytes are never reserved."""
        megabytes = f"{size / 2**20:,.0f} MiB, and {self.limit / 2**20:,.0f} MiB is the limit"
        return f"decoding it can take {megabytes}"

    @contextmanager
    def reserved(self, size: int, *, abandoned: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Hold this many bytes while the context is open; waits until they are free.

        Args:
            size: In bytes.
            abandoned: Whether nobody waits for the image any more, so that its turn is passed on.

        Raises:
            UserError: If the size is above the limit.
            AbandonedError: If it was abandoned before its turn came.
        """
        if size > self.limit:
            raise UserError(self.refusal(size))
        self._take(size, abandoned)
        try:
            yield
        finally:
            if size >= _BYTES_TO_RETURN:
                _return_freed_memory()
            with self._changed:
                self._used -= size
                self._changed.notify_all()

    def _take(self, size: int, abandoned: Callable[[], bool]) -> None:
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                while True:
                    if abandoned():
                        raise AbandonedError
                    if self._waiting[0] is turn and self._used + size <= self.limit:
                        break
                    self._changed.wait(0.1)  # `abandoned` is asked now and then
                self._used += size
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()


def _return_freed_memory() -> None:
    """Give memory that was freed back to the system.

    The C library would keep up to 64 MB for each thread that has decoded something: with eight threads, four
    times what a server's images may take.
    """
    with suppress(OSError, AttributeError, TypeError):  # only glibc has this
        ctypes.CDLL(None).malloc_trim(0)


def webp_canvas(head: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP file, from its first 30 bytes; None for anything else.

    Pillow allocates two canvases as it opens the file, before the size can be asked for.

    Source: the container's specification, https://developers.google.com/speed/webp/docs/riff_container
    """
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    kind = head[12:16]
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if kind == b"VP8L":
        sizes = int.from_bytes(head[21:25], "little")
        return (sizes & 0x3FFF) + 1, (sizes >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def webp_peak_bytes(width: int, height: int) -> int:
    """The most memory that decoding a WebP file takes, in bytes."""
    return width * height * _BYTES_OF_FORMAT["WEBP"]


def raster_peak_bytes(header: Header) -> int:
    """The most memory that reading an image with all of its bits and windowing it takes, in bytes."""
    scaled = header.format in ("DICOM", "NIfTI")
    a_value = _BYTES_OF_SCALING if scaled else _BYTES_OF_WINDOWING[header.bits > 16] + header.bits // 8
    return header.width * header.height * header.channels * a_value


def peak_bytes(image: Image.Image, sizes: StoredSizes | None = None) -> int:
    """The most memory that decoding an image takes until it is upright and in 8 bits, in bytes.

    Args:
        image: Opened, but not loaded.
        sizes: What an AVIF or HEIC file holds, which may be larger than the image that it shows.
    """
    pixels = image.width * image.height
    per_pixel = max(
        _BYTES_PER_PIXEL, _BYTES_OF_FORMAT.get(image.format or "", 0), _BYTES_OF_MODE.get(image.mode, 0)
    )
    if sizes is not None:
        pixels = max(pixels, sizes.declared) + (sizes.coded if sizes.scaled else 0)
        per_pixel = max(per_pixel, _BYTES_OF_FULL_COLOR if sizes.full_color else 0)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # One tile is decoded at a time; a file may declare tiles that are larger than its image.
        tags = image.tag_v2
        tile = tags.get(TiffImagePlugin.TILEWIDTH, 0) * tags.get(TiffImagePlugin.TILELENGTH, 0)
        pixels = max(pixels, tile)
        planar = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
        if planar and max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8:
            per_pixel = _BYTES_OF_SEPARATE_PLANES
    return pixels * per_pixel
