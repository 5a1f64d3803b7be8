"""The evaluation of a regression: its predictions on a set of images, and their metrics.

Shapes: N images, T targets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from skipnets import run_folder
from skipnets.errors import UserError, listed
from skipnets.evaluation.confusion import save_figure
from skipnets.evaluation.regression import RegressionMetrics
from skipnets.evaluation.saving import SavedEvaluation, or_none
from skipnets.evaluation.scatter import draw_scatter
from skipnets.tables import make_table, number_text, properties_table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["RegressionEvaluation", "numbers_by_name", "regression_tables"]

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


@dataclass(frozen=True, kw_only=True, eq=False)
class RegressionEvaluation(SavedEvaluation):
    """A regression's predictions on a set of images, and their metrics.

    Attributes:
        classifier: The model's file, or the name of its architecture if it has none.
        data: The manifest that it was evaluated on.
        split: "train", "val", "test" or "all".
        targets: The T targets' names.
        metrics: The metrics, in the targets' units.
        names: The N images' names, as in splits.csv.
        numbers: (N, T) what is right.
        predicted: (N, T) what was predicted.
        ordinal: Whether they are grades.
        groups: (N,) what was drawn as a whole for the intervals; None where there are no groups.
        failures: Name → reason, of the images that could not be read; no metric includes them.
        known: How many of the images the training used as "train", "val" and "test"; None if there is no
            record of it.
        caveats: What the data and their use in training leave in doubt, one sentence each.
        runs_in: The model's runtime, device and precision.
        tta: The test-time augmentation.
    """

    classifier: str
    data: str
    split: str
    targets: tuple[str, ...]
    metrics: RegressionMetrics
    names: list[str]
    numbers: NDArray[np.float64]
    predicted: NDArray[np.float64]
    ordinal: bool
    groups: NDArray[np.str_] | None
    failures: dict[str, str]
    known: dict[str, int] | None
    caveats: list[str]
    runs_in: str = ""
    tta: str = "none"

    @property
    def warnings(self) -> list[str]:
        """Caveats, one sentence each."""
        found = list(self.caveats)
        if self.metrics.groups == 1:
            found.append("all images are of one group: how much metrics vary among groups is not known")
        constant = [
            name
            for name, value in zip(self.targets, self.metrics.targets["r2"].tolist(), strict=True)
            if value != value
        ]
        if constant:
            found.append(f"R² of {listed(constant)} is undefined: all images have the same number")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The metrics as plain values for JSON; undefined ones are None."""
        metrics = self.metrics
        return {
            "task": "regression",
            "classifier": self.classifier,
            "runs_in": self.runs_in,
            "data": self.data,
            "split": self.split,
            "images": len(self.names),
            "groups": metrics.groups,
            "ordinal": self.ordinal,
            **({} if self.tta == "none" else {"tta": self.tta}),
            "targets": [
                {
                    "name": name,
                    **{each: or_none(values[index]) for each, values in metrics.targets.items()},
                    "intervals": {each: _listed(limits[index]) for each, limits in metrics.intervals.items()},
                    "lowest": float(self.numbers[:, index].min()),
                    "mean": float(self.numbers[:, index].mean()),
                    "highest": float(self.numbers[:, index].max()),
                }
                for index, name in enumerate(self.targets)
            ],
            "failures": self.failures,
            "known": self.known,
            "warnings": self.warnings,
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

        path, group, then for each target "y:NAME" (what is right) and "p:NAME" (what was predicted).
        """
        columns: dict[str, Any] = {"path": self.names}
        if self.groups is not None:
            columns["group"] = self.groups.tolist()
        for kind, values in (("y", self.numbers), ("p", self.predicted)):
            for index, name in enumerate(self.targets):
                columns[f"{kind}:{name}"] = np.ascontiguousarray(values[:, index])
        return columns

    def draw_scatter(self, path: str | os.PathLike[str]) -> None:
        """Draw predictions over the right numbers, and what is between them, as a PNG file."""
        data = Path(self.data).name or self.data
        title = data if self.split == "all" else f"{data}, {self.split}"
        save_figure(draw_scatter(self.numbers, self.predicted, self.targets, title=title), path)


def regression_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Tables of `RegressionEvaluation.to_dict()`: metrics of each target, and caveats."""
    unit = "images" if metrics["groups"] is None else f"{metrics['groups']:,} groups of images"
    rows = {
        "images": f"{metrics['images']:,} ({metrics['data']}, {metrics['split']})",
        **({"test-time augmentation": metrics["tta"]} if "tta" in metrics else {}),
        "intervals": f"95%, bootstrap over {unit}",
    }
    shown = [name for name in TITLES if name in metrics["targets"][0]]
    targets = make_table(
        {"target": "left", **dict.fromkeys([TITLES[name] for name in shown], "right"), "range": "right"},
        (
            [
                row["name"],
                *(with_interval(name, row[name], row["intervals"][name]) for name in shown),
                f"{number_text(row['lowest'])} to {number_text(row['highest'])}",
            ]
            for row in metrics["targets"]
        ),
    )
    return [
        properties_table(rows),
        targets,
        *(properties_table({"note": warning}) for warning in metrics["warnings"]),
    ]


def metric_text(name: str, value: float | None) -> str:
    """A metric's value as text: a share, R² with three digits, others in the target's units."""
    if value is None or value != value:
        return "–"
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:.3f}" if name == "r2" else f"{value:.4g}"


def with_interval(name: str, value: float | None, interval: Sequence[float] | None) -> str:
    """A metric's value with its interval."""
    if interval is None:
        return metric_text(name, value)
    low, high = (metric_text(name, limit) for limit in interval)
    return f"{metric_text(name, value)} ({low} to {high})"


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


def _listed(interval: NDArray[np.float64]) -> list[float] | None:
    return interval.tolist() if np.isfinite(interval).all() else None
