"""Out-of-fold predictions: of every image by the one model of a cross-validation that has not seen it.

Shapes: N images, K classes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from skipnets.axes import worded
from skipnets.evaluation.evaluating import Evaluation
from skipnets.evaluation.metrics import measure

__all__ = [
    "FOLDS_WARNING",
    "FoldResult",
    "JoinedFolds",
    "OutOfFold",
    "joined",
    "known_in_folds",
    "out_of_fold",
    "spread",
]

# The metrics of `Evaluation.to_dict` that are compared between folds.
COMPARED = ("accuracy", "balanced_accuracy", "nll", "ece", "macro_f1", "macro_auroc")
FOLDS_WARNING = (
    "these are the metrics of the folds' models; the ensemble of them has seen all of these images"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldResult:
    """What a fold's model predicted for the images that the fold holds out. n images.

    Attributes:
        number: The fold, from 1.
        best_epoch: The epoch of its model.
        metrics: The contents of its evaluation.json.
        names: The images' names.
        labels: (n,) true classes.
        logits: (n, K), not divided by a temperature.
    """

    number: int
    best_epoch: int
    metrics: Mapping[str, Any]
    names: Sequence[str]
    labels: NDArray[np.int64]
    logits: NDArray[np.floating[Any]]

    def to_dict(self) -> dict[str, Any]:
        """The fold's metrics, as in the parent's evaluation.json."""
        return {
            "fold": self.number,
            "images": len(self.names),
            "best_epoch": self.best_epoch,
            **{name: self.metrics[name] for name in COMPARED},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class OutOfFold(Evaluation):
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
            "between_folds": {name: spread([row[name] for row in self.folds]) for name in COMPARED},
        }

    @override
    def prediction_columns(self) -> dict[str, Any]:
        """As of any evaluation, with the columns group and fold."""
        columns = super().prediction_columns()
        first = {name: columns.pop(name) for name in ("path", "label")}
        groups = columns.pop("group", [""] * len(self.names))
        return {**first, "group": groups, "fold": self.fold_of, **columns}


def out_of_fold(
    folds: Sequence[FoldResult],
    *,
    classifier: str,
    data: str,
    classes: tuple[str, ...],
    groups: Mapping[str, str],
) -> OutOfFold:
    """Join the results of folds, in the order of the images' names.

    Args:
        folds: One of each fold.
        classifier: The run folder.
        data: What was trained on.
        classes: The K classes.
        groups: Name → group; empty where there are none.
    """
    order = joined(folds)
    labels = np.concatenate([fold.labels for fold in folds])[order.rows]
    logits = np.concatenate([fold.logits for fold in folds])[order.rows].astype(np.float32)
    group_of = np.array([groups.get(name, "") for name in order.names]) if groups else None
    return OutOfFold(
        classifier=classifier,
        data=data,
        split="out-of-fold",
        classes=classes,
        metrics=measure(logits, labels, groups=group_of),
        names=order.names,
        labels=labels,
        logits=logits,
        temperature=1.0,
        failures=order.failures,
        known=order.known,
        dims=order.dims,
        groups=group_of,
        fold_of=order.fold_of,
        folds=[fold.to_dict() for fold in folds],
    )


class AnyFold(Protocol):
    """What a fold's model predicted, whatever its task."""

    @property
    def number(self) -> int:
        """The fold, from 1."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The contents of its evaluation.json."""

    @property
    def names(self) -> Sequence[str]:
        """The names of the images that it holds out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedFolds:
    """The images of all folds in the order of their names.

    Attributes:
        rows: (N,) where each stands among those of all folds, one fold after another.
        names: The N images' names.
        fold_of: (N,) the fold of each image, from 1.
        failures: Name → reason, of the images that could not be read.
        known: As of `known_in_folds`.
        dims: Spatial axes: 3 of volumes, 1 of signals.
    """

    rows: NDArray[np.int64]
    names: list[str]
    fold_of: NDArray[np.int64]
    failures: dict[str, str]
    known: dict[str, int]
    dims: int


def joined(folds: Sequence[AnyFold]) -> JoinedFolds:
    """Join what the results of all tasks share."""
    names = [name for fold in folds for name in fold.names]
    rows = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
    return JoinedFolds(
        rows=rows,
        names=[names[row] for row in rows],
        fold_of=np.repeat([fold.number for fold in folds], [len(fold.names) for fold in folds])[rows],
        failures={name: reason for fold in folds for name, reason in fold.metrics["failures"].items()},
        known=known_in_folds([fold.metrics for fold in folds]),
        dims=folds[0].metrics.get("dims", 2),
    )


def known_in_folds(metrics: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many images the folds' models were trained, validated and tested on, of those that each predicted.

    Args:
        metrics: The contents of each fold's evaluation.json.
    """
    known = [fold["known"] or {} for fold in metrics]
    return {split: sum(count.get(split, 0) for count in known) for split in ("train", "val", "test")}


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation over the folds in which the metric is defined."""
    defined = [value for value in values if value is not None and math.isfinite(value)]
    return {
        "mean": statistics.fmean(defined) if defined else None,
        "std": statistics.stdev(defined) if len(defined) > 1 else None,
    }
