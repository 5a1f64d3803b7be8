"""Write an evaluation: its metrics as JSON, its predictions as a table."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Literal

from skipnets import run_folder
from skipnets.evaluation.tables import write_table
from skipnets.files import atomic_path
from skipnets.tables import Display

__all__ = ["SavedEvaluation", "or_none"]


class SavedEvaluation(Display):
    """An evaluation that can be written: metrics as plain values, and predictions as columns."""

    def to_dict(self) -> dict[str, Any]:
        """The metrics as plain values for JSON; undefined ones are None."""
        raise NotImplementedError

    def prediction_columns(self) -> dict[str, Any]:
        """The columns of `write_predictions`, name → N values."""
        raise NotImplementedError

    def save(self, folder: str | os.PathLike[str], *, table: Literal["parquet", "csv"] = "parquet") -> None:
        """Write evaluation.json, and predictions.parquet or predictions.csv.

        Args:
            folder: Created if it does not exist; files of these names are replaced.
            table: The format of the predictions.

        Raises:
            UserError: If they cannot be written.
        """
        folder = Path(folder)
        self.write_predictions((folder / run_folder.PREDICTIONS).with_suffix(f".{table}"))
        with atomic_path(folder / run_folder.EVALUATION) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", "utf-8")

    def write_predictions(self, path: str | os.PathLike[str]) -> None:
        """Write `prediction_columns` as a table with one row an image.

        Args:
            path: Ends in .parquet, .csv or .jsonl.

        Raises:
            UserError: If it cannot be written.
        """
        write_table(path, self.prediction_columns())


def or_none(value: float) -> float | None:
    """A metric for JSON: None where it is undefined."""
    return float(value) if math.isfinite(value) else None
