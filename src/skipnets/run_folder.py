"""File names in a run folder, and readers of files that several packages need."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from skipnets.errors import UserError

CONFIG = "run.yaml"
ENVIRONMENT = "environment.json"
SPLITS = "splits.csv"
MODEL = "model.safetensors"
CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
METRICS = "metrics.csv"
SKIPPED = "skipped.csv"
TENSORBOARD = "tensorboard"
CURVES = "curves.png"
BATCHES = "batches.png"
RATES = "learning_rates.png"
CONFUSION = "confusion.png"
EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.parquet"
REPORT = "report.html"
FOLD = "fold-{number}"  # a run folder, in that of a run with folds
TEST = "test"  # the evaluation of a run with folds on its test split


def read_evaluation(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the metrics that `Evaluation.save` wrote to a folder.

    Raises:
        OSError: If the file cannot be read.
        UserError: If the file is damaged.
    """
    path = Path(folder) / EVALUATION
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(metrics, dict):
        raise UserError(f"{path}: must be a JSON object")
    if "pictures" in metrics:  # version 0.1's key
        metrics["images"] = metrics.pop("pictures")
    return metrics
