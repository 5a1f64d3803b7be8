"""What images there are, their labels and their splits: from a folder, a manifest, or a named dataset."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipnets.data.arrays import SUFFIXES as ARRAY_SUFFIXES
from skipnets.data.contents import Content, contents, of_page
from skipnets.data.copies import Copy, clusters, expected_seconds, find_copies
from skipnets.data.decoding import (
    MAX_PIXELS,
    PAGED_SUFFIXES,
    SUFFIXES,
    ImageDecodeError,
    Page,
    count_pages,
    open_image,
    open_region,
    read_header,
    render_image,
)
from skipnets.data.dicom import can_read_dicom, groups_of, is_dicom
from skipnets.data.labels import check_group_names, check_labels
from skipnets.data.layout import find_images, images_below
from skipnets.data.listing import Entry, Listing, counted, natural_key, passed_over_line
from skipnets.data.manifest import MANIFEST_SUFFIXES, Columns, find_listed, find_metadata, relative_name
from skipnets.data.multi_label import absent_labels, join_folders, label_texts, labels_from_texts
from skipnets.data.named import NAMED_SETS, read_named
from skipnets.data.options import DataOptions
from skipnets.data.raster import Header
from skipnets.data.shards import Members, is_sharded, read_shards
from skipnets.data.splits import (
    LATEST_FIRST,
    SPLITS,
    Shares,
    SplitRow,
    cut,
    cut_groups,
    find_shares,
    read_splits,
    write_splits,
)
from skipnets.data.targets import quantile_labels, target_texts, targets_from_texts
from skipnets.errors import UserError, check_path, listed, naming, near_matches
from skipnets.progress import LoggedProgress

__all__ = ["ImageDataset", "images_below", "open_dataset"]

logger = logging.getLogger("skipnets")

Duplicates = Literal["keep-together", "drop", "ignore"]

_SAME_NUMBER = 0.1  # standard deviations of a target
_ARCHIVES = (".7z", ".gz", ".rar", ".tar", ".tgz", ".zip")
# What is decided when shards are written.
_NOT_OF_SHARDS = (
    *("layout", "exclude", "root", "path_column", "label_column", "split_column", "group_column"),
)
# What follows a file's name where each of its pages is an image of its own.
_PAGE_MARK = "#page="


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
        """(K,) how many images have each class; of numbers, each target's."""
        if self.regression:
            return np.full(len(self.classes), len(self), dtype=np.int64)
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
        return self.root / (name if self.pages is None else name.rpartition(_PAGE_MARK)[0] or name)

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


def open_dataset(
    data: str | os.PathLike[str],
    *,
    seed: int = 0,
    fractions: Sequence[float] | Literal["auto"] | None = "auto",
    splits: str | os.PathLike[str] | None = None,
    download: bool = False,
    duplicates: Duplicates = "ignore",
    options: DataOptions | None = None,
) -> ImageDataset:
    """Find the images of a dataset and which of them train, validate and test.

    A folder holds class folders, or split folders ("train", "Validation", "seg_test", …) with class folders
    in them; below a class, images may lie at any depth. Or it holds shards (`write_shards`). A manifest is a
    table (.csv, .tsv, .jsonl, .parquet, or a list in .txt) with columns of files, labels and perhaps splits.
    What has no split is dealt out by class, or by group where there are groups; if only "val" or "test" is
    missing, it is cut from "train", keeping the ratio of the fractions. What is not used and what may mislead
    is logged.

    Args:
        data: A folder, a manifest, or a named dataset: digits, mnist, fashion-mnist, cifar10, cifar100, svhn.
            A folder that is named like a set is written ./digits.
        seed: Seed of the random split, not negative.
        fractions: Fractions of train, val and test, which sum to 1. "auto" is 0.7, 0.15 and 0.15, with about
            5,000 images in val where that would be more; of a class, ten or these 15% stay at least. None
            splits nothing: images without a split are then "test", and any number of classes and images will
            do. For data to be evaluated.
        splits: A CSV file written by an earlier run, whose splits are repeated; images that it does not
            list are left out.
        download: Whether a named dataset may be fetched from the network.
        duplicates: Copies of an image: "keep-together" names them and, where splits are drawn, puts them into
            one; "drop" names them and keeps one of them; "ignore" does not look for them.
        options: How the data is read where it is ambiguous.

    Raises:
        UserError: There is no such data, or not enough of it, or it can be read in two ways.
    """
    return log_listing(
        find_dataset(
            data,
            seed=seed,
            fractions=fractions,
            splits=splits,
            download=download,
            duplicates=duplicates,
            options=options,
        )
    )


def find_dataset(
    data: str | os.PathLike[str],
    *,
    seed: int = 0,
    fractions: Sequence[float] | Literal["auto"] | None = "auto",
    splits: str | os.PathLike[str] | None = None,
    download: bool = False,
    duplicates: Duplicates = "ignore",
    options: DataOptions | None = None,
    copies_within: float | None = None,
) -> ImageDataset:
    """`open_dataset` for those who show `ImageDataset.listing` themselves: it logs nothing.

    Where looking for near copies would take more than `copies_within` seconds, they are not looked for, with
    a note, unless they are to be dropped.
    """
    if seed < 0:
        raise UserError(f"seed={seed}: must not be negative")
    check_path("data", data)
    options = options or DataOptions()
    shares = None if fractions is None else find_shares(fractions)
    dataset = find_with_own_splits(
        data,
        download=download,
        duplicates="ignore" if splits is not None else duplicates,
        options=options,
        copies_within=copies_within,
    )
    if splits is not None:
        return repeat_splits(dataset, splits, missing=options.missing)
    if shares is None:
        return replace(dataset, splits=np.where(dataset.splits == "", "test", dataset.splits))
    return deal_out(dataset, shares, seed, data)


def find_with_own_splits(
    data: str | os.PathLike[str],
    *,
    download: bool = False,
    duplicates: Duplicates = "ignore",
    options: DataOptions | None = None,
    strict: bool = True,
    copies_within: float | None = None,
) -> ImageDataset:
    """`find_dataset` without dealing out: the split of an image is "" where the data does not tell it.

    Without `strict`, a class that is spelled in two ways is always a warning, and never an error.
    """
    check_path("data", data)
    dataset = _find(data, options or DataOptions(), download=download, strict=strict)
    if duplicates not in get_args(Duplicates):
        raise UserError(f"duplicates={duplicates!r}: must be one of {', '.join(get_args(Duplicates))}")
    if duplicates == "ignore":
        return dataset
    drop = duplicates == "drop"
    return _find_copies(dataset, drop=drop, within=None if drop else copies_within)


def _find(
    data: str | os.PathLike[str], options: DataOptions, *, download: bool, strict: bool
) -> ImageDataset:
    """The images, with the splits and groups that the data itself tells."""
    if isinstance(data, str) and data in NAMED_SETS:
        if options.task == "multi-label":
            raise UserError(f"task=multi-label: the images of {data} have one label each")
        if options.wants_numbers:
            raise UserError(f"task=regression: {data} has classes, not numbers to predict")
        return _named(data, download=download)
    path = Path(data)
    columns = Columns(
        path=options.path_column,
        label=options.label_column,
        labels=options.label_columns,
        targets=options.targets,
        split=options.split_column,
        group=options.group_column,
    )
    listed_in = functools.partial(
        find_listed,
        columns=columns,
        missing=options.missing,
        task=options.task,
        uncertain=options.uncertain,
    )
    members = None
    if path.is_dir() and is_sharded(path):
        if options.task == "multi-label":
            raise UserError(f"task=multi-label: {path} holds shards, of which each image has one class yet")
        if options.wants_numbers:
            raise UserError(f"task=regression: {path} holds shards, of which each image has one class yet")
        if unfit := options.arguments(_NOT_OF_SHARDS):
            raise UserError(f"{path}: holds shards, for which {' '.join(unfit)} comes too late")
        listing, members = read_shards(path)
    elif path.is_dir():
        metadata = find_metadata(path, any_label=options.wants_numbers) if options.layout == "auto" else None
        if metadata is None and options.wants_numbers:
            raise UserError(
                f"task=regression: {path} is a folder; it takes a manifest ({', '.join(MANIFEST_SUFFIXES)}) "
                "with a column of numbers"
            )
        if metadata is None and columns != Columns():
            raise UserError(f"{path}: is a folder; --path-column and the like are for a manifest")
        if metadata is None:
            listing = find_images(path, layout=options.layout, exclude=options.exclude)
            if options.task == "multi-label":
                join_folders(listing)
        else:
            listing = listed_in(metadata, root=path)
            listing.notes.insert(0, f"files and labels are those of {metadata.name}")
    elif path.is_file() and path.suffix.lower() in MANIFEST_SUFFIXES:
        listing = listed_in(path, root=options.root)
    elif path.is_file():
        unpack = "; unpack it first" if path.suffix.lower() in _ARCHIVES else ""
        raise UserError(
            f"{data}: must be a folder, a manifest ({', '.join(MANIFEST_SUFFIXES)}) "
            f"or a named dataset ({', '.join(NAMED_SETS)}){unpack}"
        )
    else:
        raise UserError(
            f"{data}: no such folder, manifest or named dataset ({', '.join(NAMED_SETS)})"
            f"{near_matches(str(data), NAMED_SETS)}"
        )
    check_labels(listing, strict=strict)
    _warn_of_arrays(listing)
    if options.group_pattern is not None:
        _find_groups(listing, options.group_pattern)
    elif not any(entry.group for entry in listing.entries) and (
        members is not None or not _find_patients(listing)
    ):
        check_group_names(listing)
    return _from_listing(listing, options, members)


def _warn_of_arrays(listing: Listing) -> None:
    """Arrays beside images may be masks or features of these."""
    arrays = [entry.name for entry in listing.entries if entry.name.lower().endswith(ARRAY_SUFFIXES)]
    if 0 < len(arrays) < len(listing.entries):
        listing.warnings.append(
            f"{counted(len(arrays), 'array')} beside images are read as images, such as {arrays[0]}; if they "
            "are none, --exclude '*.np[yz]'"
        )


def _find_groups(listing: Listing, pattern: str) -> None:
    """Give every image the group that its path tells."""
    matches = [re.search(pattern, entry.name) for entry in listing.entries]
    without = [entry.name for entry, match in zip(listing.entries, matches, strict=True) if match is None]
    if without:
        raise UserError(
            f"group_pattern={pattern!r}: {len(without):,} of {len(matches):,} paths do not match: "
            f"{listed(without)}"
        )
    listing.entries = [
        entry._replace(group=match[1] if match.re.groups else match[0])
        for entry, match in zip(listing.entries, matches, strict=True)
        if match is not None
    ]


def _from_listing(listing: Listing, options: DataOptions, members: Members | None) -> ImageDataset:
    """Images in the order of their names; those of shards stand in the order of their members."""
    order = sorted(range(len(listing.entries)), key=listing.entries.__getitem__)
    entries = [listing.entries[position] for position in order]
    members = None if members is None else members.select(np.array(order, dtype=np.int64))
    pages = None
    if options.page == "all":
        entries, pages, origin = _every_page(listing.root, entries, members)
        members = None if members is None else members.select(origin)
    elif isinstance(options.page, int):
        pages = np.full(len(entries), options.page - 1)
    if listing.regression:
        classes = tuple(listing.classes)
        labels: NDArray[Any] = targets_from_texts([entry.label for entry in entries])
    else:
        classes = _class_names(listing, entries, options)
        labels = _class_labels(listing, entries, classes)
    groups = np.array([entry.group for entry in entries])
    known = None
    if members is not None:  # the index tells them
        numbers = [0] * len(entries) if pages is None else pages.tolist()
        known = [
            Content(size, of_page(file_hash.decode(), page))
            for size, file_hash, page in zip(
                members.sizes.tolist(), members.hashes.tolist(), numbers, strict=True
            )
        ]
    return ImageDataset(
        classes=classes,
        names=[entry.name for entry in entries],
        labels=labels,
        regression=listing.regression,
        splits=np.array([entry.split for entry in entries], dtype="<U5"),
        groups=groups if (groups != "").any() else None,
        pages=pages,
        members=members,
        contents=known,
        max_pixels=options.max_pixels or MAX_PIXELS,
        root=listing.root,
        listing=listing,
    )


def _class_names(listing: Listing, entries: Sequence[Entry], options: DataOptions) -> tuple[str, ...]:
    """The classes in the order that was asked for."""
    found = () if listing.multi_label else (entry.label for entry in entries)
    alphabetical = sorted({*listing.classes, *found})
    return tuple(
        alphabetical if options.class_order == "alphabetical" else sorted(alphabetical, key=natural_key)
    )


def _class_labels(listing: Listing, entries: Sequence[Entry], classes: tuple[str, ...]) -> NDArray[Any]:
    """(N,) positions in the classes; (N, K) where an image has any number of them."""
    if listing.multi_label:
        return labels_from_texts([entry.label for entry in entries], classes)
    number = {label: position for position, label in enumerate(classes)}
    return np.array([number[entry.label] for entry in entries], dtype=np.int64)


def _find_patients(listing: Listing) -> bool:
    """Take the patients of DICOM files as groups; whether the files say what these are."""
    listing.entries.sort()
    paths = [listing.root / entry.name for entry in listing.entries]
    if not can_read_dicom() or not any(map(_is_dicom, paths)):
        return False
    groups = groups_of(paths)
    kind = groups[0].partition(" ")[0]
    if len(set(groups)) == 1:
        listing.warnings.append(
            "all DICOM files are of one patient and study, or do not say: images of one may end up "
            "in several splits"
        )
        return True
    if len(set(groups)) < len(groups):  # otherwise every image stands alone
        listing.groups_found = True
        listing.notes.append(
            f"groups: the DICOM files' {kind} identifiers, numbered; images of one {kind} stay in one split"
        )
        listing.entries = [
            entry._replace(group=group) for entry, group in zip(listing.entries, groups, strict=True)
        ]
    return True


def _is_dicom(path: Path) -> bool:
    if path.name.lower().endswith(SUFFIXES):
        return False
    with contextlib.suppress(OSError), path.open("rb") as file:
        return is_dicom(file.read(132))
    return False


def mixed_channels(found: Collection[int]) -> str:
    """What to say of images of several numbers of channels, with bands among them.

    Args:
        found: The numbers.
    """
    # Only four channels may be color and transparency.
    way = "--channels 3 takes the fourth of four for transparency, or " if set(found) <= {1, 3, 4} else ""
    return (
        f"images of {' and '.join(map(str, sorted(found)))} channels are mixed, where a model takes one "
        f"number: {way}--exclude leaves files or folders out"
    )


def _every_page(
    root: Path, entries: Sequence[Entry], members: Members | None
) -> tuple[list[Entry], NDArray[np.int64], NDArray[np.int64]]:
    """One entry a page, its page, and the position of its file; pages of a file are a group without one."""
    every, pages, origin = [], [], []
    for position, entry in enumerate(entries):
        count = 1
        if entry.name.lower().endswith(PAGED_SUFFIXES):
            path = root / entry.name
            source = Page(members.file(position), member=members[position]) if members is not None else path
            count = count_pages(source)
        for page in range(count):
            name = f"{entry.name}{_PAGE_MARK}{page + 1}" if count > 1 else entry.name
            every.append(entry._replace(name=name, group=entry.group or entry.name))
            pages.append(page)
            origin.append(position)
    return every, np.array(pages, dtype=np.int64), np.array(origin, dtype=np.int64)


def log_listing(dataset: ImageDataset) -> ImageDataset:
    """Say what was passed over and what may mislead."""
    listing = dataset.listing
    if listing.passed_over:
        logger.info("passed over: %s", passed_over_line(listing.passed_over))
    for note in listing.notes:
        logger.info("%s", note)
    for warning in listing.warnings:
        logger.warning("warning: %s", warning)
    return dataset


def _find_copies(dataset: ImageDataset, *, drop: bool, within: float | None) -> ImageDataset:
    """The dataset with its copies known, or without them; near ones where that takes fewer seconds."""
    known = contents(dataset, progress=LoggedProgress("reading images", first=3.0))
    near = True
    if within is not None and (expected := expected_seconds(dataset)) > within:
        near = False
        dataset.listing.notes.append(
            f"only exact copies are looked for: near ones would take about {expected:.0f} s of the time "
            "(skipnets audit finds them)"
        )
    searching = LoggedProgress("looking for copies among the images", first=3.0)
    copies = find_copies(
        dataset, known, lambda steps, total: searching(steps * len(dataset) // total, len(dataset)), near=near
    )
    dataset = replace(dataset, contents=known, copies=copies)
    dataset.listing.warnings += _copy_warnings(dataset)
    if not drop or not dataset.copies:
        return dataset
    # Test images stay as they are published; what the model learns from can do without.
    first = clusters(dataset.copies, len(dataset))
    order = sorted(range(len(dataset)), key=lambda index: (LATEST_FIRST[str(dataset.splits[index])], index))
    kept_of: dict[int, int] = {}
    for index in order:
        kept_of.setdefault(int(first[index]), index)
    kept = np.array(sorted(kept_of.values()), dtype=np.int64)
    dataset.listing.passed_over["copies of other images"] += len(dataset) - len(kept)
    return dataset.select(kept)


def _copy_warnings(dataset: ImageDataset) -> Iterator[str]:
    """What copies there are: across splits, under two labels, and in all."""
    exact = sum(copy.exact for copy in dataset.copies)
    across: dict[str, list[Copy]] = {}
    for copy in dataset.copies:
        splits = {str(dataset.splits[copy.first]), str(dataset.splits[copy.second])}
        if len(splits) == 2:
            across.setdefault(" and ".join(sorted(splits, reverse=True)), []).append(copy)
    for pair, copies in across.items():
        yield (
            f"{counted(len(copies), 'image')} of {pair} are copies of one another, such as "
            f"{dataset.names[copies[0].first]} and {dataset.names[copies[0].second]}, which makes results "
            "too good; skipnets audit shows them, --duplicates drop leaves one of each"
        )
    labels = dataset.labels
    if dataset.regression:
        # Of images that are nearly equal, so may their numbers be.
        close = _SAME_NUMBER * labels.std(0)
        differing = [
            copy
            for copy in dataset.copies
            if (np.abs(labels[copy.first] - labels[copy.second]) > (0 if copy.exact else close)).any()
        ]
    else:
        differing = [
            copy
            for copy in dataset.copies
            if not np.array_equal(labels[copy.first], labels[copy.second], equal_nan=dataset.multi_label)
        ]
    if differing:
        yield (
            f"{counted(len(differing), 'pair')} of copies with different "
            f"{'numbers' if dataset.regression else 'labels'}, such as "
            f"{dataset.names[differing[0].first]} and {dataset.names[differing[0].second]}"
        )
    if dataset.copies:
        yield (
            f"{counted(len(dataset.copies), 'copy', 'copies')} of images ({exact:,} equal byte by byte, "
            f"{len(dataset.copies) - exact:,} nearly equal)"
        )


def _renumbered(copies: Sequence[Copy], indices: NDArray[np.int64]) -> list[Copy]:
    """The copies among the images at these positions."""
    if not copies:
        return []
    position = {int(old): new for new, old in enumerate(indices)}
    kept = [copy for copy in copies if copy.first in position and copy.second in position]
    return [copy._replace(first=position[copy.first], second=position[copy.second]) for copy in kept]


def deal_out(dataset: ImageDataset, shares: Shares, seed: int, data: object) -> ImageDataset:
    """Give a split to images that have none, and cut a missing val or test from train.

    Args:
        dataset: With the splits that the data itself tells.
        shares: What each split gets.
        seed: Not negative.
        data: What was opened, for messages.

    Raises:
        UserError: There are too few classes or images, or groups lie in several of the given splits.
    """
    check_classes(dataset, data)
    present = set(dataset.splits.tolist())
    pool = dataset.splits == ("" if "" in present else "train")
    wanted = shares.of([split for split in shares.fractions if split == "train" or split not in present])
    check_groups(dataset, pool)
    if len(wanted.fractions) == 1 and "" not in present:
        return dataset
    in_pool = [copy for copy in dataset.copies if pool[copy.first] and pool[copy.second]]
    together = clusters(in_pool, len(dataset))
    alone = pool & (together == np.arange(len(dataset)))
    if dataset.task != "single-label":
        units = together if dataset.groups is None else join_groups(dataset.groups, together)
        splits = dataset.splits.astype("<U5")
        labels = quantile_labels(dataset.labels[pool]) if dataset.regression else dataset.labels[pool]
        splits[pool] = cut_groups(labels, units[pool], wanted, seed)
        warn_of_absent_classes(dataset, splits)
        return _with_splits(dataset, splits, wanted, pool)
    counts = np.bincount(dataset.labels[alone], minlength=len(dataset.classes))
    # In root/train/… a class may be absent from train as a whole; one that is there must suffice.
    short = np.flatnonzero((counts < len(wanted.fractions)) & ((counts > 0) | ("" in present)))
    if len(short):
        more = len(short) - 1
        others = f" (and {more} more {'classes have' if more > 1 else 'class has'} too few)" if more else ""
        others += ", copies of one another counted once" if len(dataset.copies) else ""
        name = f'"{dataset.classes[short[0]]}"'
        spelled_alike = [
            f" ({line})" for line in dataset.listing.warnings if name in line and "in spelling" in line
        ]
        raise UserError(
            f"{data}: class {name} has {counted(int(counts[short[0]]), 'image')} to be split into "
            f"{', '.join(wanted.fractions)}{others}; it takes at least {len(wanted.fractions)}, one for "
            "each: add images or remove the class"
            f"{''.join(spelled_alike)}"
        )
    splits = dataset.splits.astype("<U5")
    if dataset.groups is None:
        splits[alone] = cut(dataset.labels[alone], wanted, seed)
        # Copies follow the first of them.
        splits[pool] = splits[together[pool]]
    else:
        units = join_groups(dataset.groups, together)
        splits[pool] = cut_groups(dataset.labels[pool], units[pool], wanted, seed)
        warn_of_absent_classes(dataset, splits)
    return _with_splits(dataset, splits, wanted, pool)


def _with_splits(
    dataset: ImageDataset, splits: NDArray[np.str_], wanted: Shares, pool: NDArray[np.bool_]
) -> ImageDataset:
    """The dataset with these splits, and a note where val is smaller than its share of the pool."""
    count, val = int(pool.sum()), int((splits[pool] == "val").sum())
    if wanted.reduced(count) != wanted.fractions:
        share = wanted.fractions["val"] / sum(wanted.fractions.values())
        dataset.listing.notes.append(
            f"val has {val:,} of {count:,} images, not {share:.0%}: enough to choose the best epoch "
            "(--fractions decides otherwise)"
        )
    return replace(dataset, splits=splits)


def check_classes(dataset: ImageDataset, data: object) -> None:
    """There must be classes to tell apart, or one label to tell the presence of."""
    if len(dataset.classes) < 2 and dataset.task == "single-label":
        raise UserError(
            f'{data}: holds one class only, "{dataset.classes[0]}"; telling classes apart takes two or more'
        )


def join_groups(groups: NDArray[np.str_], together: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) numbers of the smallest units that keep both groups and copies together.

    An image without a group is a unit of its own.
    """
    _, group = np.unique(groups, return_inverse=True)
    unit = np.where(groups == "", len(group) + np.arange(len(group)), group)
    for position, first in enumerate(together):
        if unit[position] != unit[first]:
            unit[unit == unit[position]] = unit[first]
    return unit


def check_groups(dataset: ImageDataset, pool: NDArray[np.bool_]) -> None:
    """Groups must not cross the splits that the data came with."""
    if dataset.groups is None:
        return
    home: dict[str, str] = {}
    crossing = {
        str(group)
        for group, split in zip(dataset.groups[~pool], dataset.splits[~pool], strict=True)
        if group and home.setdefault(str(group), str(split)) != split
    }
    crossing |= {str(group) for group in dataset.groups[pool] if str(group) in home}
    if crossing and dataset.listing.groups_found:
        dataset.listing.warnings.append(
            f"images of {counted(len(crossing), 'patient or study', 'patients or studies')} lie in several "
            f"of the given splits, which makes results too good: {listed(sorted(crossing))}"
        )
    elif crossing:
        raise UserError(
            f"groups that lie in several of the given splits: {listed(sorted(crossing))} "
            f"({counted(len(crossing), 'group')}); leave the splits out to have them drawn by group"
        )


def warn_of_absent_classes(dataset: ImageDataset, splits: NDArray[np.str_]) -> None:
    """Add to the dataset's warnings which splits lack a class."""
    if dataset.regression:
        return
    if dataset.multi_label:
        dataset.listing.warnings += absent_labels(dataset.labels, dataset.classes, splits)
        return
    for split in np.unique(splits):
        labels = set(dataset.labels[splits == split].tolist())
        absent = [name for label, name in enumerate(dataset.classes) if label not in labels]
        if absent:
            dataset.listing.warnings.append(f"too few groups: no images of {listed(absent)} in {split}")


def repeat_splits(dataset: ImageDataset, path: str | os.PathLike[str], *, missing: str) -> ImageDataset:
    """The images that a splits.csv lists, in its splits; `missing` is as in `DataOptions`."""
    with naming("splits"):
        rows = read_splits(path)
    root = dataset.root
    known = {name: index for index, name in enumerate(dataset.names)}
    names = dataset.label_names
    split_of: dict[int, str] = {}
    gone = []
    for name, (label, split) in rows.items():
        index = known.get(name)
        if index is None and root is not None:  # version 0.1 kept paths as a manifest writes them
            index = known.get(relative_name(root, name))
        if index is None:
            gone.append(name)
        elif names[index] != label:
            other = "with another number" if dataset.regression else "under another class"
            raise UserError(f"{path}: lists {name} as {label!r}, which the data hold {other}")
        else:
            split_of[index] = split
    if gone and missing != "skip":
        raise UserError(
            f"{path}: lists {listed(gone)}, which the data do not hold; --missing skip goes on without"
        )
    if gone:
        dataset.listing.warnings.append(
            f"{counted(len(gone), 'image')} that {path} lists are no longer there: {listed(gone)}"
        )
    kept = np.array(sorted(split_of), dtype=np.int64)
    if len(kept) < len(dataset):
        dataset.listing.warnings.append(
            f"{counted(len(dataset) - len(kept), 'image')} that {path} does not list are left out"
        )
    chosen = dataset.select(kept)
    return replace(chosen, splits=np.array([split_of[index] for index in kept.tolist()], dtype="<U5"))


def _named(name: str, *, download: bool) -> ImageDataset:
    classes, parts = read_named(name, download=download)
    names, splits = [], []
    for split, (_, labels) in parts.items():
        prefix = f"{name}/{split}" if split else name
        names += [f"{prefix}/{number:05d}" for number in range(len(labels))]
        splits += [split] * len(labels)
    return ImageDataset(
        classes=classes,
        names=names,
        labels=np.concatenate([labels for _, labels in parts.values()]),
        splits=np.array(splits, dtype="<U5"),
        images=np.concatenate([images for images, _ in parts.values()]),
        listing=Listing(layout="named dataset"),
    )
