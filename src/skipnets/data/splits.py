"""Which images train, which choose the best epoch (val), which judge (test): seeded and stratified."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError
from skipnets.files import atomic_path

SPLITS = ("train", "val", "test")
_COLUMNS = ["path", "label", "split"]


def check_fractions(fractions: Sequence[float]) -> dict[str, float]:
    """The share of each split, without those of zero.

    Raises:
        UserError: not three shares that sum to 1, or none for training.
    """
    shares = tuple(float(share) for share in fractions)
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6 or shares[0] == 0:
        raise UserError(
            f"fractions={shares}: must be the shares of train, val and test, which sum to 1, train above 0"
        )
    return {split: share for split, share in zip(SPLITS, shares, strict=True) if share > 0}


def cut(labels: NDArray[np.int64], shares: Mapping[str, float], seed: int) -> NDArray[np.str_]:
    """Deal every class's images out to splits, each split getting its share and at least one.

    The draw of a class depends on nothing but the seed, its label and its size.

    Args:
        labels: (N,) class of each image; every class that occurs does so at least `len(shares)` times.
        shares: split → its share; normalized here.
        seed: not negative.

    Returns:
        (N,) the split of each image.
    """
    names = list(shares)
    wanted = np.array([shares[name] for name in names]) / sum(shares.values())
    splits = np.empty(len(labels), dtype="<U5")
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        counts = np.ones(len(names), dtype=np.int64)
        for _ in range(len(members) - len(names)):
            counts[np.argmax(len(members) * wanted - counts)] += 1
        dealt = np.repeat(names, counts)
        splits[np.random.default_rng((seed, int(label))).permutation(members)] = dealt
    return splits


def write_splits(path: str | os.PathLike[str], rows: Sequence[tuple[str, str, str]]) -> None:
    """Write (path, label, split) rows as CSV, for `read_splits` and `open_dataset(splits=...)`."""
    with (
        atomic_path(path) as temporary,
        # File names need not be valid UTF-8; surrogateescape hands their bytes through.
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(rows)


def read_splits(path: str | os.PathLike[str]) -> dict[str, tuple[str, str]]:
    """Read what `write_splits` wrote: path → (label, split).

    Raises:
        UserError: the file is missing or holds something else.
    """
    return {name: (label, split) for name, label, split in read_rows(path, need_split=True)}


def read_rows(path: str | os.PathLike[str], *, need_split: bool) -> list[tuple[str, str, str]]:
    """Read a CSV file with the columns path, label and split; the split is "" where the column is missing.

    Raises:
        UserError: naming the line that is wrong.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            missing = [name for name in (_COLUMNS if need_split else _COLUMNS[:2]) if name not in columns]
            if missing:
                header = "path,label,split" if need_split else "path,label or path,label,split"
                raise UserError(f"{path}: lacks the column {missing[0]}; the first line must be {header}")
            rows: dict[str, tuple[str, str, str]] = {}
            for row in reader:
                name, label = row["path"], row["label"]
                split = row["split"] if "split" in columns else ""
                line = f"{path}, line {reader.line_num}"
                if not name or not label or None in row or split is None:
                    raise UserError(f"{line}: must be {','.join(columns)}, none of them empty")
                if "split" in columns and split not in SPLITS:
                    raise UserError(f"{line}: split={split!r}: must be one of {', '.join(SPLITS)}")
                if name in rows:
                    raise UserError(f"{line}: {name} is listed twice")
                rows[name] = (name, label, split)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error})") from error
    return list(rows.values())
