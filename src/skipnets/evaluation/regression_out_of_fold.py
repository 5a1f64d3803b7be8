"""Out-of-fold predictions of regressions: as `skipnets.evaluation.out_of_fold`.

Shapes: N images, T targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from skipnets import run_folder
from skipnets.axes import worded
from skipnets.evaluation.out_of_fold import FOLDS_WARNING, joined, spread
from skipnets.evaluation.regression import measure_numbers
from skipnets.evaluation.regression_evaluation import RegressionEvaluation, read_number_predictions

__all__ = ["NumberFoldResult", "NumbersOutOfFold", "numbers_out_of_fold"]


@dataclass(frozen=True, kw_only=True, eq=False)
class NumberFoldResult:
    """What a fold's model predicted for the images that the fold holds out. n images.

    Attributes:
        number: The fold, from 1.
        best_epoch: The epoch of its model.
        metrics: The contents of its evaluation.json.
        names: The images' names.
        numbers: (n, T) what is right, NaN where it is not known.
        predicted: (n, T).
    """

    number: int
    best_epoch: int
    metrics: Mapping[str, Any]
    names: Sequence[str]
    numbers: NDArray[np.float64]
    predicted: NDArray[np.float64]

    @classmethod
    def read(cls, folder: Path, *, number: int, best_epoch: int) -> NumberFoldResult:
        """What a fold's run folder holds."""
        metrics = run_folder.read_evaluation(folder)
        targets = [row["name"] for row in metrics["targets"]]
        names, numbers, predicted, _ = read_number_predictions(folder / run_folder.PREDICTIONS, targets)
        return cls(
            number=number,
            best_epoch=best_epoch,
            metrics=metrics,
            names=names,
            numbers=numbers,
            predicted=predicted,
        )

    def to_dict(self, measured: Sequence[str]) -> dict[str, Any]:
        """The fold's metrics of each target, as in the parent's evaluation.json."""
        return {
            "fold": self.number,
            "images": len(self.names),
            "best_epoch": self.best_epoch,
            "targets": [
                {name: row[name] for name in ("name", "images", *measured)} for row in self.metrics["targets"]
            ],
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class NumbersOutOfFold(RegressionEvaluation):
    """An evaluation in which every image was predicted by the model of the fold that holds it out.

    Attributes:
        fold_of: (N,) the fold of each image, from 1.
        folds: Metrics of each fold.
    """

    fold_of: NDArray[np.int64]
    folds: list[dict[str, Any]]

    @property
    @override
    def warnings(self) -> list[str]:
        return [*super().warnings, worded(FOLDS_WARNING, self.dims)]

    @override
    def to_dict(self) -> dict[str, Any]:
        """As of any evaluation, with the metrics of each fold and their spread."""
        return {
            **super().to_dict(),
            "folds": self.folds,
            "between_folds": [
                {
                    name: spread([fold["targets"][index][name] for fold in self.folds])
                    for name in self.metrics.targets
                }
                for index in range(len(self.targets))
            ],
        }

    @override
    def prediction_columns(self) -> dict[str, Any]:
        """As of any evaluation, with the column fold."""
        columns = super().prediction_columns()
        first: dict[str, Any] = {name: columns.pop(name) for name in ("path", "group") if name in columns}
        return {**first, "fold": self.fold_of, **columns}


def numbers_out_of_fold(
    folds: Sequence[NumberFoldResult],
    *,
    classifier: str,
    data: str,
    targets: tuple[str, ...],
    groups: Mapping[str, str] | None,
) -> NumbersOutOfFold:
    """Join the results of folds, in the order of the images' names.

    Args:
        folds: One of each fold.
        classifier: The run folder.
        data: What was trained on.
        targets: The T targets.
        groups: Name → group; None where there are no groups.
    """
    order = joined(folds)
    numbers, predicted = (
        np.concatenate([getattr(fold, name) for fold in folds])[order.rows]
        for name in ("numbers", "predicted")
    )
    ordinal = bool(folds[0].metrics["ordinal"])
    of_images = None if groups is None else np.array([groups.get(name, "") for name in order.names])
    metrics = measure_numbers(predicted, numbers, ordinal=ordinal, groups=of_images)
    return NumbersOutOfFold(
        classifier=classifier,
        data=data,
        split="out-of-fold",
        targets=targets,
        metrics=metrics,
        names=order.names,
        numbers=numbers,
        predicted=predicted,
        ordinal=ordinal,
        groups=of_images,
        failures=order.failures,
        known=order.known,
        dims=order.dims,
        fold_of=order.fold_of,
        folds=[fold.to_dict(list(metrics.targets)) for fold in folds],
    )
