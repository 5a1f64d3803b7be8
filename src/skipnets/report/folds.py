"""The part of a report that only a run with folds has.

Shapes: N images.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet
from markupsafe import Markup

from skipnets import run_folder
from skipnets.classifier import Classifier, load
from skipnets.evaluation.display import headline
from skipnets.evaluation.intervals import wilson_interval
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
    several = evaluation.get("task") == "multi-label"
    columns = _LABEL_COLUMNS if several else _COLUMNS
    spread = evaluation["between_folds"]
    return {
        "titles": [title for title, _ in columns.values()],
        "rows": [
            {
                "name": str(row["fold"]),
                "images": row["images"],
                "best_epoch": row["best_epoch"],
                "value": row["auroc" if several else "accuracy"],
                "interval": _interval(run.fold(row["fold"]), row),
                "cells": [(row[name], form) for name, (_, form) in columns.items()],
            }
            for row in evaluation["folds"]
        ],
        "summary": [
            {"name": title, "cells": [(spread[name][key], form) for name, (_, form) in columns.items()]}
            for title, key in (("Mean", "mean"), ("SD", "std"))
        ],
        "learning_title": "Mean average precision on validation images" if several else "Validation accuracy",
        "learning": Markup(  # noqa: S704 - drawn here, from numbers alone
            charts.draw_fold_learning([fold.rows for fold in run.folds])
        ),
        "test": _test(run.folder / run_folder.TEST),
        "count": len(evaluation["folds"]),
    }


def _interval(fold: Run, row: dict[str, Any]) -> list[float] | tuple[float, float] | None:
    """The 95% interval of a fold's first metric; of several labels, that of its own evaluation."""
    if "accuracy" in row:
        return wilson_interval(round(row["accuracy"] * row["images"]), row["images"])
    interval: list[float] | None = fold.scores["macro"]["auroc"]["interval"]
    return interval


def _test(folder: Path) -> dict[str, Any] | None:
    """What the ensemble reached on the test split; None without one."""
    if not (folder / run_folder.EVALUATION).is_file():
        return None
    test = run_folder.read_evaluation(folder)
    return {"images": test["images"], "headline": headline(test)}
