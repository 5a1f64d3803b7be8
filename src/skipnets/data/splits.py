"""Which images train, which choose the best epoch (val), which judge (test): seeded and stratified."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError
from skipnets.files import atomic_path
from skipnets.terminal import csv_rows, csv_text, from_csv_text

SPLITS = ("train", "val", "test")
LATEST_FIRST = {split: rank for rank, split in enumerate((*reversed(SPLITS), ""))}
"""Split → rank, 0 for test; of images that are in two splits, the one in the later split stays."""
_COLUMNS = ("path", "label", "split")


class SplitRow(NamedTuple):
    """A line of splits.csv.

    Attributes:
        path: An image's name.
        label: Its class.
        split: "train", "val" or "test".
        group: What it must not be separated from; "" where that is not known.
        size: Bytes of its content (`skipnets.data.contents`); -1 in files of version 0.1.
        hash: Of its content; "" where it is not known.
        fold: Of a run with folds, the number of the fold that holds out the image; "" for a test image. Files
            of other runs have no such column.
    """

    path: str
    label: str
    split: str
    group: str = ""
    size: int = -1
    hash: str = ""
    fold: str = ""


AUTO_FRACTIONS = (0.7, 0.15, 0.15)
MOST_VAL = 5_000
"""More images hardly choose a better epoch: of 5,000, an accuracy of 90% is known to 0.8 points."""
_FEW = 10


class Shares(NamedTuple):
    """How images are shared out.

    Attributes:
        fractions: Split → its share, which need not sum to 1.
        most: Split → about how many images it gets where its share would be more; the rest is "train".
    """

    fractions: Mapping[str, float]
    most: Mapping[str, int] = {}

    def of(self, splits: Iterable[str]) -> Shares:
        """The same for some of the splits."""
        return self._replace(fractions={split: self.fractions[split] for split in splits})

    def reduced(self, images: int) -> dict[str, float]:
        """Split → its share of so many images, smaller where that is above the most."""
        total = sum(self.fractions.values())
        reduced = dict(self.fractions)
        for split, most in self.most.items():
            if reduced.get(split, 0) * images > most * total and "train" in reduced:
                reduced["train"] += reduced[split] - most * total / images
                reduced[split] = most * total / images
        return reduced


def find_shares(fractions: Sequence[float] | Literal["auto"]) -> Shares:
    """The shares that fractions of train, val and test stand for.

    Raises:
        UserError: Neither "auto" nor three shares that sum to 1, or none for training.
    """
    if isinstance(fractions, str):
        if fractions != "auto":
            raise UserError(f"fractions={fractions!r}: must be auto, or the shares of train, val and test")
        return Shares(check_fractions(AUTO_FRACTIONS), {"val": MOST_VAL})
    return Shares(check_fractions(fractions))


def check_fractions(fractions: Sequence[float]) -> dict[str, float]:
    """The share of each split, without those of zero.

    Raises:
        UserError: Not three shares that sum to 1, or none for training.
    """
    shares = tuple(float(share) for share in fractions)
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6 or shares[0] == 0:
        raise UserError(
            f"fractions={shares}: must be the shares of train, val and test, which sum to 1, train above 0"
        )
    return {split: share for split, share in zip(SPLITS, shares, strict=True) if share > 0}


def cut(labels: NDArray[np.int64], shares: Shares, seed: int) -> NDArray[np.str_]:
    """Deal every class's images out to splits, each split getting its share and at least one.

    Where a split gets less than its share, of a class it still gets ten or its share. The draw of a class
    depends on nothing but the seed, its label, its size and these shares.

    Args:
        labels: (N,) class of each image; every class that occurs does so at least as often as there are
            splits.
        shares: What each split gets.
        seed: Not negative.

    Returns:
        (N,) the split of each image.
    """
    names = list(shares.fractions)
    full = _normalized(shares.fractions)
    wanted = _normalized(shares.reduced(len(labels)))
    splits = np.empty(len(labels), dtype="<U5")
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        few = np.where(wanted < full, np.minimum(_FEW, len(members) * full), 1)
        counts = _counts(len(members) * wanted, np.maximum(few.astype(np.int64), 1))
        dealt = np.repeat(names, counts)
        splits[np.random.default_rng((seed, int(label))).permutation(members)] = dealt
    return splits


def cut_groups(labels: NDArray[Any], groups: NDArray[Any], shares: Shares, seed: int) -> NDArray[np.str_]:
    """Deal whole groups out to splits, so that each gets about its share of every class.

    Scikit-learn's StratifiedGroupKFold, for shares that differ: groups in the order of how unequal their
    classes are, each to the split that is then furthest from what it should have. With several labels an
    image, this is iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011): rare labels come first.

    Args:
        labels: (N,) class of each image; or (N, K) with 1 for each label that it has.
        groups: (N,) group of each image.
        shares: What each split gets.
        seed: Not negative; decides among groups that are alike.

    Returns:
        (N,) the split of each image.
    """
    names = list(shares.fractions)
    wanted = _normalized(shares.reduced(len(labels)))
    unique, members = np.unique(groups, return_inverse=True)
    has = np.eye(int(labels.max()) + 1)[labels] if labels.ndim == 1 else (labels == 1).astype(np.float64)
    counts = np.zeros((len(unique), has.shape[1]))
    np.add.at(counts, members, has)
    sizes = np.bincount(members)[:, None]
    # A rare class counts as much as a common one, and so does the number of images.
    weights = np.hstack([counts / np.maximum(counts.sum(0), 1), sizes / len(labels)])
    shuffled = np.random.default_rng(seed).permutation(len(unique))
    order = shuffled[np.argsort(-weights[shuffled].max(1), kind="stable")]
    filled = np.zeros((len(names), weights.shape[1]))
    split_of = np.empty(len(unique), dtype=np.int64)
    for group in order:
        lacking = wanted[:, None] - filled
        # How much nearer the shares of its classes each split would come by taking the group.
        gain = (2 * lacking * weights[group] - weights[group] ** 2) / wanted[:, None]
        split_of[group] = np.argmax(gain.sum(1))
        filled[split_of[group]] += weights[group]
    return np.array(names, dtype="<U5")[split_of[members]]


def _counts(ideal: NDArray[np.float64], least: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whole numbers with the sum of the ideal ones, as near to them as the least numbers let them be.

    One by one, images go to the split that lacks most; up to the number that a split gets in any case, which
    is less than its ideal by one and by what the least numbers displace, at once.
    """
    displaced = np.maximum(least - ideal, 0).sum()
    counts = np.maximum(least, np.floor(ideal - displaced - 1).astype(np.int64))
    for _ in range(round(float(ideal.sum())) - int(counts.sum())):
        counts[np.argmax(ideal - counts)] += 1
    return counts


def _normalized(fractions: Mapping[str, float]) -> NDArray[np.float64]:
    shares = np.array(list(fractions.values()))
    normalized: NDArray[np.float64] = shares / shares.sum()
    return normalized


def cut_folds(
    labels: NDArray[Any], folds: int, seed: int, *, groups: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """Deal images out to folds, each with about its share of every class, and with whole groups.

    Args:
        labels: (N,) class of each image; every class that occurs does so at least `folds` times. Or (N, K)
            with 1 for each label that it has, which are dealt out by iterative stratification.
        folds: Number of folds.
        seed: Not negative.
        groups: (N,) group of each image, of which there are at least `folds`; None if there are none.

    Returns:
        (N,) the fold of each image, from 1.
    """
    if labels.ndim == 2:
        units = np.arange(len(labels)) if groups is None else groups
        shares = {str(number): 1 / folds for number in range(1, folds + 1)}
        return cut_groups(labels, units, Shares(shares), seed).astype(np.int64)
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    numbers = np.zeros(len(labels), dtype=np.int64)
    splitter = kind(folds, shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(splitter.split(labels, labels, groups), start=1):
        numbers[held_out] = number
    return numbers


def write_splits(path: str | os.PathLike[str], rows: Sequence[SplitRow]) -> None:
    """Write which image is in which split as CSV, for `read_splits` and `open_dataset(splits=...)`."""
    with (
        atomic_path(path) as temporary,
        # File names need not be valid UTF-8; surrogateescape hands their bytes through.
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv_rows(file)
        columns = SplitRow._fields if any(row.fold for row in rows) else SplitRow._fields[:-1]
        writer.writerow(columns)
        writer.writerows(map(csv_text, row[: len(columns)]) for row in rows)


def read_splits(path: str | os.PathLike[str]) -> dict[str, tuple[str, str]]:
    """Read what `write_splits` wrote: path → (label, split).

    Raises:
        UserError: The file is missing or holds something else.
    """
    return {row.path: (row.label, row.split) for row in read_split_rows(path)}


def read_split_rows(path: str | os.PathLike[str]) -> list[SplitRow]:
    """Read what `write_splits` wrote; path, label and split must be there, as in files of version 0.1.

    Raises:
        UserError: If a line is wrong; the message names it.
    """
    rows: dict[str, SplitRow] = {}
    try:
        with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            if missing := [name for name in _COLUMNS if name not in columns]:
                raise UserError(
                    f"{path}: lacks the column {missing[0]}; the first line must be {','.join(_COLUMNS)}"
                )
            for cells in reader:
                line = f"{path}, line {reader.line_num}"
                if None in cells or None in cells.values() or not all(cells[name] for name in _COLUMNS):
                    raise UserError(f"{line}: must be {','.join(columns)}, with path, label and split")
                size = cells.get("size") or "-1"
                if not size.removeprefix("-").isdecimal():
                    raise UserError(f"{line}: size={size!r}: must be a number of bytes")
                row = SplitRow(
                    path=from_csv_text(cells["path"]),
                    label=from_csv_text(cells["label"]),
                    split=cells["split"],
                    group=from_csv_text(cells.get("group", "")),
                    size=int(size),
                    hash=cells.get("hash", ""),
                    fold=cells.get("fold", ""),
                )
                if row.split not in SPLITS:
                    raise UserError(f"{line}: split={row.split!r}: must be one of {', '.join(SPLITS)}")
                if row.path in rows:
                    raise UserError(f"{line}: {row.path} is listed twice")
                rows[row.path] = row
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error})") from error
    return list(rows.values())
