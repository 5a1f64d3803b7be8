"""What an evaluation of several labels writes, reads and shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from skipnets.errors import UserError
from skipnets.evaluation.multi_label import measure_labels
from skipnets.evaluation.multi_label_evaluation import (
    MultiLabelEvaluation,
    labels_by_name,
    read_label_predictions,
)
from skipnets.tables import as_text

NAN = float("nan")
CLASSES = ("cat", "dog", "none")


@pytest.fixture
def evaluation() -> MultiLabelEvaluation:
    generator = np.random.default_rng(0)
    labels = (generator.random((30, 3)) < 0.4).astype(np.float32)
    labels[:, 2] = 0
    labels[0, 0] = NAN
    logits = (labels.copy() + generator.normal(size=labels.shape)).astype(np.float32)
    logits[0, 0] = 0.5
    groups = np.array([f"p{index // 2}" for index in range(30)])
    return MultiLabelEvaluation(
        classifier="model",
        data="pets",
        split="test",
        classes=CLASSES,
        thresholds=(0.5, 0.25, 0.5),
        metrics=measure_labels(logits, labels, (0.5, 0.25, 0.5), groups=groups, resamples=50),
        names=[f"{index}.png" for index in range(30)],
        labels=labels,
        logits=logits,
        temperature=1.0,
        groups=groups,
        failures={"broken.png": "cut short"},
        known={"train": 3, "val": 0, "test": 27},
    )


def test_files_hold_metrics_and_predictions(evaluation: MultiLabelEvaluation, tmp_path: Path) -> None:
    evaluation.save(tmp_path)
    told = json.loads((tmp_path / "evaluation.json").read_text())
    assert told["task"] == "multi-label"
    assert told["groups"] == 15
    assert told["macro"]["auroc"]["value"] == pytest.approx(evaluation.metrics.macro["auroc"])
    cat, _, none = told["classes"]
    assert (cat["threshold"], cat["unknown"]) == (0.5, 1)
    assert cat["intervals"]["auroc"] == pytest.approx(evaluation.metrics.intervals["auroc"][0])
    assert none["auroc"] is None
    names, labels, logits, groups = read_label_predictions(tmp_path / "predictions.parquet", CLASSES)
    assert names == evaluation.names
    np.testing.assert_array_equal(labels, evaluation.labels)
    np.testing.assert_allclose(logits, evaluation.logits, rtol=1e-5)
    assert groups is not None
    assert groups.tolist() == evaluation.groups.tolist()  # type: ignore[union-attr]


def test_tables_show_every_label_and_what_is_in_doubt(evaluation: MultiLabelEvaluation) -> None:
    text = as_text(evaluation.tables())
    assert "bootstrap over 15 groups of images" in text
    areas = evaluation.metrics.labels["auroc"][1]
    low, high = evaluation.metrics.intervals["auroc"][1]
    assert f" {areas:.3f}  {low:.3f} to {high:.3f}  " in text
    [row] = [line.split() for line in text.splitlines() if line.startswith("dog ") and "%" in line]
    assert row[-1] == f"{evaluation.metrics.ece[1]:.2%}"
    assert "3 of the 31 images were trained on" in " ".join(text.split())
    assert "1 of the 31 images could not be read" in " ".join(text.split())
    assert "known to have none: AUROC and average precision are undefined" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_labels_are_matched_by_name_and_those_not_told_are_unknown() -> None:
    labels = np.array([[1, 0]], np.float32)
    np.testing.assert_array_equal(labels_by_name(labels, ("dog", "cat"), CLASSES, "pets"), [[0, 1, NAN]])
    with pytest.raises(UserError, match="pets has labels that the classifier does not have: cow"):
        labels_by_name(labels, ("dog", "cow"), CLASSES, "pets")
