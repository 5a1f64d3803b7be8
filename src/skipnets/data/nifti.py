"""Slices of NIfTI volumes, turned as radiologists look at them.

Slices are those that were acquired: across the axis along which voxels are longest, or, where they are about
cubes, across the axis from foot to head. The patient's right or front is at the left of an image, the head or
front at its top.

H height, W width, C channels.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import io
import math
import zlib
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skipnets.data.raster import Header, Values, check_page, check_size

SUFFIXES = (".nii", ".nii.gz")
_GZIP = b"\x1f\x8b"
# Beyond this ratio of its sides, a voxel is not about a cube.
_THICK = 1.2
# What lies before a slice of a compressed volume is inflated: at most so many times an image's pixels.
_IMAGES_INFLATED = 16
# And what lies between the header of a compressed file and its values: at most so many bytes.
_BYTES_BEFORE_VALUES = 2**26
_RIGHT, _FRONT, _HEAD = range(3)  # the axes of a volume in nibabel's "RAS+"


def is_nifti(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a NIfTI file, compressed or not."""
    head = _plain(head)
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def _plain(head: bytes) -> bytes:
    """The first bytes, inflated where they are compressed."""
    if not head.startswith(_GZIP):
        return head
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, 540)
    except zlib.error:
        return b""


@functools.cache
def can_read_nifti() -> bool:
    """Whether nibabel is there."""
    return importlib.util.find_spec("nibabel") is not None


def open_nifti(file: BinaryIO) -> tuple[Any, bool]:
    """A NIfTI file as nibabel's image, of which the header is read; and whether it is compressed.

    Raises:
        ValueError: Its values begin too far behind its header.
    """
    import nibabel

    file.seek(0)
    head = file.read(4096)
    file.seek(0)
    compressed = head.startswith(_GZIP)
    stream: Any = gzip.GzipFile(fileobj=file) if compressed else file
    kind: Any = nibabel.Nifti2Image if _plain(head)[4:8] == b"n+2\0" else nibabel.Nifti1Image
    # Without the header's extensions: nibabel would read as much as they claim, gigabytes when inflated.
    alone = _plain(head)[: kind.header_class.template_dtype.itemsize]
    header = kind.header_class.from_fileobj(io.BytesIO(alone))
    if compressed and header.get_data_offset() > _BYTES_BEFORE_VALUES:
        raise ValueError(f"begins its values after {header.get_data_offset():,} bytes")
    return kind(kind.ImageArrayProxy(stream, header.copy()), None, header), compressed


class NiftiFile:
    """An open NIfTI file of one or several volumes; a `RasterFile`.

    Args:
        file: Open for reading; it stays open.
        max_pixels: The most that a slice may have.

    Raises:
        ValueError: It holds no slices of numbers.
    """

    def __init__(self, file: BinaryIO, *, max_pixels: int) -> None:
        import nibabel

        self._image, compressed = open_nifti(file)
        shape = tuple(int(side) for side in self._image.shape)
        while len(shape) > 4 and shape[-1] == 1:
            shape = shape[:-1]
        if not 2 <= len(shape) <= 4 or min(shape) < 1:
            raise ValueError(f"a NIfTI file of shape {shape}, not of slices")
        self._sides = (*shape, 1, 1)[:3]
        self._volumes = shape[3] if len(shape) == 4 else 1
        # For each axis of the patient: the file's, and whether it runs backwards.
        self._axes, self._backwards = self._orientation(nibabel)
        self._across = self._slice_axis()
        self._rows = _HEAD if self._across != _HEAD else _FRONT
        self._columns = _RIGHT if self._across != _RIGHT else _FRONT
        self.slices = self._side(self._across)
        self.pages = self.slices * self._volumes
        dtype = self._image.get_data_dtype()
        if dtype.kind not in "iuf" and dtype.names != ("R", "G", "B"):
            raise ValueError(f"a NIfTI file of {dtype}, not of numbers")
        proxy = self._image.dataobj
        fixed = dtype.itemsize == 1 and dtype.kind == "u" and (proxy.slope, proxy.inter) == (1, 0)
        self._bits = 8 if fixed or dtype.names else max(8 * dtype.itemsize, 16)
        self.header = Header(
            width=self._side(self._columns),
            height=self._side(self._rows),
            channels=3 if dtype.names else 1,
            bits=self._bits,
            format="NIfTI",
            several=self.pages > 1,
        )
        check_size(self.header.width * self.header.height, max_pixels)
        if compressed:
            check_size(math.prod(shape), _IMAGES_INFLATED * max_pixels)

    def read(self, page: int | None, channels: int | None) -> Values:  # noqa: ARG002 - the file says itself
        """One slice, scaled as the file says; None for the middle one of the first volume."""
        page = check_page(self.slices // 2 if page is None else page, self.pages)
        volume, place = divmod(page, self.slices)
        across = self._axes[self._across]
        index: list[Any] = [slice(None)] * min(len(self._image.shape), 3)
        if across < len(index):
            index[across] = self.slices - 1 - place if self._backwards[self._across] else place
        index += [volume] * (len(self._image.shape) > 3)
        index += [0] * (len(self._image.shape) - len(index))
        plane: NDArray[Any] = np.asarray(self._image.dataobj[tuple(index)])
        if plane.dtype.names:
            plane = np.stack([plane[name] for name in plane.dtype.names], axis=-1)
        if self._axes[self._rows] > self._axes[self._columns]:
            plane = plane.swapaxes(0, 1)
        # Both run down or to the right from their far end, unless the file has them backwards already.
        if not self._backwards[self._rows]:
            plane = plane[::-1]
        if not self._backwards[self._columns]:
            plane = plane[:, ::-1]
        native = np.ascontiguousarray(plane.astype(plane.dtype.newbyteorder("="), copy=False))
        return Values(
            array=native.reshape(self.header.height, self.header.width, self.header.channels), bits=self._bits
        )

    def close(self) -> None:
        """Nothing: the file is the caller's."""

    def _orientation(self, nibabel: Any) -> tuple[list[int], list[bool]]:
        found = nibabel.io_orientation(self._image.header.get_best_affine())
        if np.isnan(found).any():  # an axis without extent
            return [0, 1, 2], [False] * 3
        axes = [int(np.flatnonzero(found[:, 0] == axis)[0]) for axis in range(3)]
        return axes, [bool(found[axis, 1] < 0) for axis in axes]

    def _slice_axis(self) -> int:
        """The axis of the patient that slices are across."""
        flat = [axis for axis in range(3) if self._side(axis) == 1]
        if flat:
            return _HEAD if _HEAD in flat else flat[0]
        zooms = [float(zoom) for zoom in self._image.header.get_zooms()[:3]]
        lengths = [zooms[self._axes[axis]] for axis in range(3)]
        longest = max(range(3), key=lengths.__getitem__)
        return longest if lengths[longest] > _THICK * sorted(lengths)[1] else _HEAD

    def _side(self, axis: int) -> int:
        return self._sides[self._axes[axis]]
