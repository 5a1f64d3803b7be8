"""What evaluations of all tasks share: what was evaluated, caveats, and how results are written.

Shapes: N images.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from skipnets import run_folder
from skipnets.axes import INPUTS, worded
from skipnets.evaluation.tables import write_table
from skipnets.files import atomic_path
from skipnets.tables import Display, properties_table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["SavedEvaluation", "images_row", "inputs_noun", "interval_or_none", "note_tables", "or_none"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedEvaluation(Display):
    """A model's predictions on a set of images, whatever its task.

    Attributes:
        classifier: The model's file, or the name of its architecture if it has none.
        data: The folder, manifest or named dataset that it was evaluated on.
        split: "train", "val", "test" or "all".
        names: The N images' names, as in splits.csv.
        failures: Name → reason, of the images that could not be read; no metric includes them.
        known: How many of the images the model's training used as "train", "val" and "test"; None if there is
            no record of it.
        runs_in: The model's runtime, device and precision.
        tta: The test-time augmentation.
        dims: Spatial axes of the model's input: 3 of volumes, 1 of signals.
    """

    classifier: str
    data: str
    split: str
    names: list[str]
    failures: dict[str, str]
    known: dict[str, int] | None
    runs_in: str = ""
    tta: str = "none"
    dims: int = 2

    @property
    def warnings(self) -> list[str]:
        """Caveats, one sentence each: here, what use in training and unreadable images mean for metrics."""
        caveats = []
        count = len(self.names) + len(self.failures)
        known = self.known or {}
        if trained_on := known.get("train"):
            caveats.append(
                f"{trained_on:,} of the {count:,} images were trained on: "
                "the metrics say nothing about new images"
            )
        if chosen_on := known.get("val"):
            caveats.append(
                f"{chosen_on:,} of the {count:,} images chose the best epoch: the metrics are optimistic"
            )
        if self.failures:
            caveats.append(
                f"{len(self.failures):,} of the {count:,} images could not be read and are not counted"
            )
        return [worded(caveat, self.dims) for caveat in caveats]

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

    @property
    def _title(self) -> str:
        """What a figure of the results is called."""
        data = Path(self.data).name or self.data
        return data if self.split == "all" else f"{data}, {self.split}"

    def _about(self) -> dict[str, Any]:
        """What `to_dict` of every task begins with."""
        return {
            "classifier": self.classifier,
            "runs_in": self.runs_in,
            "data": self.data,
            "split": self.split,
            "images": len(self.names),
            **({} if self.tta == "none" else {"tta": self.tta}),
            **({} if self.dims == 2 else {"dims": self.dims}),
        }

    def _doubts(self) -> dict[str, Any]:
        """What `to_dict` of every task ends with."""
        return {"failures": self.failures, "known": self.known, "warnings": self.warnings}


def or_none(value: float) -> float | None:
    """A metric for JSON: None where it is undefined."""
    return float(value) if math.isfinite(value) else None


def interval_or_none(interval: Iterable[float] | None) -> list[float] | None:
    """An interval for JSON: None where there is none, or it is undefined."""
    if interval is None:
        return None
    limits = [float(limit) for limit in interval]
    return limits if np.isfinite(limits).all() else None


def inputs_noun(metrics: Mapping[str, Any]) -> str:
    """What was evaluated is called, by the contents of evaluation.json: images, signals or volumes."""
    return INPUTS[metrics.get("dims", 2)]


def images_row(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The first rows of an evaluation's table: what was evaluated, and how."""
    return {
        inputs_noun(metrics): f"{metrics['images']:,} ({metrics['data']}, {metrics['split']})",
        **({"test-time augmentation": metrics["tta"]} if "tta" in metrics else {}),
    }


def note_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """A table for each caveat of an evaluation."""
    return [properties_table({"note": warning}) for warning in metrics["warnings"]]
