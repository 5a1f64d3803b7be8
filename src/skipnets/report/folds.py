"""The part of a report that only a run with folds has.

Shapes: N images.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet
from markupsafe import Markup

from skipnets import run_folder
from skipnets.axes import worded
from skipnets.classifier import Classifier, load
from skipnets.evaluation.display import headline
from skipnets.evaluation.regression_evaluation import TITLES, metric_text
from skipnets.report import charts
from skipnets.training.run import Run

__all__ = ["FoldClassifiers", "fold_section"]

# Metric → title, and the name of the page's number format; the first is shown with its interval.
_COLUMNS = {
    "accuracy": ("Accuracy", "share"),
    "balanced_accuracy": ("Balanced accuracy", "share"),
    "macro_f1": ("Macro F1", "number"),
    "macro_auroc": ("Macro AUROC", "area"),
    "nll": ("NLL", "number"),
}
_LABEL_COLUMNS = {
    "auroc": ("Mean AUROC", "area"),
    "average_precision": ("Mean average precision", "number"),
    "f1": ("Mean F1", "number"),
    "sensitivity": ("Mean sensitivity", "share"),
    "specificity": ("Mean specificity", "share"),
    "nll": ("NLL", "number"),
}


_LEARNING = {
    "single-label": "Validation accuracy",
    "multi-label": "Mean average precision on validation images",
    "regression": "Mean absolute error on validation images",
}
_TARGETS = 6  # with a column


class FoldClassifiers:
    """The classifier that predicted each image.

    Args:
        run: A run with folds.
        device: Device that they run on.
    """

    def __init__(self, run: Run, device: str) -> None:
        self._run = run
        self._fold_of = pyarrow.parquet.read_table(
            run.folder / run_folder.PREDICTIONS, columns=["fold"]
        ).to_pydict()["fold"]
        self._open = cache(lambda fold: load(run.fold(fold).model, runtime="torch", device=device))

    def __call__(self, index: int) -> Classifier:
        """The classifier of the image at this row of the predictions."""
        return self._open(self._fold_of[index])


def fold_section(run: Run, evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """What the page says of the folds and their ensemble; None for a run without."""
    if "folds" not in evaluation:
        return None
    task = evaluation.get("task", "single-label")
    if task == "regression":
        columns, folds, spread = _of_targets(evaluation)
    else:
        columns = _LABEL_COLUMNS if task == "multi-label" else _COLUMNS
        folds, spread = evaluation["folds"], evaluation["between_folds"]
    first = next(iter(columns))

    def cells(values: Mapping[str, Any]) -> list[tuple[Any, str]]:
        return [
            (metric_text(name, values[name]), form) if form == "text" else (values[name], form)
            for name, (_, form) in columns.items()
        ]

    return {
        "titles": [title[0].upper() + title[1:] for title, _ in columns.values()],
        "interval_of": _within_a_line(columns[first][0]),
        "averaged": "numbers" if task == "regression" else "probabilities",
        "rows": [
            {
                "name": str(row["fold"]),
                "images": row["images"],
                "best_epoch": row["best_epoch"],
                "value": row[first],
                "interval": _interval(run.fold(row["fold"])),
                "cells": cells(row),
            }
            for row in folds
        ],
        "summary": [
            {"name": title, "cells": cells({name: spread[name][key] for name in columns})}
            for title, key in (("Mean", "mean"), ("SD", "std"))
        ],
        "learning_title": worded(_LEARNING[task], evaluation.get("dims", 2)),
        "learning": Markup(  # noqa: S704 - drawn here, from numbers alone
            charts.draw_fold_learning([fold.rows for fold in run.folds])
        ),
        "test": _test(run.folder / run_folder.TEST),
        "count": len(folds),
    }


def _within_a_line(title: str) -> str:
    """A column's title as words in a line: "mean AUROC" of "Mean AUROC", but R²."""
    return title if title.startswith("R²") else title[0].lower() + title[1:]


def _of_targets(
    evaluation: Mapping[str, Any],
) -> tuple[dict[str, tuple[str, str]], list[dict[str, Any]], Mapping[str, Mapping[str, float | None]]]:
    """Columns, rows and spread of a regression: all metrics of one target, or R² of each of several."""
    targets, between = evaluation["targets"], evaluation["between_folds"]
    several = len(targets) > 1
    if not several:
        names = [name for name in TITLES if name in between[0]]
        columns = {
            name: (TITLES[name], "number" if name == "r2" else "text")
            for name in sorted(names, key=lambda name: name != "r2")
        }
        rows = [{**fold, **fold["targets"][0]} for fold in evaluation["folds"]]
        return columns, rows, between[0]
    shown = list(enumerate(targets))[:_TARGETS]
    columns = {f"r2 {index}": (f"R² of {target['name']}", "number") for index, target in shown}
    rows = [
        {**fold, **{f"r2 {index}": fold["targets"][index]["r2"] for index, _ in shown}}
        for fold in evaluation["folds"]
    ]
    return columns, rows, {f"r2 {index}": between[index]["r2"] for index, _ in shown}


def _interval(fold: Run) -> list[float] | None:
    """The 95% interval of a fold's first metric, by its own evaluation."""
    scores = fold.scores
    if "accuracy_interval" in scores:
        return list(scores["accuracy_interval"])
    if scores.get("task") == "regression":
        of_target: list[float] | None = scores["targets"][0]["intervals"]["r2"]
        return of_target
    interval: list[float] | None = scores["macro"]["auroc"]["interval"]
    return interval


def _test(folder: Path) -> dict[str, Any] | None:
    """What the ensemble reached on the test split; None without one."""
    if not (folder / run_folder.EVALUATION).is_file():
        return None
    test = run_folder.read_evaluation(folder)
    return {"images": test["images"], "headline": headline(test)}
