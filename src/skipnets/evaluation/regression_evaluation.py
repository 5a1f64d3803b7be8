"""The evaluation of a regression: its predictions on a set of images, and their metrics.

Shapes: N images, T targets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from skipnets import run_folder
from skipnets.axes import INPUTS
from skipnets.errors import UserError, listed
from skipnets.evaluation.confusion import save_figure
from skipnets.evaluation.fold_table import fold_table
from skipnets.evaluation.predictions import read_column_predictions
from skipnets.evaluation.regression import RegressionMetrics
from skipnets.evaluation.saving import (
    SavedEvaluation,
    images_row,
    inputs_noun,
    interval_or_none,
    note_tables,
    or_none,
)
from skipnets.evaluation.scatter import draw_scatter
from skipnets.evaluation.selective import Selective, selective_rows
from skipnets.tables import make_table, number_text, properties_table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["RegressionEvaluation", "numbers_by_name", "read_number_predictions", "regression_tables"]

TITLES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "bias": "bias",
    "exact": "exact",
    "within_one": "within 1",
}
SHARES = ("exact", "within_one")
"""Metrics that are shares of the images."""
_TARGETS_BY_FOLD = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class RegressionEvaluation(SavedEvaluation):
    """A regression's predictions on a set of images, and their metrics.

    Attributes:
        targets: The T targets' names.
        metrics: The metrics, in the targets' units.
        numbers: (N, T) what is right; NaN where it is not known.
        predicted: (N, T) what was predicted.
        ordinal: Whether they are grades.
        groups: (N,) what was drawn as a whole for the intervals; None where there are no groups.
        selective: Prediction intervals and rejected images; None if none was asked for.
    """

    targets: tuple[str, ...]
    metrics: RegressionMetrics
    numbers: NDArray[np.float64]
    predicted: NDArray[np.float64]
    ordinal: bool
    groups: NDArray[np.str_] | None
    selective: Selective | None = None

    @property
    def warnings(self) -> list[str]:
        """Caveats, one sentence each."""
        found, kind = super().warnings, INPUTS[self.dims]
        if self.metrics.groups == 1:
            found.append(f"all {kind} are of one group: how much metrics vary among groups is not known")
        of_targets = list(zip(self.targets, self.metrics.known, self.metrics.targets["r2"], strict=True))
        if constant := [name for name, known, r2 in of_targets if known and np.isnan(r2)]:
            found.append(f"R² of {listed(constant)} is undefined: all {kind} have the same number")
        if unknown := [name for name, known, _ in of_targets if not known]:
            found.append(
                f"no {kind.removesuffix('s')} has a number for {listed(unknown)}: all of its metrics are "
                "undefined"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """The metrics as plain values for JSON; undefined ones are None."""
        metrics = self.metrics
        return {
            "task": "regression",
            **self._about(),
            "groups": metrics.groups,
            "ordinal": self.ordinal,
            "targets": [
                {
                    "name": name,
                    "images": int(metrics.known[index]),
                    **{each: or_none(values[index]) for each, values in metrics.targets.items()},
                    "intervals": {
                        each: interval_or_none(limits[index]) for each, limits in metrics.intervals.items()
                    },
                    **_range(self.numbers[:, index]),
                }
                for index, name in enumerate(self.targets)
            ],
            **(
                {}
                if self.selective is None
                else self.selective.measure_numbers(self.numbers, self.predicted, self.targets, self.groups)
            ),
            **self._doubts(),
        }

    def tables(self) -> list[Table]:
        """Tables that `print` and notebooks show."""
        return regression_tables(self.to_dict())

    def save(self, folder: str | os.PathLike[str], *, table: Literal["parquet", "csv"] = "parquet") -> None:
        """Write evaluation.json, scatter.png, and predictions.parquet or predictions.csv.

        Args:
            folder: Created if it does not exist; files of these names are replaced.
            table: The format of the predictions.

        Raises:
            UserError: If they cannot be written.
        """
        super().save(folder, table=table)
        self.draw_scatter(Path(folder) / run_folder.SCATTER)

    def prediction_columns(self) -> dict[str, Any]:
        """The columns of `write_predictions`, name → N values.

        path, group, then for each target "y:NAME" (what is right, or None) and "p:NAME" (what was predicted).
        """
        columns: dict[str, Any] = {"path": self.names}
        if self.groups is not None:
            columns["group"] = self.groups.tolist()
        for name, values in zip(self.targets, self.numbers.T, strict=True):
            columns[f"y:{name}"] = [None if value != value else value for value in values.tolist()]
        for name, values in zip(self.targets, self.predicted.T, strict=True):
            columns[f"p:{name}"] = np.ascontiguousarray(values)
        return columns | ({} if self.selective is None else self.selective.columns(self.targets))

    def draw_scatter(self, path: str | os.PathLike[str]) -> None:
        """Draw predictions over the right numbers, and what is between them, as a PNG file."""
        save_figure(draw_scatter(self.numbers, self.predicted, self.targets, title=self._title), path)


def regression_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Tables of `RegressionEvaluation.to_dict()`: metrics of each target, and caveats."""
    noun = inputs_noun(metrics)
    unit = noun if metrics["groups"] is None else f"{metrics['groups']:,} groups of {noun}"
    rows = {
        **images_row(metrics),
        **selective_rows(metrics),
        "intervals": f"95%, bootstrap over {unit}",
    }
    some_unknown = any(row["images"] < metrics["images"] for row in metrics["targets"])
    cells = [
        [row["name"] if index == 0 else "", *each]
        for row in metrics["targets"]
        for index, each in enumerate(_metric_cells(row, counted=noun if some_unknown else None))
    ]
    targets = make_table(
        {"target": "left", "metric": "left", "value": "right", "95% interval": "right"}, cells
    )
    return [
        properties_table(rows),
        *(_fold_tables(metrics) if "folds" in metrics else []),
        targets,
        *note_tables(metrics),
    ]


def _metric_cells(row: Mapping[str, Any], *, counted: str | None) -> list[list[str]]:
    """For each metric of a target its title, value and interval; then the range of its true values.

    Args:
        row: Of a target.
        counted: What is counted, such as "images"; None counts nothing.
    """
    cells = []
    for name, title in TITLES.items():
        if name in row:
            interval = row["intervals"][name]
            limits = "–" if interval is None else " to ".join(metric_text(name, end) for end in interval)
            cells.append([title, metric_text(name, row[name]), limits])
    low, high = row["lowest"], row["highest"]
    cells.append(["true values", "–" if low is None else f"{number_text(low)} to {number_text(high)}", ""])
    return [*cells, [counted, f"{row['images']:,}", ""]] if counted else cells


def _fold_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """For each of the first targets, its metrics in each fold."""
    tables = []
    for index, (row, spread) in enumerate(zip(metrics["targets"], metrics["between_folds"], strict=True)):
        folds = [
            {**fold["targets"][index], "fold": fold["fold"], "best_epoch": fold["best_epoch"]}
            for fold in metrics["folds"]
        ]
        columns = {name: (TITLES[name], partial(metric_text, name)) for name in TITLES if name in spread}
        heading = "fold" if len(metrics["targets"]) == 1 else f"{row['name']}: fold"
        tables.append(fold_table(folds, spread, columns, heading=heading, noun=inputs_noun(metrics)))
    return tables[:_TARGETS_BY_FOLD]


def metric_text(name: str, value: float | None) -> str:
    """A metric's value as text: a share, R² with three digits, others in the target's units."""
    if value is None or value != value:
        return "–"
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:.3f}" if name == "r2" else f"{value:.4g}"


def read_number_predictions(
    path: Path, targets: Sequence[str]
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64], NDArray[np.str_] | None]:
    """Read the predictions that `RegressionEvaluation.save` wrote.

    Args:
        path: A predictions.parquet.
        targets: The T targets, as in evaluation.json.

    Returns:
        Names of the images, what is right (N, T) with NaN where it is not known, what was predicted (N, T),
        and groups (N,) or None.

    Raises:
        KeyError: If the table has other columns.
        ValueError: If there are numbers that are not finite.
    """
    names, numbers, predicted, groups = read_column_predictions(path, targets)
    if np.isinf(numbers).any() or not np.isfinite(predicted).all():
        raise ValueError("there are numbers that are not finite")
    return names, numbers, predicted, groups


def numbers_by_name(
    numbers: NDArray[np.float64], names: Sequence[str], targets: Sequence[str], data: str
) -> NDArray[np.float64]:
    """(N, T) the numbers of images in a model's order.

    Args:
        numbers: (N, L) of the data.
        names: Their L names.
        targets: The model's T targets.
        data: For the message.

    Raises:
        UserError: The data lack one of the targets.
    """
    if lacking := [name for name in targets if name not in names]:
        raise UserError(
            f"{data} has no numbers for {listed(lacking)}; its targets are {listed(names)} (--targets names "
            "its columns)"
        )
    return numbers[:, [list(names).index(name) for name in targets]]


def _range(numbers: NDArray[np.float64]) -> dict[str, float | None]:
    """The lowest, the mean and the highest of the known numbers."""
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return {"lowest": None, "mean": None, "highest": None}
    return {"lowest": float(known.min()), "mean": float(known.mean()), "highest": float(known.max())}
