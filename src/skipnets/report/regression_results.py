"""Read a regression's predictions on its test images from the run folder.

Shapes: N images, T targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from skipnets import run_folder
from skipnets.errors import UserError, one_line

__all__ = ["RegressionResults", "is_regression", "read_regression_results"]


@dataclass(frozen=True, kw_only=True, eq=False)
class RegressionResults:
    """A regression's predictions on its test images.

    Attributes:
        folder: The folder that they were read from.
        evaluation: Contents of evaluation.json.
        classes: The T targets' names.
        names: The N images' names, as in splits.csv.
        numbers: (N, T) what is right.
        predicted: (N, T) what was predicted.
        ordinal: Whether they are grades.
        groups: (N,) what is drawn as a whole for intervals; None where there are no groups.
    """

    folder: Path
    evaluation: dict[str, Any]
    classes: tuple[str, ...]
    names: list[str]
    numbers: NDArray[np.float64]
    predicted: NDArray[np.float64]
    ordinal: bool
    groups: NDArray[np.str_] | None


def is_regression(folder: Path) -> bool:
    """Whether a folder holds an evaluation of a regression."""
    if not (folder / run_folder.EVALUATION).is_file():
        return False
    try:
        return run_folder.read_evaluation(folder).get("task") == "regression"
    except (OSError, ValueError):
        return False


def read_regression_results(folder: Path) -> RegressionResults:
    """Read evaluation.json and predictions.parquet of a folder for which `is_regression` holds.

    Raises:
        UserError: If they are missing or damaged.
    """
    try:
        evaluation = run_folder.read_evaluation(folder)
        targets = tuple(row["name"] for row in evaluation["targets"])
        table = pyarrow.parquet.read_table(folder / run_folder.PREDICTIONS)
        numbers, predicted = (
            np.stack([table[f"{kind}:{name}"].to_numpy().astype(np.float64) for name in targets], axis=1)
            for kind in ("y", "p")
        )
        if not (np.isfinite(numbers).all() and np.isfinite(predicted).all()):
            raise UserError("there are numbers that are not finite")
        return RegressionResults(
            folder=folder,
            evaluation=evaluation,
            classes=targets,
            names=table["path"].to_pylist(),
            numbers=numbers,
            predicted=predicted,
            ordinal=bool(evaluation["ordinal"]),
            groups=np.array(table["group"].to_pylist()) if "group" in table.column_names else None,
        )
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{folder}: {run_folder.EVALUATION} or {run_folder.PREDICTIONS} is missing or damaged, or they "
            f"do not match ({one_line(error)}); skipnets evaluate {folder} --output {folder} "
            "writes them again"
        ) from error
