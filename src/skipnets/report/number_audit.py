"""What an audit finds out about numbers to predict: some far from all others, or from what a model predicts.

Both are found by one rule, the outer fences of Tukey (1977): beyond the quartiles by more than three times
the distance between them. Of normally distributed values, that is one of 400,000.

Shapes: N images of the dataset, n of them with a prediction, T targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.data.dataset import ImageDataset
from skipnets.errors import listed
from skipnets.report.findings import Finding
from skipnets.report.predictions import UnseenPredictions
from skipnets.tables import number_text

__all__ = ["NumberCheck", "check_numbers", "odd_numbers", "outside_fences"]

_FENCE = 3.0  # interquartile ranges


@dataclass(frozen=True, kw_only=True)
class NumberCheck:
    """How numbers were checked against predictions.

    Attributes:
        source: Where the predictions come from.
        images: How many images were checked.
        trained_on: How many were not, because the model was trained on them.
        errors: Target → median absolute error of the predictions, and of the median number in their place;
            unlike R², few wrong numbers do not change them.
    """

    source: str
    images: int
    trained_on: int
    errors: dict[str, tuple[float, float]]

    @property
    def labels_withheld(self) -> tuple[str, ...]:
        """Targets whose unlikely numbers are not listed: their median would predict them as well."""
        return tuple(name for name, (error, of_median) in self.errors.items() if not error < of_median)

    @property
    def withheld(self) -> bool:
        """Whether no target's are listed."""
        return len(self.labels_withheld) == len(self.errors)

    @property
    def reason(self) -> str:
        """Why unlikely numbers are not listed; empty where they are."""
        if not self.withheld:
            return ""
        return "their median would predict them as well as the model; take a better model"

    @property
    def agreed(self) -> str:
        """How far numbers usually are from their predictions: "median error 1.2 (7.8 of the median)"."""
        return "; ".join(
            f"median error {'' if len(self.errors) == 1 else f'of {name} '}{number_text(error)} "
            f"({number_text(of_median)} of the median number)"
            for name, (error, of_median) in self.errors.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "source": self.source,
            "images": self.images,
            "trained_on": self.trained_on,
            "median_absolute_error": {name: error for name, (error, _) in self.errors.items()},
            "of_the_median_number": {name: of_median for name, (_, of_median) in self.errors.items()},
            "withheld": self.withheld,
        }


def outside_fences(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) how many interquartile ranges values are beyond the quartiles, as far as that is more than three.

    Args:
        values: (N,), of which NaN are left out.

    Returns:
        0 for values within; all are where half of the values are equal, as of few grades.
    """
    known = values[np.isfinite(values)]
    away = np.zeros(len(values))
    if not len(known):
        return away
    low, high = np.percentile(known, (25, 75))
    if high <= low:
        return away
    beyond = np.nan_to_num(np.maximum(low - values, values - high) / (high - low))
    away[beyond > _FENCE] = beyond[beyond > _FENCE]
    return away


def odd_numbers(dataset: ImageDataset) -> Iterator[Finding]:
    """Numbers that are far from all others of their target.

    Args:
        dataset: With numbers to predict.
    """
    for name, column in zip(dataset.classes, dataset.labels.T, strict=True):
        away = outside_fences(column)
        low, high = np.nanpercentile(column, (25, 75)) if np.isfinite(column).any() else (0.0, 0.0)
        for image in np.flatnonzero(away).tolist():
            detail = (
                f"{name} is {number_text(float(column[image]))}; half of all are from "
                f"{number_text(float(low))} to {number_text(float(high))}"
            )
            yield Finding("odd-number", image, dataset.names[image], detail, -float(away[image]))


def check_numbers(dataset: ImageDataset, predictions: UnseenPredictions) -> tuple[list[Finding], NumberCheck]:
    """Numbers whose distance from the prediction is far beyond that of the other images.

    Args:
        dataset: With numbers to predict.
        predictions: Of its images, of which `probabilities` are numbers.
    """
    findings: list[Finding] = []
    errors: dict[str, tuple[float, float]] = {}
    for index, name in enumerate(predictions.classes):
        if name not in dataset.classes:
            continue
        given = dataset.labels[predictions.images, dataset.classes.index(name)]
        predicted = predictions.probabilities[:, index]
        known = given[np.isfinite(given)]
        if not len(known):
            continue
        errors[name] = (
            float(np.nanmedian(np.abs(given - predicted))),
            float(np.median(np.abs(known - np.median(known)))),
        )
        if not errors[name][0] < errors[name][1]:
            continue
        away = outside_fences(given - predicted)
        for row in np.flatnonzero(away).tolist():
            image = int(predictions.images[row])
            detail = (
                f"{name} is {number_text(float(given[row]))}, predicted {number_text(float(predicted[row]))}"
            )
            findings.append(Finding("number-error", image, dataset.names[image], detail, -float(away[row])))
    check = NumberCheck(
        source=predictions.source,
        images=len(predictions.images),
        trained_on=predictions.trained_on,
        errors=errors,
    )
    return findings, check


def withheld_note(check: NumberCheck) -> str | None:
    """What to say of targets that were not checked; None if all were, or none."""
    if check.withheld or not check.labels_withheld:
        return None
    return (
        f"unlikely numbers of {listed(check.labels_withheld)} are not listed: their median would predict "
        "them as well as the model"
    )
