"""Read a regression's predictions on its test images from the run folder.

Shapes: N images, T targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets import run_folder
from skipnets.evaluation.regression_evaluation import read_number_predictions
from skipnets.report.reading import reading

__all__ = ["RegressionResults", "read_regression_results"]


@dataclass(frozen=True, kw_only=True, eq=False)
class RegressionResults:
    """A regression's predictions on its test images.

    Attributes:
        folder: The folder that they were read from.
        evaluation: Contents of evaluation.json.
        classes: The T targets' names.
        names: The N images' names, as in splits.csv.
        numbers: (N, T) what is right, NaN where it is not known.
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


def read_regression_results(folder: Path) -> RegressionResults:
    """Read evaluation.json and predictions.parquet of a folder with a regression's evaluation.

    Raises:
        UserError: If they are missing or damaged.
    """
    with reading(folder):
        evaluation = run_folder.read_evaluation(folder)
        targets = tuple(row["name"] for row in evaluation["targets"])
        names, numbers, predicted, groups = read_number_predictions(folder / run_folder.PREDICTIONS, targets)
        return RegressionResults(
            folder=folder,
            evaluation=evaluation,
            classes=targets,
            names=names,
            numbers=numbers,
            predicted=predicted,
            ordinal=bool(evaluation["ordinal"]),
            groups=groups,
        )
