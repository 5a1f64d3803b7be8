"""Images that are arrays, in memory or in NumPy's files: (H, W), (H, W, C) or (C, H, W) of numbers.

H height, W width, C channels.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skipnets.data.raster import Header, Values, check_page, check_size

SUFFIXES = (".npy", ".npz")
_MAGIC = b"\x93NUMPY"
# The array of this name is the image where a file holds several.
_NAME = "image"
# More than the longest header that NumPy takes.
_HEADER_BYTES = 2**14


def is_array(head: bytes) -> bool:
    """Whether a file that begins with these bytes holds arrays."""
    # In a zip file the name of the first member follows 30 bytes.
    return head.startswith(_MAGIC) or (head.startswith(b"PK\x03\x04") and b".npy" in head[30:286])


class ArrayFile:
    """An open .npy or .npz file; a `RasterFile`.

    Args:
        file: Open for reading; it stays open.
        max_pixels: The most that the image may have, with twelve channels on average.

    Raises:
        ValueError: It holds no image.
    """

    pages = 1

    def __init__(self, file: BinaryIO, *, max_pixels: int) -> None:
        self._file = file
        with opened_array(file) as (opened, kind):
            shape, dtype = array_shape(opened)
        height, width, channels = _layout(shape, dtype, None)
        check_size(height * width, max_pixels)
        check_size(math.prod(shape), 12 * max_pixels)
        self.header = Header(width, height, channels, bits_of(dtype), kind, several=False)

    def read(self, page: int | None, channels: int | None) -> Values:
        """The array; `channels` tells (C, H, W) from (H, W, C)."""
        check_page(page or 0, 1)
        with opened_array(self._file) as (opened, _):
            array: NDArray[Any] = np.lib.format.read_array(opened, allow_pickle=False)
        return array_values(array, channels)

    def close(self) -> None:
        """Nothing: the file is the caller's."""


@contextmanager
def opened_array(file: BinaryIO) -> Iterator[tuple[IO[bytes], str]]:
    """The bytes of the one array in a .npy or .npz file, and which of the two it is: "NPY" or "NPZ".

    Raises:
        ValueError: It holds several arrays, none of them with the name of an image.
    """
    file.seek(0)
    if file.read(2) != b"PK":
        file.seek(0)
        yield file, "NPY"
        return
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        wanted = [name for name in names if name == f"{_NAME}.npy"] or names
        if len(wanted) != 1:
            known = ", ".join(name.removesuffix(".npy") for name in names[:5])
            raise ValueError(
                f'holds {len(names)} arrays ({known}); the one of an image must be called "{_NAME}"'
            )
        with archive.open(wanted[0]) as opened:
            yield opened, "NPZ"


def array_shape(opened: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array whose bytes begin here.

    Raises:
        ValueError: They do not say.
    """
    # NumPy reads a header as long as it claims to be before it refuses it: gigabytes, out of a small .npz.
    head = io.BytesIO(opened.read(_HEADER_BYTES))
    first = np.lib.format.read_magic(head) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(head)
    return shape, dtype


def array_header(array: NDArray[Any]) -> Header:
    """What would be the header of an array in memory.

    Raises:
        ValueError: It is no image.
    """
    height, width, channels = _layout(array.shape, array.dtype, None)
    return Header(width, height, channels, bits_of(array.dtype), "array", several=False)


def array_values(array: NDArray[Any], channels: int | None) -> Values:
    """The values of an array: (H, W, C).

    Args:
        array: (H, W), (H, W, C) or (C, H, W).
        channels: C where it is known; otherwise channels are last, unless the first axis is shorter.

    Raises:
        ValueError: It is no image.
    """
    height, width, count = _layout(array.shape, array.dtype, channels)
    if array.ndim == 3 and array.shape != (height, width, count):
        array = np.moveaxis(array, 0, 2)
    native = array.astype(array.dtype.newbyteorder("="), copy=False).reshape(height, width, count)
    bits = bits_of(array.dtype)
    if array.dtype.kind == "b":
        native = native.astype(np.uint8) * np.uint8(255)
    alpha = count == 4 and channels in (None, 1, 3) and array.dtype in (np.uint8, np.uint16)
    return Values(array=native, bits=bits, alpha=alpha)


def _layout(shape: tuple[int, ...], dtype: np.dtype[Any], channels: int | None) -> tuple[int, int, int]:
    """Height, width and channels."""
    if dtype.kind not in "biuf" or len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(
            f"an array {shape} of {dtype}: must be (H, W), (H, W, C) or (C, H, W) of numbers, and not empty"
        )
    if len(shape) == 2:
        return shape[0], shape[1], 1
    channels_first = shape[0] < shape[2]
    if channels in (shape[0], shape[2]):
        channels_first = shape[2] != channels
    return (shape[1], shape[2], shape[0]) if channels_first else (shape[0], shape[1], shape[2])


def bits_of(dtype: np.dtype[Any]) -> int:
    """Of signed bytes 16: they do not run from black to white."""
    if dtype.kind == "b" or dtype == np.uint8:
        return 8
    return max(8 * dtype.itemsize, 16)
