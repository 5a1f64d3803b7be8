"""What images there are, their labels and their splits: from a folder, a manifest, or a named dataset."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from skipnets.axes import INPUTS, worded
from skipnets.data.arrays import SUFFIXES as ARRAY_SUFFIXES
from skipnets.data.contents import Content, contents, of_page
from skipnets.data.copies import Copy, clusters, expected_seconds, find_copies
from skipnets.data.dataset import PAGE_MARK, ImageDataset, log_listing
from skipnets.data.decoding import (
    MAX_PIXELS,
    PAGED_SUFFIXES,
    SUFFIXES,
    Page,
    count_pages,
)
from skipnets.data.dicom import can_read_dicom, groups_of, is_dicom
from skipnets.data.labels import check_group_names, check_labels
from skipnets.data.layout import find_images, images_below
from skipnets.data.listing import Entry, Listing, counted, natural_key
from skipnets.data.manifest import find_listed, find_metadata
from skipnets.data.manifest_columns import Columns
from skipnets.data.manifest_labels import without_marks
from skipnets.data.manifest_tables import TABLE_SUFFIXES
from skipnets.data.multi_label import join_folders, labels_from_texts
from skipnets.data.named import NAMED_SETS, read_named
from skipnets.data.options import DataOptions
from skipnets.data.shards import Members, is_sharded, read_shards
from skipnets.data.splits import (
    LATEST_FIRST,
    find_shares,
)
from skipnets.data.splitting import deal_out, repeat_splits
from skipnets.data.targets import targets_from_texts
from skipnets.data.volumes import VolumeDataset, with_channels
from skipnets.errors import UserError, check_path, listed, near_matches
from skipnets.progress import LoggedProgress

__all__ = ["images_below", "open_dataset"]

logger = logging.getLogger("skipnets")

Duplicates = Literal["keep-together", "drop", "ignore"]

_SAME_NUMBER = 0.1  # standard deviations of a target
_ARCHIVES = (".7z", ".gz", ".rar", ".tar", ".tgz", ".zip")
# What is decided when shards are written.
_NOT_OF_SHARDS = (
    *("layout", "exclude", "root", "path_column", "label_column", "label_columns", "uncertain"),
    *("split_column", "group_column", "dims"),
)
# What is of no use with a named dataset.
_OF_FILES = (
    *("layout", "exclude", "class_order", "root", "path_column", "label_column", "label_columns"),
    *("uncertain", "split_column", "group_column", "group_pattern", "page"),
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
    channels: int | None = None,
    copies_within: float | None = None,
) -> ImageDataset:
    """`open_dataset` for those who show `ImageDataset.listing` themselves: it logs nothing.

    Signals and volumes of other than `channels` are left out, with a warning. Where looking for near copies
    would take more than `copies_within` seconds, they are not looked for, with a note, unless they are to be
    dropped.
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
        channels=channels,
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
    channels: int | None = None,
    copies_within: float | None = None,
) -> ImageDataset:
    """`find_dataset` without dealing out: the split of an image is "" where the data does not give it.

    Without `strict`, a class that is spelled in two ways is always a warning, and never an error.
    """
    check_path("data", data)
    dataset = with_channels(_find(data, options or DataOptions(), download=download, strict=strict), channels)
    if duplicates not in get_args(Duplicates):
        raise UserError(f"duplicates={duplicates!r}: must be one of {', '.join(get_args(Duplicates))}")
    if duplicates == "ignore":
        return dataset
    drop = duplicates == "drop"
    return _find_copies(dataset, drop=drop, within=None if drop else copies_within)


def check_data(data: str | os.PathLike[str]) -> None:
    """Check that there is such data, without looking into it.

    Raises:
        UserError: It is no named dataset, folder or manifest.
    """
    path = Path(data)
    if (isinstance(data, str) and data in NAMED_SETS) or path.is_dir():
        return
    if not path.is_file():
        raise UserError(
            f"{data}: no such folder, manifest or named dataset ({', '.join(NAMED_SETS)})"
            f"{near_matches(str(data), NAMED_SETS)}"
        )
    if path.suffix.lower() not in TABLE_SUFFIXES:
        unpack = "; unpack it first" if path.suffix.lower() in _ARCHIVES else ""
        raise UserError(
            f"{data}: must be a folder, a manifest ({', '.join(TABLE_SUFFIXES)}) "
            f"or a named dataset ({', '.join(NAMED_SETS)}){unpack}"
        )


def _find(
    data: str | os.PathLike[str], options: DataOptions, *, download: bool, strict: bool
) -> ImageDataset:
    """The images, with the splits and groups that the data itself gives."""
    if isinstance(data, str) and data in NAMED_SETS:
        if options.dims != 2:
            raise UserError(f"dims={options.dims}: {data} holds images, not {INPUTS[options.dims]}")
        if options.task == "multi-label":
            raise UserError(f"task=multi-label: the images of {data} have one label each")
        if options.wants_numbers:
            raise UserError(f"task=regression: {data} has classes, not numbers to predict")
        if unfit := options.arguments(_OF_FILES):
            raise UserError(f"{' '.join(unfit)}: must not be given with {data}, a named dataset")
        return _named(data, download=download)
    check_data(data)
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
        exclude=options.exclude,
        missing=options.missing,
        task=options.task,
        uncertain=options.uncertain,
    )
    members = None
    if path.is_dir() and is_sharded(path):
        if unfit := options.arguments(_NOT_OF_SHARDS):
            raise UserError(f"{path}: holds shards, for which {' '.join(unfit)} comes too late")
        listing, members = read_shards(path)
        _check_task_of_shards(path, listing, options)
    elif path.is_dir():
        if options.root is not None:
            raise UserError(f"root={options.root}: is for a manifest; {path} is a folder")
        metadata = find_metadata(path, any_label=options.wants_numbers) if options.layout == "auto" else None
        if metadata is None and options.wants_numbers:
            raise UserError(
                f"task=regression: {path} is a folder; it takes a manifest ({', '.join(TABLE_SUFFIXES)}) "
                "with a column of numbers"
            )
        if metadata is None and columns != Columns():
            raise UserError(f"{path}: is a folder; --path-column and the like are for a manifest")
        if metadata is None:
            listing = find_images(path, layout=options.layout, exclude=options.exclude, dims=options.dims)
            if options.task == "multi-label":
                join_folders(listing)
            if options.uncertain != "ignore":
                listing.warnings.append(without_marks(options.uncertain))
        else:
            listing = listed_in(metadata, root=path)
            listing.notes.insert(0, f"files and labels are those of {metadata.name}")
    else:
        if options.layout != "auto":
            raise UserError(f"layout={options.layout}: is for a folder; {path} is a manifest")
        listing = listed_in(path, root=options.root)
    check_labels(listing, strict=strict)
    if options.dims == 2:
        _warn_of_arrays(listing)
    if options.group_pattern is not None:
        _find_groups(listing, options.group_pattern)
    elif not any(entry.group for entry in listing.entries) and (
        members is not None or not _find_patients(listing)
    ):
        check_group_names(listing)
    return _from_listing(listing, options, members)


def _check_task_of_shards(path: Path, listing: Listing, options: DataOptions) -> None:
    """What the images of shards have was given when they were written."""
    wanted = "regression" if options.wants_numbers else options.task
    held = "regression" if listing.regression else "multi-label" if listing.multi_label else "single-label"
    if wanted not in ("auto", held):
        raise UserError(f"task={wanted}: {path} holds shards that were written for task={held}")
    if options.targets and set(options.targets) != set(listing.classes):
        raise UserError(
            f"targets={listed(options.targets)}: must be all that the shards of {path} hold: "
            f"{listed(listing.classes, 20)}"
        )


def _warn_of_arrays(listing: Listing) -> None:
    """Arrays beside images may be masks or features of these."""
    arrays = [entry.name for entry in listing.entries if entry.name.lower().endswith(ARRAY_SUFFIXES)]
    if 0 < len(arrays) < len(listing.entries):
        listing.warnings.append(
            f"{counted(len(arrays), 'array')} beside images are read as images, such as {arrays[0]}; if they "
            "are none, --exclude '*.np[yz]'"
        )


def _find_groups(listing: Listing, pattern: str) -> None:
    """Give every image the group that its path names."""
    groups = [_named_group(re.search(pattern, entry.name)) for entry in listing.entries]
    without = [entry.name for entry, group in zip(listing.entries, groups, strict=True) if not group]
    if without:
        raise UserError(
            f"group_pattern={pattern!r}: finds no group in {len(without):,} of {len(groups):,} paths: "
            f"{listed(without)}"
        )
    if any(entry.group for entry in listing.entries):
        listing.notes.append("groups: as --group-pattern finds them, not those of the column split_group")
    listing.entries = [
        entry._replace(group=group) for entry, group in zip(listing.entries, groups, strict=True)
    ]


def _named_group(match: re.Match[str] | None) -> str:
    """The first parenthesis that took part in a match, or all of it; "" where that is nothing."""
    if match is None:
        return ""
    return next((group for group in match.groups() if group is not None), "" if match.re.groups else match[0])


def _from_listing(listing: Listing, options: DataOptions, members: Members | None) -> ImageDataset:
    """Images in the order of their names; those of shards stand in the order of their members."""
    order = sorted(range(len(listing.entries)), key=listing.entries.__getitem__)
    entries = [listing.entries[position] for position in order]
    members = None if members is None else members.select(np.array(order, dtype=np.int64))
    pages = None
    if options.page == "all":
        limit = options.max_pixels or MAX_PIXELS
        entries, pages, origin = _every_page(listing.root, entries, members, limit)
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
    if members is not None:  # the index has them
        numbers = [0] * len(entries) if pages is None else pages.tolist()
        known = [
            Content(size, of_page(file_hash.decode(), page))
            for size, file_hash, page in zip(
                members.sizes.tolist(), members.hashes.tolist(), numbers, strict=True
            )
        ]
    of_kind = ImageDataset if options.dims == 2 else functools.partial(VolumeDataset, axes=options.dims)
    return of_kind(
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


def _every_page(
    root: Path, entries: Sequence[Entry], members: Members | None, max_pixels: int
) -> tuple[list[Entry], NDArray[np.int64], NDArray[np.int64]]:
    """One entry a page, its page, and the position of its file; pages of a file are a group without one."""
    every, pages, origin = [], [], []
    for position, entry in enumerate(entries):
        count = 1
        if entry.name.lower().endswith(PAGED_SUFFIXES):
            path = root / entry.name if members is None else members.file(position)
            member = None if members is None else members[position]
            count = count_pages(Page(path, member=member, max_pixels=max_pixels))
        for page in range(count):
            name = f"{entry.name}{PAGE_MARK}{page + 1}" if count > 1 else entry.name
            every.append(entry._replace(name=name, group=entry.group or entry.name))
            pages.append(page)
            origin.append(position)
    return every, np.array(pages, dtype=np.int64), np.array(origin, dtype=np.int64)


def _find_copies(dataset: ImageDataset, *, drop: bool, within: float | None) -> ImageDataset:
    """The dataset with its copies known, or without them; near ones where that takes fewer seconds."""
    known = contents(dataset, progress=LoggedProgress("reading images", first=3.0))
    near = dataset.dims == 2
    if near and within is not None and (expected := expected_seconds(dataset)) > within:
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
    shown = "skipnets audit shows them, " if dataset.dims == 2 else ""
    for pair, copies in across.items():
        count = worded(counted(len(copies), "image"), dataset.dims)
        yield (
            f"{count} of {pair} are copies of one another, such as "
            f"{dataset.names[copies[0].first]} and {dataset.names[copies[0].second]}, which makes results "
            f"too good; {shown}--duplicates drop leaves one of each"
        )
    labels = dataset.labels
    if dataset.regression:
        # Of images that are nearly equal, so may their numbers be.
        close = _SAME_NUMBER * np.nanstd(labels, axis=0)
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
            f"{counted(len(dataset.copies), 'copy', 'copies')} of {INPUTS[dataset.dims]} ({exact:,} equal "
            f"byte by byte, {len(dataset.copies) - exact:,} nearly equal)"
        )


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
