"""Read the predictions that an evaluation's `save` wrote.

Shapes: N images, K classes, labels or targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

__all__ = ["read_column_predictions", "read_predictions"]

# The smallest float32 above zero, in place of probabilities that were rounded to 0.
_LEAST = 2.0**-149


def read_column_predictions(
    path: Path, columns: Sequence[str]
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64], NDArray[np.str_] | None]:
    """Read a table that has a true and a predicted number for each label or target, "y:NAME" and "p:NAME".

    Args:
        path: A predictions.parquet of a multi-label classifier or a regression.
        columns: The K labels or targets, as in evaluation.json.

    Returns:
        Names of the images, what is true (N, K) with NaN where it is not known, what was predicted (N, K),
        and groups (N,) or None.

    Raises:
        KeyError: If the table has other columns.
    """
    table = pyarrow.parquet.read_table(path)
    true, predicted = (
        np.stack([table[f"{kind}:{name}"].to_numpy().astype(np.float64) for name in columns], axis=1)
        for kind in ("y", "p")
    )
    return table["path"].to_pylist(), true, predicted, _groups(table)


def read_predictions(
    path: Path, classes: Sequence[str]
) -> tuple[list[str], NDArray[np.int64], NDArray[np.float64], NDArray[np.str_] | None]:
    """Read a table of single-label predictions.

    Args:
        path: A predictions.parquet.
        classes: The K classes, as in evaluation.json.

    Returns:
        Names of the images, their labels (N,), the logarithms of the probabilities (N, K), and groups (N,) or
        None.

    Raises:
        KeyError: If the table has other columns or labels.
    """
    table = pyarrow.parquet.read_table(path)
    number = {name: index for index, name in enumerate(classes)}
    probabilities = np.stack([table[f"p:{name}"].to_numpy() for name in classes], axis=1).astype(np.float64)
    labels = np.array([number[label] for label in table["label"].to_pylist()], dtype=np.int64)
    return table["path"].to_pylist(), labels, np.log(np.maximum(probabilities, _LEAST)), _groups(table)


def _groups(table: pyarrow.Table) -> NDArray[np.str_] | None:
    """(N,) what images belong to; None where nothing says so, or each stands alone."""
    if "group" not in table.column_names:
        return None
    groups = np.array(table["group"].to_pylist())
    return groups if (groups != "").any() else None
