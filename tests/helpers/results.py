"""Answers of a classifier that was never run, as `skipnets evaluate --output` writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skipnets.evaluation.evaluating import Evaluation
from skipnets.evaluation.metrics import measure
from skipnets.report.results import Results

CLASSES = ("a", "b", "c")


def write_results(
    folder: Path,
    logits: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    classes: tuple[str, ...] = CLASSES,
    names: list[str] | None = None,
    split: str = "test",
    data: str = "pets",
    temperature: float = 1.0,
    dims: int = 2,
    groups: NDArray[np.str_] | None = None,
) -> Path:
    """What `skipnets evaluate --output` writes, but for the image of the confusion matrix."""
    written = logits.astype(np.float32)
    evaluation = Evaluation(
        classifier="c",
        data=data,
        split=split,
        classes=classes,
        metrics=measure(written, labels, temperature=temperature, groups=groups),
        names=names or [f"{index:05}.png" for index in range(len(labels))],
        labels=labels,
        logits=written,
        temperature=temperature,
        failures={},
        known=None,
        dims=dims,
        groups=groups,
    )
    evaluation.write_predictions(folder / "predictions.parquet")
    (folder / "evaluation.json").write_text(json.dumps(evaluation.to_dict()))
    return folder


def make_predictions(
    seed: int, count: int, strength: float, labels: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(N, 3) random logits that know the labels that much, and the (N,) labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count) if labels is None else labels
    return rng.normal(size=(count, 3)) + strength * np.eye(3)[labels], labels


def results_of(count: int, classes: int) -> Results:
    """Random answers to so many images."""
    rng = np.random.default_rng(0)
    return Results(
        folder=Path(),
        evaluation={},
        classes=tuple(map(str, range(classes))),
        names=[str(index) for index in range(count)],
        labels=rng.integers(0, classes, count),
        logits=rng.normal(size=(count, classes)),
        temperature=1.0,
    )
