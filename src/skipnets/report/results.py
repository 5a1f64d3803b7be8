"""Read a classifier's predictions on its test images from the run folder.

Shapes: N images, K classes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets import run_folder
from skipnets.classifier import describe
from skipnets.errors import UserError
from skipnets.evaluation.multi_label import group_numbers
from skipnets.evaluation.predictions import read_predictions
from skipnets.probabilities import softmax
from skipnets.report.reading import reading

__all__ = ["Results", "read_results"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """A classifier's predictions on its test images.

    Attributes:
        folder: The folder that they were read from.
        evaluation: Contents of evaluation.json.
        classes: K names.
        names: The N images' names, as in splits.csv.
        labels: (N,) true classes.
        groups: (N,) what images belong to, "" for one alone; None where nothing says so.
        logits: (N, K), not divided by a temperature, up to a constant for each image, which probabilities do
            not determine.
        temperature: The model file's, which may have been calibrated since, or else that of the evaluation.
    """

    folder: Path
    evaluation: dict[str, Any]
    classes: tuple[str, ...]
    names: list[str]
    labels: NDArray[np.int64]
    logits: NDArray[np.float64]
    temperature: float
    groups: NDArray[np.str_] | None = None

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """(N, K) probabilities of the classes, at the temperature."""
        return softmax(self.logits, self.temperature)

    @cached_property
    def units(self) -> NDArray[np.int64] | None:
        """(N,) the number of what each image belongs to; None where each stands alone."""
        return None if self.groups is None else group_numbers(self.groups, len(self.names))[0]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(N,) the most probable classes."""
        return self.logits.argmax(1)


def read_results(folder: str | os.PathLike[str]) -> Results:
    """Read evaluation.json and predictions.parquet.

    Args:
        folder: A run folder, or one that `skipnets evaluate --output` wrote.

    Raises:
        UserError: If they are missing or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a run folder")
    for name in (run_folder.EVALUATION, run_folder.PREDICTIONS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}: the run is not finished (skipnets train --resume {folder}), "
                f"or had no test split (skipnets evaluate {folder} DATA --output {folder})"
            )
    with reading(folder):
        return _read(folder)


def _read(folder: Path) -> Results:
    evaluation = run_folder.read_evaluation(folder)
    classes = tuple(row["name"] for row in evaluation["classes"])
    names, labels, log_probabilities, groups = read_predictions(folder / run_folder.PREDICTIONS, classes)
    evaluated_at = float(evaluation.get("temperature", 1.0))
    # Out-of-fold predictions are those of other models than the ensemble in the folder.
    is_of_model = (folder / run_folder.MODEL).is_file() and "folds" not in evaluation
    return Results(
        folder=folder,
        evaluation=evaluation,
        classes=classes,
        names=names,
        labels=labels,
        groups=groups,
        logits=log_probabilities * evaluated_at,
        temperature=describe(folder)["temperature"] if is_of_model else evaluated_at,
    )
