"""Numbers to predict: how tables write them, and how images are divided by them.

The targets of a dataset are an array (N, T) of finite numbers, one column a target; of several, those that
are not known of an image are NaN. In tables of ours the targets of an image are one text, such as "41.5",
"41.5|180" or, where the first is not known, "|180".

Shapes: N images, T targets, Q parts of a target's range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError, listed

__all__ = ["check_target_texts", "quantile_labels", "read_numbers", "target_texts", "targets_from_texts"]

Targets = NDArray[np.float64]

_SEPARATOR = "|"
_LARGEST = 1e30  # float32, in which metrics are logged, ends at 3e38
_PARTS, _IMAGES_A_PART = 10, 20


def read_numbers(path: Path, columns: Mapping[str, Sequence[str]], lines: Sequence[int]) -> Targets:
    """(N, T) the numbers that columns of a manifest hold; NaN for an empty cell.

    Args:
        path: The manifest, for messages.
        columns: Name of each column → its N cells.
        lines: Where each row stands in the file.

    Raises:
        UserError: A cell is no finite number, or too large, or a row or a column is empty throughout.
    """
    numbers = np.full((len(lines), len(columns)), np.nan)
    for index, (column, cells) in enumerate(columns.items()):
        for row, (line, cell) in enumerate(zip(lines, cells, strict=True)):
            if not cell.strip():
                continue
            number = as_number(cell)
            if number is None:
                unknown = ", or empty where it is not known" if len(columns) > 1 else ""
                raise UserError(
                    f"{path}, line {line}: {column}={cell!r}: must be a finite number, at most "
                    f"{_LARGEST:g}{unknown}"
                )
            numbers[row, index] = number
    known = np.isfinite(numbers)
    if len(empty := np.flatnonzero(~known.any(1))):
        rows = "1 row" if len(empty) == 1 else f"{len(empty):,} rows"
        state, needed = ("is", "its") if len(columns) == 1 else ("are", "at least one")
        raise UserError(
            f"{path}, line {lines[empty[0]]}: {listed(columns)} {state} empty, as in {rows}; every image "
            f"needs {needed} number"
        )
    if len(empty := np.flatnonzero(~known.any(0))):
        raise UserError(
            f"{path}: {list(columns)[empty[0]]} is empty in every row, so there is nothing to learn"
        )
    return numbers


def as_number(cell: str) -> float | None:
    """The number that a cell holds; None if it is none, infinite, or too large to be scaled."""
    try:
        number = float(cell)
    except ValueError:
        return None
    # Python reads "1_000" as a thousand, which a table never means.
    return number if abs(number) <= _LARGEST and "_" not in cell else None


def target_texts(targets: NDArray[np.floating[Any]]) -> list[str]:
    """The targets of N images, (N, T), each as one text that holds them exactly."""
    return [_SEPARATOR.join(map(_text, row)) for row in targets.tolist()]


def _text(value: float) -> str:
    return "" if value != value else repr(value).removesuffix(".0")


def check_target_texts(texts: Sequence[str], targets: Sequence[str]) -> None:
    """Check texts that come from outside, before `targets_from_texts`.

    Raises:
        UserError: If one has not a number or nothing for each target, or nothing for all.
    """
    for text in texts:
        cells = text.split(_SEPARATOR)
        if len(cells) != len(targets) or not any(cells):
            raise UserError(
                f"{text!r}: must hold a number for each of {listed(targets)}, of which some may lack"
            )
        for cell in filter(None, cells):
            if as_number(cell) is None:
                raise UserError(f"{text!r}: must hold finite numbers, at most {_LARGEST:g}")


def targets_from_texts(texts: Sequence[str]) -> Targets:
    """(N, T) targets from the texts that `target_texts` writes."""
    rows = [[float(value or "nan") for value in text.split(_SEPARATOR)] for text in texts]
    return np.array(rows, dtype=np.float64)


def quantile_labels(targets: Targets) -> NDArray[np.float64]:
    """Which part of each target's range an image lies in, to give every split its share of all parts.

    Args:
        targets: (N, T), NaN where unknown.

    Returns:
        (N, T × Q) with 1 for the part that each target is in, of up to ten between quantiles, each of which
        has about twenty images or more; else 0, and wherever the target is not known.
    """
    count = int(np.clip(len(targets) // _IMAGES_A_PART, 1, _PARTS))
    shares = np.arange(1, count) / count
    parts = np.zeros((len(targets), targets.shape[1], count))
    for index, column in enumerate(targets.T):
        known = np.flatnonzero(np.isfinite(column))
        if len(known):
            limits = np.quantile(column[known], shares)
            parts[known, index, np.searchsorted(limits, column[known], side="right")] = 1
    return parts.reshape(len(targets), -1)
