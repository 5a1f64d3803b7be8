"""A labeled list of images in memory or in files: what every step from splitting to training works on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipnets.axes import INPUTS
from skipnets.data.contents import Content, contents
from skipnets.data.copies import Copy
from skipnets.data.decoding import (
    MAX_PIXELS,
    ImageDecodeError,
    Page,
    open_image,
    open_region,
    read_header,
    read_values,
    render_image,
)
from skipnets.data.listing import Listing, passed_over_line
from skipnets.data.multi_label import check_names, label_texts
from skipnets.data.raster import Header, Values
from skipnets.data.shards import Members
from skipnets.data.splits import (
    SPLITS,
    SplitRow,
    write_splits,
)
from skipnets.data.targets import target_texts
from skipnets.data.volume_files import VolumeHeader
from skipnets.errors import UserError, listed, near_matches

__all__ = ["ImageDataset"]

logger = logging.getLogger("skipnets")

# Within `saying_once`, the lines that were said.
_SAID: ContextVar[set[str] | None] = ContextVar("said", default=None)
# What follows a file's name where each of its pages is an image of its own.
PAGE_MARK = "#page="
# More channels than satellites have may be the slices of a volume.
BANDS_OF_IMAGES = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageDataset:
    """A labeled list of images, held in memory or lying in files. N images.

    Args:
        classes: The class names; a label is a position in this. Of numbers to predict, the targets' names.
        names: N names, unique: the path below `root`, or such as "digits/0001". What splits.csv holds.
        labels: (N,) int64; or, where an image has any number of K labels, (N, K) float32 with 1 for present,
            0 for absent and NaN for unknown; or, of numbers to predict, (N, T) float64.
        splits: (N,) "train", "val" or "test".
        root: The folder that `names` are relative to; None where `images` holds the images.
        images: (N, H, W) or (N, H, W, C), usually uint8; None where they lie in files.
        groups: (N,) what must not be divided among splits, such as a patient; None where nothing is known.
        contents: Size and hash of each image's file; None where they are not computed yet.
        copies: Pairs of images that show the same, as far as these were looked for.
        members: Where in shards the images lie; None where each file is an image, or several.
        pages: (N,) which page of its file each image is, from 0; None for the one that stands for the file.
        max_pixels: The most that an image may have; larger ones are not decoded.
        listing: What was found where the images were looked for, with notes and warnings.
        regression: Whether the labels are numbers to predict.
    """

    classes: tuple[str, ...]
    names: list[str]
    labels: NDArray[Any]
    splits: NDArray[np.str_]
    root: Path | None = None
    images: NDArray[Any] | None = None
    groups: NDArray[np.str_] | None = None
    members: Members | None = None
    pages: NDArray[np.int64] | None = None
    max_pixels: int = MAX_PIXELS
    contents: list[Content] | None = None
    copies: Sequence[Copy] = ()
    listing: Listing = dataclasses.field(default_factory=Listing)
    regression: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return self.labels.ndim == 2 and not self.regression

    @property
    def dims(self) -> int:
        """Spatial axes of an image; of signals and volumes (`skipnets.data.volumes`) 1 and 3."""
        return 2

    @property
    def task(self) -> Literal["single-label", "multi-label", "regression"]:
        """What the labels are: one class an image, any number of labels, or numbers."""
        if self.regression:
            return "regression"
        return "multi-label" if self.multi_label else "single-label"

    def checked(self) -> Self:
        """The dataset with labels of the types that are described above, for one that a program made.

        Raises:
            UserError: If the labels are none that the classes describe.
        """
        labels, count = np.asarray(self.labels), len(self.classes)
        if len(labels) != len(self.names) or len(self.splits) != len(self.names):
            raise UserError(
                f"dataset: must have {len(self.names):,} labels and splits, as it has names, not "
                f"{len(labels):,} and {len(self.splits):,}"
            )
        if self.task == "single-label":
            if labels.ndim != 1 or labels.dtype.kind not in "iu":
                raise UserError(f"dataset: its labels must be whole numbers (N,), not {_kind_of(labels)}")
            if len(labels) and not 0 <= labels.min() <= labels.max() < count:
                raise UserError(
                    f"dataset: its labels must be from 0 to {count - 1}, not {labels.min()} to {labels.max()}"
                )
            return replace(self, labels=labels.astype(np.int64))
        if labels.ndim != 2 or labels.shape[1] != count or labels.dtype.kind not in "biuf":
            noun = "target" if self.regression else "label"
            raise UserError(
                f"dataset: its labels must be (N, {count}), a column for each {noun}, not {_kind_of(labels)}"
            )
        labels = labels.astype(np.float64 if self.regression else np.float32)
        if self.multi_label:
            check_names(self.classes)
            if others := sorted({*np.unique(labels[~np.isnan(labels)]).tolist()} - {0.0, 1.0}):
                raise UserError(
                    f"dataset: its labels must be 1, 0 or NaN for unknown, not {listed(map(str, others))}"
                )
        elif np.isinf(labels).any():
            raise UserError("dataset: numbers to predict must be finite, or NaN where one is not known")
        return replace(self, labels=labels)

    @property
    def label_kind(self) -> str:
        """What each image has, for messages: "one class an image"."""
        kinds = {"multi-label": "several labels an image", "regression": "numbers to predict"}
        return kinds.get(self.task, "one class an image")

    @property
    def label_names(self) -> list[str]:
        """(N,) the class of each image, or its labels or numbers as one text.

        See `skipnets.data.multi_label` and `skipnets.data.targets`.
        """
        if self.regression:
            return target_texts(self.labels)
        if self.multi_label:
            return label_texts(self.labels, self.classes)
        return [self.classes[label] for label in self.labels.tolist()]

    def counts(self) -> NDArray[np.int64]:
        """(K,) how many images have each class; of numbers, of how many each target is known."""
        if self.regression:
            return np.isfinite(self.labels).sum(0)
        if self.multi_label:
            return (self.labels == 1).sum(0)
        return np.bincount(self.labels, minlength=len(self.classes))

    def split(self, name: str) -> ImageDataset:
        """The images of "train", "val" or "test", or of "all" of them; classes and their order stay.

        Raises:
            UserError: There is no such split.
        """
        if name == "all":
            return self
        if name not in SPLITS:
            raise UserError(
                f"split={name!r}: must be one of {', '.join(SPLITS)}, all{near_matches(name, SPLITS)}"
            )
        return self.select(np.flatnonzero(self.splits == name))

    def select(self, indices: NDArray[np.int64]) -> ImageDataset:
        """The images at these positions, in this order."""
        return replace(
            self,
            names=[self.names[index] for index in indices],
            labels=self.labels[indices],
            splits=self.splits[indices],
            images=None if self.images is None else self.images[indices],
            groups=None if self.groups is None else self.groups[indices],
            members=None if self.members is None else self.members.select(indices),
            pages=None if self.pages is None else self.pages[indices],
            contents=None if self.contents is None else [self.contents[index] for index in indices],
            copies=_renumbered(self.copies, indices),
        )

    def file(self, index: int) -> Path:
        """The file (or shard) that the image lies in; there is one unless `images` holds the images."""
        if self.members is not None:
            return self.members.file(index)
        assert self.root is not None
        name = self.names[index]
        return self.root / (name if self.pages is None else name.rpartition(PAGE_MARK)[0] or name)

    def source(self, index: int) -> Path | Page | NDArray[Any]:
        """What `Preprocessing` and `open_image` read the image from: a file, a page, or pixels."""
        if self.images is not None:
            return self.images[index]
        path = self.file(index)
        if self.pages is None and self.members is None and self.max_pixels == MAX_PIXELS:
            return path
        return Page(
            path,
            None if self.pages is None else int(self.pages[index]),
            self.max_pixels,
            None if self.members is None else self.members[index],
        )

    def sources(self) -> Iterator[tuple[str, Path | Page | NDArray[Any]]]:
        """The name and the source of each image."""
        return zip(self.names, map(self.source, range(len(self))), strict=True)

    def open(self, index: int) -> Image.Image:
        """The image, upright, in mode L or RGB.

        Raises:
            ImageDecodeError: It cannot be read, or not in 8 bits; `skipnets.data.decoding.read_values` can.
        """
        return open_image(self.source(index))

    def open_reduced(self, index: int, side: int, *, channels: int) -> Image.Image:
        """The image in 8 bits, at least as finely as a thumbnail needs it; of a JPEG no more is decoded.

        What has more than 8 bits is stretched to what a person sees; of bands, the first three are shown.

        Args:
            index: Which one.
            side: Of the square that it is to be resized to, or into, in pixels.
            channels: 1 for gray (mode L), 3 for RGB.

        Raises:
            ImageDecodeError: It cannot be read.
        """
        source = self.source(index)
        if self.bits > 8 or self.bands:
            return render_image(source).convert("L" if channels == 1 else "RGB")
        image, _ = open_region(
            source, lambda width, height: (0, 0, width, height), size=(side, side), channels=channels
        )
        return image

    def header(self, index: int) -> Header | VolumeHeader:
        """The header of an image.

        Raises:
            ImageDecodeError: It cannot be read.
        """
        return read_header(self.source(index))

    def values(self, index: int, channels: int) -> Values:
        """The image with all of its bits, (H, W, C), in the units of its file.

        Raises:
            ImageDecodeError: It cannot be read, or its channels cannot become so many.
        """
        return read_values(self.source(index), channels)

    @functools.cached_property
    def some_headers(self) -> list[Header]:
        """The headers of up to 100 images, evenly spread, as far as they can be read."""
        headers = []
        for index in range(0, len(self), -(-len(self) // 100) or 1):
            with contextlib.suppress(ImageDecodeError):
                headers.append(read_header(self.source(index)))
            if self.images is not None:
                break  # they are all alike
        return headers

    @property
    def channels(self) -> int:
        """1 if the images are gray, 3 if some are in color, else the number of their bands.

        Raises:
            UserError: Images of different numbers of bands are mixed.
        """
        found = {header.channels for header in self.some_headers}
        if len(found) == 1:
            return found.pop()
        if found - {1, 3}:
            raise UserError(f"channels: {mixed_channels(found)}")
        return 3

    @functools.cached_property
    def bands(self) -> bool:
        """Whether some of the images have another number of channels than gray and color ones."""
        return bool({header.channels for header in self.some_headers} - {1, 3})

    @functools.cached_property
    def bits(self) -> int:
        """The most bits of a value among some of the images: above 8, they are to be windowed."""
        return max((header.bits for header in self.some_headers), default=8)

    def write_splits(self, path: str | os.PathLike[str]) -> None:
        """Write splits.csv, which `open_dataset(splits=...)` repeats; every image is read for its hash."""
        groups = [""] * len(self) if self.groups is None else self.groups.tolist()
        write_splits(
            path,
            [
                SplitRow(name, label, split, group, content.size, content.hash)
                for name, label, split, group, content in zip(
                    self.names,
                    self.label_names,
                    self.splits.tolist(),
                    groups,
                    contents(self),
                    strict=True,
                )
            ],
        )


def mixed_channels(found: Collection[int], dims: int = 2) -> str:
    """What to say of images of several numbers of channels, with bands among them, or of signals or volumes.

    Args:
        found: The numbers.
        dims: Spatial axes.
    """
    # Only four channels may be color and transparency.
    color = dims == 2 and set(found) <= {1, 3, 4}
    way = "--channels 3 takes the fourth of four for transparency, or " if color else ""
    if dims == 2 and max(found) > BANDS_OF_IMAGES:
        way = "--dims 3 takes arrays as volumes, or "
    return (
        f"{INPUTS[dims]} of {' and '.join(map(str, sorted(found)))} channels are mixed, where a model takes "
        f"one number: {way}--exclude leaves files or folders out"
    )


@contextlib.contextmanager
def saying_once() -> Iterator[None]:
    """Context manager within which `log_listing` says a line once, however often the data are opened."""
    token = _SAID.set(set())
    try:
        yield
    finally:
        _SAID.reset(token)


def log_listing(dataset: ImageDataset) -> ImageDataset:
    """Say what was passed over and what may mislead."""
    listing, said = dataset.listing, _SAID.get()
    lines = [(logging.INFO, note) for note in listing.notes]
    if listing.passed_over:
        lines.insert(0, (logging.INFO, f"passed over: {passed_over_line(listing.passed_over)}"))
    lines += [(logging.WARNING, f"warning: {warning}") for warning in listing.warnings]
    for level, line in lines:
        if said is None or line not in said:
            logger.log(level, "%s", line)
        if said is not None:
            said.add(line)
    return dataset


def _renumbered(copies: Sequence[Copy], indices: NDArray[np.int64]) -> list[Copy]:
    """The copies among the images at these positions."""
    if not copies:
        return []
    position = {int(old): new for new, old in enumerate(indices)}
    kept = [copy for copy in copies if copy.first in position and copy.second in position]
    return [copy._replace(first=position[copy.first], second=position[copy.second]) for copy in kept]


def _kind_of(labels: NDArray[Any]) -> str:
    return f"{labels.dtype} of shape {labels.shape}"
