"""Signals and volumes as a dataset: with one or three spatial axes in place of an image's two.

C channels, L length, D depth, H height, W width.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.axes import INPUTS
from skipnets.data.dataset import ImageDataset, mixed_channels
from skipnets.data.decoding import ImageDecodeError, none_decoded
from skipnets.data.raster import Header, Values
from skipnets.data.volume_files import VolumeHeader, read_volume, read_volume_header
from skipnets.errors import UserError, listed
from skipnets.progress import LoggedProgress

__all__ = ["VolumeDataset", "with_channels"]

# The longest side of volumes that nobody gave a size, and the longest signals.
_LARGEST_SIDE, _LONGEST = 64, 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumeDataset(ImageDataset):
    """Labeled signals or volumes, held in memory or lying in files.

    The attributes are those of an `ImageDataset`, but `images`, which is (N, L, C) or (N, D, H, W, C).

    Args:
        axes: 1 for signals, 3 for volumes.
    """

    axes: int

    @property
    def dims(self) -> int:
        """Spatial axes."""
        return self.axes

    @property
    def some_headers(self) -> list[Header]:
        """None: only images have any."""
        return []

    @functools.cached_property
    def some_volume_headers(self) -> list[VolumeHeader]:
        """The headers of up to 100 signals or volumes, evenly spread, as far as they can be read.

        Raises:
            UserError: None of them can be read.
        """
        headers = []
        first = None
        for index in range(0, len(self), -(-len(self) // 100) or 1):
            try:
                headers.append(self.header(index))
            except ImageDecodeError as error:
                first = first or error
            if self.images is not None:
                break  # they are all alike
        if not headers:
            raise none_decoded(len(self), first, dims=self.axes)
        return headers

    @functools.cached_property
    def sides(self) -> tuple[int, ...]:
        """(L,) or (D, H, W) that they are shown at, where no size is given.

        Their own where all are alike and not large. Otherwise signals keep the length of the longest, up to
        4,096, and volumes have the usual proportions, with 64 for the longest side at most.
        """
        headers = self.some_volume_headers
        found = {header.sides for header in headers}
        largest = _LONGEST if self.axes == 1 else _LARGEST_SIDE
        if len(found) == 1 and (self.images is not None or max(headers[0].sides) <= largest):
            return headers[0].sides
        if self.axes == 1:
            return (min(max(length for (length,) in found), largest),)
        extents = np.median([np.multiply(header.sides, header.spacing) for header in headers], axis=0)
        longest = min(float(np.median([max(header.sides) for header in headers])), largest)
        return tuple(max(round(float(extent) * longest / float(extents.max())), 1) for extent in extents)

    @functools.cached_property
    def channels(self) -> int:
        """As many as each place has values.

        Raises:
            UserError: Signals or volumes of several numbers of channels are mixed.
        """
        found = sorted({header.channels for header in self.some_volume_headers})
        if len(found) > 1:
            raise UserError(f"channels: {mixed_channels(found, self.axes)}")
        return found[0]

    @property
    def bands(self) -> bool:
        """Whether there are others than one or three."""
        return self.channels not in (1, 3)

    @functools.cached_property
    def bits(self) -> int:
        """The most bits of a value among some of them: 8 where values are bytes."""
        return max(header.bits for header in self.some_volume_headers)

    def header(self, index: int) -> VolumeHeader:
        """The header of a signal or a volume.

        Raises:
            ImageDecodeError: It cannot be read.
        """
        channels = None if self.images is None else self.images.shape[-1]
        return read_volume_header(self.source(index), self.axes, channels)

    def values(self, index: int, channels: int) -> Values:
        """All values of a signal or a volume, in the units of its file.

        Raises:
            ImageDecodeError: It cannot be read.
        """
        volume = read_volume(self.source(index), self.axes, channels)
        return Values(array=volume.array, bits=volume.bits)

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


def with_channels(dataset: ImageDataset, channels: int | None) -> ImageDataset:
    """The signals or volumes that have so many channels, with a warning that counts those left out.

    Those that cannot be read stay, and are reported where they are read. Where none has so many, all stay:
    that is an error of whoever asked for it.

    Args:
        dataset: Of any kind; images, and what is held in memory, stay as they are.
        channels: How many; None takes all.

    Raises:
        UserError: A class would be left without any.
    """
    if channels is None or not isinstance(dataset, VolumeDataset) or dataset.images is not None:
        return dataset
    found = _every_channels(dataset, channels)
    others = (found != channels) & (found > 0)
    if not others.any() or channels not in found:
        return dataset
    kind = INPUTS[dataset.axes]
    if dataset.task == "single-label":
        lost = np.setdiff1d(dataset.labels[others], dataset.labels[found == channels])
        if len(lost):
            names = listed([dataset.classes[label] for label in lost])
            raise UserError(f"channels={channels}: leaves no {kind} of class {names}, which have others")
    counts = " or ".join(map(str, np.unique(found[others])))
    dataset.listing.warnings.append(
        f"{others.sum():,} of {len(dataset):,} {kind} have {counts} channels, not {channels}, and are left "
        f"out, such as {dataset.names[others.argmax()]}"
    )
    return dataset.select(np.flatnonzero(~others))


def _every_channels(dataset: VolumeDataset, channels: int) -> NDArray[np.int64]:
    """(N,) how many channels each has, by its header; 0 where that cannot be read."""

    def read(index: int) -> int:
        try:
            return read_volume_header(dataset.source(index), dataset.axes, channels).channels
        except ImageDecodeError:
            return 0

    progress = LoggedProgress(f"reading headers of {INPUTS[dataset.axes]}", first=3.0)
    found = np.zeros(len(dataset), np.int64)
    with ThreadPoolExecutor(4) as pool:
        for index, count in enumerate(pool.map(read, range(len(dataset)))):
            found[index] = count
            progress(index + 1, len(dataset))
    return found


def _not_shown() -> UserError:
    return UserError("signals and volumes are not shown: only images are")
