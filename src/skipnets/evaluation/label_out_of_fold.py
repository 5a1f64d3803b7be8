"""Out-of-fold predictions of multi-label classifiers: as `skipnets.evaluation.out_of_fold`.

Each fold's model has thresholds of its own, chosen on validation images of the fold. What depends on
thresholds is measured at those, and not at the ensemble's, which are chosen on the very images that are
predicted here.

Shapes: N images, K labels.
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
from skipnets.evaluation.multi_label import LABEL_METRICS, measure_labels
from skipnets.evaluation.multi_label_evaluation import MultiLabelEvaluation, read_label_predictions
from skipnets.evaluation.out_of_fold import joined, spread
from skipnets.evaluation.thresholds import ThresholdRule, choose_thresholds
from skipnets.probabilities import sigmoid

__all__ = ["LabelFoldResult", "LabelsOutOfFold", "fold_limits", "labels_out_of_fold"]

# Of each label: what its spread between folds shows, beside the metrics of all folds' images together.
_RANKINGS = ("auroc", "average_precision")


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelFoldResult:
    """What a fold's model predicted for the images that the fold holds out. n images.

    Attributes:
        number: The fold, from 1.
        best_epoch: The epoch of its model.
        metrics: The contents of its evaluation.json.
        names: The images' names.
        labels: (n, K) with 1 for present, 0 for absent, NaN for unknown.
        logits: (n, K).
    """

    number: int
    best_epoch: int
    metrics: Mapping[str, Any]
    names: Sequence[str]
    labels: NDArray[np.float32]
    logits: NDArray[np.floating[Any]]

    @classmethod
    def read(cls, folder: Path, *, number: int, best_epoch: int) -> LabelFoldResult:
        """What a fold's run folder holds."""
        metrics = run_folder.read_evaluation(folder)
        classes = [row["name"] for row in metrics["classes"]]
        names, labels, logits, _ = read_label_predictions(folder / run_folder.PREDICTIONS, classes)
        return cls(
            number=number, best_epoch=best_epoch, metrics=metrics, names=names, labels=labels, logits=logits
        )

    @property
    def thresholds(self) -> list[float]:
        """The K thresholds of the fold's model."""
        return [row["threshold"] for row in self.metrics["classes"]]

    def to_dict(self) -> dict[str, Any]:
        """The fold's metrics, as in the parent's evaluation.json: means over the labels."""
        return {
            "fold": self.number,
            "images": len(self.names),
            "best_epoch": self.best_epoch,
            "thresholds": self.thresholds,
            "nll": self.metrics["nll"],
            **{name: self.metrics["macro"][name]["value"] for name in LABEL_METRICS},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelsOutOfFold(MultiLabelEvaluation):
    """An evaluation in which every image was predicted by the model of the fold that holds it out.

    `thresholds` are the ensemble's, chosen on these predictions.

    Attributes:
        fold_of: (N,) the fold of each image, from 1.
        folds: Metrics of each fold.
        between: For each label and ranking metric, its mean and standard deviation over the folds.
        undefined: Labels whose threshold could not be chosen and is 0.5.
    """

    fold_of: NDArray[np.int64]
    folds: list[dict[str, Any]]
    between: list[dict[str, dict[str, float | None]]]
    undefined: list[str]

    @property
    @override
    def warnings(self) -> list[str]:
        caveats = (
            "these are the metrics of the folds' models, at the thresholds of each; the ensemble of them, "
            "whose thresholds are listed, has seen all of these images",
            "AUROC and average precision over all images rank the predictions of different models together: "
            "where these differ in how high their probabilities are, both are below those of the folds",
        )
        return [*super().warnings, *(worded(caveat, self.dims) for caveat in caveats)]

    @override
    def to_dict(self) -> dict[str, Any]:
        """As of any evaluation, with the metrics of each fold and their spread."""
        values = super().to_dict()
        for row, between in zip(values["classes"], self.between, strict=True):
            row["between_folds"] = between
        names = ("nll", *LABEL_METRICS)
        return {
            **values,
            "folds": self.folds,
            "between_folds": {name: spread([row[name] for row in self.folds]) for name in names},
        }

    @override
    def prediction_columns(self) -> dict[str, Any]:
        """As of any evaluation, with the column fold."""
        columns = super().prediction_columns()
        first: dict[str, Any] = {name: columns.pop(name) for name in ("path", "group") if name in columns}
        return {**first, "fold": self.fold_of, **columns}


def labels_out_of_fold(
    folds: Sequence[LabelFoldResult],
    *,
    classifier: str,
    data: str,
    classes: tuple[str, ...],
    groups: Mapping[str, str] | None,
    rule: ThresholdRule,
) -> LabelsOutOfFold:
    """Join the results of folds, in the order of the images' names.

    Args:
        folds: One of each fold.
        classifier: The run folder.
        data: What was trained on.
        classes: The K labels.
        groups: Name → group; None where there are no groups.
        rule: How the ensemble's thresholds are chosen.
    """
    order = joined(folds)
    labels = np.concatenate([fold.labels for fold in folds])[order.rows]
    logits = np.concatenate([fold.logits for fold in folds])[order.rows].astype(np.float32)
    rows = [fold.to_dict() for fold in folds]
    of_images = None if groups is None else np.array([groups.get(name, "") for name in order.names])
    metrics = measure_labels(logits, labels, fold_limits(rows, order.fold_of), groups=of_images)
    thresholds, undefined = choose_thresholds(sigmoid(logits), labels, rule, classes)
    return LabelsOutOfFold(
        classifier=classifier,
        data=data,
        split="out-of-fold",
        classes=classes,
        thresholds=thresholds,
        metrics=metrics,
        names=order.names,
        labels=labels,
        logits=logits,
        temperature=1.0,
        groups=of_images,
        failures=order.failures,
        known=order.known,
        dims=order.dims,
        fold_of=order.fold_of,
        folds=rows,
        between=[
            {name: spread([fold.metrics["classes"][index][name] for fold in folds]) for name in _RANKINGS}
            for index in range(len(classes))
        ],
        undefined=undefined,
    )


def fold_limits(folds: Sequence[Mapping[str, Any]], fold_of: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, K) the threshold at which each image was judged: that of its fold's model.

    Args:
        folds: The entry "folds" of evaluation.json.
        fold_of: (N,) the fold of each image, from 1.
    """
    of_fold = {row["fold"]: row["thresholds"] for row in folds}
    return np.array([of_fold[number] for number in fold_of.tolist()], dtype=np.float64)
