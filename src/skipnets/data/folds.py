"""Cross-validation: which images each fold holds out, and the splits of each fold.

Every image outside the test split is held out once, from a model that neither learned from it nor chose its
best epoch on it. N images, K folds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.axes import INPUTS
from skipnets.data.contents import contents
from skipnets.data.copies import clusters
from skipnets.data.dataset import ImageDataset
from skipnets.data.listing import counted
from skipnets.data.splits import Shares, SplitRow, cut_folds, read_split_rows, write_splits
from skipnets.data.splitting import check_classes, check_groups, deal_out, join_groups, repeat_splits
from skipnets.data.targets import quantile_labels
from skipnets.errors import UserError, listed

__all__ = ["Folds", "deal_out_folds", "read_folds"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Folds:
    """A dataset dealt out to folds.

    Attributes:
        dataset: All images; what is not "test" is "train".
        numbers: (N,) the fold that holds out each image, from 1; 0 for images of the test split.
        count: K.
    """

    dataset: ImageDataset
    numbers: NDArray[np.int64]
    count: int

    def fold(self, number: int, shares: Shares, seed: int, data: object) -> ImageDataset:
        """The images of one fold: those it holds out as "test", the others as "train" and "val".

        Args:
            number: From 1 to K.
            shares: Of "train" and "val" among the images that are not held out.
            seed: Of that draw.
            data: What was opened, for messages.
        """
        used = np.flatnonzero(self.numbers > 0)
        chosen = self.dataset.select(used)
        held_out = self.numbers[used] == number
        own_notes = replace(chosen.listing, notes=list(chosen.listing.notes))
        splits = np.where(held_out, "test", "").astype("<U5")
        return deal_out(replace(chosen, splits=splits, listing=own_notes), shares, seed, data)

    def write(self, path: Path) -> None:
        """Write splits.csv with the fold of each image; every image is read for its hash."""
        dataset = self.dataset
        groups = [""] * len(dataset) if dataset.groups is None else dataset.groups.tolist()
        write_splits(
            path,
            [
                SplitRow(
                    path=name,
                    label=label,
                    split=split,
                    group=group,
                    size=content.size,
                    hash=content.hash,
                    fold=str(number) if number else "",
                )
                for name, label, split, group, content, number in zip(
                    dataset.names,
                    dataset.label_names,
                    dataset.splits.tolist(),
                    groups,
                    contents(dataset),
                    self.numbers.tolist(),
                    strict=True,
                )
            ],
        )


def deal_out_folds(dataset: ImageDataset, folds: int, seed: int, data: object) -> Folds:
    """Deal all images but the test split out to folds, keeping groups and copies together.

    Each gets its share of every class or label, or of every part of a target's range.

    Args:
        dataset: With the splits that the data itself gives; its train and val are dealt out together.
        folds: K, at least 2.
        seed: Not negative.
        data: What was opened, for messages.

    Raises:
        UserError: There are too few images or groups, or a group also lies in the test split.
    """
    check_classes(dataset, data)
    if (dataset.splits == "val").any():
        dataset.listing.notes.append("train and val are dealt out to the folds together")
    pool = dataset.splits != "test"
    dataset = replace(dataset, splits=np.where(pool, "train", "test").astype("<U5"))
    check_groups(dataset, pool)
    in_pool = [copy for copy in dataset.copies if pool[copy.first] and pool[copy.second]]
    together = clusters(in_pool, len(dataset))
    numbers = np.zeros(len(dataset), dtype=np.int64)
    if dataset.task != "single-label":
        units = (together if dataset.groups is None else join_groups(dataset.groups, together))[pool]
        _check_count(dataset, units, folds, data)
        labels = dataset.labels[pool]
        if dataset.regression:
            labels = quantile_labels(labels)
        else:
            _check_labels(dataset, labels, units, folds)
        numbers[pool] = cut_folds(labels, folds, seed, groups=units)
    elif dataset.groups is None:
        alone = pool & (together == np.arange(len(dataset)))
        _check_counts(dataset, alone, folds, data)
        numbers[alone] = cut_folds(dataset.labels[alone], folds, seed)
        numbers[pool] = numbers[together[pool]]  # copies follow the first of them
    else:
        units = join_groups(dataset.groups, together)[pool]
        _check_counts(dataset, pool, folds, data)
        _check_units(dataset, dataset.labels[pool], units, folds, data)
        numbers[pool] = cut_folds(dataset.labels[pool], folds, seed, groups=units)
    return Folds(dataset=dataset, numbers=numbers, count=folds)


def read_folds(dataset: ImageDataset, path: Path, folds: int, *, missing: str) -> Folds:
    """The folds that `Folds.write` wrote.

    Args:
        dataset: The images as they are found now.
        path: A splits.csv with folds.
        folds: K.
        missing: "skip" goes on without images that are no longer there.

    Raises:
        UserError: The file has other folds, or lists images that are not there.
    """
    fold_of = {row.path: int(row.fold) if row.fold.isdecimal() else 0 for row in read_split_rows(path)}
    if set(fold_of.values()) - {0} != set(range(1, folds + 1)):
        raise UserError(f"{path}: must have a column fold with the numbers from 1 to {folds}")
    dataset = repeat_splits(dataset, path, missing=missing)
    numbers = np.array([fold_of[name] for name in dataset.names], dtype=np.int64)
    return Folds(dataset=dataset, numbers=numbers, count=folds)


def _check_counts(dataset: ImageDataset, counted_once: NDArray[np.bool_], folds: int, data: object) -> None:
    counts = np.bincount(dataset.labels[counted_once], minlength=len(dataset.classes))
    short = [
        f'"{dataset.classes[label]}" has {count}'
        for label, count in enumerate(counts.tolist())
        if 0 < count < folds
    ]
    if short:
        once = ", copies of one another counted once" if dataset.copies else ""
        raise UserError(
            f"folds={folds}: {data} has classes with fewer {INPUTS[dataset.dims]} than folds{once}: "
            f"{listed(short)}"
        )


def _check_units(
    dataset: ImageDataset, labels: NDArray[np.int64], units: NDArray[np.int64], folds: int, data: object
) -> None:
    _check_count(dataset, units, folds, data)
    few = []
    for label in np.unique(labels):
        of_label = len(np.unique(units[labels == label]))
        if of_label == 1:
            raise UserError(
                f'folds={folds}: all {INPUTS[dataset.dims]} of class "{dataset.classes[label]}" are of one '
                "group, so no model learns from some and is evaluated on others"
            )
        if of_label < folds:
            few.append(f'"{dataset.classes[label]}" has {of_label}')
    if few:
        dataset.listing.warnings.append(
            f"classes with fewer groups than folds, which are missing in some folds: {listed(few)}"
        )


def _check_count(dataset: ImageDataset, units: NDArray[np.int64], folds: int, data: object) -> None:
    if (count := len(np.unique(units))) < folds:
        raise UserError(f"folds={folds}: {data} has {counted(count, _unit(dataset))} only")


def _unit(dataset: ImageDataset) -> str:
    """What is dealt out as a whole."""
    return INPUTS[dataset.dims].removesuffix("s") if dataset.groups is None else "group"


def _check_labels(dataset: ImageDataset, labels: NDArray[Any], units: NDArray[np.int64], folds: int) -> None:
    """A fold without a label is no mistake: it says nothing of this one, and something of the others."""
    what = _unit(dataset)
    for value, state in ((1, "present"), (0, "absent")):
        held = [len(np.unique(units[column == value])) for column in labels.T]
        few = [
            f'"{name}" in {number}'
            for name, number in zip(dataset.classes, held, strict=True)
            if number < folds
        ]
        if few:
            dataset.listing.warnings.append(
                f"labels that are {state} in fewer {what}s than there are folds, so some tell nothing of "
                f"them: {listed(few)}"
            )
