"""Numbers to predict: how tables write them, and how images are divided by them.

The targets of a dataset are an array (N, T) of finite numbers, one column a target. In tables of ours the
targets of an image are one text, such as "41.5" or "41.5|180".

Shapes: N images, T targets, Q parts of a target's range.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError

__all__ = ["quantile_labels", "read_numbers", "target_texts", "targets_from_texts"]

Targets = NDArray[np.float64]

_SEPARATOR = "|"
_LARGEST = 1e30  # float32, in which metrics are logged, ends at 3e38
_PARTS, _IMAGES_A_PART = 10, 20


def read_numbers(path: Path, column: str, lines: Sequence[int], cells: Sequence[str]) -> Targets:
    """(N,) the numbers that a manifest's column holds.

    Args:
        path: The manifest, for messages.
        column: Name of the column, likewise.
        lines: Where each cell stands in the file.
        cells: The column's N cells.

    Raises:
        UserError: A cell is empty, no finite number, or too large.
    """
    empty = [line for line, cell in zip(lines, cells, strict=True) if not cell.strip()]
    if empty:
        rows = "1 row" if len(empty) == 1 else f"{len(empty):,} rows"
        raise UserError(
            f"{path}, line {empty[0]}: {column} is empty, as in {rows}; every image needs its number"
        )
    numbers = np.empty(len(cells))
    for row, (line, cell) in enumerate(zip(lines, cells, strict=True)):
        number = as_number(cell)
        if number is None:
            raise UserError(
                f"{path}, line {line}: {column}={cell!r}: must be a finite number, at most {_LARGEST:g}"
            )
        numbers[row] = number
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
    return [_SEPARATOR.join(repr(value).removesuffix(".0") for value in row) for row in targets.tolist()]


def targets_from_texts(texts: Sequence[str]) -> Targets:
    """(N, T) targets from the texts that `target_texts` writes."""
    return np.array([[float(value) for value in text.split(_SEPARATOR)] for text in texts], dtype=np.float64)


def quantile_labels(targets: Targets) -> NDArray[np.float64]:
    """Which part of each target's range an image lies in, to give every split its share of all parts.

    Args:
        targets: (N, T).

    Returns:
        (N, T × Q) with 1 for the part that each target is in, of up to ten between quantiles, each of which
        has about twenty images or more; else 0.
    """
    count = int(np.clip(len(targets) // _IMAGES_A_PART, 1, _PARTS))
    shares = np.arange(1, count) / count
    parts = [np.searchsorted(np.quantile(column, shares), column, side="right") for column in targets.T]
    return np.hstack([np.eye(count)[part] for part in parts])
