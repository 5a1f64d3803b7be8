"""Read a multi-label classifier's predictions on its test images from the run folder.

Shapes: N images, K labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from skipnets import run_folder
from skipnets.classifier import describe
from skipnets.evaluation.label_out_of_fold import fold_limits
from skipnets.evaluation.multi_label_evaluation import read_label_predictions
from skipnets.probabilities import sigmoid
from skipnets.report.reading import reading

__all__ = ["LabelResults", "read_label_results"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelResults:
    """A multi-label classifier's predictions on its test images.

    Attributes:
        folder: The folder that they were read from.
        evaluation: Contents of evaluation.json.
        classes: K names.
        thresholds: K probabilities from which on a label counts as present: the model file's, if there is
            one, or else those of the evaluation.
        limits: (N, K) the threshold at which each image is judged: these, or out of fold those of the model
            of its fold.
        names: The N images' names, as in splits.csv.
        labels: (N, K) with 1 for present, 0 for absent, NaN for unknown.
        logits: (N, K), not divided by a temperature.
        temperature: Likewise.
        groups: (N,) what is drawn as a whole for intervals; None where there are no groups.
    """

    folder: Path
    evaluation: dict[str, Any]
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    limits: NDArray[np.float64]
    names: list[str]
    labels: NDArray[np.float32]
    logits: NDArray[np.float64]
    temperature: float
    groups: NDArray[np.str_] | None

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """(N, K) probabilities of the labels."""
        return sigmoid(self.logits, self.temperature)


def read_label_results(folder: Path) -> LabelResults:
    """Read evaluation.json and predictions.parquet of a folder with a multi-label classifier's evaluation.

    Raises:
        UserError: If they are missing or damaged.
    """
    with reading(folder):
        evaluation = run_folder.read_evaluation(folder)
        classes = tuple(row["name"] for row in evaluation["classes"])
        names, labels, logits, groups = read_label_predictions(folder / run_folder.PREDICTIONS, classes)
        thresholds = tuple(float(row["threshold"]) for row in evaluation["classes"])
        evaluated_at = temperature = float(evaluation["temperature"])
        in_folds = "folds" in evaluation  # of which the model file is the ensemble
        if (folder / run_folder.MODEL).is_file():
            model = describe(folder)
            thresholds = tuple(model["thresholds"])
            temperature = temperature if in_folds else model["temperature"]
        limits = np.tile(thresholds, (len(names), 1))
        if in_folds:
            fold_of = pyarrow.parquet.read_table(folder / run_folder.PREDICTIONS, columns=["fold"])
            limits = fold_limits(evaluation["folds"], fold_of["fold"].to_numpy())
    return LabelResults(
        folder=folder,
        evaluation=evaluation,
        classes=classes,
        thresholds=thresholds,
        limits=limits,
        names=names,
        labels=labels,
        logits=logits * evaluated_at,
        temperature=temperature,
        groups=groups,
    )
