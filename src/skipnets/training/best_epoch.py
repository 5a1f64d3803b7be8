"""Which epoch's model a run keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from skipnets.training.config import BestBy
from skipnets.training.run import Row

MONITORED: Mapping[BestBy, tuple[str, Literal["min", "max"]]] = {
    "accuracy": ("val_accuracy", "max"),
    "balanced-accuracy": ("val_balanced_accuracy", "max"),
    "loss": ("val_loss", "min"),
    "average-precision": ("val_average_precision", "max"),
    "auroc": ("val_auroc", "max"),
    "mae": ("val_mae", "min"),
    "r2": ("val_r2", "max"),
}


def best_row(rows: Sequence[Row], best_by: BestBy, images: float) -> Row | None:
    """The epoch to keep.

    It is the best one by the metric, of equal ones that with the lower validation loss, then the earlier. By
    accuracy it is the latest one that is at most a standard error, or one image, below (the
    one-standard-error rule of Breiman et al., Classification and Regression Trees, 1984): among few
    validation images the highest accuracy is a matter of luck, and the later epoch, of a lower rate, is the
    better model.

    Once an epoch is passed over it is never chosen later, so that its weights need not be kept.

    Args:
        rows: Epochs so far, in order.
        best_by: The metric.
        images: From how many validation images an accuracy is; see `effective_images`.
    """
    best = max(rows, key=lambda row: _rank(row, best_by), default=None)
    if best is None or best_by not in ("accuracy", "balanced-accuracy"):
        return best
    least = _value(best, best_by) - tolerance(_value(best, best_by), images)
    return next(row for row in reversed(rows) if _value(row, best_by) >= least)


def tolerance(accuracy: float, images: float) -> float:
    """The standard error of an accuracy, but at least an image's share, and what float32 rounds off."""
    return max(math.sqrt(accuracy * (1 - accuracy) / images), 1 / images) + 1e-6


def effective_images(labels: NDArray[np.int64], best_by: BestBy) -> float:
    """How many images give an accuracy the standard error that the metric has.

    Args:
        labels: (N,) classes of the validation images, or (N, K) labels.
        best_by: The metric. The balanced accuracy of K classes with n each is a mean of K shares, whose
            variance is the sum of those of 1 / n, divided by K².
    """
    if best_by != "balanced-accuracy" or labels.ndim > 1:
        return len(labels)
    counts = np.unique(labels, return_counts=True)[1]
    return float(len(counts) ** 2 / (1 / counts).sum())


def _value(row: Row, best_by: BestBy) -> float:
    return float(getattr(row, MONITORED[best_by][0]))


def _rank(row: Row, best_by: BestBy) -> tuple[float, float]:
    """Sort key of an epoch; higher is better."""
    value = _value(row, best_by)
    return (value if MONITORED[best_by][1] == "max" else -value, -row.val_loss)
