"""Which epoch's model a run keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Resolution:
    """How finely an accuracy on validation images distinguishes epochs.

    Attributes:
        images: Of how many images a plain accuracy has the same standard error.
        step: What one image changes.
    """

    images: float
    step: float

    @classmethod
    def of(cls, labels: NDArray[np.int64], best_by: BestBy) -> Resolution:
        """That of validation images with these (N,) classes, or (N, K) labels.

        The balanced accuracy of K classes is the mean of their K shares: its variance is the sum of those of
        the shares, divided by K², and an image of the rarest class changes it most.
        """
        if best_by != "balanced-accuracy" or labels.ndim > 1:
            return cls(images=len(labels), step=1 / len(labels))
        counts = np.unique(labels, return_counts=True)[1]
        classes = len(counts)
        return cls(images=float(classes**2 / (1 / counts).sum()), step=float(1 / (classes * counts.min())))

    def tolerance(self, accuracy: float) -> float:
        """The standard error of an accuracy, but at least what one image changes, and float32's rounding."""
        variance = max(accuracy * (1 - accuracy), 0) / self.images  # float32 has accuracies above 1, too
        return max(math.sqrt(variance), self.step) + 1e-6


def best_row(rows: Sequence[Row], best_by: BestBy, resolution: Resolution) -> Row | None:
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
        resolution: Of an accuracy on the validation images.
    """
    best = max(rows, key=lambda row: _rank(row, best_by), default=None)
    if best is None or best_by not in ("accuracy", "balanced-accuracy"):
        return best
    least = _value(best, best_by) - resolution.tolerance(_value(best, best_by))
    return next(row for row in reversed(rows) if _value(row, best_by) >= least)


def _value(row: Row, best_by: BestBy) -> float:
    return float(getattr(row, MONITORED[best_by][0]))


def _rank(row: Row, best_by: BestBy) -> tuple[float, float]:
    """Sort key of an epoch; higher is better."""
    value = _value(row, best_by)
    return (value if MONITORED[best_by][1] == "max" else -value, -row.val_loss)
