"""Signals and volumes in files: NumPy's arrays, NIfTI volumes, and tables of signals in CSV.

A NIfTI volume is turned as its slices are (`skipnets.data.nifti`): depth from foot to head, height from front
to back, width from the patient's right to left. A fourth axis of it is its channels. In a CSV file each line
is a moment and each column a channel.

C channels, L length, D depth, H height, W width.
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from skipnets.axes import AXES, INPUTS
from skipnets.data import arrays, nifti
from skipnets.data.decoding import (
    MAX_PIXELS,
    ImageDecodeError,
    Page,
    Source,
    TooManyPixelsError,
    source_name,
)
from skipnets.data.listing import counted
from skipnets.data.raster import TooLargeError, check_size
from skipnets.errors import install_command, one_line

__all__ = ["SUFFIXES", "Volume", "VolumeHeader", "read_volume", "read_volume_header"]

# Spatial axes → names of the files that hold one signal or volume.
SUFFIXES: Mapping[int, tuple[str, ...]] = {
    1: (*arrays.SUFFIXES, ".csv"),
    3: (*arrays.SUFFIXES, *nifti.SUFFIXES),
}
_DELIMITERS = ";\t,"
# What becomes of values that are NaN.
_OF_NAN: Mapping[int, str] = {
    1: "in signals they are interpolated",
    3: "in volumes they count as the lower end of the window",
}
_said: set[int] = set()  # spatial axes of inputs for which that was logged

logger = logging.getLogger("skipnets")


@dataclass(frozen=True, kw_only=True)
class VolumeHeader:
    """The header of a signal or a volume.

    Attributes:
        sides: (L,) or (D, H, W).
        channels: How many values there are at each place.
        bits: Of a value, as stored.
        format: Such as "NIfTI".
        spacing: The distance between neighbors along each axis, in the unit of the file; 1 where it has none.
    """

    sides: tuple[int, ...]
    channels: int
    bits: int
    format: str
    spacing: tuple[float, ...]

    @property
    def several(self) -> bool:
        """No: a file is one signal or volume."""
        return False


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """A signal or a volume.

    Attributes:
        array: (L, C) or (D, H, W, C) numbers in the file's own units; of volumes NaN where there is no value,
            as outside a brain or the field of view.
        bits: Of a value, as stored; with up to 8, values run from 0 (black) to 255 (white).
        spacing: As of `VolumeHeader`.
    """

    array: NDArray[Any]
    bits: int
    spacing: tuple[float, ...]


def read_volume(
    source: Source, dims: int, channels: int | None = None, *, max_values: int | None = None
) -> Volume:
    """Read a signal or a volume. What is NaN in a signal is interpolated, which is logged once.

    Args:
        source: A file, its bytes or an open file, or an array: (L,) or (D, H, W), or with channels as its
            last or its first axis.
        dims: 1 for a signal, 3 for a volume.
        channels: How many; None for as many as it has. Without it, the first axis holds the channels where it
            is shorter than the last.
        max_values: The most that is read; the header says how many there are. Default: what a page says, or
            `MAX_PIXELS`.

    Raises:
        ImageDecodeError: It cannot be read, has another number of axes or channels, infinite values, or none
            that are finite.
    """
    with _one_error(source, max_values):
        if isinstance(source, np.ndarray):
            volume = _from_array(source, dims, channels)
        else:
            with _opened(source) as (file, limit):
                volume = _read(file, dims, channels, max_values or limit)
        if channels is not None and volume.array.shape[-1] != channels:
            count = counted(volume.array.shape[-1], "channel")
            raise ValueError(f"has {count} where {channels} are expected")
        if volume.array.dtype.kind != "f" or np.isfinite(volume.array).all():
            return volume
        return _with_some_missing(volume, dims, source)


def read_volume_header(
    source: Source, dims: int, channels: int | None = None, *, max_values: int | None = None
) -> VolumeHeader:
    """Read the header of a signal or a volume; of a table in CSV, all of it.

    Args:
        source: As for `read_volume`.
        dims: Likewise.
        channels: Likewise, to know them from an array's other axes; another number is no error.
        max_values: Likewise.

    Raises:
        ImageDecodeError: As `read_volume`, but that values and the number of channels are not looked at.
    """
    with _one_error(source, max_values):
        if isinstance(source, np.ndarray):
            volume = _from_array(source, dims, channels)
            return _header(volume, "array")
        with _opened(source) as (file, limit):
            limit = max_values or limit
            head = _head(file)
            if nifti.is_nifti(head):
                return _NiftiVolume(file, dims, limit).header
            if arrays.is_array(head):
                with arrays.opened_array(file) as (opened, kind):
                    shape, dtype = arrays.array_shape(opened)
                sides, count, _ = _arranged(shape, dtype, dims, channels)
                check_size(math.prod(shape), limit)
                return VolumeHeader(
                    sides=sides,
                    channels=count,
                    bits=arrays.bits_of(dtype),
                    format=kind,
                    spacing=(1.0,) * dims,
                )
            return _header(_read(file, dims, channels, limit), "CSV")


def _header(volume: Volume, kind: str) -> VolumeHeader:
    *sides, channels = volume.array.shape
    return VolumeHeader(
        sides=tuple(sides), channels=channels, bits=volume.bits, format=kind, spacing=volume.spacing
    )


@contextmanager
def _one_error(source: Source, max_values: int | None) -> Iterator[None]:
    """Any failure inside the block becomes one ImageDecodeError."""
    name = source_name(source)
    try:
        yield
    except FileNotFoundError as error:
        raise ImageDecodeError(f"{name}: no such file") from error
    except TooLargeError as error:
        limit = max_values or (source.max_pixels if isinstance(source, Page) else MAX_PIXELS)
        more = "; --max-pixels allows more" if limit == MAX_PIXELS else ""
        raise TooManyPixelsError(
            f"{name}: larger than {limit:,} values, the most that is read{more}"
        ) from error
    except Exception as error:  # damaged files make readers raise nearly anything
        text = one_line(error) if str(error) else type(error).__name__
        raise ImageDecodeError(f"{name}: {text}") from error


@contextmanager
def _opened(source: Source) -> Iterator[tuple[BinaryIO, int]]:
    """An open file, and the most values that are read of it."""
    if isinstance(source, Page):
        if source.member is not None:
            yield io.BytesIO(source.member.read(source.path)), source.max_pixels
            return
        path, limit = source.path, source.max_pixels
    elif isinstance(source, bytes):
        yield io.BytesIO(source), MAX_PIXELS
        return
    elif isinstance(source, str | os.PathLike):
        path, limit = Path(source), MAX_PIXELS
    elif hasattr(source, "read"):
        yield cast(BinaryIO, source), MAX_PIXELS
        return
    else:
        raise ValueError("must be a file or an array")
    if path.exists() and not path.is_file():
        raise ValueError("not a file")  # reading from a pipe may never end
    with path.open("rb") as file:
        yield file, limit


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    head = file.read(4096)
    if not head:
        raise ValueError("an empty file")
    file.seek(0)
    return head


def _read(file: BinaryIO, dims: int, channels: int | None, limit: int) -> Volume:
    head = _head(file)
    if nifti.is_nifti(head):
        return _NiftiVolume(file, dims, limit).read()
    if arrays.is_array(head):
        with arrays.opened_array(file) as (opened, _):
            shape, dtype = arrays.array_shape(opened)
        _arranged(shape, dtype, dims, channels)
        check_size(math.prod(shape), limit)
        with arrays.opened_array(file) as (opened, _):
            return _from_array(np.lib.format.read_array(opened, allow_pickle=False), dims, channels)
    if dims == 1 and b"\0" not in head:
        table = _table(file, limit)
        return _from_array(table, dims, table.shape[1])
    raise ValueError(f"not a {_kind(dims)} in a known format ({', '.join(SUFFIXES[dims])})")


def _from_array(array: NDArray[Any], dims: int, channels: int | None) -> Volume:
    """A signal or a volume, with its channels as the last axis."""
    sides, count, first = _arranged(array.shape, array.dtype, dims, channels)
    native = np.moveaxis(array, 0, -1) if first else array
    native = native.astype(array.dtype.newbyteorder("="), copy=False).reshape(*sides, count)
    if array.dtype.kind == "b":
        native = native.astype(np.uint8) * np.uint8(255)
    return Volume(array=native, bits=arrays.bits_of(array.dtype), spacing=(1.0,) * dims)


def _arranged(
    shape: tuple[int, ...], dtype: np.dtype[Any], dims: int, channels: int | None
) -> tuple[tuple[int, ...], int, bool]:
    """The sides, the number of channels, and whether these are the first axis."""
    if dtype.kind not in "biuf" or len(shape) not in (dims, dims + 1) or min(shape) < 1:
        axes = AXES[dims]
        raise ValueError(
            f"must be ({axes}{',' if dims == 1 else ''}) of numbers for a {_kind(dims)}, or have channels as "
            f"well, not {dtype} of shape {shape}"
        )
    if len(shape) == dims:
        return shape, 1, False
    first = shape[0] < shape[-1]
    if channels in (shape[0], shape[-1]):
        first = shape[-1] != channels
    return (shape[1:], shape[0], True) if first else (shape[:-1], shape[-1], False)


def _with_some_missing(volume: Volume, dims: int, source: Source) -> Volume:
    """The volume as it is, or the signal with its gaps (NaN) interpolated linearly; it is logged once."""
    if np.isinf(volume.array).any():
        raise ValueError("has infinite values")
    known = ~np.isnan(volume.array)
    array = volume.array
    if not known.any():
        raise ValueError("has no finite value")
    if dims == 1:
        if not known.any(0).all():
            raise ValueError(f"has no finite value in channel {known.any(0).argmin() + 1}")
        moments = np.arange(len(array))
        channels = [
            np.interp(moments, moments[there], values[there])
            for values, there in zip(array.T, known.T, strict=True)
        ]
        array = np.stack(channels, axis=-1).astype(array.dtype)
    if dims not in _said:
        _said.add(dims)
        where = "" if isinstance(source, np.ndarray) else f", such as those of {source_name(source)}"
        logger.warning("values that are NaN%s: %s", where, _OF_NAN[dims])
    return replace(volume, array=array)


def _kind(dims: int) -> str:
    return INPUTS[dims].removesuffix("s")


def _table(file: BinaryIO, limit: int) -> NDArray[np.float64]:
    """(L, C) numbers of a table in CSV, whose first line may hold names; one line alone is a signal."""
    lines = [line for line in file.read().decode("utf-8-sig").splitlines() if line.strip()]
    delimiter = next((mark for mark in _DELIMITERS if lines and mark in lines[0]), ",")
    if lines and _are_names(lines[0].split(delimiter)):
        del lines[0]
    if not lines:
        raise ValueError("holds no numbers")
    check_size(len(lines) * (lines[0].count(delimiter) + 1), limit)
    values: NDArray[np.float64] = np.loadtxt(lines, delimiter=delimiter, ndmin=2, comments=None)
    return values.T if len(values) == 1 else values


def _are_names(cells: list[str]) -> bool:
    """Whether a line names columns. One bad number among others does not: a moment would be lost."""
    first, *others = (cell.strip() for cell in cells)
    if not first and others == [str(number) for number in range(len(others))]:
        return True  # as pandas writes columns without names, behind those of rows
    return not any(_is_number(cell) for cell in cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


class _NiftiVolume:
    """The volume of an open NIfTI file.

    Args:
        file: Open for reading; it stays open.
        dims: Must be 3.
        limit: The most values that are read.

    Raises:
        ValueError: It holds no volume of numbers.
    """

    def __init__(self, file: BinaryIO, dims: int, limit: int) -> None:
        if not nifti.can_read_nifti():
            raise ValueError(f"a NIfTI file; to read it: {install_command('medical')}")
        if dims != 3:
            raise ValueError(f"a NIfTI file holds a volume, not a {_kind(dims)}")
        import nibabel

        self._image, _ = nifti.open_nifti(file)
        shape = tuple(int(side) for side in self._image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        dtype = self._image.get_data_dtype()
        self._colored = dtype.names == ("R", "G", "B")
        if not 3 <= len(shape) <= (3 if self._colored else 4) or min(shape) < 1:
            raise ValueError(f"must hold a volume, or one of several channels, not an array of shape {shape}")
        if dtype.kind not in "iuf" and not self._colored:
            raise ValueError(f"a NIfTI file of {dtype}, not of numbers")
        check_size(math.prod(shape), limit)
        self._shape = shape
        tools: Any = nibabel  # which has no types
        found = tools.io_orientation(self._image.header.get_best_affine())
        # An axis without extent has no direction.
        self._orientation = None if np.isnan(found).any() else found
        proxy = self._image.dataobj
        self._is_bytes = dtype == np.uint8 and (proxy.slope, proxy.inter) == (1, 0)
        axes = [2, 1, 0] if self._orientation is None else np.argsort(self._orientation[:, 0])[::-1].tolist()
        zooms = [float(zoom) for zoom in self._image.header.get_zooms()[:3]]
        zooms = [zoom if math.isfinite(zoom) and zoom > 0 else 1.0 for zoom in zooms]
        self.header = VolumeHeader(
            sides=tuple(shape[axis] for axis in axes),
            channels=3 if self._colored else shape[3] if len(shape) == 4 else 1,
            bits=8 if self._is_bytes or self._colored else max(8 * dtype.itemsize, 16),
            format="NIfTI",
            spacing=tuple(zooms[axis] for axis in axes),
        )

    def read(self) -> Volume:
        """The volume, scaled as the file says, turned to (D, H, W, C)."""
        import nibabel

        proxy = self._image.dataobj
        as_stored = self._is_bytes or self._colored
        values: NDArray[Any] = np.asarray(proxy, dtype=None if as_stored else np.float32)
        if self._colored:
            values = np.stack([values[name] for name in ("R", "G", "B")], axis=-1)
        values = values.reshape(*self._shape[:3], self.header.channels)
        if self._orientation is not None:
            # To the patient's right, front and head, as the axes of nibabel's "RAS+" run.
            tools: Any = nibabel
            values = tools.apply_orientation(values, self._orientation)
        # From the right to the left, from the front to the back, from foot to head.
        turned = np.ascontiguousarray(values[::-1, ::-1].transpose(2, 1, 0, 3))
        return Volume(array=turned, bits=self.header.bits, spacing=self.header.spacing)
