"""Predictions for single images, and their columns in a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skipnets.tables import Display, make_table, number_text

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["SET_SEPARATOR", "Prediction", "RegressionPrediction", "number_columns", "uncertainty_columns"]

# Those of tables of predictions that are not named after targets.
_OTHER_COLUMNS = ("path", "error", "source", "p_value", "rejected")
SET_SEPARATOR = "|"  # between the classes of a prediction set in text


@dataclass(frozen=True, kw_only=True)
class Prediction(Display):
    """A classifier's prediction for one image.

    Attributes:
        source: The path as it was given, or "[3]" for the fourth input where that is not a path.
        label: The most probable class; None if the image failed, or of a multi-label classifier.
        probability: Probability of that class.
        labels: Of a multi-label classifier, the labels whose probabilities reach their thresholds, the most
            probable first; else the most probable class alone.
        ranking: The most probable classes with their probabilities, best first; of a multi-label classifier,
            all labels.
        error: Why the image failed; None if it did not.
        prediction_set: The classes that contain the true one with the coverage asked for, most probable
            first; of a multi-label classifier, the labels that hold this share of an image's labels on
            average. None if none was asked for.
        p_value: How usual the image is: the share of calibration images that are at least as unusual; None if
            no share to reject was given.
        rejected: Whether it is among the share of most unusual images that was to be rejected.
    """

    source: str
    label: str | None = None
    probability: float | None = None
    labels: tuple[str, ...] = ()
    ranking: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    prediction_set: tuple[str, ...] | None = None
    p_value: float | None = None
    rejected: bool | None = None

    def tables(self) -> list[Table]:
        """Tables that `print` and notebooks show."""
        rows = [(label, f"{probability:.1%}") for label, probability in self.ranking]
        if self.error is not None:
            rows = [(f"failed: {self.error}", "")]
        if self.prediction_set is not None:
            of_several = self.label is None
            names = ", ".join(self.prediction_set) or "(none)"
            rows.append((f"{'set' if of_several else 'one of'}: {names}", ""))
        if self.rejected:
            rows.append((f"rejected: unlike the calibration images (p={self.p_value:.4f})", ""))
        columns: Any = {"image": "left", "class": "left", "probability": "right"}
        if self.label is None and self.error is None:
            rows = [(f"✓ {name}" if name in self.labels else f"  {name}", share) for name, share in rows]
            columns = {"image": "left", "label": "left", "probability": "right"}
        return [
            make_table(columns, [(self.source if index == 0 else "", *row) for index, row in enumerate(rows)])
        ]


def uncertainty_columns(
    predictions: Sequence[Prediction], *, coverage: bool, reject: bool
) -> dict[str, list[Any]]:
    """Columns of a table of predictions that hold what was asked for besides the most probable classes.

    Args:
        predictions: One a row.
        coverage: Whether there is a column `set`, the prediction set's classes with "|" between them.
        reject: Whether there are `p_value` and `rejected`.
    """
    columns: dict[str, list[Any]] = {}
    if coverage:
        sets = [row.prediction_set for row in predictions]
        columns["set"] = [None if each is None else SET_SEPARATOR.join(each) for each in sets]
    if reject:
        columns["p_value"] = [row.p_value for row in predictions]
        columns["rejected"] = [row.rejected for row in predictions]
    return columns


@dataclass(frozen=True, kw_only=True)
class RegressionPrediction(Prediction):
    """A regression's prediction for one image: a number for each target.

    It has no classes: `label` and `probability` are None, `labels` and `ranking` empty.

    Attributes:
        values: The targets with their numbers in the targets' units, in their order; empty if the image
            failed. Those of ordinal targets are whole.
        intervals: The targets with the lowest and the highest number of an interval that contains the true
            one with the coverage asked for; empty if none was asked for.
    """

    values: tuple[tuple[str, float], ...] = ()
    intervals: tuple[tuple[str, float, float], ...] = ()

    @property
    def value(self) -> float | None:
        """The number of the only target, or of the first of several; None if the image failed."""
        return self.values[0][1] if self.values else None

    def text(self, target: str) -> str:
        """A target's number as text, with its interval if there is one: "41.5 (38.2 to 44.8)"."""
        [value] = [number for name, number in self.values if name == target]
        limits = [
            f" ({number_text(low)} to {number_text(high)})"
            for name, low, high in self.intervals
            if name == target
        ]
        return "".join([number_text(value), *limits])

    def tables(self) -> list[Table]:
        """Tables that `print` and notebooks show."""
        rows = [(name, self.text(name)) for name, _ in self.values]
        if self.error is not None:
            rows = [(f"failed: {self.error}", "")]
        columns: Any = {"image": "left", "target": "left", "value": "right"}
        return [
            make_table(columns, [(self.source if index == 0 else "", *row) for index, row in enumerate(rows)])
        ]


def number_columns(
    predictions: Sequence[Prediction], targets: Sequence[str], *, coverage: bool = False
) -> dict[str, list[Any]]:
    """Columns of a table of a regression's predictions: one for each target.

    Where a name is another column's already, "path" or "p_value" for example, it has "p:" before it.

    Args:
        predictions: One a row.
        targets: Their names.
        coverage: Whether there are "low:NAME" and "high:NAME" for each, the limits of its interval.
    """
    rows = [
        row if isinstance(row, RegressionPrediction) else RegressionPrediction(source="")
        for row in predictions
    ]
    values = [dict(row.values) for row in rows]
    limits = [{name: ends for name, *ends in row.intervals} for row in rows]
    columns: dict[str, list[Any]] = {}

    def free(name: str) -> str:
        return free(f"p:{name}") if name in _OTHER_COLUMNS or name in columns else name

    for name in targets:
        columns[free(name)] = [numbers.get(name) for numbers in values]
        for end, title in enumerate(("low", "high") if coverage else ()):
            columns[free(f"{title}:{name}")] = [ends[name][end] if name in ends else None for ends in limits]
    return columns
