"""Metrics of predicted numbers; undefined ones (R² of images with one value) are NaN.

Images whose number is not known count for no metric of this target.
Intervals are the bootstrap's (Efron 1979), which draws images with replacement, or whole groups of them where
images of one patient are alike.

Shapes: N images, T targets, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.evaluation.intervals import wilson_interval
from skipnets.evaluation.multi_label import draws, group_numbers, percentiles
from skipnets.evaluation.ratios import ratio

__all__ = ["TARGET_METRICS", "RegressionMetrics", "error_metrics", "measure_numbers"]

RESAMPLES = 1000
TARGET_METRICS = ("mae", "rmse", "r2", "bias")
"""The metrics of each target, which have intervals."""
_ORDINAL_METRICS = ("exact", "within_one")

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class RegressionMetrics:
    """Metrics of predicted numbers.

    Attributes:
        targets: Name of a metric → (T,) its values. "mae": mean absolute error. "rmse": root of the mean
            squared error. "r2": coefficient of determination, the share of the numbers' variance that the
            predictions explain; below 0 they are worse than the mean. "bias": mean of prediction minus what
            is right. Where grades are predicted also "exact": share of images with their own grade, and
            "within_one": with one that is at most one off.
        intervals: Name → (T, 2) 95% intervals; NaN where there is none.
        known: (T,) images whose number is known.
        groups: How many groups were drawn; None where single images were.
    """

    targets: Mapping[str, Floats]
    intervals: Mapping[str, Floats]
    known: NDArray[np.int64]
    groups: int | None


def error_metrics(
    predicted: NDArray[np.floating[Any]], numbers: NDArray[np.floating[Any]], *, ordinal: bool = False
) -> dict[str, Floats]:
    """Name → (T,) of `RegressionMetrics.targets`.

    Args:
        predicted: (N, T), N at least 1.
        numbers: (N, T) what is right, NaN where it is not known.
        ordinal: Whether they are grades.
    """
    statistics = _Statistics(predicted, numbers, ordinal=ordinal)
    return {name: value[0] for name, value in statistics.metrics(np.ones((1, len(numbers)))).items()}


def measure_numbers(
    predicted: NDArray[np.floating[Any]],
    numbers: NDArray[np.floating[Any]],
    *,
    ordinal: bool = False,
    groups: NDArray[np.str_] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> RegressionMetrics:
    """Compute all metrics.

    Args:
        predicted: (N, T), N at least 1.
        numbers: (N, T) what is right, NaN where it is not known.
        ordinal: Whether they are grades.
        groups: (N,) what is drawn as a whole, such as a patient; "" for an image alone. None draws images.
        resamples: B; 0 computes no intervals.
        seed: Seed of the draws.
    """
    statistics = _Statistics(predicted, numbers, ordinal=ordinal)
    values = {name: value[0] for name, value in statistics.metrics(np.ones((1, len(numbers)))).items()}
    units, drawn = group_numbers(groups, len(numbers))
    samples: dict[str, list[Floats]] = {name: [] for name in values}
    if drawn > 1:
        for weights in draws(units, resamples, seed, width=numbers.size):
            for name, value in statistics.metrics(weights).items():
                samples[name].append(value)
    nothing = np.full((numbers.shape[1], 2), np.nan)
    intervals = {
        name: percentiles(np.concatenate(parts)) if parts else nothing.copy()
        for name, parts in samples.items()
    }
    known = np.isfinite(numbers)
    units_known = np.array([len(np.unique(units[of])) for of in known.T])
    for limits in intervals.values():
        limits[units_known < 2] = np.nan  # with one unit, every resample is the same
    for name in _ORDINAL_METRICS if ordinal and resamples else ():
        # Where all images are right, or none, so are they in every resample: there Wilson's interval stands.
        for index in np.flatnonzero((values[name] == 0) | (values[name] == 1)):
            count = int(units_known[index])
            intervals[name][index] = wilson_interval(round(float(values[name][index]) * count), count)
    return RegressionMetrics(
        targets=values,
        intervals=intervals,
        known=known.sum(0),
        groups=None if groups is None else drawn,
    )


class _Statistics:
    """Statistics of each image, ready to be weighted.

    Args:
        predicted: (N, T).
        numbers: (N, T), NaN where unknown.
        ordinal: Whether they are grades.
    """

    def __init__(
        self,
        predicted: NDArray[np.floating[Any]],
        numbers: NDArray[np.floating[Any]],
        *,
        ordinal: bool,
    ) -> None:
        numbers = np.asarray(numbers, np.float64)
        known = np.isfinite(numbers)
        self.known = known.astype(np.float64)
        self.errors = np.where(known, predicted.astype(np.float64) - numbers, 0)
        # Sums of squares of numbers far from 0 would cancel out.
        means = np.where(known, numbers, 0).sum(0) / np.maximum(known.sum(0), 1)
        self.centered = np.where(known, numbers - means, 0)
        self.ordinal = ordinal

    def metrics(self, weights: Floats) -> dict[str, Floats]:
        """(B, N) weights → name → (B, T)."""
        count = weights @ self.known
        squared = weights @ self.errors**2
        spread = weights @ self.centered**2 - (weights @ self.centered) ** 2 / np.maximum(count, 1)
        # Rounding leaves a little where all drawn numbers are equal.
        varies = spread > 1e-12 * np.maximum(weights @ self.centered**2, np.finfo(np.float64).tiny)
        explained = 1 - np.divide(squared, spread, out=np.full_like(spread, np.nan), where=varies)
        distances = np.abs(self.errors)
        found = {
            "mae": ratio(weights @ distances, count),
            "rmse": np.sqrt(ratio(squared, count)),
            "r2": explained,
            "bias": ratio(weights @ self.errors, count),
        }
        if self.ordinal:
            for name, most in zip(_ORDINAL_METRICS, (0, 1), strict=True):
                found[name] = ratio(weights @ (self.known * (distances <= most + 1e-9)), count)
        return found
