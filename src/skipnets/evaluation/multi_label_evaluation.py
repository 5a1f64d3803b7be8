"""The evaluation of a multi-label classifier: its predictions on a set of images, and their metrics.

Shapes: N images, K labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skipnets.axes import INPUTS, worded
from skipnets.errors import UserError, listed
from skipnets.evaluation.fold_table import fold_table
from skipnets.evaluation.multi_label import LABEL_METRICS, SUMMARIES, MultiLabelMetrics, all_right
from skipnets.evaluation.predictions import read_column_predictions
from skipnets.evaluation.saving import (
    SavedEvaluation,
    images_row,
    inputs_noun,
    interval_or_none,
    note_tables,
    or_none,
)
from skipnets.evaluation.selective import Selective, selective_rows
from skipnets.probabilities import sigmoid
from skipnets.tables import make_table, percent, properties_table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["MultiLabelEvaluation", "multi_label_tables", "read_label_predictions"]

TITLES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "f1": "F1",
}
_FOLD_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    name: ((TITLES | {"nll": "NLL"})[name], "{:.3f}".format)
    for name in ("auroc", "average_precision", "f1", "nll")
}
# The smallest float32 above zero, and the largest below one, in place of probabilities that were rounded.
_LEAST, _MOST = 2.0**-149, 1 - 2.0**-53


@dataclass(frozen=True, kw_only=True, eq=False)
class MultiLabelEvaluation(SavedEvaluation):
    """A multi-label classifier's predictions on a set of images, and their metrics.

    Attributes:
        classes: The K labels.
        thresholds: K probabilities from which on a label counts as present.
        metrics: The metrics.
        labels: (N, K) with 1 for present, 0 for absent, NaN for unknown.
        logits: (N, K), not divided by the temperature.
        temperature: The classifier's temperature.
        groups: (N,) what was drawn as a whole for the intervals; None where there are no groups.
        selective: Which images are rejected; None if that was not asked for.
    """

    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    metrics: MultiLabelMetrics
    labels: NDArray[np.float32]
    logits: NDArray[np.float32]
    temperature: float
    groups: NDArray[np.str_] | None
    selective: Selective | None = None

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """(N, K) probabilities of the labels, at the temperature."""
        return sigmoid(self.logits, self.temperature)

    @property
    def warnings(self) -> list[str]:
        """Caveats, one sentence each."""
        found, kind = super().warnings, INPUTS[self.dims]
        areas, limits = self.metrics.labels["auroc"], self.metrics.intervals["auroc"]
        if self.metrics.groups == 1:
            found.append(f"all {kind} are of one group: how much metrics vary among groups is not known")
        elif (np.isfinite(areas) & np.isnan(limits[:, 0])).any():
            found.append(
                f"AUROC and average precision have no intervals: so many {kind} take too long to resample"
            )
        for count, what in ((self.metrics.present, "have"), (self.metrics.absent, "lack")):
            names = [name for name, images in zip(self.classes, count, strict=True) if not images]
            if names:
                found.append(
                    f"no {kind} that are known to {what} {listed(names)}: AUROC and average precision are "
                    "undefined, and means over the labels leave them out"
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """The metrics as plain values for JSON; undefined ones are None."""
        metrics = self.metrics
        return {
            "task": "multi-label",
            **self._about(),
            "groups": metrics.groups,
            "temperature": self.temperature,
            **{
                summary: {
                    name: {
                        "value": or_none(getattr(metrics, summary)[name]),
                        "interval": interval_or_none(getattr(metrics, f"{summary}_intervals")[name]),
                    }
                    for name in LABEL_METRICS
                }
                for summary in SUMMARIES
            },
            "nll": or_none(metrics.nll),
            "exact_match": or_none(metrics.exact),
            "classes": [
                {
                    "name": name,
                    "threshold": self.thresholds[index],
                    **{each: or_none(metrics.labels[each][index]) for each in LABEL_METRICS},
                    "ece": or_none(metrics.ece[index]),
                    "intervals": {
                        each: interval_or_none(metrics.intervals[each][index]) for each in LABEL_METRICS
                    },
                    "present": int(metrics.present[index]),
                    "absent": int(metrics.absent[index]),
                    "unknown": int(metrics.unknown[index]),
                }
                for index, name in enumerate(self.classes)
            ],
            **({} if self.selective is None else self._selective_metrics(self.selective)),
            **self._doubts(),
        }

    def _selective_metrics(self, selective: Selective) -> dict[str, Any]:
        found = self.probabilities >= np.asarray(self.thresholds)
        return selective.measure(all_right(found, self.labels), self.labels, self.groups)

    def tables(self) -> list[Table]:
        """Tables that `print` and notebooks show."""
        return multi_label_tables(self.to_dict())

    def prediction_columns(self) -> dict[str, Any]:
        """Name → N values: path, group, then for each label "y:NAME" (1, 0 or None) and "p:NAME"."""
        columns: dict[str, Any] = {"path": self.names}
        if self.groups is not None:
            columns["group"] = self.groups.tolist()
        columns |= {} if self.selective is None else self.selective.columns(self.classes)
        for index, name in enumerate(self.classes):
            values = self.labels[:, index].tolist()
            columns[f"y:{name}"] = [None if value != value else int(value) for value in values]
        for index, name in enumerate(self.classes):
            columns[f"p:{name}"] = np.ascontiguousarray(self.probabilities[:, index])
        return columns


def multi_label_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Tables of `MultiLabelEvaluation.to_dict()`: overall metrics, metrics of each label, and caveats."""
    noun = inputs_noun(metrics)
    unit = noun if metrics["groups"] is None else f"{metrics['groups']:,} groups of {noun}"
    rows = images_row(metrics)
    overall = make_table(
        {
            "": "left",
            "mean of labels": "right",
            "95% interval": "right",
            "all pairs": "right",
            " ": "right",
        },
        (
            [
                "average precision, AP" if name == "average_precision" else TITLES[name],
                *(
                    cell
                    for summary in SUMMARIES
                    for cell in (
                        _number(metrics[summary][name]["value"]),
                        _range(metrics[summary][name]["interval"]),
                    )
                ),
            ]
            for name in LABEL_METRICS
        ),
    )
    rows[worded("all labels of an image right", metrics.get("dims", 2))] = percent(metrics["exact_match"])
    rows["negative log-likelihood"] = _number(metrics["nll"], 4) + " a label"
    rows |= selective_rows(metrics)
    rows["intervals"] = f"bootstrap over {unit}"
    counts = ("present", "unknown")  # the others are absent
    ranked = make_table(
        {
            "label": "left",
            **dict.fromkeys(["AUROC", "95% interval", "AP", *counts], "right"),
        },
        (
            [
                row["name"],
                _number(row["auroc"]),
                _range(row["intervals"]["auroc"]),
                _number(row["average_precision"]),
                *(f"{row[name]:,}" for name in counts),
            ]
            for row in metrics["classes"]
        ),
    )
    at_threshold = ("threshold", "sensitivity", "specificity", "f1")
    headings = [*(TITLES.get(name, name) for name in at_threshold), "calibration error"]
    decided = make_table(
        {"label": "left", **dict.fromkeys(headings, "right")},
        (
            [row["name"], *(_number(row[name]) for name in at_threshold), percent(row["ece"])]
            for row in metrics["classes"]
        ),
    )
    return [
        properties_table(rows),
        overall,
        *(
            [fold_table(metrics["folds"], metrics["between_folds"], _FOLD_COLUMNS, noun=noun)]
            if "folds" in metrics
            else []
        ),
        ranked,
        decided,
        *note_tables(metrics),
    ]


def read_label_predictions(
    path: Path, classes: Sequence[str]
) -> tuple[list[str], NDArray[np.float32], NDArray[np.float64], NDArray[np.str_] | None]:
    """Read the predictions that `MultiLabelEvaluation.save` wrote.

    Args:
        path: A predictions.parquet.
        classes: The K labels, as in evaluation.json.

    Returns:
        Names of the images, their labels (N, K), logits of their probabilities (N, K), and groups (N,) or
        None.

    Raises:
        KeyError: If the table has other columns.
    """
    names, labels, probabilities, groups = read_column_predictions(path, classes)
    probabilities = np.clip(probabilities, _LEAST, _MOST)
    logits = np.log(probabilities) - np.log1p(-probabilities)
    return names, labels.astype(np.float32), logits, groups


def labels_by_name(
    labels: NDArray[np.float32], names: Sequence[str], classes: Sequence[str], data: str
) -> NDArray[np.float32]:
    """The labels of images in a classifier's order; those that the data does not give are unknown.

    Args:
        labels: (N, L) of the data.
        names: Their L names.
        classes: The classifier's K labels.
        data: For the message.

    Returns:
        (N, K).

    Raises:
        UserError: The data have labels that the classifier does not have, or none of its own.
    """
    position = {name: index for index, name in enumerate(classes)}
    if unknown := [name for name in names if name not in position]:
        raise UserError(
            f"{data} has labels that the classifier does not have: {listed(unknown)} (its labels: "
            f"{listed(classes)}); --label-columns names those that count"
        )
    found = np.full((len(labels), len(classes)), np.nan, np.float32)
    found[:, [position[name] for name in names]] = labels
    return found


def _range(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
