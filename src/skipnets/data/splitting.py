"""Which split each image gets: drawn by class, group and copies, or repeated from an earlier run."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from skipnets.data.copies import clusters
from skipnets.data.dataset import ImageDataset
from skipnets.data.listing import counted
from skipnets.data.manifest_files import relative_name
from skipnets.data.multi_label import absent_labels, contradict
from skipnets.data.splits import (
    Shares,
    cut,
    cut_groups,
    read_splits,
)
from skipnets.data.targets import quantile_labels
from skipnets.errors import UserError, listed, naming

__all__ = ["check_classes", "check_groups", "deal_out", "join_groups", "repeat_splits"]


def deal_out(dataset: ImageDataset, shares: Shares, seed: int, data: object) -> ImageDataset:
    """Give a split to images that have none, and cut a missing val or test from train.

    Args:
        dataset: With the splits that the data itself gives.
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
        if dataset.multi_label:
            warn_of_absent_classes(dataset, dataset.splits)
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
    gone, otherwise_unknown = [], []
    for name, (label, split) in rows.items():
        index = known.get(name)
        if index is None and root is not None:  # version 0.1 kept paths as a manifest writes them
            index = known.get(relative_name(root, name))
        if index is None:
            gone.append(name)
        elif names[index] != label and not (dataset.multi_label and not contradict(names[index], label)):
            other = "with another number" if dataset.regression else "under another class"
            raise UserError(f"{path}: lists {name} as {label!r}, which the data hold {other}")
        else:
            split_of[index] = split
            if names[index] != label:
                otherwise_unknown.append(name)
    if otherwise_unknown:
        dataset.listing.warnings.append(
            f"{counted(len(otherwise_unknown), 'image')}: other labels are unknown than in {path}: "
            f"{listed(otherwise_unknown)}"
        )
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
