"""File names in a run folder, and readers of files that several packages need."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from skipnets.errors import UserError, one_line

CONFIG = "run.yaml"
ENVIRONMENT = "environment.json"
SPLITS = "splits.csv"
MODEL = "model.safetensors"
CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
PREVIOUS_CHECKPOINT = "previous.ckpt"
LOCK = ".lock"
METRICS = "metrics.csv"
SKIPPED = "skipped.csv"
TENSORBOARD = "tensorboard"
CURVES = "curves.png"
BATCHES = "batches.png"
RATES = "learning_rates.png"
CONFUSION = "confusion.png"
SCATTER = "scatter.png"  # of a regression
EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.parquet"
REPORT = "report.html"
FOLD = "fold-{number}"  # a run folder, in that of a run with folds
TUNING = "base.yaml"  # of a tuning: the configuration that every trial changes
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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(metrics, dict):
        raise UserError(f"{path}: must be a JSON object")
    if "pictures" in metrics:  # version 0.1's key
        metrics["images"] = metrics.pop("pictures")
    return metrics


def fingerprint(path: Path) -> dict[str, Any]:
    """The number of lines of a file and its hash, for `check_splits`.

    Raises:
        OSError: If it cannot be read.
    """
    content = path.read_bytes()
    return {"lines": content.count(b"\n"), "blake2b": hashlib.blake2b(content, digest_size=16).hexdigest()}


def check_splits(folder: str | os.PathLike[str]) -> None:
    """Check that a run's splits.csv is as training wrote it; runs of version 0.1 do not say how it was.

    Raises:
        UserError: If it was cut short or changed, or environment.json is damaged.
    """
    path, environment = Path(folder) / SPLITS, Path(folder) / ENVIRONMENT
    try:
        known = json.loads(environment.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{environment}: damaged ({one_line(error)})") from error
    files = known.get("files", {}) if isinstance(known, dict) else None
    wanted = files.get(SPLITS) if isinstance(files, dict) else ""
    if files is not None and wanted is None:
        return
    if not isinstance(wanted, dict) or not isinstance(wanted.get("lines"), int):
        raise UserError(f"{environment}: damaged (files is {str(files)[:60]!r})")
    try:
        found = fingerprint(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if found != wanted:
        raise UserError(
            f"{path}: has {found['lines']:,} lines and is not the file of {wanted['lines']:,} lines that "
            "training wrote; it was cut short or changed"
        )
